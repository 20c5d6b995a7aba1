"""Whether a model's scores lie elsewhere than they lay where it was trained.

A score is the probability of the positive class of two, or of the most probable class of more.
Scores move with stain, scanner and scale, but with another mix of cases as well: drift alone does
not say that a model fails, nor does its absence say that it works.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lobule.errors import DataError
from lobule.evaluation.calibration import FloatArray, ratio, scores
from lobule.evaluation.intervals import Interval, patient_bootstrap

LEVELS = 101
"""Quantiles that stand for a distribution: of 0, 0.01 ... 1."""


@dataclass(frozen=True)
class Drift:
    """Scores here beside those that the model gave out of fold, there.

    there, here: LEVELS rising quantiles. source: what the scores there are of, in words.
    distance: largest difference of the two cumulative shares, 0 to 1, right to 0.01 (Kolmogorov
    and Smirnov). moved: how far a score has moved on average, 0 to 1 (Wasserstein-1). mean_there,
    mean_here; shift: mean here less there. threshold: None with more than two classes; over_there,
    over_here: share of images from there on. Intervals redraw the patients here, and take the
    scores there as exactly known.
    """

    source: str
    there: tuple[float, ...]
    here: tuple[float, ...]
    distance: float
    moved: float
    mean_there: float
    mean_here: Interval
    shift: Interval
    threshold: float | None
    over_there: float | None
    over_here: Interval | None

    def to_json(self) -> dict[str, Any]:
        """Return plain types."""
        plain = {k: v.to_json() if isinstance(v, Interval) else v for k, v in vars(self).items()}
        return {**plain, "there": list(self.there), "here": list(self.here)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Drift:
        """Rebuild from `to_json`; raises KeyError or TypeError where a field is missing or odd."""
        fields = {key: record[key] for key in cls.__dataclass_fields__}
        for key in ("mean_here", "shift"):
            fields[key] = Interval.from_json(record[key])
        if record["over_here"] is not None:
            fields["over_here"] = Interval.from_json(record["over_here"])
        return cls(**fields | {key: tuple(record[key]) for key in ("there", "here")})


def score_drift(
    score: ArrayLike,
    patient: Sequence[object],
    there: ArrayLike,
    *,
    threshold: float | None,
    source: str,
    draws: int,
    seed: int,
) -> Drift:
    """Hold scores against the quantiles of others.

    score: (n,) in [0, 1]. patient: (n,) names. there: (LEVELS,) rising, in [0, 1]. draws, seed:
    of `intervals.patient_bootstrap`.
    Raises DataError if `there` is not as said, or there is no score.
    """
    score = scores(score)
    there = scores(there)
    if len(there) != LEVELS or (np.diff(there) < 0).any() or there[0] < 0 or there[-1] > 1:
        raise DataError(
            f"scores to compare with must be {LEVELS} rising quantiles from 0 to 1",
            fix="copy the whole model folder again",
        )
    at = np.linspace(0, 1, LEVELS)
    mean_there = float(np.trapezoid(there, at))

    def statistic(weight: FloatArray) -> dict[str, FloatArray]:
        mean = ratio(weight @ score, weight.sum(axis=-1))
        values = {"mean": mean, "shift": mean - mean_there}
        if threshold is not None:
            values["over"] = ratio(weight @ (score >= threshold), weight.sum(axis=-1))
        return values

    found = patient_bootstrap(statistic, patient, draws=draws, seed=seed)
    here = np.quantile(score, at)
    return Drift(
        source=source,
        there=tuple(there.tolist()),
        here=tuple(here.tolist()),
        distance=largest_difference(score, there),
        moved=float(np.trapezoid(np.abs(here - there), at)),
        mean_there=mean_there,
        mean_here=found["mean"],
        shift=found["shift"],
        threshold=threshold,
        over_there=None if threshold is None else 1 - share_below(there, threshold).item(),
        over_here=found.get("over"),
    )


def largest_difference(score: FloatArray, quantiles: FloatArray) -> float:
    """Return the Kolmogorov-Smirnov distance of scores (n,) from a distribution by quantiles."""
    ordered = np.sort(score)
    # between two of these both shares rise evenly or not at all; at one either may jump
    points = np.unique(np.concatenate([ordered, quantiles]))
    below = np.searchsorted(ordered, points, "left") / len(ordered)
    up_to = np.searchsorted(ordered, points, "right") / len(ordered)
    differences = [below - share_below(quantiles, points), up_to - share_up_to(quantiles, points)]
    return float(np.abs(differences).max())


def share_up_to(quantiles: FloatArray, at: FloatArray | float) -> FloatArray:
    """Return which share of a distribution lies at or below each of `at`."""
    # of equal quantiles numpy takes the last, which is the share with all of them counted in
    return np.asarray(np.interp(at, quantiles, np.linspace(0, 1, len(quantiles))))


def share_below(quantiles: FloatArray, at: FloatArray | float) -> FloatArray:
    """Return which share of a distribution lies below each of `at`."""
    return 1 - share_up_to(-quantiles[::-1], -np.asarray(at))
