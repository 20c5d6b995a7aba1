"""What the Brier score is made of, and the line that would make probabilities mean what they say.

Two classes only. Throughout: y is (n,) int in {0, 1}; p is (n,) float in [0, 1], the probability
of y = 1; weight is None (all ones), (n,) or (draws, n), whole numbers >= 0; every value has the
shape of weight less its last axis and is nan where undefined. Malformed arrays raise DataError.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, log_expit, logit

from lobule.evaluation.calibration import (
    FloatArray,
    class_labels,
    equal_mass_bins,
    probabilities,
    ratio,
    row_weights,
    scores,
)

CLIP = 1e-6
"""How near to 0 and 1 a probability is let before its logit is taken: |logit| is at most 13.8."""

_OVERLAP = 1e-6
"""Classes that overlap by less in logits count as parted: the slope, a million, is rounding."""

_SETTLED = 1e-8
"""A Newton step that moves no logit by more than this ends the search; its error is the square."""

_MOST_STEPS = 100


def brier_decomposition(
    y: ArrayLike, p: ArrayLike, weight: ArrayLike | None = None, *, bins: int = 15
) -> dict[str, FloatArray]:
    """Return reliability, resolution, uncertainty and within, which make up the Brier score.

    reliability - resolution + uncertainty + within is `metrics.brier` of two classes, the mean of
    (p - y)^2, whatever the weights and bins. reliability: mean squared distance of a bin's mean
    probability from its share of y = 1; lower is better. resolution: of that share from the
    share in all rows; higher is better. uncertainty: the variance of y, which no model changes.
    These lie in [0, 1]. within: the variance of p inside the bins less twice its covariance with y
    there; below 0 where p still tells the rows of one bin apart. nan where all weights are 0.

    Bins are those of `calibration.expected_calibration_error`, from the rows without weights.
    Raises UsageError if bins < 1. Sources: Murphy, Journal of Applied Meteorology 12 (1973);
    within: Stephenson, Coelho & Jolliffe, Weather and Forecasting 23 (2008).
    """
    y, p, w = _rows(y, p, weight)
    index = equal_mass_bins(p, bins)
    member = np.eye(bins)[index]
    mass, predicted, observed = (w @ (member * of[:, None]) for of in (np.ones(len(p)), p, y))
    total, positive = w.sum(axis=-1), w @ y
    filled = np.where(mass == 0, 1, mass)  # the sums of an empty bin are 0
    gap = (predicted - observed) ** 2 / filled
    gain = (observed - ratio(positive, total)[..., None] * mass) ** 2 / filled
    between = (predicted * (predicted - 2 * observed) / filled).sum(axis=-1)
    return {
        "reliability": ratio(gap.sum(axis=-1), total),
        "resolution": ratio(gain.sum(axis=-1), total),
        "uncertainty": ratio(positive * (total - positive), total**2),
        "within": ratio(w @ (p * (p - 2 * y)) - between, total),
    }


def calibration_line(
    y: ArrayLike, p: ArrayLike, weight: ArrayLike | None = None
) -> dict[str, FloatArray]:
    """Return slope and intercept of logit P(y = 1) = intercept + slope logit(p), as fitted to y.

    Calibrated probabilities have slope 1 and intercept 0; a slope below 1 says that they are too
    near 0 and 1. The fit is of greatest likelihood and without a penalty. p is held CLIP away
    from 0 and 1. nan where no finite line is the best one: a class is absent, or some cut of p
    parts the classes but for rows on the cut itself (Albert & Anderson, Biometrika 71, 1984),
    which here is 1e-6 wide in logits.
    Sources: Cox, Biometrika 45 (1958); Van Calster et al., BMC Medicine 17 (2019).
    """
    y, p, w = _rows(y, p, weight)
    x = _logits(p)
    (low_0, high_0), (low_1, high_1) = (_ends(x, w * (y == k)) for k in (0, 1))
    overlap = (high_1 - low_0 > _OVERLAP) & (high_0 - low_1 > _OVERLAP)
    intercept, slope = _greatest_likelihood(y, x, w, overlap, slope_free=True)
    return {"slope": slope, "intercept": intercept}


def calibration_in_the_large(
    y: ArrayLike, p: ArrayLike, weight: ArrayLike | None = None
) -> FloatArray:
    """Return a of logit P(y = 1) = a + logit(p), as fitted to y: the intercept at slope 1.

    Above 0 where y = 1 is more frequent than p says, in logits; 0 where the mean of p is the
    share of y = 1. p is held CLIP away from 0 and 1. nan where a class is absent.
    Sources: as `calibration_line`.
    """
    y, p, w = _rows(y, p, weight)
    both = (w @ y > 0) & (w @ (1 - y) > 0)
    return _greatest_likelihood(y, _logits(p), w, both, slope_free=False)[0]


def _rows(
    y: ArrayLike, p: ArrayLike, weight: ArrayLike | None
) -> tuple[NDArray[np.intp], FloatArray, FloatArray]:
    p = scores(p)
    probabilities(np.stack([1 - p, p], axis=1))
    return class_labels(y, len(p), 2), p, row_weights(weight, len(p))


def _logits(p: FloatArray) -> FloatArray:
    return np.asarray(logit(np.clip(p, CLIP, 1 - CLIP)), dtype=np.float64)


def _ends(x: FloatArray, w: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the lowest and the highest x with weight, (...); inf and -inf where there is none."""
    low = np.where(w > 0, x, np.inf).min(axis=-1, initial=np.inf)
    high = np.where(w > 0, x, -np.inf).max(axis=-1, initial=-np.inf)
    return low, high


