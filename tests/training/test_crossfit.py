"""Out-of-fold predictions and locked thresholds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lobule.data.manifest import Manifest, complete
from lobule.data.splits import assign_folds
from lobule.errors import DataError
from lobule.evaluation.predictions import at_level
from lobule.models.classifier import Features
from lobule.training.crossfit import fit, lock_on, out_of_fold
from lobule.training.recipe import Recipe


def cohort(seed: int = 0, *, patients: int = 16, per_patient: int = 5):
    """A manifest and features with a class signal, without images."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), per_patient)
    y = patient % 2
    x = rng.normal(0, 1, (patients, 12))[patient][:, None] + rng.normal(0, 1, (len(y), 8, 12))
    x[..., 0] += 2.5 * y[:, None]
    colour = rng.normal(0, 1, (len(y), 12)) + y[:, None]
    rows = pd.DataFrame(
        {
            "path": [f"{i:03d}.png" for i in range(len(y))],
            "label": np.array(["benign", "malignant"])[y],
            "patient": [f"P{p:02d}" for p in patient],
            "slide": [f"S{p:02d}-{i % 2}" for i, p in enumerate(patient)],
        }
    )
    manifest = Manifest(Path(), complete(rows))
    return manifest, Features(x.astype(np.float32), colour.astype(np.float32))


def predict(manifest, features, fold):
    return out_of_fold(
        manifest, features, fold, manifest.groups.tolist(), Recipe(), source="test folds"
    )


def test_no_label_of_a_fold_changes_its_own_scores_or_thresholds():
    manifest, features = cohort()
    table = manifest.table
    fold = assign_folds(table["label"].tolist(), table["patient"].tolist(), folds=4)
    before = predict(manifest, features, fold).table
    in_first = fold == 0
    flipped = table["label"].map({"benign": "malignant", "malignant": "benign"})
    lied = manifest.with_columns(label=table["label"].where(~in_first, flipped))
    after = predict(lied, features, fold).table
    same = ["prob_malignant", "plain_malignant", "colour_malignant", "threshold",
            "threshold_slide", "threshold_patient", "decision"]  # fmt: skip
    assert before.loc[in_first, same].equals(after.loc[in_first, same])
    assert not before.loc[~in_first, same].equals(after.loc[~in_first, same])


def test_every_image_is_predicted_once_with_probabilities_that_sum_to_one():
    manifest, features = cohort(1)
    fold = assign_folds(
        manifest.table["label"].tolist(), manifest.table["patient"].tolist(), folds=5
    )
    found = predict(manifest, features, fold)
    assert found.table["path"].tolist() == manifest.table["path"].tolist()
    for kind in ("prob", "plain", "colour", "prior"):
        assert np.allclose(found.probabilities(kind).sum(axis=1), 1)


def test_threshold_is_one_number_within_a_fold():
    manifest, features = cohort(2)
    fold = assign_folds(
        manifest.table["label"].tolist(), manifest.table["patient"].tolist(), folds=4
    )
    table = predict(manifest, features, fold).table.assign(fold=fold)
    for column in ("threshold", "threshold_slide", "threshold_patient"):
        assert (table.groupby("fold")[column].nunique() == 1).all()


@pytest.mark.parametrize("sensitivity", [0.6, 0.95, 1.0])
def test_operating_point_reaches_its_sensitivity_at_every_level(sensitivity):
    manifest, features = cohort(3)
    y = (manifest.table["label"] == "malignant").to_numpy().astype(int)
    fitted = fit(features, y, manifest.groups.tolist(), n_classes=2)
    recipe = Recipe(sensitivity=sensitivity)
    points = lock_on(
        manifest, fitted.inner, manifest.groups.tolist(), recipe, source="inner"
    ).points
    scored = predict(manifest, features, np.arange(len(y)) % 2)
    scored = type(scored)(
        scored.table.assign(prob_benign=fitted.inner[:, 0], prob_malignant=fitted.inner[:, 1]),
        scored.classes,
    )
    for level, point in points.items():
        units = at_level(scored, level)
        called = units.probabilities()[:, 1] >= point.threshold
        assert called[units.y == 1].mean() == point.achieved >= sensitivity


def test_more_than_two_classes_have_no_operating_point():
    manifest, features = cohort(4)
    labels = manifest.table["patient"].map(lambda p: f"class {int(p[1:]) % 3}")
    manifest = manifest.with_columns(label=labels)
    fold = assign_folds(labels.tolist(), manifest.table["patient"].tolist(), folds=3)
    found = predict(manifest, features, fold)
    assert "threshold" not in found.table
    best = found.probabilities().argmax(axis=1)
    assert found.table["decision"].tolist() == [f"class {k}" for k in best]


def test_a_fold_that_holds_all_of_a_class_is_refused():
    manifest, features = cohort(5)
    fold = (manifest.table["label"] == "benign").to_numpy().astype(int)
    with pytest.raises(
        DataError,
        match=r"without fold 1, 0 patient\(s\) of class 'malignant' are left to learn from",
    ):
        predict(manifest, features, fold)
