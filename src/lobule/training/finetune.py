"""Tuning a network for every patient fold, and once more for the model that is kept.

For each, some of its training patients are set aside to choose the epoch on. The patients of the
fold, and of the held-out part, are seen by none of this.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.data.cache import PixelCache, open_pixels
from lobule.data.images import Preprocessing
from lobule.data.manifest import Manifest, class_indices
from lobule.data.splits import assign_parts
from lobule.errors import DataError, name_some
from lobule.evaluation.predictions import Predictions, make_predictions
from lobule.models.backbones import Backbone, build
from lobule.models.classifier import Features, LinearHead, Matrix, mean_over_views
from lobule.models.network import Network
from lobule.progress import Progress, no_progress
from lobule.training.batches import Examples
from lobule.training.crossfit import fit, lock_on, put
from lobule.training.distributed import World
from lobule.training.features import embed
from lobule.training.fit import Job
from lobule.training.head import balanced_weights
from lobule.training.loop import Tuned, tune
from lobule.training.machine import Machine
from lobule.training.recipe import Recipe
from lobule.training.tuning import Tuning


@dataclass(frozen=True)
class Bench:
    """All that every tuning of a run starts from.

    manifest: images to learn from. groups: (n,) what must stay together. features: of the frozen
    backbone. folder: of the run's trainings. cache: folder for pixels.
    """

    manifest: Manifest
    groups: tuple[str, ...]
    features: Features
    backbone: Backbone
    prep: Preprocessing
    recipe: Recipe
    folder: Path
    cache: Path
    machine: Machine
    progress: Progress = no_progress

    @property
    def tuning(self) -> Tuning:
        """How the network is tuned."""
        if self.recipe.tuning is None:
            raise ValueError(f"recipe {self.recipe.name!r} tunes no network")
        return self.recipe.tuning

    @property
    def y(self) -> NDArray[np.int64]:
        """Class index of each image, (n,)."""
        return class_indices(self.manifest.table["label"], self.manifest.classes)

    def pixels(self) -> PixelCache:
        """Return the decoded images."""
        return open_pixels(self.manifest, self.prep, self.cache, progress=self.progress)


@dataclass(frozen=True)
class TunedModel:
    """A tuned network as every other model is: a backbone and a linear head.

    record: how it was trained, as in training.json. machine: what on.
    """

    backbone: Backbone
    head: LinearHead
    record: dict[str, Any]
    machine: dict[str, str]


@dataclass(frozen=True)
class Order:
    """What the other processes need to train the network that the leader trains."""

    job: Job
    manifest: Manifest
    cache: Path
    machine: Machine
    architecture: str
    arguments: dict[str, Any]
    n_features: int
    n_classes: int


def tuned_out_of_fold(
    bench: Bench, fold: NDArray[np.int64], frozen: Predictions
) -> tuple[Predictions, list[dict[str, Any]]]:
    """Predict every image by a network tuned without its fold.

    fold: (n,) fold of each image. frozen: out-of-fold predictions of the features recipe under
    the same folds; they stand beside as kind "frozen".
    The settings of a fold are locked on the scores of the other folds' patients, each from the
    network that had not seen them. Returns the predictions and a record of each training.
    """
    manifest, classes = bench.manifest, bench.manifest.classes
    found = {kind: np.full((len(manifest), len(classes)), np.nan) for kind in ("prob", "plain")}
    records = []
    for k in np.unique(fold):
        model = tune_model(bench, fold != k, name=f"fold {k + 1}")
        records.append(model.record)
        part = manifest.where(fold == k)
        for kind, values in predict_tuned(model, part, bench).items():
            found[kind][fold == k] = values
    limits: dict[str, NDArray[np.float64]] = {}
    answers: dict[str, Matrix] = {}
    for k in np.unique(fold):
        others = fold != k
        locked = lock_on(
            manifest.where(others), found["prob"][others],
            [g for g, keep in zip(bench.groups, others, strict=True) if keep], bench.recipe,
            source=f"out-of-fold scores of the folds other than {k + 1}",
        )  # fmt: skip
        said = {kind: values[~others] for kind, values in found.items()}
        put(answers, ~others, locked.answers(said))
        put(limits, ~others, locked.limits())
    answers |= {kind: frozen.probabilities(kind) for kind in ("colour", "prior")}
    answers["frozen"] = frozen.probabilities()
    source = str(frozen.table["source"].iloc[0])
    return make_predictions(manifest, classes, answers, limits, source=source), records


def predict_tuned(model: TunedModel, images: Manifest, bench: Bench) -> dict[str, Matrix]:
    """Return (n, K) probabilities of images, as the mean over the views ("prob") and "plain"."""
    features = embed(images, model.backbone, bench.prep, progress=bench.progress)
    return {
        "prob": mean_over_views(model.head, features.views),
        "plain": model.head.probabilities(features.views[:, 0]),
    }


def tune_model(
    bench: Bench,
    rows: NDArray[np.bool_],
    *,
    name: str,
    validation: NDArray[np.bool_] | None = None,
) -> TunedModel:
    """Tune the network on the images of `rows` (n,), some of them set aside to choose the epoch.

    validation: (n,) which those are; by default some patients of each class, drawn from the seed.
    Raises DataError if a class has too few patients to set one aside.
    """
    aside = validation
    if aside is None:
        aside = set_aside(bench.manifest, bench.groups, rows, bench.recipe)
    train = rows & ~aside
    network = Network(
        copy.deepcopy(bench.backbone.network).requires_grad_(True),
        bench.backbone.n_features,
        len(bench.manifest.classes),
    )
    if bench.tuning.head == "probe":
        inside = [g for g, keep in zip(bench.groups, train, strict=True) if keep]
        seen = bench.features.where(train)
        fitted = fit(
            seen, bench.y[train], inside, n_classes=len(bench.manifest.classes),
            seed=bench.recipe.seed, choice=bench.recipe.regularisation,
        )  # fmt: skip
        network.take_head(fitted.heads.tissue, seen.views.reshape(-1, seen.views.shape[-1]))
    else:
        network.start_head(seed=bench.recipe.seed)
    job = Job(
        name=name,
        folder=bench.folder / name.replace(" ", "-"),
        pixels=bench.pixels(),
        paths=tuple(bench.manifest.table["path"]),
        train=_examples(bench, train),
        validation=_examples(bench, aside),
        prep=bench.prep,
        tuning=bench.tuning,
        seed=bench.recipe.seed,
        identity=_identity(bench, train, aside),
    )
    tuned = _tune(bench, job, network)
    return TunedModel(
        backbone=replace(bench.backbone, network=tuned.network.backbone),
        head=tuned.network.folded_head(),
        record=_record(bench, job, tuned, train, aside),
        machine=tuned.settled.record(),
    )


def _tune(bench: Bench, job: Job, network: Network) -> Tuned:
    if bench.machine.world.size > 1:
        order = Order(
            job=job,
            manifest=bench.manifest,
            cache=bench.cache,
            machine=bench.machine,
            architecture=bench.backbone.name,
            arguments=bench.backbone.arguments,
            n_features=bench.backbone.n_features,
            n_classes=len(bench.manifest.classes),
        )
        bench.machine.world.share(order)
    return tune(job, network, machine=bench.machine, progress=bench.progress)


def assist(world: World) -> None:
    """Train along with the leader, network after network, until it has no more."""
    while True:
        order: Order | None = world.share(None)
        if order is None:
            return
        backbone = build(order.architecture, order.arguments)
        network = Network(backbone, order.n_features, order.n_classes)
        # on another machine than the leader's the images are decoded there
        pixels = open_pixels(order.manifest, order.job.prep, order.cache)
        tune(
            replace(order.job, pixels=pixels), network, machine=replace(order.machine, world=world)
        )


def set_aside(
    manifest: Manifest, groups: Sequence[str], rows: NDArray[np.bool_], recipe: Recipe
) -> NDArray[np.bool_]:
    """Return which of the images of `rows` (n,) are set aside to choose the epoch on.

    Whole groups of every class, drawn from the recipe's seed.
    Raises DataError if a class has too few groups to set one aside.
    """
    if recipe.tuning is None:
        return np.zeros(len(rows), dtype=bool)
    labels = manifest.table["label"][rows].tolist()
    inside = [g for g, keep in zip(groups, rows, strict=True) if keep]
    share = recipe.tuning.validation
    shares = {"train": 1 - share, "validation": share}
    aside = np.zeros(len(rows), dtype=bool)
    aside[rows] = assign_parts(labels, inside, shares=shares, seed=recipe.seed) == "validation"
    for part in (aside, rows & ~aside):
        missing = set(manifest.classes) - set(manifest.table["label"][part])
        if missing:
            raise DataError(
                f"class {name_some(sorted(missing))} has too few patients to set one aside, on "
                "whom the epoch would be chosen",
                fix="add patients, use fewer --folds, or --recipe features, which sets none aside",
            )
    return aside


def check_tuning(
    manifest: Manifest, groups: Sequence[str], fold: NDArray[np.int64], recipe: Recipe
) -> None:
    """Raise DataError, before the long work, if patients are too few to tune a network on."""
    for k in (-1, *np.unique(fold)):
        set_aside(manifest, groups, fold != k, recipe)


def _examples(bench: Bench, rows: NDArray[np.bool_]) -> Examples:
    y = bench.y[rows]
    groups: Sequence[str] = [g for g, keep in zip(bench.groups, rows, strict=True) if keep]
    weight = np.ones(len(y))
    if bench.tuning.balance == "patient":
        weight = balanced_weights(y, groups)
    elif bench.tuning.balance == "class":
        # every image a patient of its own: what is left is the balance of classes
        weight = balanced_weights(y, [str(i) for i in range(len(y))])
    return Examples(np.flatnonzero(rows), y, weight)


def _identity(bench: Bench, train: NDArray[np.bool_], aside: NDArray[np.bool_]) -> dict[str, str]:
    table = bench.manifest.table
    images = "\n".join(
        f"{sha256} {label} {part}"
        for rows, part in ((train, "train"), (aside, "validation"))
        for sha256, label in zip(table["sha256"][rows], table["label"][rows], strict=True)
    )
    recipe = json.dumps(bench.recipe.to_json(), sort_keys=True)
    return {
        "data": hashlib.sha256(images.encode()).hexdigest(),
        "recipe": hashlib.sha256(recipe.encode()).hexdigest(),
        "weights": bench.backbone.weights_sha256,
        "preprocessing": bench.prep.id,
    }


def _record(
    bench: Bench, job: Job, tuned: Tuned, train: NDArray[np.bool_], aside: NDArray[np.bool_]
) -> dict[str, Any]:
    groups = np.array(bench.groups)
    return {
        "name": job.name,
        "folder": job.folder.name,
        "n_train_images": int(train.sum()),
        "n_train_patients": len(set(groups[train])),
        "n_validation_images": int(aside.sum()),
        "n_validation_patients": len(set(groups[aside])),
        "selected_epoch": tuned.state.best_epoch,
        "epochs": tuned.state.epoch,
        "steps": tuned.state.step,
        "stopped": tuned.state.stopped,
    }
