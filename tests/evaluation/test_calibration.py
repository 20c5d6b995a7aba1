"""Rules of the calibration room, held against a loop that follows the definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lobule.errors import DataError, UsageError
from lobule.evaluation.calibration import (
    calibration_error_by_chance,
    expected_calibration_error,
    reliability,
)


def sample(seed, n=200, classes=2, decimals=None):
    rng = np.random.default_rng(seed)
    prob = rng.dirichlet(np.ones(classes), size=n)
    if decimals is not None:
        prob = prob.round(decimals)
    return rng.integers(classes, size=n), prob, rng.integers(0, 4, size=n)


def two_columns(p):
    p = np.asarray(p, dtype=float)
    return np.stack([1 - p, p], axis=1)


def ece_by_loop(y, prob, weight, bins):
    """Follow the definition row by row; a value belongs to the last bin that begins at or below."""
    n = len(y)
    if prob.shape[1] == 2:
        predicted, observed = [row[1] for row in prob], [float(v == 1) for v in y]
    else:
        predicted = [max(row) for row in prob]
        observed = [float(list(row).index(max(row)) == v) for row, v in zip(prob, y, strict=True)]
    ranked = sorted(predicted)
    starts = [ranked[b * n // bins] for b in range(1, bins)]
    members = {}
    for p, o, w in zip(predicted, observed, weight, strict=True):
        members.setdefault(sum(start <= p for start in starts), []).append((p, o, w))
    error = 0.0
    for rows in members.values():
        mass = sum(w for _, _, w in rows)
        if mass:
            confidence = sum(w * p for p, _, w in rows) / mass
            frequency = sum(w * o for _, o, w in rows) / mass
            error += mass / sum(weight) * abs(frequency - confidence)
    return error


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 150),
    classes=st.sampled_from([2, 3, 5]),
    bins=st.integers(1, 20),
    decimals=st.sampled_from([None, 1, 2]),
)
def test_ece_equals_a_loop_over_rows_and_bins(seed, n, classes, bins, decimals):
    y, prob, weight = sample(seed, n, classes, decimals)
    weight[0] = 1
    found = expected_calibration_error(y, prob, weight, bins=bins)
    assert abs(float(found) - ece_by_loop(y, prob, weight, bins)) < 1e-12
    plain = expected_calibration_error(y, prob, bins=bins)
    assert abs(float(plain) - ece_by_loop(y, prob, np.ones(n), bins)) < 1e-12


def test_ece_of_four_rows_by_hand():
    # bins of two rows: means 0.2 and 0.7, frequencies 0 and 1; (0.2 + 0.3) / 2
    y, prob = [0, 0, 1, 1], two_columns([0.1, 0.3, 0.6, 0.8])
    assert float(expected_calibration_error(y, prob, bins=2)) == pytest.approx(0.25, abs=1e-15)


def test_ece_of_a_perfect_oracle_is_zero_and_of_its_opposite_one():
    y = np.array([0, 1, 1, 0, 1])
    assert float(expected_calibration_error(y, two_columns(y))) == 0
    assert float(expected_calibration_error(y, two_columns(1 - y))) == 1


def test_weights_leave_the_bins_where_they_are():
    y, prob = np.array([0, 0, 1, 1]), two_columns([0.1, 0.3, 0.6, 0.8])
    # only the second bin has weight; edges of the weighted rows alone would part its two rows
    found = expected_calibration_error(y, prob, [[0, 0, 1, 3]], bins=2)
    assert found == pytest.approx([0.25], abs=1e-15)
    y, prob = np.array([0, 0, 1, 0]), two_columns([0.1, 0.3, 0.6, 0.8])
    # 3 rows of 0.8 that are 0 and one of 0.6 that is 1, together: |1/4 - 0.75|
    found = expected_calibration_error(y, prob, [[0, 0, 1, 3]], bins=2)
    assert found == pytest.approx([0.5], abs=1e-15)


def test_draws_are_taken_one_by_one():
    y, prob, _ = sample(3, classes=3)
    weight = np.random.default_rng(0).integers(0, 3, size=(7, len(y)))
    together = expected_calibration_error(y, prob, weight)
    assert together.shape == (7,)
    alone = [float(expected_calibration_error(y, prob, w)) for w in weight]
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-14)


def test_no_weight_is_nan():
    y, prob, _ = sample(0, n=9)
    assert np.isnan(expected_calibration_error(y, prob, np.zeros(9)))
    assert np.isnan(expected_calibration_error(np.zeros(0, int), np.zeros((0, 2))))


def test_ece_of_calibrated_scores_falls_with_their_number():
    rng = np.random.default_rng(1)
    p = rng.uniform(size=200_000)
    y = (rng.uniform(size=p.size) < p).astype(int)
    assert float(expected_calibration_error(y, two_columns(p))) < 0.005
    assert float(expected_calibration_error(y, two_columns(p**2))) > 0.1


def test_reliability_by_hand():
    found = reliability([0, 0, 1, 0], [0.1, 0.3, 0.6, 0.8], bins=2)
    np.testing.assert_allclose(found.mean_predicted, [0.2, 0.7], atol=1e-15)
    assert found.observed.tolist() == [0, 0.5]
    assert found.count.tolist() == [2, 2]


@pytest.mark.parametrize(("n", "bins"), [(150, 15), (422, 15), (7, 15), (100, 1), (31, 4)])
def test_bins_of_distinct_scores_differ_by_one_row_at_most(n, bins):
    p = np.random.default_rng(n).permutation(np.linspace(0, 1, n))
    count = reliability(np.zeros(n, int), p, bins=bins).count
    assert count.sum() == n
    assert len(count) == min(n, bins)
    assert count.max() - count.min() <= 1


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.2, 0.25, 0.9, 1.0]), min_size=1, max_size=40))
def test_equal_scores_share_a_bin_and_bins_rise(p):
    found = reliability([1] * len(p), p, bins=6)
    assert found.count.sum() == len(p)
    assert (found.count > 0).all()
    assert (np.diff(found.mean_predicted) > 0).all()
    assert len(found.count) <= len(set(p))


def test_ece_is_the_weighted_gap_of_the_reliability_diagram():
    y, prob, _ = sample(5, n=422)
    points = reliability(y, prob[:, 1])
    gap = np.abs(points.observed - points.mean_predicted)
    expected = np.average(gap, weights=points.count)
    assert float(expected_calibration_error(y, prob)) == pytest.approx(expected, abs=1e-14)


def test_zero_bins_are_refused():
    with pytest.raises(UsageError, match="at least one bin, got 0"):
        expected_calibration_error([0, 1], two_columns([0.1, 0.9]), bins=0)
    with pytest.raises(UsageError, match="at least one bin"):
        reliability([0, 1], [0.1, 0.9], bins=-1)


@pytest.mark.parametrize(
    ("y", "prob", "weight", "message"),
    [
        ([0, 2], two_columns([0.1, 0.9]), None, r"must lie in 0\.\.1, got 0\.\.2"),
        ([-1, 0], two_columns([0.1, 0.9]), None, r"got -1\.\.0"),
        ([0.0, 1.0], two_columns([0.1, 0.9]), None, "whole numbers, got float64"),
        ([0, 1, 1], two_columns([0.1, 0.9]), None, r"expected 2 class indices"),
        ([0, 1], [0.1, 0.9], None, r"shape \(n, classes\)"),
        ([0, 1], [[0.1], [0.9]], None, r"shape \(n, classes\)"),
        ([0, 1], two_columns([0.1, 1.1]), None, "1 of 2 rows .* row 1"),
        ([0, 1], two_columns([np.nan, 0.5]), None, "1 of 2 rows .* row 0"),
        ([0, 1], two_columns([0.1, 0.9]), [1, 1, 1], r"weights of shape \(\.\.\., 2\)"),
        ([0, 1], two_columns([0.1, 0.9]), 1, r"weights of shape"),
    ],
)
def test_malformed_arrays_are_named(y, prob, weight, message):
    with pytest.raises(DataError, match=message):
        expected_calibration_error(y, prob, weight)


def test_reliability_refuses_scores_that_are_no_probabilities():
    with pytest.raises(DataError, match="not finite; the first is row 1"):
        reliability([0, 1], [0.1, np.inf])
    with pytest.raises(DataError, match="outside 0 to 1"):
        reliability([0, 1], [0.1, 3.0])
    with pytest.raises(DataError, match="one score a row"):
        reliability([0, 1], [[0.1, 0.9]])


def test_errors_by_chance_are_those_of_labels_drawn_from_the_probabilities():
    rng = np.random.default_rng(3)
    p = rng.random(300)
    errors = calibration_error_by_chance(two_columns(p), draws=400)
    drawn = [
        expected_calibration_error((rng.random(300) < p).astype(int), two_columns(p))
        for _ in range(400)
    ]
    assert errors.mean() == pytest.approx(np.mean(drawn), rel=0.03)
    assert errors.std() == pytest.approx(np.std(drawn), rel=0.15)


def test_certain_probabilities_have_no_error_by_chance():
    assert calibration_error_by_chance(np.eye(3)[[0, 2, 1, 1]], draws=5).max() == 0
