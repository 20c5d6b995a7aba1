"""A saved model on image files: the same decoding, preprocessing and arithmetic as in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from lobule.data.manifest import Manifest
from lobule.data.scan import scan_files, unreadable
from lobule.errors import DataError, show
from lobule.evaluation.predictions import LEVELS, Predictions, make_predictions
from lobule.models.bundle import Model
from lobule.progress import Progress, no_progress
from lobule.training.features import embed


def predict(
    model: Model,
    images: Manifest | Path | Sequence[Path],
    *,
    on_error: Literal["fail", "skip"] = "fail",
    cache: Path | None = None,
    source: str = "prediction",
    progress: Progress = no_progress,
) -> Predictions:
    """Predict images with a model from `load_model`.

    images: a manifest, a folder, or files and folders. on_error: "fail" raises ImageError at the
    first image that cannot be read; "skip" leaves such images out and names them in
    `Predictions.failed`. cache: folder of features computed before. source: what the images are,
    in words, for the `source` column.
    The decision is taken at the operating point stored in the model, never at a new one.
    Raises DataError if no image is left.
    """
    if not isinstance(images, Manifest):
        paths = [images] if isinstance(images, Path) else list(images)
        images = scan_files(paths, progress=progress)
    failed: dict[str, str] = {}
    if on_error == "skip":
        failed = unreadable(images, progress=progress)
        images = images.where(~images.table["path"].isin(list(failed)))
        if len(images) == 0:
            first = next(iter(failed))
            raise DataError(f"none of the images can be read; {show(first)}: {failed[first]}")
    features = embed(images, model.backbone, model.preprocessing, cache=cache, progress=progress)
    points = model.info.operating_points
    thresholds = {
        level: np.full(len(images), points[level]["threshold"])
        for level in LEVELS
        if level in points
    }
    predictions = make_predictions(
        images,
        model.info.classes,
        model.heads.probabilities(features),
        thresholds,
        model=model.id,
        weights=model.weights_sha256,
        preprocessing=model.preprocessing.id,
        source=source,
    )
    return replace(predictions, failed=failed)
