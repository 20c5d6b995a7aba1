"""The leakage meter on data whose truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lobule.data.manifest import Manifest, complete
from lobule.errors import DataError
from lobule.evaluation.leakage import Leakage
from lobule.models.classifier import Features
from lobule.training.leakage import measure_leakage
from lobule.training.recipe import Recipe


@pytest.fixture(scope="module")
def noise() -> Leakage:
    """Labels by coin, constant within a patient: nothing can be known of a new patient."""
    rng = np.random.default_rng(1)
    patients, per_patient = 40, 6
    patient = np.repeat(np.arange(patients), per_patient)
    coin = rng.permutation(np.arange(patients) % 2)
    signature = rng.normal(0, 1, (patients, 30))
    views = signature[patient][:, None] + rng.normal(0, 0.3, (len(patient), 8, 30))
    colour = rng.normal(0, 1, (len(patient), 12))
    rows = pd.DataFrame(
        {
            "path": [f"{i:04d}.png" for i in range(len(patient))],
            "label": np.array(["benign", "malignant"])[coin[patient]],
            "patient": [f"P{p:02d}" for p in patient],
            "slide": [f"P{p:02d}{'ab'[i % 2]}" for i, p in enumerate(patient)],
        }
    )
    manifest = Manifest(Path(), complete(rows))
    features = Features(views.astype(np.float32), colour.astype(np.float32))
    return measure_leakage(manifest, features, manifest.groups.tolist(), Recipe(), long_side_px=224)


def test_pure_noise_looks_learned_under_random_folds(noise):
    assert noise.auc["image"].low > 0.8
    assert noise.auc["slide"].low > 0.5


def test_pure_noise_is_chance_under_patient_folds(noise):
    assert noise.auc["patient"].low < 0.5 < noise.auc["patient"].high


def test_inflation_is_the_difference_and_excludes_zero(noise):
    assert noise.inflation.estimate == pytest.approx(
        noise.auc["image"].estimate - noise.auc["patient"].estimate
    )
    assert noise.inflation.low > 0


def test_counts_are_those_of_the_data(noise):
    assert (noise.n_images, noise.n_slides, noise.n_patients) == (240, 80, 40)


def test_record_survives_json(noise):
    import json

    assert Leakage.from_json(json.loads(json.dumps(noise.to_json()))) == noise


def test_another_schema_is_refused(noise):
    with pytest.raises(DataError, match="not a leakage record: schema 'x/1'"):
        Leakage.from_json({**noise.to_json(), "schema": "x/1"})
