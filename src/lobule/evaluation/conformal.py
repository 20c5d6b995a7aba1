"""Sets of classes that hold the true one at a stated rate in images of patients not seen before.

The calibration images come in groups (patients), which resemble each other inside; it is groups,
not images, that are exchangeable with the next one. One quantile of the calibration scores then
serves every new image. Malformed arrays raise DataError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from lobule.errors import DataError, UsageError
from lobule.evaluation.calibration import (
    FloatArray,
    class_labels,
    probabilities,
    ratio,
    row_weights,
    scores,
)

_ROUNDING = 1e-12
"""What a sum of masses may lack through rounding, so that ten tenths of 0.1 reach 0.9 at nine."""


def true_class_scores(y: ArrayLike, prob: ArrayLike) -> FloatArray:
    """Return how ill each row fits its class, 1 - prob[y], as (n,) float in [0, 1].

    y: (n,) int in 0..K-1. prob: (n, K) float in [0, 1].
    Source: Sadinle, Lei & Wasserman, JASA 114 (2019), least ambiguous set-valued classifiers.
    """
    prob = probabilities(prob)
    y = class_labels(y, len(prob), prob.shape[1])
    fit: FloatArray = prob[np.arange(len(y)), y]
    return 1 - fit


def group_quantile(
    score: ArrayLike, groups: Sequence[object] | NDArray[Any], *, alpha: float
) -> float:
    """Return the score that a row of a new group exceeds with a probability of at most alpha.

    score: (n,) finite float, higher for a worse fit. groups: (n,) names. alpha: in (0, 1). It is
    the quantile of level 1 - alpha where each of the K groups has mass 1 / (K + 1), spread evenly
    over its rows, and the new group, which might be the worst, the rest at infinity. inf where
    alpha (K + 1) < 1: so few groups promise nothing unless every class is in every set.

    The promise holds on average over calibrations and over new groups that each count the same,
    however many rows they have; not in each group, nor in each class. It needs groups that are
    exchangeable with the new ones, and a model that saw none of them.
    Raises DataError if a name is missing and UsageError if alpha is out of range.
    Source: Lee, Barber & Willett, "Distribution-free inference with hierarchical data",
    arXiv:2306.06342, HCP.
    """
    if not 0 < alpha < 1:
        raise UsageError(f"alpha must lie between 0 and 1, got {alpha}")
    score = scores(score)
    if len(groups) != len(score):
        raise DataError(f"expected {len(score):,} groups, one a row, got {len(groups):,}")
    index, names = pd.factorize(np.array(groups, dtype=object))
    missing = np.flatnonzero(index < 0)
    if missing.size:
        raise DataError(
            f"{missing.size:,} of {len(score):,} rows name no group; the first is row "
            f"{missing[0]:,}"
        )
    order = np.argsort(score, kind="stable")
    mass = 1 / np.bincount(index)[index] / (len(names) + 1)
    enough = np.flatnonzero(np.cumsum(mass[order]) >= 1 - alpha - _ROUNDING)
    return float(score[order][enough[0]]) if enough.size else np.inf


def prediction_sets(prob: ArrayLike, quantile: ArrayLike) -> NDArray[np.bool_]:
    """Return (n, K) bool: class k is in the set of a row iff 1 - prob[k] <= quantile.

    prob: (n, K) float in [0, 1]. quantile: from `group_quantile`, one or (n,); inf puts every class
    in. A set may be empty, where no class fits as well as the images calibrated on.
    Raises UsageError if a quantile is not a number.
    """
    quantile = np.asarray(quantile, dtype=np.float64)
    if np.isnan(quantile).any():
        raise UsageError("the quantile of prediction sets is not a number")
    return 1 - probabilities(prob) <= quantile[..., None]


def coverage(sets: ArrayLike, y: ArrayLike, weight: ArrayLike | None = None) -> FloatArray:
    """Share of rows whose set holds their class, in [0, 1]; nan where all weights are 0.

    sets: (n, K) bool. y: (n,) int in 0..K-1. weight: None (all ones), (n,) or (draws, n), >= 0;
    the result has its shape less the last axis. A weight of one over the size of its group lets
    groups count the same, as the promise of `group_quantile` does.
    """
    sets = _members(sets)
    y = class_labels(y, len(sets), sets.shape[1])
    w = row_weights(weight, len(sets))
    return ratio(w @ sets[np.arange(len(y)), y], w.sum(axis=-1))


def mean_size(sets: ArrayLike, weight: ArrayLike | None = None) -> FloatArray:
    """Mean number of classes in a set, in [0, K]; otherwise as `coverage`."""
    sets = _members(sets)
    w = row_weights(weight, len(sets))
    return ratio(w @ sets.sum(axis=1), w.sum(axis=-1))


def _members(sets: ArrayLike) -> NDArray[np.bool_]:
    members = np.asarray(sets)
    if members.ndim != 2 or members.dtype != np.bool_:
        raise DataError(
            f"expected sets as booleans (n, classes), got {members.dtype} of shape {members.shape}"
        )
    return members
