"""Whether acting on a probability does more good than acting on all patients, or on none.

Throughout: y is (n,) int in {0, 1}; thresholds is (t,) float in (0, 1), the probability from
which one would act, whose odds say how many needless actions one needful one is worth; weight
is None (all ones), (n,) or (draws, n), whole numbers >= 0; a result has the shape of weight with
t in place of its last axis. It is in true positives a row: at most the share of y = 1, below 0
where acting does harm, nan where all weights are 0. Acting on none has net benefit 0.

Raises DataError on malformed arrays and UsageError on thresholds out of range.
Source: Vickers & Elkin, Medical Decision Making 26 (2006).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lobule.errors import UsageError
from lobule.evaluation.calibration import (
    FloatArray,
    class_labels,
    probabilities,
    ratio,
    row_weights,
    scores,
)
from lobule.evaluation.intervals import Interval, patient_bootstrap

THRESHOLDS = tuple(k / 20 for k in range(1, 20))
"""Where a curve is computed: 0.05, 0.1 ... 0.95."""


@dataclass(frozen=True)
class Benefit:
    """Net benefit at one threshold: of acting by the model, of acting on all, and the gain.

    gain: of the model over the better of acting on all and on none, on the same redrawn patients.
    """

    threshold: float
    model: Interval
    all: Interval
    gain: Interval

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Benefit:
        """Rebuild from what `Evaluation.to_json` makes of it."""
        parts = {name: Interval.from_json(record[name]) for name in ("model", "all", "gain")}
        return cls(record["threshold"], **parts)


def decision_curve(
    y: ArrayLike, p: ArrayLike, patient: Sequence[object], *, draws: int, seed: int
) -> list[Benefit]:
    """Return the net benefit at each of THRESHOLDS, with intervals by patient.

    patient: (n,) names. draws, seed: of `intervals.patient_bootstrap`.
    """

    def statistic(weight: FloatArray) -> dict[str, FloatArray]:
        model, everyone = net_benefit(y, p, THRESHOLDS, weight), treat_all(y, THRESHOLDS, weight)
        gain = model - np.maximum(everyone, 0)
        return {
            f"{name} {t}": values[..., i]
            for name, values in (("model", model), ("all", everyone), ("gain", gain))
            for i, t in enumerate(THRESHOLDS)
        }

    found = patient_bootstrap(statistic, patient, draws=draws, seed=seed)
    return [Benefit(t, found[f"model {t}"], found[f"all {t}"], found[f"gain {t}"])
            for t in THRESHOLDS]  # fmt: skip


def net_benefit(
    y: ArrayLike, p: ArrayLike, thresholds: ArrayLike, weight: ArrayLike | None = None
) -> FloatArray:
    """Share of true positives less the share of false ones times the odds of the threshold.

    p: (n,) float in [0, 1], the probability of y = 1; one acts where p >= threshold.
    """
    p, cuts = scores(p), _cuts(thresholds)
    probabilities(np.stack([1 - p, p], axis=1))
    return _net(y, p[:, None] >= cuts, cuts, weight)


def treat_all(y: ArrayLike, thresholds: ArrayLike, weight: ArrayLike | None = None) -> FloatArray:
    """Net benefit of acting on every row: 0 where the threshold is the share of y = 1."""
    cuts = _cuts(thresholds)
    return _net(y, np.ones((np.size(y), len(cuts)), dtype=bool), cuts, weight)


def _net(
    y: ArrayLike, acted: NDArray[np.bool_], cuts: FloatArray, weight: ArrayLike | None
) -> FloatArray:
    positive = class_labels(y, len(acted), 2)[:, None] == 1
    w = row_weights(weight, len(acted))
    worth = np.where(positive, 1, -cuts / (1 - cuts))
    return ratio(w @ (acted * worth), w.sum(axis=-1)[..., None])


def _cuts(thresholds: ArrayLike) -> FloatArray:
    cuts = np.asarray(thresholds, dtype=np.float64)
    if cuts.ndim != 1:
        raise UsageError(f"expected thresholds of shape (t,), got {cuts.shape}")
    outside = cuts[~((cuts > 0) & (cuts < 1))]
    if outside.size:
        raise UsageError(f"a threshold must lie between 0 and 1, got {outside[0]}")
    return cuts
