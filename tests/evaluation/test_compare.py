"""Two models on the same images: paired by patient, and told apart only where that can be shown."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from lobule.errors import DataError
from lobule.evaluation.compare import Comparison, compare
from lobule.evaluation.delong import delong
from lobule.evaluation.metrics import brier, roc_auc
from lobule.evaluation.predictions import Predictions

CLASSES = ("benign", "malignant")


def table_of(score, *, patients=24, each=5, threshold=0.5):
    """Images of patients, every other one malignant, with the score of each image."""
    n = patients * each
    patient = np.repeat(np.arange(patients), each)
    return Predictions(
        pd.DataFrame({
            "path": [f"{i:03d}.png" for i in range(n)],
            "label": np.where(patient % 2, "malignant", "benign"),
            "patient": [f"P{p}" for p in patient],
            "slide": [f"S{p}" for p in patient],
            "prob_benign": 1 - score, "prob_malignant": score,
            "threshold": threshold,
        }),
        CLASSES,
    )  # fmt: skip


@pytest.fixture(scope="module")
def scores():
    rng = np.random.default_rng(5)
    truth = np.repeat(np.arange(24) % 2, 5)
    noise = rng.normal(size=120)
    return {
        "good": 1 / (1 + np.exp(-(3 * truth - 1.5 + noise))),
        "poor": 1 / (1 + np.exp(-(0.2 * truth - 0.1 + noise))),
        "like good": 1 / (1 + np.exp(-(3 * truth - 1.5 + noise + 0.01 * rng.normal(size=120)))),
    }


def found(comparison: Comparison, level, figure):
    (row,) = [r for r in comparison.differences if (r.level, r.figure) == (level, figure)]
    return row


def test_figures_are_those_of_each_and_their_difference(scores):
    first, second = table_of(scores["good"]), table_of(scores["poor"])
    comparison = compare(first, second, draws=200)
    row = found(comparison, "image", "roc_auc")
    areas = [float(roc_auc(first.y, scores[name])) for name in ("good", "poor")]
    assert [row.first.estimate, row.second.estimate] == areas
    assert row.difference.estimate == pytest.approx(areas[0] - areas[1], abs=1e-15)
    assert row.verdict("a", "b") == "a"
    lower = found(comparison, "image", "brier")
    assert lower.difference.estimate == pytest.approx(
        float(brier(first.y, first.probabilities()) - brier(second.y, second.probabilities()))
    )
    assert lower.difference.high < 0
    assert lower.verdict("a", "b") == "a"
    assert comparison.p_delong == delong(first.y, scores["good"], scores["poor"]).p_value


def test_what_cannot_be_told_apart_is_said_so(scores):
    comparison = compare(table_of(scores["good"]), table_of(scores["like good"]), draws=200)
    assert found(comparison, "image", "roc_auc").verdict("a", "b") == "not told apart"


def test_a_model_is_not_told_from_itself(scores):
    comparison = compare(table_of(scores["good"]), table_of(scores["good"]), draws=50)
    assert {row.difference.estimate for row in comparison.differences} == {0}
    assert {row.verdict("a", "b") for row in comparison.differences} == {"not told apart"}
    assert comparison.p_delong == 1


def test_the_other_way_round_the_sign_changes(scores):
    one, other = table_of(scores["good"]), table_of(scores["poor"])
    forth, back = compare(one, other, draws=100), compare(other, one, draws=100)
    for a, b in zip(forth.differences, back.differences, strict=True):
        assert a.difference.estimate == -b.difference.estimate
        assert a.difference.low == pytest.approx(-b.difference.high)


def test_rows_are_matched_by_path_whatever_their_order(scores):
    first, second = table_of(scores["good"]), table_of(scores["poor"])
    shuffled = Predictions(second.table.sample(frac=1, random_state=1), CLASSES)
    assert compare(first, shuffled, draws=50) == compare(first, second, draws=50)


def test_the_operating_point_is_each_ones_own(scores):
    strict = compare(table_of(scores["good"], threshold=0.9), table_of(scores["good"]), draws=50)
    row = found(strict, "image", "sensitivity")
    y = table_of(scores["good"]).y
    assert row.first.estimate == np.mean(scores["good"][y == 1] >= 0.9)
    assert row.second.estimate == np.mean(scores["good"][y == 1] >= 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.iloc[1:], r"1 image\(s\) are in one of the two only: 000.png"),
        (lambda t: t.assign(label="benign"), r"60 image\(s\) have another label in the second"),
    ],
)
def test_other_images_or_labels_are_refused(scores, change, message):
    second = table_of(scores["poor"])
    with pytest.raises(DataError, match=message):
        compare(table_of(scores["good"]), Predictions(change(second.table), CLASSES))


def test_other_classes_are_refused(scores):
    second = table_of(scores["poor"]).table.rename(columns={"prob_malignant": "prob_cancer"})
    with pytest.raises(DataError, match="the two have other classes"):
        compare(table_of(scores["good"]), Predictions(second, ("benign", "cancer")))


def test_it_is_written_as_plain_json_even_where_nothing_is_defined(scores):
    # one patient, so there is nobody to redraw; one class, so there is no area
    one = table_of(scores["good"][:5], patients=1)
    record = compare(one, one, draws=10).to_json()
    told = json.loads(json.dumps(record, allow_nan=False))
    assert told["schema"] == "lobule.compare/1"
    assert told["p_delong"] is None
    area = next(row for row in told["differences"] if row["figure"] == "roc_auc")
    assert area["difference"]["estimate"] is None
    assert area["difference"]["reason"]
    row = found(compare(one, one, draws=10), "image", "accuracy")
    assert math.isnan(row.difference.half_width)
    assert row.verdict("a", "b") == "not told apart"
