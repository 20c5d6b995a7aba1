"""Whole patients are redrawn, the same ones for all models, and the intervals cover."""

from __future__ import annotations

import json
import math
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from lobule.errors import DataError, UsageError
from lobule.evaluation.intervals import (
    Interval,
    paired,
    patient_bootstrap,
    patient_weights,
)
from lobule.evaluation.metrics import all_metrics, roc_auc


def cohort(seed, n_patients=12, images=(1, 9)):
    """Return patient (n,) names, y (n,) one class a patient, score (n,) alike within a patient."""
    rng = np.random.default_rng(seed)
    index = np.repeat(np.arange(n_patients), rng.integers(*images, size=n_patients))
    y = index % 2
    score = y + rng.normal(size=n_patients)[index] + rng.normal(size=len(index))
    return np.array([f"case {i:03}" for i in index]), y, score


def auc(y, score):
    return lambda weight: {"roc_auc": roc_auc(y, score, weight)}


def all_weights(patient, **options):
    return np.concatenate(list(patient_weights(patient, **options)))


def test_replicates_equal_those_of_rows_repeated_by_hand():
    patient, y, score = cohort(0)
    seen = []

    def statistic(weight):
        values = roc_auc(y, score, weight)
        seen.append(values)
        return {"roc_auc": values}

    found = patient_bootstrap(statistic, patient, draws=200, seed=5)["roc_auc"]
    replicates = np.concatenate(seen[1:])

    # the same patients, drawn and laid out row by row
    names = sorted(set(patient))
    generator = np.random.default_rng(5)
    by_hand = []
    for _ in range(200):
        drawn = [names[i] for i in generator.integers(len(names), size=len(names))]
        rows = np.concatenate([np.flatnonzero(patient == name) for name in drawn])
        won = [
            (s > t) + (s == t) / 2
            for s in score[rows][y[rows] == 1]
            for t in score[rows][y[rows] == 0]
        ]
        by_hand.append(np.mean(won) if won else np.nan)
    np.testing.assert_allclose(replicates, by_hand, rtol=0, atol=1e-12)
    low, high = np.nanquantile(by_hand, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=1e-12)
    assert found.high == pytest.approx(high, abs=1e-12)
    assert found.estimate == float(roc_auc(y, score))
    assert found.draws == 200
    assert found.dropped == np.isnan(by_hand).sum()
    assert found.reason is None


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(0, 2**32))
def test_each_draw_takes_as_many_patients_as_there_are_and_all_their_rows(index, seed):
    patient = [f"p{i}" for i in index]
    weights = all_weights(patient, draws=30, seed=seed)
    assert weights.shape == (30, len(index))
    names, first, inverse = np.unique(patient, return_index=True, return_inverse=True)
    np.testing.assert_array_equal(weights, weights[:, first][:, inverse])
    assert (weights[:, first].sum(axis=1) == len(names)).all()


def test_every_patient_is_drawn_as_often_as_any_other():
    patient = np.repeat(["a", "b", "c", "d"], [1, 50, 3, 7])
    weights = all_weights(patient, draws=20_000)[:, [0, 1, 51, 54]]
    # counts of a draw are binomial (4, 1/4): mean 1, variance 3/4; five standard errors
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=5 * math.sqrt(0.75 / 20_000))
    np.testing.assert_allclose(weights.var(axis=0), 0.75, atol=0.05)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.permutations(range(25)))
def test_order_of_rows_changes_no_draw(seed, order):
    patient = np.array([f"p{i % 7}" for i in range(25)])
    weights = all_weights(patient, draws=20, seed=seed)
    np.testing.assert_array_equal(
        all_weights(patient[list(order)], draws=20, seed=seed), weights[:, list(order)]
    )


def test_the_same_patients_are_drawn_whatever_rows_they_have():
    few = [f"p{i}" for i in range(10)]
    # enough rows that the draws come in many chunks, where `few` needs only one
    many = np.repeat(few[::-1], 2000)
    chunks = list(patient_weights(many, draws=150, seed=3))
    assert len(chunks) > 2
    of_many = np.concatenate(chunks)[:, ::2000][:, ::-1]
    np.testing.assert_array_equal(of_many, all_weights(few, draws=150, seed=3))


def test_the_seed_decides_the_draws():
    patient = [f"p{i}" for i in range(10)]
    first = all_weights(patient, draws=50, seed=1)
    np.testing.assert_array_equal(all_weights(patient, draws=50, seed=1), first)
    assert (all_weights(patient, draws=50, seed=2) != first).any()


