"""Two ROC areas of the same images, held against each other without redrawing anything."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, rankdata

from lobule.errors import DataError
from lobule.evaluation.calibration import FloatArray, class_labels, ratio, scores


@dataclass(frozen=True)
class DeLong:
    """Two areas under the ROC curve in [0, 1], the first less the second, and how sure that is.

    standard_error: of the difference. p_value: two-sided, of no difference, in [0, 1].
    """

    first: float
    second: float
    difference: float
    standard_error: float
    p_value: float


def delong(y: ArrayLike, first: ArrayLike, second: ArrayLike) -> DeLong:
    """Test whether two scores of the same n images have the same area under the ROC curve.

    y: (n,) int in {0, 1}. first, second: (n,) finite float, higher for class 1; ties count one
    half. Images are taken as independent, which several images of one patient are not: the
    standard error is then too small. It is a cross-check of the patient bootstrap
    (`intervals.paired`) and does not replace it.

    The areas are nan where a class is absent, the standard error and the p value where one has
    fewer than two images. Without a difference the p value is 1, and with one that has no variance
    it is 0.
    Raises DataError on malformed arrays. Sources: DeLong, DeLong & Clarke-Pearson, Biometrics 44
    (1988); by ranks, in n log n: Sun & Xu, IEEE Signal Processing Letters 21 (2014).
    """
    first, second = scores(first), scores(second)
    if len(first) != len(second):
        raise DataError(f"expected two scores a row, got {len(first):,} and {len(second):,}")
    positive = class_labels(y, len(first), 2) == 1
    of_first, of_second = _placements(positive, first), _placements(positive, second)
    area_first, area_second = _mean(of_first[0]), _mean(of_second[0])
    difference = area_first - area_second
    # The difference of two areas is the mean of the differences of their placements.
    error = math.sqrt(
        sum(_variance_of_mean(a - b) for a, b in zip(of_first, of_second, strict=True))
    )
    if math.isnan(error):
        p_value = math.nan
    elif difference == 0:
        p_value = 1.0
    else:
        z = abs(difference) / error if error else math.inf
        p_value = 2 * float(norm.sf(z))
    return DeLong(area_first, area_second, difference, error, p_value)


def _placements(positive: NDArray[np.bool_], score: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the share of the other class below each positive and below each negative."""
    rank = rankdata(score)
    # A row's rank among all, less that among its own class, counts the other class below it.
    below_positive, below_negative = (
        ratio(rank[own] - rankdata(score[own]), np.sum(~own)) for own in (positive, ~positive)
    )
    return below_positive, below_negative


def _mean(values: FloatArray) -> float:
    return float(ratio(values.sum(), len(values)))


def _variance_of_mean(values: FloatArray) -> float:
    squares = ((values - _mean(values)) ** 2).sum()
    return float(ratio(squares, len(values) * (len(values) - 1)))
