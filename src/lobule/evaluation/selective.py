"""What a model gets wrong if it may leave the images that it is least sure of unanswered.

Throughout: y is (n,) int in 0..K-1; prob is (n, K) float in [0, 1], and the answer to a row its
class of highest probability, the first of equal ones (with two classes, the decision at 0.5);
confidence is (n,) finite float, higher where surer, and None means that highest probability;
weight is None (all ones), (n,) or (draws, n), whole numbers >= 0. Rows are answered from the most
confident on, those of equal confidence together. Malformed arrays raise DataError.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from lobule.errors import DataError
from lobule.evaluation.calibration import (
    FloatArray,
    class_labels,
    probabilities,
    ratio,
    row_weights,
    scores,
)


def risk_coverage(
    y: ArrayLike,
    prob: ArrayLike,
    confidence: ArrayLike | None = None,
    weight: ArrayLike | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Return the share of rows answered and the share of errors among them, each (..., c).

    c: number of distinct confidences, from the highest to the lowest, where all rows are
    answered. The share of errors is nan where no row with weight is answered yet.
    Source: El-Yaniv & Wiener, JMLR 11 (2010).
    """
    answered, wrong = _counts_by_confidence(y, prob, confidence, weight)
    return ratio(answered, answered[..., -1:]), ratio(wrong, answered)


def area_under_risk_coverage(
    y: ArrayLike,
    prob: ArrayLike,
    confidence: ArrayLike | None = None,
    weight: ArrayLike | None = None,
) -> FloatArray:
    """Return the share of errors of `risk_coverage`, averaged over the gains in coverage, (...).

    In [0, 1], lower is better; a confidence that tells nothing has the error rate of all rows.
    nan where all weights are 0. Without ties it is the mean over m of the share of errors among
    the m most confident rows. Sources: Geifman & El-Yaniv, NeurIPS (2017); the area: Geifman,
    Uziel & El-Yaniv, ICLR (2019).
    """
    answered, wrong = _counts_by_confidence(y, prob, confidence, weight)
    gain = np.diff(answered, prepend=0)
    # Where nothing has been answered yet the gain is 0, so any finite share will do.
    error = wrong / np.where(answered == 0, 1, answered)
    return ratio((gain * error).sum(axis=-1), gain.sum(axis=-1))


def _counts_by_confidence(
    y: ArrayLike, prob: ArrayLike, confidence: ArrayLike | None, weight: ArrayLike | None
) -> tuple[FloatArray, FloatArray]:
    """Return the weight of rows answered, and wrongly so, at each distinct confidence, (..., c)."""
    prob = probabilities(prob)
    y = class_labels(y, len(prob), prob.shape[1])
    w = row_weights(weight, len(y))
    confidence = scores(prob.max(axis=1) if confidence is None else confidence)
    if len(confidence) != len(y):
        raise DataError(f"expected {len(y):,} confidences, one a row, got {len(confidence):,}")
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    last_of_ties = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)])
    wrong = prob.argmax(axis=1) != y
    answered, errors = (
        np.cumsum(np.take(of, order, axis=-1), axis=-1)[..., last_of_ties] for of in (w, w * wrong)
    )
    return answered, errors