def test_names_are_compared_as_text():
    numbers, text = [10, 1, 9, 1], ["10", "1", "9", "1"]
    np.testing.assert_array_equal(all_weights(numbers, draws=9), all_weights(text, draws=9))


def test_an_image_of_its_own_patient_gives_the_image_bootstrap():
    alone = [f"image {i}" for i in range(40)]
    weights = all_weights(alone, draws=40)
    assert (weights.sum(axis=1) == 40).all()
    assert len(np.unique(weights)) > 2


def test_all_metrics_come_with_their_intervals():
    patient, y, score = cohort(2, n_patients=20)
    p = norm.cdf(score - 0.5)
    prob, decision = np.stack([1 - p, p], axis=1), (p > 0.5).astype(int)
    found = patient_bootstrap(lambda w: all_metrics(y, prob, decision, w), patient, draws=300)
    plain = all_metrics(y, prob, decision)
    assert found.keys() == plain.keys()
    for name, interval in found.items():
        assert interval.estimate == pytest.approx(float(plain[name]), abs=1e-14)
        assert interval.low < interval.high
        assert interval.draws == 300


def test_a_higher_level_is_a_wider_interval():
    patient, y, score = cohort(3)
    narrow, wide = (
        patient_bootstrap(auc(y, score), patient, draws=500, level=level)["roc_auc"]
        for level in (0.8, 0.95)
    )
    assert wide.low < narrow.low < narrow.high < wide.high


def test_one_patient_has_an_estimate_but_no_interval():
    y, score = np.array([0, 1, 1]), np.array([0.1, 0.9, 0.05])
    found = patient_bootstrap(auc(y, score), ["a", "a", "a"])["roc_auc"]
    assert found.estimate == 0.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert (found.draws, found.dropped) == (0, 0)
    assert found.reason == "one patient only, so nothing is known of others"


def test_undefined_draws_are_dropped_and_counted():
    # one patient a class: a draw has both with probability 1/2; the AUC is then always 1
    y, score = np.array([0, 1, 1]), np.array([0.1, 0.9, 0.8])
    patient = ["a", "b", "b"]
    weights = all_weights(patient, draws=400, seed=1)
    one_class = int((weights[:, 0] != 1).sum())
    found = patient_bootstrap(auc(y, score), patient, draws=400, seed=1)["roc_auc"]
    assert found.dropped == one_class
    assert 150 < one_class < 250


def test_bounds_need_half_of_the_draws():
    def undefined_in(share):
        def statistic(weight):
            values = np.ones(len(weight))
            if len(weight) > 1:
                values[: round(share * len(weight))] = np.nan
            return {"x": values}

        return patient_bootstrap(statistic, ["a", "b"], draws=1000)["x"]

    half = undefined_in(0.5)
    assert (half.low, half.high, half.dropped, half.reason) == (1, 1, 500, None)
    most = undefined_in(0.501)
    assert most.estimate == 1
    assert math.isnan(most.low)
    assert math.isnan(most.high)
    assert most.dropped == 501
    assert most.reason == "undefined in 501 of 1,000 draws of patients"


def test_an_undefined_estimate_says_so():
    y, score = np.ones(4, int), np.arange(4.0)
    found = patient_bootstrap(auc(y, score), ["a", "b", "c", "c"], draws=50)["roc_auc"]
    assert math.isnan(found.estimate)
    assert math.isnan(found.low)
    assert found.dropped == 50
    assert found.reason == "undefined on these rows"


def test_a_difference_is_taken_on_the_same_draws():
    patient, y, score = cohort(4, n_patients=20)
    other = score + np.random.default_rng(0).normal(size=len(y))
    found = paired(auc(y, score), auc(y, other), patient, draws=300, seed=7)["roc_auc"].difference
    weights = all_weights(patient, draws=300, seed=7)
    gap = roc_auc(y, score, weights) - roc_auc(y, other, weights)
    low, high = np.nanquantile(gap, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)
    assert found.estimate == pytest.approx(float(roc_auc(y, score) - roc_auc(y, other)))
    inner = paired(auc(y, score), auc(y, other), patient, draws=300, seed=7, level=0.5)[
        "roc_auc"
    ].difference
    assert inner.low == pytest.approx(np.nanquantile(gap, 0.25), abs=1e-12)
    apart = patient_bootstrap(auc(y, score), patient, draws=300)["roc_auc"]
    assert found.high - found.low < apart.high - apart.low


