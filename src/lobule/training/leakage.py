"""The leakage meter: what the usual random split would have claimed for the same model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lobule.data.manifest import Manifest
from lobule.data.splits import assign_folds
from lobule.evaluation.intervals import (
    FloatArray,
    Statistic,
    paired,
    patient_bootstrap,
)
from lobule.evaluation.leakage import Leakage
from lobule.evaluation.metrics import score_metrics
from lobule.evaluation.predictions import Predictions
from lobule.models.classifier import Features
from lobule.progress import Progress, no_progress
from lobule.training.crossfit import out_of_fold
from lobule.training.recipe import Recipe


def measure_leakage(
    manifest: Manifest,
    features: Features,
    groups: Sequence[str],
    recipe: Recipe,
    *,
    long_side_px: int,
    patient_folds: Predictions | None = None,
    progress: Progress = no_progress,
) -> Leakage:
    """Fit and score the same recipe under folds of random images, of slides and of patients.

    groups: (n,) patients as the honest split keeps them. The inner folds that choose the
    regularisation are of the same kind as the outer ones, as they would be in practice.
    patient_folds: out-of-fold predictions of the same images by patient folds, if they are there.
    """
    table = manifest.table
    own = "image:" + table["path"]
    slide = (table["patient"].fillna("") + "/" + table["slide"]).fillna(own)
    units = {"image": own.tolist(), "slide": slide.tolist(), "patient": list(groups)}
    scored: dict[str, Statistic] = {}
    for name, unit in units.items():
        if name == "patient" and patient_folds is not None:
            scored[name] = _auc(patient_folds)
            continue
        fold = assign_folds(table["label"].tolist(), unit, folds=recipe.folds, seed=recipe.seed)
        predictions = out_of_fold(
            manifest, features, fold, unit, recipe, source=f"{name} folds", progress=progress
        )
        scored[name] = _auc(predictions)
    # whatever was split, it is the patients that differ between one study and the next
    patient = np.asarray(groups)
    pair = paired(scored["image"], scored["patient"], patient)["roc_auc"]
    slides = patient_bootstrap(scored["slide"], patient)["roc_auc"]
    return Leakage(
        auc={"image": pair.first, "slide": slides, "patient": pair.second},
        inflation=pair.difference,
        n_images=len(manifest),
        n_slides=int(slide.nunique()),
        n_patients=int(np.unique(patient).size),
        folds=recipe.folds,
        seed=recipe.seed,
        long_side_px=long_side_px,
        patients_known=manifest.patients_known,
    )


def _auc(predictions: Predictions) -> Statistic:
    y: NDArray[np.int64] = predictions.y
    prob = predictions.probabilities()

    def statistic(weight: FloatArray) -> dict[str, FloatArray]:
        return {"roc_auc": score_metrics(y, prob, weight)["roc_auc"]}

    return statistic
