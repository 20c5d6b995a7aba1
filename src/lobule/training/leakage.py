"""The leakage meter: what the usual random split would have claimed for the same model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.data.manifest import Manifest
from lobule.data.splits import assign_folds
from lobule.errors import DataError
from lobule.evaluation.intervals import (
    FloatArray,
    Interval,
    Statistic,
    paired_difference,
    patient_bootstrap,
)
from lobule.evaluation.metrics import score_metrics
from lobule.evaluation.predictions import Predictions
from lobule.models.classifier import Features
from lobule.progress import Progress, no_progress
from lobule.training.crossfit import out_of_fold
from lobule.training.recipe import Recipe

SCHEMA = "lobule.leakage/1"


@dataclass(frozen=True)
class Leakage:
    """Image ROC AUC of one model and budget under three ways of splitting, pooled out of fold.

    auc: by "image" (random images), "slide" and "patient". inflation: AUC of random images less
    that of patients, on the same redrawn patients. long_side_px: input size.
    """

    auc: dict[str, Interval]
    inflation: Interval
    n_images: int
    n_slides: int
    n_patients: int
    folds: int
    seed: int
    long_side_px: int
    patients_known: bool

    def to_json(self) -> dict[str, Any]:
        """Return plain types with a schema."""
        return {
            "schema": SCHEMA,
            **vars(self),
            "auc": {name: interval.to_json() for name, interval in self.auc.items()},
            "inflation": self.inflation.to_json(),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Leakage:
        """Rebuild from `to_json`; raises DataError for another schema or a missing field."""
        if record.get("schema") != SCHEMA:
            raise DataError(f"not a leakage record: schema {record.get('schema')!r}")
        try:
            fields = {key: record[key] for key in cls.__dataclass_fields__}
            fields["auc"] = {k: Interval.from_json(v) for k, v in record["auc"].items()}
            fields["inflation"] = Interval.from_json(record["inflation"])
            return cls(**fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"leakage record cannot be read: {error!r}") from error


def measure_leakage(
    manifest: Manifest,
    features: Features,
    groups: Sequence[str],
    recipe: Recipe,
    *,
    long_side_px: int,
    progress: Progress = no_progress,
) -> Leakage:
    """Fit and score the same recipe under folds of random images, of slides and of patients.

    groups: (n,) patients as the honest split keeps them. The inner folds that choose the
    regularisation are of the same kind as the outer ones, as they would be in practice.
    """
    table = manifest.table
    own = "image:" + table["path"]
    slide = (table["patient"].fillna("") + "/" + table["slide"]).fillna(own)
    units = {"image": own.tolist(), "slide": slide.tolist(), "patient": list(groups)}
    scored: dict[str, Statistic] = {}
    for name, unit in units.items():
        fold = assign_folds(table["label"].tolist(), unit, folds=recipe.folds, seed=recipe.seed)
        predictions = out_of_fold(
            manifest, features, fold, unit, recipe, source=f"{name} folds", progress=progress
        )
        scored[name] = _auc(predictions)
    # whatever was split, it is the patients that differ between one study and the next
    patient = np.asarray(groups)
    return Leakage(
        auc={name: patient_bootstrap(auc, patient)["roc_auc"] for name, auc in scored.items()},
        inflation=paired_difference(scored["image"], scored["patient"], patient)["roc_auc"],
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
