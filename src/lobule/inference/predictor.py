"""A saved model on image files: the same decoding, preprocessing and arithmetic as in training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from lobule.data.images import N_VIEWS
from lobule.data.manifest import Manifest
from lobule.data.scan import scan_files
from lobule.errors import DataError, show
from lobule.evaluation.locked import Locked
from lobule.evaluation.predictions import Gated, Predictions, make_predictions
from lobule.identity import NOTICE, TOOL, now
from lobule.inference.choice import Running, choose_engine
from lobule.models.bundle import Model
from lobule.models.classifier import Features, Matrix
from lobule.parallel import in_parts
from lobule.progress import Progress, no_progress
from lobule.training.features import Extractor, embed_each

AS_TRAINED = Running()
"""The engine, precision and views that the operating point was chosen with, or their equal."""

_PART = 64
"""Images whose heads are computed at a time: one at a time, calling numpy takes longer than it."""

_log = logging.getLogger(__name__)


def predict(
    model: Model,
    images: Manifest | Path | Sequence[Path],
    *,
    on_error: Literal["fail", "skip"] = "fail",
    cache: Path | None = None,
    source: str = "prediction",
    running: Running = AS_TRAINED,
    progress: Progress = no_progress,
) -> Predictions:
    """Predict images with a model from `load_model`.

    images: a manifest, a folder, or files and folders. on_error: "fail" raises an error at the
    first image that cannot be read; "skip" leaves such images out and names them in
    `Predictions.failed`, and files that are not there as well. cache: folder of features computed
    before. source: what the images are, in words, for the `source` column. running: what runs the
    network, on how many views; the operating point was chosen on the mean of eight.
    The decision is taken at the operating point stored in the model, never at a new one. Images
    are worked on one at a time, so that memory does not grow with their size.
    Raises DataError if no image is left.
    """
    lost: dict[str, str] = {}
    if not isinstance(images, Manifest):
        paths = [images] if isinstance(images, Path) else list(images)
        noted = lost if on_error == "skip" else None
        images = scan_files(paths, failed=noted, progress=progress)
    extractor = open_extractor(model, images, running, cache=cache)
    found = predict_with(
        model, extractor, images, on_error=on_error, cache=cache, source=source, progress=progress
    )
    return replace(found, failed={**lost, **found.failed})


def open_extractor(
    model: Model, images: Manifest, running: Running = AS_TRAINED, *, cache: Path | None = None
) -> Extractor:
    """Return what computes a model's features; it can be used for many calls of `predict_with`.

    images: the engine is chosen for the size of the first one.
    """
    engine = choose_engine(model, _first_shape(model, images), running, cache=cache)
    return Extractor(engine, model.preprocessing, model.features_id, running.views)


def predict_with(
    model: Model,
    extractor: Extractor,
    images: Manifest,
    *,
    on_error: Literal["fail", "skip"] = "fail",
    cache: Path | None = None,
    source: str = "prediction",
    progress: Progress = no_progress,
) -> Predictions:
    """Predict images by an extractor that is open already; otherwise as `predict`."""
    failed: dict[str, str] = {}
    said = _Said(len(images))
    noted = failed if on_error == "skip" else None
    features = embed_each(images, extractor, cache=cache, failed=noted, progress=progress)
    for part in in_parts(features, _PART):
        some = Features(
            np.stack([views for _, (views, _) in part]),
            np.stack([colour for _, (_, colour) in part]),
        )
        said.add(model, [i for i, _ in part], some)
    if not said.done.any():
        first = next(iter(failed))
        raise DataError(f"none of the images can be read; {show(first)}: {failed[first]}")
    if extractor.views != N_VIEWS and model.info.operating_points:
        _log.warning("the operating point was chosen on the mean of %d views, not on one", N_VIEWS)
    return replace(said.of(model, images, source), failed=failed)


def predict_features(
    model: Model, images: Manifest, features: Features, *, source: str = "prediction"
) -> Predictions:
    """Predict images whose features are known, as `predict` does with those it computes.

    images: one row an image, in the order of `features`.
    """
    said = _Said(len(images))
    said.add(model, list(range(len(images))), features)
    return said.of(model, images, source)


class _Said:
    """What heads and gate say of n images, gathered part by part."""

    def __init__(self, n: int) -> None:
        self.prob: dict[str, Matrix] = {}
        self.strange = np.full(n, np.nan)
        self.done = np.zeros(n, dtype=bool)

    def add(self, model: Model, rows: list[int], features: Features) -> None:
        """Note what the model says of the images of these rows."""
        for kind, values in model.heads.probabilities(features).items():
            empty = np.empty((len(self.done), values.shape[1]))
            self.prob.setdefault(kind, empty)[rows] = values
        if model.gate is not None:
            self.strange[rows] = model.gate.score(features)
        self.done[rows] = True

    def of(self, model: Model, images: Manifest, source: str) -> Predictions:
        """Return the table of those images that something was said of."""
        done, locked, gated = self.done, Locked.of(model.info), None
        if model.gate is not None:
            gated = Gated(self.strange[done], model.gate.passes(self.strange[done]))
        return make_predictions(
            images.where(done),
            model.info.classes,
            locked.answers({kind: values[done] for kind, values in self.prob.items()}),
            locked.limits(),
            gated,
            model=model.id,
            weights=model.weights_sha256,
            preprocessing=model.preprocessing.id,
            source=source,
            training_data=str(model.info.training["data_hash"]),
            tool=TOOL,
            time=now(),
            notice=NOTICE,
        )


def _first_shape(model: Model, images: Manifest) -> tuple[int, int]:
    """Return height and width, in the network, of the first image whose size is known."""
    known = images.table[["width", "height"]].dropna()
    if known.empty:
        return model.preprocessing.size(1, 1)[::-1]
    width, height = model.preprocessing.size(*(int(side) for side in known.iloc[0]))
    return height, width
