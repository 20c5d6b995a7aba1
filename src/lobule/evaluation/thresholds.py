"""The operating point: above which score an image is called positive, chosen before the test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lobule.errors import DataError, UsageError
from lobule.evaluation.calibration import class_labels, row_weights, scores


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and where it comes from; a decision is positive iff score >= threshold.

    target: "sensitivity" or "specificity". value: what was asked of it, in (0, 1]. achieved:
    what the threshold gives on the rows it was chosen on. source: those rows in words, such as
    "pooled out-of-fold scores of 23 patients, 422 images". level: what one score stands for,
    "image" or "patient".
    """

    threshold: float
    target: str
    value: float
    achieved: float
    source: str
    level: str


def choose_threshold(
    y: ArrayLike,
    score: ArrayLike,
    *,
    sensitivity: float | None = None,
    specificity: float | None = None,
    weight: ArrayLike | None = None,
) -> float:
    """Return the threshold that reaches one target and gives away least of the other.

    y: (n,) int in {0, 1}. score: (n,) finite float, higher for class 1. weight: (n,) >= 0; rows
    of weight 0 are not seen. A row is called positive iff score >= threshold. With `sensitivity`
    it is the highest cut that reaches the target, with `specificity` the lowest. The threshold
    lies midway between the two distinct scores that it parts, so that rounding flips nothing;
    where all rows must be positive it is the lowest score, and where none may be, the next
    number above the highest.
    Raises UsageError unless exactly one target is given, in (0, 1]; DataError if a class is
    absent or the arrays are malformed.
    """
    if (sensitivity is None) == (specificity is None):
        raise UsageError("give exactly one target: sensitivity or specificity")
    name, target = (
        ("specificity", specificity) if sensitivity is None else ("sensitivity", sensitivity)
    )
    if target is None or not 0 < target <= 1:
        raise UsageError(f"{name} must be over 0 and at most 1, got {target}")

    values = scores(score)
    labels = class_labels(y, len(values), 2)
    weights = row_weights(weight, len(values))
    if weights.ndim != 1:
        raise DataError(f"expected one weight a row, got shape {weights.shape}")
    seen = weights > 0
    distinct, index = np.unique(values[seen], return_inverse=True)
    labels, weights = labels[seen], weights[seen]
    for k, word in ((1, "positive"), (0, "negative")):
        if not np.any(labels == k):
            raise DataError(
                f"cannot choose a threshold: none of {labels.size:,} rows is {word}",
                fix="choose it on rows of both classes",
            )

    # Cut c calls distinct[c:] positive. Shares are compared, not counts: 55 / 100 >= 0.55 holds
    # in floating point, 55 >= 0.55 * 100 does not.
    size = len(distinct)
    if name == "sensitivity":
        mass = np.bincount(index, weights * (labels == 1), size)
        called = np.cumsum(mass[::-1])[::-1]
        cut = int(np.flatnonzero(called / called[0] >= target)[-1])
    else:
        mass = np.bincount(index, weights * (labels == 0), size)
        spared = np.cumsum(mass)
        cut = int(np.flatnonzero(spared / spared[-1] >= target)[0]) + 1
    if cut == 0:
        return float(distinct[0])
    if cut == size:
        return float(np.nextafter(distinct[-1], np.inf))
    below, above = distinct[cut - 1], distinct[cut]
    midway = below / 2 + above / 2
    return float(midway if midway > below else above)
