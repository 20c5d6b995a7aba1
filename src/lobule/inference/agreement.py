"""Whether an exported network gives the original's answers on real images, in numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.data.images import N_VIEWS
from lobule.data.manifest import Manifest, class_indices
from lobule.errors import ModelError
from lobule.evaluation.intervals import Interval, Statistic, paired
from lobule.evaluation.metrics import roc_auc
from lobule.evaluation.predictions import decide
from lobule.models.bundle import Model
from lobule.models.classifier import Matrix
from lobule.models.engines import Engine, NotRunnableError, make_engine, torch_engine
from lobule.models.exports import TOLERANCES
from lobule.progress import Progress, no_progress
from lobule.training.features import Extractor, gather

COMPARED = 16
"""Images on which an fp32 export is compared with torch, each in eight views."""

CHANGED = 0.01
"""Largest share of labels that int8 may change."""

AUC_LOSS = 0.005
"""Largest loss of image ROC AUC by int8."""


def compare_probabilities(
    model: Model, engine: Engine, images: Manifest, *, progress: Progress = no_progress
) -> dict[str, Any]:
    """Compare with torch, view by view; raises ModelError where a probability is off."""
    chosen = images.where(_spread(len(images), COMPARED))
    original = torch_engine(model.backbone.module, "fp32", device="cpu")
    try:
        found, expected = (
            gather(chosen, _extractor(model, e), progress=progress).views
            for e in (engine, original)
        )
    except NotRunnableError as error:
        raise ModelError(f"not kept: {error}", fix="use another engine") from error
    head = model.heads.tissue
    off = float(np.abs(head.probabilities(found) - head.probabilities(expected)).max())
    if off > TOLERANCES["fp32"]:
        raise ModelError(
            f"not kept: {engine.name} is off by {off:.2g} in a probability, on {len(chosen)} real "
            f"images; {TOLERANCES['fp32']} is allowed",
            fix="use another engine; this network is converted wrongly",
        )
    return {"images": len(chosen), "views": N_VIEWS, "largest_difference": off}


def compare_labels(
    model: Model,
    engine: Engine,
    images: Manifest,
    used: NDArray[np.bool_],
    *,
    cache: Path | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Count what int8 changes, on labelled images that gave no ranges; raises ModelError."""
    held_out = np.zeros(len(images), dtype=bool)
    if "fold" in images.table:
        held_out = (images.table["fold"] < 0).to_numpy(dtype=bool)
    others = images.where(held_out if held_out.any() else ~used)
    original = make_engine(model.backbone.module)
    seen = gather(others, _extractor(model, original), cache=cache, progress=progress)
    expected = model.heads.probabilities(seen)["prob"]
    found = model.heads.probabilities(gather(others, _extractor(model, engine), progress=progress))[
        "prob"
    ]
    point = model.info.operating_points.get("image")
    threshold = None if point is None else point["threshold"]
    changed = float((decide(found, threshold) != decide(expected, threshold)).mean())
    agreement: dict[str, Any] = {
        "images": len(others),
        "calibration_images": int(used.sum()),
        "largest_difference": float(np.abs(found - expected).max()),
        "mean_difference": float(np.abs(found - expected).mean()),
        "labels_changed": changed,
    }
    gain = auc_gain(others, model.info.classes, found, expected)
    loss = 0.0
    if gain is not None:
        agreement["roc_auc_gain"] = gain.to_json()
        loss = -gain.estimate
    if changed > CHANGED or loss > AUC_LOSS:
        raise ModelError(
            f"not kept: of {len(others)} images int8 gives {changed:.1%} another label "
            f"({CHANGED:.0%} is allowed), and loses {loss:.4f} of image AUC ({AUC_LOSS})",
            fix="export without --int8",
        )
    return agreement


def auc_gain(
    images: Manifest, classes: tuple[str, ...], found: Matrix, expected: Matrix
) -> Interval | None:
    """Return the image ROC AUC of `found` less that of `expected`, paired by patient.

    None where it is not defined: more than two classes, or one of them absent.
    """
    y = class_indices(images.table["label"], classes)
    if len(classes) != 2 or len(np.unique(y)) < 2:
        return None

    def auc_of(prob: Matrix) -> Statistic:
        return lambda weight: {"roc_auc": roc_auc(y, prob[:, 1], weight)}

    return paired(auc_of(found), auc_of(expected), images.groups.tolist())["roc_auc"].difference


def _extractor(model: Model, engine: Engine) -> Extractor:
    return Extractor(engine, model.preprocessing, model.features_id)


def _spread(n: int, wanted: int) -> NDArray[np.bool_]:
    """Return which `wanted` of n rows, evenly spaced."""
    chosen = np.zeros(n, dtype=bool)
    chosen[np.linspace(0, n - 1, min(n, wanted)).astype(int)] = True
    return chosen
