"""Sets of classes hold the true one as often as they promise, in patients who were not seen."""

from __future__ import annotations

import numpy as np
import pytest

from lobule.data.cohort import write_tissue
from lobule.data.manifest import class_indices
from lobule.data.scan import scan
from lobule.evaluation.conformal import coverage, mean_size, prediction_sets
from lobule.training.crossfit import fit, lock_on
from lobule.training.features import embed
from lobule.training.recipe import Recipe

SPLITS, LEARNED = 200, 80


@pytest.mark.slow
def test_sets_cover_within_two_points_over_200_random_splits_of_patients(tmp_path):
    # small pictures, on which the head errs in one of four, so that the sets have work to do
    tissue = write_tissue(
        tmp_path / "tissue", patients=120, images_per_patient=3, width_px=96, height_px=64,
        plant=False,
    )  # fmt: skip
    manifest = scan(tissue.images)
    recipe = Recipe(long_side_px=96)
    backbone = recipe.open_backbone()
    features = embed(manifest, backbone, recipe.preprocessing(backbone, manifest))
    y, patient = (
        class_indices(manifest.table["label"], manifest.classes),
        manifest.groups.to_numpy(),
    )
    rng = np.random.default_rng(0)
    covered, size, wrong = [], [], []
    for _ in range(SPLITS):
        some = rng.permutation(np.unique(patient))[:LEARNED]
        learn = np.isin(patient, some)
        groups = patient[learn].tolist()
        fitted = fit(features.where(learn), y[learn], groups, n_classes=2)
        locked = lock_on(manifest.where(learn), fitted.inner, groups, recipe, source="inner folds")
        prob = fitted.heads.probabilities(features.where(~learn))["prob"]
        sets = prediction_sets(prob, locked.set_quantile)
        # all patients have three images, so that plain means count each the same
        covered.append(float(coverage(sets, y[~learn])))
        size.append(float(mean_size(sets)))
        wrong.append(float((prob.argmax(axis=1) != y[~learn]).mean()))
    assert abs(np.mean(covered) - recipe.coverage) <= 0.02
    assert np.mean(size) < 1.8
    assert np.mean(wrong) > 0.15