def test_a_model_differs_from_itself_by_nothing():
    patient, y, score = cohort(5)
    found = paired(auc(y, score), auc(y, 2 * score), patient, draws=100)["roc_auc"].difference
    assert (found.estimate, found.low, found.high) == (0, 0, 0)


def test_only_like_is_subtracted_from_like():
    patient, y, score = cohort(6)
    with pytest.raises(UsageError, match=r"cannot subtract \['other'\] from \['roc_auc'\]"):
        paired(auc(y, score), lambda w: {"other": roc_auc(y, score, w)}, patient)


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA, pd.NaT])
def test_a_missing_patient_is_not_a_patient(missing):
    with pytest.raises(DataError, match="1 of 3 rows name no patient; the first is row 1"):
        patient_weights(["a", missing, "b"])


def test_no_rows_make_no_interval():
    with pytest.raises(DataError, match="at least one row"):
        patient_weights([])


def test_options_out_of_range_are_refused():
    with pytest.raises(UsageError, match="at least one draw, got 0"):
        patient_weights(["a", "b"], draws=0)
    for level in (0, 1, 95):
        with pytest.raises(UsageError, match="between 0 and 1"):
            patient_bootstrap(lambda w: {"x": w[:, 0]}, ["a", "b"], level=level)


@pytest.mark.parametrize(
    "interval",
    [
        Interval(0.9, 0.8, 0.95, 2000, 3),
        Interval(0.9, math.nan, math.nan, 0, 0, "one patient"),
        Interval(math.nan, math.nan, math.nan, 2000, 2000, "no benign image"),
    ],
)
def test_an_interval_survives_json(interval):
    text = json.dumps(interval.to_json(), allow_nan=False)
    again = Interval.from_json(json.loads(text))
    assert again.to_json() == interval.to_json()
    assert math.isnan(again.low) == math.isnan(interval.low)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"estimate": 1.0, "low": 0.5, "high": 1.0, "draws": 1},
        {"estimate": "much", "low": 0.5, "high": 1.0, "draws": 1, "dropped": 0},
        {"estimate": 1.0, "low": 0.5, "high": 1.0, "draws": 1, "dropped": 0, "width": 3},
    ],
)
def test_a_damaged_interval_is_refused(fields):
    with pytest.raises(DataError, match="interval cannot be read"):
        Interval.from_json(fields)


def test_memory_does_not_grow_with_the_draws():
    n = 10_000
    rng = np.random.default_rng(0)
    y = np.arange(n) % 2
    prob = rng.dirichlet([1, 1], size=n)
    patient = np.arange(n) // 50
    tracemalloc.start()
    try:
        patient_bootstrap(
            lambda w: all_metrics(y, prob, prob.argmax(axis=1), w), patient, draws=320
        )
        peak_mib = tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()
    assert peak_mib < 200


def coverage(patients_a_class, *, unit, simulations, draws=400, seed=0):
    """Share of simulated cohorts whose 95% interval of the AUC holds the true one.

    score = 1.2 class + N(0, 1) of the patient + N(0, 1) of the image; the AUC of two images of
    different patients is Phi(1.2 / sqrt(2 (1 + 1))).
    """
    truth = norm.cdf(1.2 / 2)
    held = 0
    for rng in np.random.default_rng(seed).spawn(simulations):
        images = rng.integers(4, 13, size=2 * patients_a_class)
        index = np.repeat(np.arange(2 * patients_a_class), images)
        y = (index >= patients_a_class).astype(int)
        score = 1.2 * y + rng.normal(size=len(images))[index] + rng.normal(size=len(index))
        found = patient_bootstrap(
            auc(y, score),
            index if unit == "patient" else np.arange(len(index)),
            draws=draws,
            seed=int(rng.integers(2**31)),
        )["roc_auc"]
        held += found.low <= truth <= found.high
    return held / simulations


@pytest.mark.slow
def test_intervals_of_forty_patients_a_class_cover_as_they_say():
    # 1,200 cohorts: a standard error of 0.6 points at 95%
    assert 0.93 <= coverage(40, unit="patient", simulations=1200) <= 0.97


@pytest.mark.slow
def test_redrawing_images_covers_far_less_than_it_says():
    assert coverage(40, unit="image", simulations=400) < 0.85
