"""All that is settled on honest scores before any image is judged, and kept with the model.

How probabilities are recalibrated, from which one on an image is called positive, and which
classes belong into the set of an image. Scores are honest if the model that gave them had not
seen their patients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lobule.errors import ModelError
from lobule.evaluation.conformal import group_quantile, true_class_scores
from lobule.evaluation.intervals import equal_shares
from lobule.evaluation.predictions import LEVELS, Level, Predictions, at_level, threshold_column
from lobule.evaluation.recalibration import Method, Recalibration, fit_recalibration
from lobule.evaluation.thresholds import OperatingPoint, choose_threshold

if TYPE_CHECKING:
    from lobule.models.bundle import ModelInfo

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Targets:
    """What is asked of the settings.

    sensitivity, specificity: what the operating point must reach; exactly one. coverage: share
    of images of new patients whose set is to hold their class. calibration: see `Method`.
    """

    sensitivity: float | None = 0.95
    specificity: float | None = None
    coverage: float = 0.9
    calibration: Method = "none"


@dataclass(frozen=True)
class Locked:
    """What was settled.

    points: by level; empty with more than two classes. set_quantile: a class is in the set of an
    image iff 1 - its probability is at most this; inf where patients were too few for any promise.
    source: the scores all this was chosen on, in words. n_groups: patients behind them.
    """

    recalibration: Recalibration
    points: dict[Level, OperatingPoint]
    coverage: float
    set_quantile: float
    source: str
    n_groups: int

    def answers(self, found: Mapping[str, Matrix]) -> dict[str, Matrix]:
        """Return probabilities (n, K) by kind, "prob" and "plain" recalibrated, "raw" as it was."""
        if self.recalibration.method == "none":
            return dict(found)
        mapped = {kind: self.recalibration(found[kind]) for kind in ("prob", "plain")}
        return {**found, **mapped, "raw": found["prob"]}

    def limits(self) -> dict[str, float]:
        """Return what `make_predictions` takes for each image: thresholds and the set's limit."""
        thresholds = {threshold_column(level): p.threshold for level, p in self.points.items()}
        return {**thresholds, "set_quantile": self.set_quantile}

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Return what model.json says: operating_points, calibration and sets."""
        return {
            "operating_points": {level: asdict(point) for level, point in self.points.items()},
            "calibration": {**self.recalibration.to_json(), "source": self.source},
            "sets": {
                "coverage": self.coverage,
                "quantile": None if np.isinf(self.set_quantile) else self.set_quantile,
                "patients": self.n_groups,
                "source": self.source,
            },
        }

    @classmethod
    def of(cls, info: ModelInfo) -> Locked:
        """Return what a model keeps; of models from before there were sets every class is in one.

        Raises ModelError if a field is missing or unusable.
        """
        try:
            points = {
                level: OperatingPoint(**info.operating_points[level])
                for level in LEVELS
                if level in info.operating_points
            }
            quantile = info.sets.get("quantile")
            return cls(
                Recalibration.from_json(info.calibration),
                points,
                float(info.sets.get("coverage", 1.0)),
                np.inf if quantile is None else float(quantile),
                str(info.calibration["source"]),
                int(info.sets.get("patients", 0)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"the model's operating points or sets cannot be used: {error!r}",
                fix="copy the whole model folder again",
            ) from error


def lock(scored: Predictions, groups: Sequence[str], targets: Targets, *, source: str) -> Locked:
    """Settle everything on honest scores of labelled images.

    scored: kind "prob" by heads that had not seen the image's patient, not recalibrated. groups:
    (n,) patients. No operating point is chosen with more than two classes, for which no single
    threshold is defined, nor at a level at which all units are of one class. Recalibration counts
    every patient the same; so do the sets.
    Raises UsageError for targets out of range.
    """
    given = scored.probabilities()
    recalibration = fit_recalibration(targets.calibration, scored.y, given, equal_shares(groups))
    prob = recalibration(given)
    quantile = group_quantile(true_class_scores(scored.y, prob), groups, alpha=1 - targets.coverage)
    points = {}
    if len(scored.classes) == 2:
        points = _points(_with(scored, prob), targets, source)
    return Locked(recalibration, points, targets.coverage, quantile, source, len(set(groups)))


def _with(scored: Predictions, prob: Matrix) -> Predictions:
    columns = {f"prob_{name}": prob[:, k] for k, name in enumerate(scored.classes)}
    return Predictions(scored.table.assign(**columns), scored.classes)


def _points(scored: Predictions, targets: Targets, source: str) -> dict[Level, OperatingPoint]:
    points: dict[Level, OperatingPoint] = {}
    for level in LEVELS:
        units = at_level(scored, level)
        y, positive = units.y, units.probabilities()[:, 1]
        if len(np.unique(y)) < 2:
            # where every patient has images of both classes, no patient is negative
            continue
        threshold = choose_threshold(
            y, positive, sensitivity=targets.sensitivity, specificity=targets.specificity
        )
        if targets.sensitivity is not None:
            target, value = "sensitivity", targets.sensitivity
            achieved = (positive[y == 1] >= threshold).mean()
        else:
            target, value = "specificity", float(targets.specificity or np.nan)
            achieved = (positive[y == 0] < threshold).mean()
        points[level] = OperatingPoint(threshold, target, value, float(achieved), source, level)
    return points
