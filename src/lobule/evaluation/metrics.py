"""Each metric once, as a function of whole-number row weights with a leading axis of draws.

Weights of one give the estimate; the counts of redrawn patients give all bootstrap replicates at
a time. An undefined value is nan, never 0.

Throughout: y is (n,) int in 0..K-1, where with two classes 1 is the positive one; weight is None
(all ones), (n,) or (draws, n), whole numbers >= 0; a result has the shape of weight less its last
axis, so () or (draws,). Malformed arrays raise DataError.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lobule.errors import DataError, UsageError
from lobule.evaluation.brier import (
    brier_decomposition,
    calibration_in_the_large,
    calibration_line,
)
from lobule.evaluation.calibration import (
    FloatArray,
    class_labels,
    expected_calibration_error,
    probabilities,
    ratio,
    row_weights,
    scores,
)
from lobule.evaluation.conformal import coverage, mean_size
from lobule.evaluation.selective import area_under_risk_coverage

LOWER_IS_BETTER = frozenset({"brier", "ece"})
"""Of the figures here; of all others a higher one is better."""


def roc_auc(y: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> FloatArray:
    """Area under the ROC curve of two classes, in [0, 1]; nan unless both have weight.

    score: (n,) float, higher for class 1. Ties count one half, which is the Mann-Whitney
    statistic (Hanley & McNeil, Radiology 143, 1982).
    """
    return _area(*_counts_by_threshold(y, score, weight))


def average_precision(
    y: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None
) -> FloatArray:
    """Precision at each distinct score, averaged over the gains in recall; in [0, 1].

    score: (n,) float, higher for class 1. nan where class 1 has no weight. The step-wise sum of
    scikit-learn, without interpolation (Davis & Goadrich, ICML 2006).
    """
    return _precision_over_gains(*_counts_by_threshold(y, score, weight))


def _counts_by_threshold(
    y: ArrayLike, score: ArrayLike, weight: ArrayLike | None
) -> tuple[FloatArray, FloatArray]:
    """Return true and false positives (..., distinct scores + 1), from none called to all."""
    score = scores(score)
    y = class_labels(y, len(score), 2)
    w = row_weights(weight, len(y))
    order = np.argsort(-score, kind="stable")
    ranked = score[order]
    last_of_ties = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    w = np.take(w, order, axis=-1)
    counts = []
    for member in (y[order] == 1, y[order] == 0):
        count = np.zeros((*w.shape[:-1], len(score) + 1))
        np.cumsum(w * member, axis=-1, out=count[..., 1:])
        if len(last_of_ties) < len(score):
            count = np.take(count, np.append(0, last_of_ties + 1), axis=-1)
        counts.append(count)
    return counts[0], counts[1]


def _area(true_positives: FloatArray, false_positives: FloatArray) -> FloatArray:
    positives, negatives = true_positives[..., -1], false_positives[..., -1]
    # Twice the trapezoids under the curve, as the two products left over when they are
    # multiplied out: no array of differences is made.
    above = np.einsum("...i,...i->...", false_positives[..., 1:], true_positives[..., :-1])
    below = np.einsum("...i,...i->...", false_positives[..., :-1], true_positives[..., 1:])
    return ratio(positives * negatives + above - below, 2 * positives * negatives)


def _precision_over_gains(true_positives: FloatArray, false_positives: FloatArray) -> FloatArray:
    gain = np.diff(true_positives)
    precision = true_positives[..., 1:] + false_positives[..., 1:]
    # Where nothing has been called yet the gain is 0, so any finite precision will do.
    precision[precision == 0] = 1
    np.divide(true_positives[..., 1:], precision, out=precision)
    return ratio(np.einsum("...i,...i->...", gain, precision), true_positives[..., -1])


def brier(y: ArrayLike, prob: ArrayLike, weight: ArrayLike | None = None) -> FloatArray:
    """Mean squared distance between prob (n, K) and the truth; nan where all weights are 0.

    Two classes: of the probability of class 1 alone, in [0, 1]. More: summed over the classes,
    in [0, 2]. Both as scikit-learn. Source: Brier, Monthly Weather Review 78 (1950).
    """
    prob = probabilities(prob)
    y = class_labels(y, len(prob), prob.shape[1])
    w = row_weights(weight, len(y))
    squared = (prob - np.eye(prob.shape[1])[y]) ** 2
    loss = squared[:, 1] if prob.shape[1] == 2 else squared.sum(axis=1)
    return ratio(w @ loss, w.sum(axis=-1))


def confusion(
    y: ArrayLike, decision: ArrayLike, n_classes: int, weight: ArrayLike | None = None
) -> FloatArray:
    """Weight of each pair of truth and decision: (..., K, K), rows truth, columns decision.

    decision: (n,) int in 0..n_classes-1. Raises UsageError if n_classes < 2.
    """
    if n_classes < 2:
        raise UsageError(f"a confusion matrix needs two classes or more, got {n_classes}")
    n = np.size(y)
    pair = class_labels(y, n, n_classes) * n_classes + class_labels(decision, n, n_classes)
    w = row_weights(weight, n)
    counts: FloatArray = w @ np.eye(n_classes**2)[pair]
    return counts.reshape(*w.shape[:-1], n_classes, n_classes)


def decision_metrics(confusion: NDArray[np.float64]) -> dict[str, FloatArray]:
    """Accuracy and its kin, each (...), from confusion matrices (..., K, K), rows truth.

    accuracy, balanced_accuracy (mean recall; nan where a class is absent, not skipped), kappa
    (Cohen, 1960), mcc (for more than two classes R_K: Gorodkin, Comput. Biol. Chem. 28, 2004).
    K = 2 adds sensitivity, specificity, precision, npv and f1; K > 2 adds macro_f1. All lie in
    [0, 1], but kappa and mcc in [-1, 1].
    """
    table = np.asarray(confusion, dtype=np.float64)
    if table.ndim < 2 or table.shape[-1] != table.shape[-2] or table.shape[-1] < 2:
        raise DataError(f"expected confusion matrices (..., K, K), got {table.shape}")
    hits = np.diagonal(table, axis1=-2, axis2=-1)
    truth, called = table.sum(axis=-1), table.sum(axis=-2)
    total, right = truth.sum(axis=-1), hits.sum(axis=-1)
    recall = ratio(hits, truth)
    # In whole numbers, so that an undefined value meets an exact 0 below the line.
    by_chance = (truth * called).sum(axis=-1)
    beyond_chance = total * right - by_chance
    spread_truth = total**2 - (truth**2).sum(axis=-1)
    spread_called = total**2 - (called**2).sum(axis=-1)
    f1 = ratio(2 * hits, truth + called)
    metrics = {
        "accuracy": ratio(right, total),
        "balanced_accuracy": recall.mean(axis=-1),
        "kappa": ratio(beyond_chance, total**2 - by_chance),
        "mcc": ratio(beyond_chance, np.sqrt(spread_truth) * np.sqrt(spread_called)),
    }
    if table.shape[-1] > 2:
        return metrics | {"macro_f1": np.asarray(f1.mean(axis=-1))}
    predictive = ratio(hits, called)
    return metrics | {
        "sensitivity": recall[..., 1],
        "specificity": recall[..., 0],
        "precision": predictive[..., 1],
        "npv": predictive[..., 0],
        "f1": f1[..., 1],
    }


def score_metrics(
    y: ArrayLike, prob: ArrayLike, weight: ArrayLike | None = None
) -> dict[str, FloatArray]:
    """roc_auc, average_precision, brier and ece of prob (n, K), each of shape (...).

    Two classes: of the probability of class 1. More: roc_auc and average_precision are the plain
    mean over classes of one against the rest, nan where any class is absent.
    """
    prob = probabilities(prob)
    y = class_labels(y, len(prob), prob.shape[1])
    positives = [1] if prob.shape[1] == 2 else range(prob.shape[1])
    areas, precisions = [], []
    for k in positives:
        counts = _counts_by_threshold(y == k, prob[:, k], weight)
        areas.append(_area(*counts))
        precisions.append(_precision_over_gains(*counts))
    return {
        "roc_auc": np.mean(areas, axis=0),
        "average_precision": np.mean(precisions, axis=0),
        "brier": brier(y, prob, weight),
        "ece": expected_calibration_error(y, prob, weight),
    }


def probability_metrics(
    y: ArrayLike, prob: ArrayLike, weight: ArrayLike | None = None
) -> dict[str, FloatArray]:
    """Whether probabilities prob (n, K) mean what they say, each of shape (...).

    aurc: see `selective.area_under_risk_coverage`. Two classes add what the Brier score is made of
    (brier_reliability, brier_resolution, brier_uncertainty, brier_within), calibration_slope,
    calibration_intercept and calibration_in_the_large, all as `evaluation.brier` says.
    """
    prob = probabilities(prob)
    found = {"aurc": area_under_risk_coverage(y, prob, weight=weight)}
    if prob.shape[1] > 2:
        return found
    p = prob[:, 1]
    parts = brier_decomposition(y, p, weight)
    line = calibration_line(y, p, weight)
    return {
        **{f"brier_{name}": value for name, value in parts.items()},
        "calibration_slope": line["slope"],
        "calibration_intercept": line["intercept"],
        "calibration_in_the_large": calibration_in_the_large(y, p, weight),
        **found,
    }


def set_metrics(
    y: ArrayLike, sets: NDArray[np.bool_], share: FloatArray, weight: ArrayLike | None = None
) -> dict[str, FloatArray]:
    """Coverage and size of sets (n, K) of classes, and how many hold one class only.

    share: (n,) > 0, what each row counts for, such as one over the images of its patient.
    """
    w = row_weights(weight, len(share)) * share
    one = sets.sum(axis=1) == 1
    return {
        "set_coverage": coverage(sets, y, w),
        "set_size": mean_size(sets, w),
        "set_single": ratio(w @ one, w.sum(axis=-1)),
    }


def all_metrics(
    y: ArrayLike, prob: ArrayLike, decision: ArrayLike, weight: ArrayLike | None = None
) -> dict[str, FloatArray]:
    """Return `score_metrics` of prob (n, K) and `decision_metrics` of decision (n,) int."""
    n_classes = probabilities(prob).shape[1]
    return score_metrics(y, prob, weight) | decision_metrics(
        confusion(y, decision, n_classes, weight)
    )


_OF_ANY = (
    *(f"brier_{part}" for part in ("reliability", "resolution", "uncertainty", "within")),
    *("set_coverage", "set_size", "set_single", "accepted"),
)


def why_undefined(name: str, y: ArrayLike, decision: ArrayLike, class_names: Sequence[str]) -> str:
    """Return why metric `name` is nan on these rows, as a phrase for the report.

    class_names: K names, in the order of the indices; with two, index 1 is the positive class.
    Raises UsageError on an unknown name.
    """
    known = len(class_names)
    truth = np.bincount(class_labels(y, np.size(y), known), minlength=known)
    called = np.bincount(class_labels(decision, np.size(decision), known), minlength=known)
    absent = " or ".join(c for c, count in zip(class_names, truth, strict=True) if count == 0)
    unused = " or ".join(
        c for c, count in zip(class_names, truth + called, strict=True) if count == 0
    )
    reasons = {
        **dict.fromkeys(
            ("roc_auc", "average_precision", "balanced_accuracy"), f"no {absent} image"
        ),
        **dict.fromkeys(("brier", "ece", "accuracy", "aurc", *_OF_ANY), "no image"),
        **dict.fromkeys(
            ("calibration_slope", "calibration_intercept"),
            f"no {absent} image" if absent else "a threshold parts the classes, so no line is best",
        ),
        "calibration_in_the_large": f"no {absent} image",
        "sensitivity": f"no {class_names[1]} image",
        "specificity": f"no {class_names[0]} image",
        "precision": f"no image was called {class_names[1]}",
        "npv": f"no image was called {class_names[0]}",
        "f1": f"no image is, or was called, {class_names[1]}",
        "macro_f1": f"no image is, or was called, {unused}",
        "kappa": "all images are, and were called, one class",
        "mcc": "all images are, or were called, one class",
    }
    if name not in reasons:
        raise UsageError(f"no metric is named {name}; there are {', '.join(sorted(reasons))}")
    return reasons[name] if truth.sum() else "no image"
