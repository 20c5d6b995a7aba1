"""Fitting the linear head: patient-balanced weights, strength chosen by inner patient folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from lobule.data.splits import assign_folds
from lobule.models.classifier import LinearHead, Matrix, mean_over_views

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
"""Inverse regularisation strengths tried: C of scikit-learn, for weights of mean 1 an image."""

INNER_FOLDS = 5

StrengthChoice = Literal["one-se", "lowest"]
"""How the strength is chosen, see `fit_head`."""


@dataclass(frozen=True)
class FittedHead:
    """A head, the strength that was chosen, and what the inner folds said of the same images.

    inner: (n, K) probabilities of each training image from a head that never saw its group, at
    the chosen strength: honest scores on which a threshold can be chosen.
    """

    head: LinearHead
    strength: float
    inner: Matrix


def balanced_weights(y: NDArray[np.int64], groups: Sequence[str]) -> Matrix:
    """Return (n,) weights of mean 1: each class the same in all, in it each patient the same.

    Without them the patient with most photographs, and the class with most patients, would
    decide what the head learns.
    """
    names, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    cell = y * len(names) + index
    images = np.bincount(cell, minlength=(y.max() + 1) * len(names)).reshape(-1, len(names))
    patients = (images > 0).sum(axis=1)
    weights: Matrix = 1.0 / (images[y, index] * patients[y])
    weights *= len(y) / weights.sum()
    return weights


def fit_head(
    features: NDArray[np.float32],
    y: NDArray[np.int64],
    groups: Sequence[str],
    *,
    n_classes: int,
    seed: int = 0,
    strengths: Sequence[float] = STRENGTHS,
    choice: StrengthChoice = "one-se",
) -> FittedHead:
    """Fit a head and choose its strength on folds of the given groups only.

    features: (n, views, d). y: (n,) class indices below n_classes. groups: (n,) what must stay
    together; inside, too, no group is scored by a head that saw it.
    choice: "one-se" takes the strongest regularisation whose weighted log loss on the inner folds
    is within one standard error of the lowest, "lowest" that with the lowest itself; the error is
    that of a sum over groups, which are few. Source: Breiman, Friedman, Olshen & Stone,
    Classification and Regression Trees (1984), section 3.4.3.
    Raises DataError if a class has fewer than two groups.
    """
    labels = [str(label) for label in y]
    fewest = min(
        len({g for g, label in zip(groups, labels, strict=True) if label == name})
        for name in set(labels)
    )
    fold = assign_folds(labels, groups, folds=max(2, min(INNER_FOLDS, fewest)), seed=seed)
    weights = balanced_weights(y, groups)
    scores = np.zeros((len(strengths), len(y), n_classes))
    for k in np.unique(fold):
        train = fold != k
        group = [g for g, keep in zip(groups, train, strict=True) if keep]
        path = _fit_path(features[train], y[train], balanced_weights(y[train], group), strengths)
        for i, head in enumerate(path):
            scores[i, ~train] = mean_over_views(
                _spread(head, y[train], n_classes), features[~train]
            )
    picked = np.take_along_axis(scores, y[None, :, None], axis=2)[..., 0]
    losses = -np.log(np.clip(picked, 1e-12, None)) * weights
    best = _chosen(losses, groups, choice)
    (head,) = _fit_path(features, y, weights, [strengths[best]])
    return FittedHead(_spread(head, y, n_classes), float(strengths[best]), scores[best])


def _chosen(losses: Matrix, groups: Sequence[str], choice: StrengthChoice) -> int:
    """Return which strength is taken. losses: (strengths, n), weaker regularisation last."""
    mean = losses.mean(axis=1)
    best = int(mean.argmin())
    if choice == "lowest":
        return best
    names, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    of_group = np.bincount(index, losses[best], len(names))
    error = np.sqrt(len(names)) * of_group.std(ddof=1) / losses.shape[1]
    return int(np.flatnonzero(mean <= mean[best] + error)[0])


def fit_plain(
    features: NDArray[np.floating],
    y: NDArray[np.int64],
    groups: Sequence[str],
    *,
    n_classes: int,
    strength: float = 1.0,
) -> LinearHead:
    """Fit a head of fixed strength on (n, d) features: for baselines with a few columns."""
    weights = balanced_weights(y, groups)
    (head,) = _fit_path(features[:, None, :], y, weights, [strength])
    return _spread(head, y, n_classes)


def _fit_path(
    features: NDArray[np.floating],
    y: NDArray[np.int64],
    weights: Matrix,
    strengths: Sequence[float],
) -> list[LinearHead]:
    """Fit one head per strength on the mean features of the views, standardised by weight.

    A ridge penalty does not change under rotation, so with fewer images than features the fit
    runs in the space that the images span.
    """
    x = features.mean(axis=1, dtype=np.float64)
    share = weights / weights.sum()
    mean = share @ x
    scale = np.sqrt(share @ (x - mean) ** 2)
    # a constant feature tells nothing; any scale keeps it at zero
    scale[scale < 1e-8 * max(1.0, float(scale.max()))] = 1.0
    z = (x - mean) / scale
    few = len(z) < z.shape[1]
    basis = _row_space(z) if few else np.eye(z.shape[1])
    z = z @ basis.T
    heads = []
    for strength in strengths:
        # Newton's steps cost d^3, which with many features and images no longer pays
        solver = "newton-cholesky" if few else "lbfgs"
        model = LogisticRegression(C=strength, solver=solver, tol=1e-8, max_iter=10_000)
        model.fit(z, y, sample_weight=weights)
        weight = (model.coef_ @ basis) / scale
        heads.append(LinearHead(weight, model.intercept_ - weight @ mean))
    return heads


def _row_space(z: Matrix) -> Matrix:
    """Return orthonormal rows (r, d) that span the rows of z (n, d), by the n x n Gram matrix."""
    values, vectors = np.linalg.eigh(z @ z.T)
    # below this share of the largest, squared singular values are rounding error
    kept = values > 1e-10 * values[-1]
    basis: Matrix = (vectors[:, kept].T @ z) / np.sqrt(values[kept])[:, None]
    return basis


def _spread(head: LinearHead, y: NDArray[np.int64], n_classes: int) -> LinearHead:
    """Give a head one row a class: of two, scikit-learn keeps the difference only."""
    if len(head.bias) == 1:
        head = LinearHead(
            np.concatenate([-head.weight, head.weight]) / 2,
            np.concatenate([-head.bias, head.bias]) / 2,
        )
    present = np.unique(y)
    if len(present) == n_classes:
        return head
    # a class without training images gets no probability, instead of a shift of the others
    weight = np.zeros((n_classes, head.weight.shape[1]))
    bias = np.full(n_classes, -1e3)
    weight[present], bias[present] = head.weight, head.bias
    return LinearHead(weight, bias)
