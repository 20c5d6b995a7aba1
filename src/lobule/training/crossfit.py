"""Out-of-fold predictions, the locked thresholds, and the final fit on everyone.

Every threshold that decides about an image was chosen on scores of other patients, by heads that
had not seen those patients either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from lobule.data.manifest import Manifest, class_indices
from lobule.errors import DataError
from lobule.evaluation.locked import Locked, lock
from lobule.evaluation.predictions import Predictions, make_predictions
from lobule.models.classifier import Features, Heads, Matrix
from lobule.progress import Progress, no_progress
from lobule.training.head import StrengthChoice, fit_head, fit_plain
from lobule.training.recipe import Recipe


@dataclass(frozen=True)
class Fitted:
    """What is fitted on a set of training images.

    strength: of the regularisation, chosen by inner folds. inner: (n, K) what the inner folds
    said of the training images: honest scores, on which a threshold can be chosen.
    """

    heads: Heads
    strength: float
    inner: Matrix


def fit(
    features: Features,
    y: NDArray[np.int64],
    groups: Sequence[str],
    *,
    n_classes: int,
    seed: int = 0,
    choice: StrengthChoice = "one-se",
) -> Fitted:
    """Fit the head and both baselines on the given images; arguments as `fit_head`."""
    # many small factorisations: several threads would spend their time waiting for each other
    with threadpool_limits(1, user_api="blas"):
        tissue = fit_head(features.views, y, groups, n_classes=n_classes, seed=seed, choice=choice)
        colour = fit_plain(features.colour, y, groups, n_classes=n_classes)
    heads = Heads(
        tissue=tissue.head,
        colour=colour,
        prior=np.bincount(y, minlength=n_classes) / len(y),
    )
    return Fitted(heads, tissue.strength, tissue.inner)


def lock_on(
    manifest: Manifest, prob: Matrix, groups: Sequence[str], recipe: Recipe, *, source: str
) -> Locked:
    """Settle what the recipe asks for on honest scores of labelled images; see `locked.lock`.

    prob: (n, K) from heads that had not seen the image's patient.
    """
    scored = make_predictions(manifest, manifest.classes, {"prob": prob}, {}, source=source)
    return lock(scored, groups, recipe.targets, source=source)


def out_of_fold(
    manifest: Manifest,
    features: Features,
    fold: NDArray[np.int64],
    groups: Sequence[str],
    recipe: Recipe,
    *,
    source: str,
    progress: Progress = no_progress,
) -> Predictions:
    """Predict every image by heads fitted without its fold, at settings locked without it.

    fold: (n,) fold of each image. groups: (n,) what the inner folds keep together; for an honest
    result both are by patient. source: what the figures are of, in words.
    """
    classes = manifest.classes
    y = class_indices(manifest.table["label"], classes)
    found: dict[str, Matrix] = {}
    limits: dict[str, NDArray[np.float64]] = {}
    check_folds(manifest, fold, groups)
    folds = np.unique(fold)
    for k in progress(folds, total=len(folds), task="fitting folds"):
        train, test = fold != k, fold == k
        inside = [g for g, keep in zip(groups, train, strict=True) if keep]
        fitted = fit(
            features.where(train), y[train], inside, n_classes=len(classes), seed=recipe.seed,
            choice=recipe.regularisation,
        )  # fmt: skip
        locked = lock_on(
            manifest.where(train), fitted.inner, inside, recipe,
            source=f"inner folds of fold {k + 1}",
        )  # fmt: skip
        put(found, test, locked.answers(fitted.heads.probabilities(features.where(test))))
        put(limits, test, locked.limits())
    # one answer for all: shares that differ by fold would rank the folds when they are pooled
    found["prior"] = np.tile(np.bincount(y, minlength=len(classes)) / len(y), (len(y), 1))
    return make_predictions(manifest, classes, found, limits, source=source)


def put(into: dict[str, Matrix], rows: NDArray[np.bool_], values: Mapping[str, ArrayLike]) -> None:
    """Set `rows` (n,) of each array by name, (n, ...); a new one is nan in all others."""
    for name, value in values.items():
        into.setdefault(name, np.full((len(rows), *np.shape(value)[1:]), np.nan))[rows] = value


def check_folds(manifest: Manifest, fold: NDArray[np.int64], groups: Sequence[str]) -> None:
    """Raise DataError if, without some fold, a class has fewer than two groups to learn from."""
    labels = manifest.table["label"].to_numpy()
    names = np.asarray(groups)
    for k in np.unique(fold):
        for label in manifest.classes:
            n = len(np.unique(names[(fold != k) & (labels == label)]))
            if n < 2:
                raise DataError(
                    f"without fold {k + 1}, {n} patient(s) of class {label!r} are left to learn "
                    "from; two are needed, one to fit on and one to choose the regularisation on",
                    fix="add patients of that class; three are the least with patient folds",
                )
