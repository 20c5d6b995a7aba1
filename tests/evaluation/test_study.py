"""Recipes under the same splits: means over seeds, differences from the baseline, and words."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_compare import table_of

from lobule.errors import DataError
from lobule.evaluation.intervals import Interval
from lobule.evaluation.metrics import brier, roc_auc
from lobule.evaluation.study import Finding, Study, findings


@pytest.fixture(scope="module")
def predictions():
    """Three recipes under two seeds: the baseline, one that is better, and one that is not."""
    rng = np.random.default_rng(2)
    truth = np.repeat(np.arange(24) % 2, 5)
    noise = rng.normal(size=(2, 120))

    def recipe(gain, extra):
        return [
            table_of(1 / (1 + np.exp(-(gain * (truth - 0.5) + noise[s] + extra * noise[1 - s]))))
            for s in range(2)
        ]

    return {"base": recipe(0.5, 0), "better": recipe(4, 0), "same": recipe(0.5, 0.01)}


@pytest.fixture(scope="module")
def study(predictions):
    return Study(
        classes=("benign", "malignant"), n_images=120, n_patients=24, patients_known=True,
        data_hash="0" * 64, folds=5, seeds=(0, 1), baseline="base",
        recipes={name: {"backbone": "x"} for name in predictions},
        findings=findings(predictions, "base", draws=300),
    )  # fmt: skip


def test_a_figure_is_the_mean_over_the_seeds(predictions, study):
    for finding in study.of("image", "roc_auc"):
        tables = predictions[finding.recipe]
        each = [float(roc_auc(t.y, t.probabilities()[:, 1])) for t in tables]
        assert finding.by_seed == pytest.approx(each, abs=1e-12)
        assert finding.value.estimate == pytest.approx(np.mean(each), abs=1e-12)


def test_a_difference_is_from_the_baseline_which_has_none(study):
    for level in ("image", "patient"):
        for figure in ("roc_auc", "brier", "ece"):
            base, *others = study.of(level, figure)
            assert base.difference is None
            assert base.told == ""
            for other in others:
                gap = other.value.estimate - base.value.estimate
                assert other.difference.estimate == pytest.approx(gap, abs=1e-12)


def test_only_what_leaves_out_0_is_called_better(study):
    told = {f.recipe: f.told for f in study.of("image", "roc_auc")}
    assert told == {"base": "", "better": "better", "same": "not told apart"}
    # of a Brier score the lower one is better
    (better,) = [f for f in study.of("image", "brier") if f.recipe == "better"]
    assert better.difference.high < 0
    assert better.told == "better"


def test_a_lower_area_is_worse(predictions):
    told = findings(predictions, "better", draws=300)
    (row,) = [f for f in told if (f.recipe, f.level, f.figure) == ("base", "image", "roc_auc")]
    assert row.told == "worse"


def test_more_seeds_of_the_same_patients_do_not_narrow_an_interval(predictions):
    once = findings({k: v[:1] for k, v in predictions.items()}, "base", draws=300)
    often = findings({k: v[:1] * 10 for k, v in predictions.items()}, "base", draws=300)
    for a, b in zip(once, often, strict=True):
        assert a.value.half_width == pytest.approx(b.value.half_width, abs=1e-9)


def test_the_score_of_a_patient_is_the_mean_over_images(predictions, study):
    (row,) = [f for f in study.of("patient", "brier") if f.recipe == "base"]
    values = []
    for table in predictions["base"]:
        frame = table.table.groupby("patient")["prob_malignant"].mean()
        y = (table.table.groupby("patient")["label"].first() == "malignant").astype(int)
        values.append(float(brier(y, np.stack([1 - frame, frame], axis=1))))
    assert row.by_seed == pytest.approx(values, abs=1e-12)


def test_it_survives_json(study):
    record = json.loads(json.dumps(study.to_json(), allow_nan=False))
    assert Study.from_json(record) == study


@pytest.mark.parametrize(
    ("change", "message"),
    [({"schema": "lobule.study/9"}, "not a study"), ({"findings": 3}, "cannot be read"),
     ({"findings": [{"value": {}}]}, "cannot be read")],
)  # fmt: skip
def test_what_is_no_study_is_refused(study, change, message):
    with pytest.raises(DataError, match=message):
        Study.from_json({**study.to_json(), **change})


def test_an_undefined_difference_tells_nothing_apart():
    nothing = Interval(np.nan, np.nan, np.nan, 0, 0, "one class")
    assert Finding("r", "image", "roc_auc", nothing, (), nothing).told == "not told apart"