def _greatest_likelihood(
    y: NDArray[np.intp],
    x: FloatArray,
    w: FloatArray,
    finite: NDArray[np.bool_],
    *,
    slope_free: bool,
) -> tuple[FloatArray, FloatArray]:
    """Return intercept and slope (...), nan but where `finite` (...) says that they exist."""
    draws = w.reshape(math.prod(w.shape[:-1]), len(x))
    wanted = finite.reshape(-1)
    found = np.full((2, len(draws)), np.nan)
    if wanted.any():
        # A line exists for all rows if one does for some of them, and is near those of redrawn
        # rows: they are then a few steps away.
        middle = x.mean()  # from there the two equations are all but independent
        begin = np.array([[0.0], [0.0 if slope_free else 1.0]])
        begin = _newton(y, x - middle, np.ones((1, len(x))), begin, slope_free=slope_free)
        line = _newton(y, x - middle, draws[wanted], begin, slope_free=slope_free)
        found[:, wanted] = line[0] - line[1] * middle, line[1]
    return found[0].reshape(finite.shape), found[1].reshape(finite.shape)


def _newton(
    y: NDArray[np.intp], x: FloatArray, w: FloatArray, begin: FloatArray, *, slope_free: bool
) -> FloatArray:
    """Return (2, draws): intercepts and slopes, found from `begin` (2, 1); nan if they are not."""
    line = np.repeat(begin, len(w), axis=1)
    step, least = np.zeros_like(line), np.full(len(w), np.inf)
    powers = x[:, None] ** np.arange(3)
    for _ in range(_MOST_STEPS):
        tried = line + step
        logits = tried[0][:, None] + tried[1][:, None] * x
        loss = -(w * log_expit((2 * y - 1) * logits)).sum(axis=-1)
        expected = expit(logits)
        pull = (w * (y - expected)) @ powers[:, :2]
        curve = (w * expected * (1 - expected)) @ powers
        # The two equations, solved from the mean of x outwards.
        middle = ratio(curve[:, 1], curve[:, 0])
        tilt = np.zeros(len(w))
        if slope_free:
            spread = curve[:, 2] - middle * curve[:, 1]
            tilt = ratio(pull[:, 1] - middle * pull[:, 0], spread)
        whole = np.stack([ratio(pull[:, 0], curve[:, 0]) - middle * tilt, tilt])
        # A step that leads too far is halved; near the end all losses are equal but for rounding.
        better = loss <= least * (1 + 1e-12)
        line, least = np.where(better, tried, line), np.where(better, loss, least)
        step = np.where(better, whole, step / 2)
        move = np.max([np.abs(step[0] + step[1] * end) for end in (x.min(), x.max())], axis=0)
        if not np.any(move > _SETTLED):
            break
    return np.where(better & (move <= _SETTLED), line + step, np.nan)
