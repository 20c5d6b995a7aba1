"""Two tables of predictions of the same images, held against each other patient by patient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lobule.errors import DataError, name_some
from lobule.evaluation.delong import delong
from lobule.evaluation.intervals import (
    FloatArray,
    Interval,
    Statistic,
    paired,
)
from lobule.evaluation.metrics import LOWER_IS_BETTER, confusion, decision_metrics, score_metrics
from lobule.evaluation.predictions import (
    LEVELS,
    Level,
    Predictions,
    at_level,
    decide,
    threshold_of,
)

SCHEMA = "lobule.compare/1"


def is_better(figure: str, difference: Interval) -> bool | None:
    """Whether the first of two is the better one by their difference; None if that is not told."""
    if not difference.leaves_out_0:
        return None
    return (difference.low > 0) != (figure in LOWER_IS_BETTER)


@dataclass(frozen=True)
class Difference:
    """One figure of both, and of the first less the second on the same redrawn patients."""

    level: Level
    figure: str
    first: Interval
    second: Interval
    difference: Interval

    def verdict(self, first: str, second: str) -> str:
        """Return which of the two, called by these names, is the better one."""
        better = is_better(self.figure, self.difference)
        return "not told apart" if better is None else first if better else second


@dataclass(frozen=True)
class Comparison:
    """All figures of two models on the same images.

    p_delong: of the image ROC AUCs, taking images as independent, which they are not: a
    cross-check, not an answer. None where it is undefined, or there are more than two classes.
    """

    classes: tuple[str, ...]
    n_images: int
    n_patients: int
    patients_known: bool
    differences: tuple[Difference, ...]
    p_delong: float | None

    def to_json(self) -> dict[str, Any]:
        """Return plain types with a schema; undefined figures are None with a reason."""
        rows = [
            {
                "level": row.level,
                "figure": row.figure,
                **{
                    name: getattr(row, name).to_json() for name in ("first", "second", "difference")
                },
            }
            for row in self.differences
        ]
        return {
            "schema": SCHEMA,
            "classes": list(self.classes),
            "n_images": self.n_images,
            "n_patients": self.n_patients,
            "patients_known": self.patients_known,
            "p_delong": self.p_delong,
            "differences": rows,
        }


def compare(
    first: Predictions, second: Predictions, *, draws: int = 2000, seed: int = 0
) -> Comparison:
    """Hold two predictions of the same labelled images against each other, paired by patient.

    Labels, patients and slides are those of `first`. Decisions are each table's own: at its
    operating point at the level, or at 0.5 where it has none.
    Raises DataError unless both are of the same images, with the same labels and classes.
    """
    second = _in_order_of(first, second)
    differences = []
    for level in LEVELS:
        one, other = (at_level(p, level) for p in (first, second))
        found = paired(_figures(one), _figures(other), one.groups, draws=draws, seed=seed)
        differences += [Difference(level, name, **vars(pair)) for name, pair in found.items()]
    p_delong = math.nan
    if len(first.classes) == 2:
        scores = (p.probabilities()[:, 1] for p in (first, second))
        p_delong = delong(first.y, *scores).p_value
    return Comparison(
        classes=first.classes,
        n_images=len(first),
        n_patients=int(first.groups.nunique()),
        patients_known=first.patients_known,
        differences=tuple(differences),
        p_delong=None if math.isnan(p_delong) else p_delong,
    )


def _in_order_of(first: Predictions, second: Predictions) -> Predictions:
    """Return `second` row by row beside `first`, with its labels, patients and slides."""
    if set(first.classes) != set(second.classes):
        raise DataError(
            f"the two have other classes: {name_some(list(first.classes))} and "
            f"{name_some(list(second.classes))}"
        )
    mine, theirs = first.table["path"], second.table.set_index("path")
    lacking = [*set(mine) - set(theirs.index), *set(theirs.index) - set(mine)]
    if lacking:
        raise DataError(
            f"{len(lacking)} image(s) are in one of the two only: {name_some(sorted(lacking))}",
            fix="predict the same images with both models",
        )
    table = theirs.loc[mine].reset_index()
    other = (table["label"] != first.table["label"]).to_numpy()
    if other.any():
        raise DataError(
            f"{int(other.sum())} image(s) have another label in the second: "
            f"{name_some(mine[other].tolist())}"
        )
    known = {name: first.table[name].to_numpy() for name in ("patient", "slide")}
    return Predictions(table.assign(**known), first.classes)


def _figures(units: Predictions) -> Statistic:
    y, prob, k = units.y, units.probabilities(), len(units.classes)
    decision = decide(prob, threshold_of(units))
    kept = ("accuracy", "balanced_accuracy", "sensitivity", "specificity")

    def statistic(weight: FloatArray) -> Mapping[str, FloatArray]:
        decided = decision_metrics(confusion(y, decision, k, weight))
        chosen = {name: decided[name] for name in kept if name in decided}
        return score_metrics(y, prob, weight) | chosen

    return statistic
