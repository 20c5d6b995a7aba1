"""What a study found: recipes under the same repeated patient folds, each less a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from lobule.errors import DataError
from lobule.evaluation.compare import is_better
from lobule.evaluation.intervals import FloatArray, Interval, patient_bootstrap
from lobule.evaluation.metrics import score_metrics
from lobule.evaluation.predictions import Level, Predictions, at_level

SCHEMA = "lobule.study/1"

LEVELS: tuple[Level, ...] = ("image", "patient")

FIGURES = ("roc_auc", "brier", "ece")


@dataclass(frozen=True)
class Finding:
    """One figure of one recipe at one level: the mean over the seeds of the split.

    by_seed: the figure under each seed. difference: from the baseline, on the same redrawn patients
    and the same folds; None of the baseline itself.
    """

    recipe: str
    level: Level
    figure: str
    value: Interval
    by_seed: tuple[float, ...]
    difference: Interval | None

    @property
    def told(self) -> str:
        """Return "better", "worse" or "not told apart" from the baseline; "" of the baseline."""
        if self.difference is None:
            return ""
        better = is_better(self.figure, self.difference)
        return "not told apart" if better is None else "better" if better else "worse"


@dataclass(frozen=True)
class Study:
    """All recipes of a study; `recipes` holds the settings of each by its name."""

    classes: tuple[str, ...]
    n_images: int
    n_patients: int
    patients_known: bool
    data_hash: str
    folds: int
    seeds: tuple[int, ...]
    baseline: str
    recipes: dict[str, dict[str, Any]]
    findings: tuple[Finding, ...]

    def of(self, level: Level, figure: str) -> list[Finding]:
        """Return the findings of one figure at one level, in the order of the recipes."""
        return [f for f in self.findings if (f.level, f.figure) == (level, figure)]

    def to_json(self) -> dict[str, Any]:
        """Return plain types with a schema; undefined figures are None with a reason."""
        findings = [
            {
                **vars(f),
                "value": f.value.to_json(),
                "by_seed": [None if np.isnan(v) else v for v in f.by_seed],
                "difference": None if f.difference is None else f.difference.to_json(),
            }
            for f in self.findings
        ]
        lists = {"classes": list(self.classes), "seeds": list(self.seeds)}
        return {"schema": SCHEMA, **vars(self), **lists, "findings": findings}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Study:
        """Rebuild from `to_json`; raises DataError for another schema or a missing field."""
        if record.get("schema") != SCHEMA:
            raise DataError(f"not a study: schema {record.get('schema')!r}, not {SCHEMA!r}")
        try:
            fields = {key: record[key] for key in cls.__dataclass_fields__}
            fields |= {key: tuple(record[key]) for key in ("classes", "seeds")}
            fields["findings"] = tuple(
                Finding(
                    **{
                        **f,
                        "value": Interval.from_json(f["value"]),
                        "by_seed": tuple(np.nan if v is None else float(v) for v in f["by_seed"]),
                        "difference": f["difference"] and Interval.from_json(f["difference"]),
                    }
                )
                for f in record["findings"]
            )
            return cls(**fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"study cannot be read: {error!r}") from error


def findings(
    predictions: Mapping[str, Sequence[Predictions]],
    baseline: str,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[Finding, ...]:
    """Return every figure of every recipe, and its difference from the baseline.

    predictions: by recipe, out-of-fold, one table a seed of the split, the same seeds and rows for
    all. Redrawing patients moves all seeds at once: they are the same patients, and as many seeds
    as one likes do not make them more.
    """
    found = []
    for level in LEVELS:
        units = {
            name: [at_level(table, level) for table in tables]
            for name, tables in predictions.items()
        }
        base = units[baseline]
        for name, tables in units.items():
            statistic = partial(_beside, tables, None if name == baseline else base)
            told = patient_bootstrap(statistic, base[0].groups, draws=draws, seed=seed)
            ones = np.ones(len(base[0]))
            single = [_means([table], ones) for table in tables]
            found += [
                Finding(
                    name, level, figure, told[figure],
                    tuple(float(values[figure]) for values in single), told.get(f"less {figure}"),
                )
                for figure in FIGURES
            ]  # fmt: skip
    return tuple(found)


def _beside(
    tables: Sequence[Predictions], base: Sequence[Predictions] | None, weight: FloatArray
) -> dict[str, FloatArray]:
    """Return each figure and, unless these are the baseline's tables, how much it is above it."""
    values = _means(tables, weight)
    if base is None:
        return values
    less = _means(base, weight)
    return values | {f"less {figure}": values[figure] - less[figure] for figure in FIGURES}


def _means(tables: Sequence[Predictions], weight: FloatArray) -> dict[str, FloatArray]:
    """Return each figure, (...), as its mean over the tables."""
    values = [score_metrics(t.y, t.probabilities(), weight) for t in tables]
    return {figure: np.mean([v[figure] for v in values], axis=0) for figure in FIGURES}
