"""Fitting the refusal gate: every patient counts the same, the threshold is of patients not seen.

Nothing but training images is needed: what the gate is to refuse can be anything, and no
collection of examples would hold it all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from threadpoolctl import threadpool_limits

from lobule.errors import DataError, UsageError
from lobule.models.classifier import Features, Matrix
from lobule.models.gate import Gate, directions
from lobule.training.head import balanced_weights

DIRECTIONS = 32
"""Directions in which images may differ as training images do, at most. Measured on BreakHis: any
number from 8 to 64 tells tissue from photographs, text, noise and glass as well."""

FOLDS = 3
"""Few, so that gates which set the threshold saw clearly fewer patients than the one that is kept:
what they take for strange errs to the high side, and fewer images of new patients are refused."""


def fit_gate(
    features: Features, groups: Sequence[str], *, kept: float = 0.95, seed: int = 0
) -> Gate:
    """Fit a gate that accepts about a share `kept` of images of patients that it has not seen.

    groups: (n,) what inner folds keep together, the patient of each image. Where patients are
    unknown each image is a group, and more images of new patients are refused than `kept` says,
    since images of one patient resemble each other (on BreakHis a fifth, not a twentieth).
    kept: in (0, 1]; at least this share of the images of training patients, each of whom counts
    the same, score no higher than the threshold by `held_out_scores`. seed: of those folds.
    Raises DataError if there are fewer than two groups or a feature is not finite, UsageError if
    kept is out of range.
    """
    if not 0 < kept <= 1:
        raise UsageError(f"the share kept must be over 0 and at most 1, got {kept}")
    if len(groups) != len(features):
        raise DataError(f"expected {len(features):,} groups, one an image, got {len(groups):,}")
    if len(set(groups)) < 2:
        raise DataError(
            f"a gate needs images of two patients or more, got {len(set(groups))}: how far a new "
            "patient may lie from those known can only be told from one left out",
            fix="add images of other patients",
        )
    seen = directions(features)
    if not np.isfinite(seen).all():
        bad = np.flatnonzero(~np.isfinite(seen).all(axis=1))
        raise DataError(
            f"{len(bad):,} of {len(seen):,} images have features that are not finite; the first "
            f"is row {bad[0]:,}"
        )
    # many small factorisations: several threads would spend their time waiting for each other
    with threadpool_limits(1, user_api="blas"):
        score = _held_out(seen, groups, seed)
        mean, basis = _plane(seen, groups)
    # the lowest score up to which the share is kept, never one between two images
    threshold = np.quantile(score, kept, weights=_weights(groups), method="inverted_cdf")
    return Gate(mean, basis, float(threshold))


def held_out_scores(features: Features, groups: Sequence[str], *, seed: int = 0) -> Matrix:
    """Return (n,) float64: `Gate.score` of each image by a gate that was fitted without its group.

    The groups are dealt into `FOLDS` folds, or as many as there are groups.
    """
    return _held_out(directions(features), groups, seed)


def _held_out(seen: Matrix, groups: Sequence[str], seed: int) -> Matrix:
    """Return `held_out_scores` of `directions` (n, d)."""
    names = np.asarray(groups, dtype=str)
    known, index = np.unique(names, return_inverse=True)
    fold = np.random.default_rng(seed).permutation(len(known))[index] % min(FOLDS, len(known))
    score = np.empty(len(seen))
    for k in np.unique(fold):
        test = fold == k
        mean, basis = _plane(seen[~test], names[~test].tolist())
        score[test] = Gate(mean, basis, np.inf).distance(seen[test])
    return score


def _plane(x: Matrix, groups: Sequence[str]) -> tuple[Matrix, Matrix]:
    """Return mean (d,) and first principal axes (r, d) of x (n, d), each group weighing the same.

    r: `DIRECTIONS`, or fewer where the rows do not span as many.
    """
    weights = _weights(groups)
    mean = weights @ x
    rows = (x - mean) * np.sqrt(weights)[:, None]
    # the smaller of two matrices with the same eigenvalues
    few = len(rows) < rows.shape[1]
    gram: NDArray[np.float64] = rows @ rows.T if few else rows.T @ rows
    n = len(gram)
    values, vectors = eigh(gram, subset_by_index=[max(0, n - DIRECTIONS), n - 1])
    # below this share of the largest, or of the length of 1, squares are rounding error
    kept = values > max(1e-10 * float(values[-1]), 1e-24)
    axes = vectors[:, kept].T
    return mean, axes @ rows / np.sqrt(values[kept])[:, None] if few else axes


def _weights(groups: Sequence[str]) -> Matrix:
    """Return (n,) weights that sum to 1, each group's the same."""
    return balanced_weights(np.zeros(len(groups), np.int64), groups) / len(groups)
