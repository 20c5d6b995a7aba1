"""What is left of a model when photographs are damaged as between one laboratory and another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lobule.data.damage import DAMAGES, Damage
from lobule.data.manifest import Manifest, class_indices
from lobule.errors import DataError
from lobule.evaluation.evaluate import DRAWS
from lobule.evaluation.intervals import (
    FloatArray,
    Interval,
    Statistic,
    paired,
    patient_bootstrap,
)
from lobule.evaluation.metrics import confusion, decision_metrics, roc_auc
from lobule.evaluation.predictions import Level, Predictions, at_level, decide, threshold_of
from lobule.inference.predictor import open_extractor, predict_with
from lobule.models.bundle import Model
from lobule.progress import Progress, no_progress

SCHEMA = "lobule.stress/1"

STRESSED: tuple[Level, ...] = ("image", "patient")
"""Levels that figures are given for."""


@dataclass(frozen=True)
class Harm:
    """One figure of the damaged images, and what the damage costs.

    severity: in `unit`, one of the damage's levels; moderate: whether it is the one so called.
    level: what a unit is. figure: "roc_auc" or "accuracy". value: of the damaged images.
    difference: that less the figure of the undamaged ones, on the same redrawn patients.
    """

    damage: str
    unit: str
    severity: float
    moderate: bool
    level: Level
    figure: str
    value: Interval
    difference: Interval


@dataclass(frozen=True)
class Stress:
    """Figures of a model on undamaged and on damaged images of the same patients.

    model: its identity. undamaged: figures by level, then by name. rows: a damage after the other,
    each by rising severity.
    """

    classes: tuple[str, ...]
    model: str
    n_images: int
    n_patients: int
    patients_known: bool
    undamaged: dict[Level, dict[str, Interval]]
    rows: tuple[Harm, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain types with a schema; undefined figures are None with a reason."""
        return {
            "schema": SCHEMA,
            **vars(self),
            "classes": list(self.classes),
            "undamaged": {
                level: {name: value.to_json() for name, value in figures.items()}
                for level, figures in self.undamaged.items()
            },
            "rows": [
                {
                    **vars(row),
                    "value": row.value.to_json(),
                    "difference": row.difference.to_json(),
                }
                for row in self.rows
            ],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Stress:
        """Rebuild from `to_json`; raises DataError for another schema or a missing field."""
        if record.get("schema") != SCHEMA:
            raise DataError(f"not a stress record: schema {record.get('schema')!r}, not {SCHEMA!r}")
        try:
            fields = {key: record[key] for key in cls.__dataclass_fields__}
            fields["classes"] = tuple(record["classes"])
            fields["undamaged"] = {
                level: {name: Interval.from_json(value) for name, value in figures.items()}
                for level, figures in record["undamaged"].items()
            }
            fields["rows"] = tuple(_harm(row) for row in record["rows"])
            return cls(**fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"stress record cannot be read: {error!r}") from error


def _harm(row: Mapping[str, Any]) -> Harm:
    intervals = {key: Interval.from_json(row[key]) for key in ("value", "difference")}
    return Harm(**{**row, **intervals})


def stress(
    model: Model,
    manifest: Manifest,
    *,
    damages: Sequence[Damage] | None = None,
    cache: Path | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Stress:
    """Predict labelled images undamaged and under every damage at each of its severities.

    manifest: images of patients that the model has not seen; rows without a label are left out.
    Damages are done to the decoded image, before it is resized. damages: unless told all of
    DAMAGES. cache: features of the undamaged images are kept there; those of damaged ones nowhere.
    draws, seed: of the patient bootstrap. Decisions are taken at the operating point of the level,
    or at 0.5 where there is none. Takes 1 + the number of severities times what `predict` takes.
    Raises DataError if no image is labelled or one has a class that the model does not know,
    ImageError if one cannot be read.
    """
    labelled = manifest.where(manifest.table["label"].notna())
    if len(labelled) == 0:
        raise DataError(
            f"none of {len(manifest)} image(s) has a label, so no figure can be had of them",
            fix="file the images in a folder for each class, or name a manifest with labels",
        )
    # a class that is not known is told now, rather than after all the work
    class_indices(labelled.table["label"], model.info.classes)
    extractor = open_extractor(model, labelled, cache=cache)
    before = predict_with(model, extractor, labelled, cache=cache, progress=progress)
    chosen = DAMAGES.values() if damages is None else damages
    settings = [(damage, severity) for damage in chosen for severity in damage.levels]
    rows: list[Harm] = []
    for damage, severity in progress(settings, total=len(settings), task="damaging images"):
        damaging = replace(extractor, change=partial(damage.apply, level=severity))
        after = predict_with(model, damaging, labelled)
        rows += _harms(damage, severity, before, after, draws=draws, seed=seed)
    return Stress(
        classes=model.info.classes,
        model=model.id,
        n_images=len(before),
        n_patients=int(before.groups.nunique()),
        patients_known=before.patients_known,
        undamaged={
            level: patient_bootstrap(_figures(units), units.groups, draws=draws, seed=seed)
            for level, units in _units(before)
        },
        rows=tuple(rows),
    )


def _units(predictions: Predictions) -> Iterator[tuple[Level, Predictions]]:
    return ((level, at_level(predictions, level)) for level in STRESSED)


def _harms(
    damage: Damage,
    severity: float,
    before: Predictions,
    after: Predictions,
    *,
    draws: int,
    seed: int,
) -> list[Harm]:
    found = []
    for (level, undamaged), (_, damaged) in zip(_units(before), _units(after), strict=True):
        pairs = paired(
            _figures(damaged), _figures(undamaged), damaged.groups, draws=draws, seed=seed
        )
        moderate = severity == damage.moderate
        found += [
            Harm(
                damage.name, damage.unit, severity, moderate, level, name, pair.first,
                pair.difference,
            )
            for name, pair in pairs.items()
        ]  # fmt: skip
    return found


def _figures(units: Predictions) -> Statistic:
    """Return ROC AUC and accuracy as a function of row weights."""
    y, prob, k = units.y, units.probabilities(), len(units.classes)
    decision = decide(prob, threshold_of(units))
    positives = [1] if k == 2 else range(k)

    def statistic(weight: FloatArray) -> dict[str, FloatArray]:
        aucs = [roc_auc((y == c).astype(int), prob[:, c], weight) for c in positives]
        accuracy = decision_metrics(confusion(y, decision, k, weight))["accuracy"]
        return {"roc_auc": np.mean(aucs, axis=0), "accuracy": accuracy}

    return statistic
