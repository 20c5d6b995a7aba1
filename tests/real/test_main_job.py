"""The main job on the real photographs: floors that a change may not fall through."""

from __future__ import annotations

import time

import numpy as np
import pytest

from lobule.training.recipe import Recipe
from lobule.workflow import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def runs(real_data, tmp_path_factory):
    """Five patient folds under three split seeds; features are computed once."""
    folder = tmp_path_factory.mktemp("real")
    started = time.monotonic()
    made = []
    for seed in range(3):
        made.append(
            train(
                real_data / "breakhis-100x", folder / f"run{seed}",
                recipe=Recipe(seed=seed), cache=folder / "cache",
            )
        )  # fmt: skip
        if seed == 0:
            first_s = time.monotonic() - started
    return made, first_s


def test_figures_hold_over_three_split_seeds(runs):
    made, first_s = runs
    image, patient = (
        [run.evaluation.levels[level].metrics["roc_auc"].estimate for run in made]
        for level in ("image", "patient")
    )
    told = f"image {np.round(image, 3)}, patient {np.round(patient, 3)}, first run {first_s:.0f} s"
    assert np.mean(image) >= 0.72, told
    assert np.mean(patient) >= 0.87, told


def test_random_folds_claim_what_patient_folds_do_not(runs):
    for run in runs[0]:
        assert run.leakage.auc["image"].estimate > 0.97
        assert run.leakage.auc["patient"].estimate < 0.90
        assert run.leakage.inflation.low > 0


def test_counts_are_those_of_the_pack(runs):
    found = runs[0][0].evaluation
    assert (found.n_images, found.n_patients, found.patients_known) == (422, 23, True)
    assert found.levels["slide"].n_units == 27
    assert found.levels["patient"].class_units == {"benign": 7, "malignant": 16}


def test_the_report_is_one_file_of_reasonable_size(runs):
    report = runs[0][0].folder / "report.html"
    assert 100_000 < report.stat().st_size < 3_000_000
