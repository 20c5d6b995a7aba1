"""Whether a predicted probability means what it says.

Also owns what every weighted metric shares: the checks of labels, probabilities and row weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lobule.errors import DataError, UsageError

FloatArray = NDArray[np.float64]

_ROUNDING = 1e-6
"""How far a float32 softmax may leave [0, 1]."""


@dataclass(frozen=True, eq=False)
class Reliability:
    """The points of a reliability diagram, in order of rising probability; no bin is empty.

    mean_predicted: (b,) float in [0, 1]. observed: (b,) float in [0, 1], the share of rows with
    y = 1. count: (b,) int, rows in the bin.
    """

    mean_predicted: FloatArray
    observed: FloatArray
    count: NDArray[np.int64]


def expected_calibration_error(
    y: ArrayLike, prob: ArrayLike, weight: ArrayLike | None = None, *, bins: int = 15
) -> FloatArray:
    """Mean distance between predicted probability and observed frequency, in [0, 1].

    y: (n,) int in 0..K-1. prob: (n, K) float. weight: (n,) or (draws, n); the result has
    its shape less the last axis. With two classes, the probability of class 1 is held against
    the frequency of class 1; with more, the highest probability of a row against how often that
    class is right (top-label). Bins hold equal numbers of rows; their edges come from the rows
    without weights, so that all draws of a bootstrap share them. nan where all weights are 0.

    The estimate is biased upwards in small samples, and its bootstrap replicates more so: the
    replicates tend to lie above the estimate.
    Raises DataError on malformed arrays and UsageError if bins < 1.
    Sources: Naeini et al., AAAI (2015); equal-mass bins: Nixon et al., CVPR Workshops (2019).
    """
    prob = probabilities(prob)
    y = class_labels(y, len(prob), prob.shape[1])
    w = row_weights(weight, len(y))
    if prob.shape[1] == 2:
        predicted, observed = prob[:, 1], y
    else:
        predicted, observed = prob.max(axis=1), prob.argmax(axis=1) == y
    index = equal_mass_bins(predicted, bins)
    gap = np.zeros((len(y), bins))
    gap[np.arange(len(y)), index] = observed - predicted
    # A bin's share times its mean gap is the sum of its gaps: an empty bin needs no special case.
    return ratio(np.abs(w @ gap).sum(axis=-1), w.sum(axis=-1))


def calibration_error_by_chance(
    prob: ArrayLike, *, draws: int = 200, seed: int = 0, bins: int = 15
) -> FloatArray:
    """Return the errors (draws,) that prob would show if every probability were right.

    prob: (n, K) float. Labels are drawn from it, each row by itself. What finds less than these
    finds nothing: with few rows a perfect model has an error too. Images of one patient are alike,
    so that the truth of a perfect model lies higher still.
    Source: Bröcker & Smith, Weather and Forecasting 22 (2007), consistency resampling.
    """
    prob = probabilities(prob)
    ends = np.cumsum(prob, axis=1)
    generator = np.random.default_rng(seed)
    errors = np.empty(draws)
    for i in range(draws):
        # the last end is 1 but for rounding, and no class lies beyond it
        drawn = generator.random(len(prob))[:, None] >= ends[:, :-1]
        errors[i] = expected_calibration_error(drawn.sum(axis=1), prob, bins=bins)
    return errors


def reliability(y: ArrayLike, p: ArrayLike, *, bins: int = 15) -> Reliability:
    """Return the reliability diagram of p, in the bins of `expected_calibration_error`.

    y: (n,) int in {0, 1}. p: (n,) float in [0, 1], the probability of y = 1. Equal
    probabilities share a bin, so that there may be fewer than `bins`.
    Raises DataError on malformed arrays and UsageError if bins < 1.
    """
    p = scores(p)
    prob = probabilities(np.stack([1 - p, p], axis=1))
    y = class_labels(y, len(prob), 2)
    index = equal_mass_bins(p, bins)
    count = np.bincount(index, minlength=bins)
    filled = count > 0
    return Reliability(
        mean_predicted=np.bincount(index, p, bins)[filled] / count[filled],
        observed=np.bincount(index, y, bins)[filled] / count[filled],
        count=count[filled].astype(np.int64),
    )


def equal_mass_bins(p: FloatArray, bins: int) -> NDArray[np.intp]:
    """Return the bin of each row, 0..bins-1: bin b begins at the value of rank b n / bins.

    p: (n,) float. Equal values share a bin. Raises UsageError if bins < 1.
    """
    if bins < 1:
        raise UsageError(f"calibration needs at least one bin, got {bins}")
    if not len(p):
        return np.zeros(0, dtype=np.intp)
    ranks = np.arange(1, bins) * len(p) // bins
    return np.searchsorted(np.sort(p)[ranks], p, side="right")


def class_labels(y: ArrayLike, n: int, n_classes: int) -> NDArray[np.intp]:
    """Return y as (n,) class indices; raises DataError unless each is a whole 0..n_classes-1."""
    labels = np.asarray(y)
    if labels.shape != (n,):
        raise DataError(f"expected {n:,} class indices, one a row, got shape {labels.shape}")
    if n and labels.dtype.kind not in "biu":
        raise DataError(f"class indices must be whole numbers, got {labels.dtype}")
    labels = labels.astype(np.intp)
    if n and (labels.min() < 0 or labels.max() >= n_classes):
        raise DataError(
            f"class indices must lie in 0..{n_classes - 1}, got {labels.min()}..{labels.max()}"
        )
    return labels


def scores(score: ArrayLike) -> FloatArray:
    """Return score as (n,) float64; raises DataError if it is not 1-D or not finite."""
    values = np.asarray(score, dtype=np.float64)
    if values.ndim != 1:
        raise DataError(f"expected one score a row, got shape {values.shape}")
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise DataError(
            f"{bad.size:,} of {values.size:,} scores are not finite; the first is row {bad[0]:,}"
        )
    return values


def probabilities(prob: ArrayLike) -> FloatArray:
    """Return prob as (n, K >= 2) float64; raises DataError on another shape or outside [0, 1]."""
    values = np.asarray(prob, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] < 2:
        raise DataError(f"expected probabilities of shape (n, classes), got {values.shape}")
    inside = (values >= -_ROUNDING) & (values <= 1 + _ROUNDING)
    bad = np.flatnonzero(~inside.all(axis=1))
    if bad.size:
        raise DataError(
            f"{bad.size:,} of {len(values):,} rows hold probabilities outside 0 to 1; "
            f"row {bad[0]:,} is {values[bad[0]].tolist()}"
        )
    return values


def row_weights(weight: ArrayLike | None, n: int) -> FloatArray:
    """Return weights as (..., n) float64, ones where None; raises DataError on another length."""
    if weight is None:
        return np.ones(n)
    weights = np.asarray(weight, dtype=np.float64)
    if not weights.ndim or weights.shape[-1] != n:
        raise DataError(f"expected weights of shape (..., {n:,}), got {weights.shape}")
    return weights


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> FloatArray:
    """Divide elementwise; 0 in the denominator gives nan, without a warning."""
    top, bottom = np.broadcast_arrays(
        np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    )
    quotient: FloatArray = np.full(top.shape, np.nan)
    np.divide(top, bottom, out=quotient, where=bottom != 0)
    return quotient
