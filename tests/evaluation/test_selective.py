"""Risk and coverage equal a walk down the rows, and equal confidences are answered together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score

from lobule.errors import DataError
from lobule.evaluation.selective import area_under_risk_coverage, risk_coverage

rows = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(-4, 4), st.integers(0, 3)),
    min_size=1,
    max_size=40,
)


def columns(sample):
    """Truth, probabilities whose highest is the answer, confidence and weight."""
    y, answer, confidence, weight = (np.array(column) for column in zip(*sample, strict=True))
    assume(weight.sum() > 0)
    return y, 0.2 + 0.4 * np.eye(3)[answer], confidence, weight


def by_walk(y, prob, confidence, weight):
    """At each confidence, look at all rows that are as sure or surer."""
    points = []
    for cut in sorted(set(confidence), reverse=True):
        kept = confidence >= cut
        wrong = kept & (prob.argmax(axis=1) != y)
        answered = weight[kept].sum()
        risk = weight[wrong].sum() / answered if answered else np.nan
        points.append((answered / weight.sum(), risk))
    return np.array(points).T


@given(rows)
def test_risk_and_coverage_equal_a_walk_down_the_rows(sample):
    sample = columns(sample)
    shares, risks = by_walk(*sample)
    found = risk_coverage(*sample)
    np.testing.assert_allclose(found[0], shares, atol=1e-12)
    np.testing.assert_allclose(found[1], risks, atol=1e-12)
    gains = np.diff(shares, prepend=0)
    expected = np.sum((gains * risks)[gains > 0])
    assert abs(float(area_under_risk_coverage(*sample)) - expected) < 1e-12


@given(rows)
def test_the_last_point_answers_all_rows(sample):
    y, prob, confidence, weight = columns(sample)
    share, risk = risk_coverage(y, prob, confidence, weight)
    assert share[-1] == 1
    accuracy = accuracy_score(y, prob.argmax(axis=1), sample_weight=weight)
    assert abs(risk[-1] - (1 - accuracy)) < 1e-12


@given(rows)
def test_a_confidence_that_tells_nothing_has_the_error_rate_as_area(sample):
    y, prob, _, weight = columns(sample)
    area = float(area_under_risk_coverage(y, prob, np.zeros(len(y)), weight))
    accuracy = accuracy_score(y, prob.argmax(axis=1), sample_weight=weight)
    assert abs(area - (1 - accuracy)) < 1e-12


@given(rows)
def test_a_weight_is_a_number_of_repeats(sample):
    y, prob, confidence, weight = columns(sample)
    repeated = (np.repeat(of, weight, axis=0) for of in (y, prob, confidence))
    again = float(area_under_risk_coverage(*repeated))
    assert abs(float(area_under_risk_coverage(y, prob, confidence, weight)) - again) < 1e-12


@given(rows)
def test_monotone_transformations_change_nothing(sample):
    y, prob, confidence, weight = columns(sample)
    plain = area_under_risk_coverage(y, prob, confidence, weight)
    assert area_under_risk_coverage(y, prob, np.exp(confidence / 3) - 7, weight) == plain


@given(rows)
def test_no_confidence_beats_that_of_an_oracle(sample):
    y, prob, confidence, _ = columns(sample)
    right = prob.argmax(axis=1) == y
    # wrong rows one at a time, so that each waits as long as it can
    best = area_under_risk_coverage(y, prob, np.where(right, 1, -np.arange(len(y))))
    for other in (right, confidence):
        assert best <= area_under_risk_coverage(y, prob, other) + 1e-12


def test_without_ties_the_area_is_the_mean_over_the_most_confident():
    rng = np.random.default_rng(0)
    y, prob = rng.integers(3, size=50), rng.dirichlet(np.ones(3), size=50)
    order = np.argsort(-prob.max(axis=1))
    wrong = (prob.argmax(axis=1) != y)[order]
    risks = [wrong[:m].mean() for m in range(1, 51)]
    share, risk = risk_coverage(y, prob)
    np.testing.assert_allclose(share, np.arange(1, 51) / 50, atol=1e-12)
    np.testing.assert_allclose(risk, risks, atol=1e-12)
    assert float(area_under_risk_coverage(y, prob)) == pytest.approx(np.mean(risks), abs=1e-12)


def test_risk_and_coverage_of_four_rows_by_hand():
    # the surest is right; of the two tied ones one is; the least sure is wrong
    y, p = [1, 0, 1, 1], np.array([0.9, 0.25, 0.25, 0.4])
    prob = np.stack([1 - p, p], axis=1)
    share, risk = risk_coverage(y, prob)
    assert share.tolist() == [0.25, 0.75, 1]
    assert risk.tolist() == [0, 1 / 3, 0.5]
    expected = 0.25 * 0 + 0.5 / 3 + 0.25 * 0.5
    assert float(area_under_risk_coverage(y, prob)) == pytest.approx(expected, abs=1e-15)


def test_draws_are_taken_one_by_one_and_no_weight_is_nan():
    rng = np.random.default_rng(0)
    y, prob = rng.integers(2, size=30), rng.dirichlet(np.ones(2), size=30).round(1)
    weight = rng.integers(0, 3, size=(2, 4, 30))
    weight[1, 3] = 0
    shares, risks = risk_coverage(y, prob, weight=weight)
    areas = area_under_risk_coverage(y, prob, weight=weight)
    points = len(set(prob.max(axis=1)))
    assert shares.shape == risks.shape == (2, 4, points)
    assert areas.shape == (2, 4)
    assert np.isnan(shares[1, 3]).all()
    assert np.isnan(risks[1, 3]).all()
    assert np.isnan(areas).sum() == 1
    for draw in np.ndindex(2, 4):
        share, risk = risk_coverage(y, prob, weight=weight[draw])
        np.testing.assert_array_equal(shares[draw], share)
        np.testing.assert_array_equal(risks[draw], risk)
        alone = area_under_risk_coverage(y, prob, weight=weight[draw])
        assert alone.shape == ()
        np.testing.assert_allclose(areas[draw], alone, atol=1e-14)


def test_nothing_answered_yet_has_no_risk():
    prob = [[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]]
    share, risk = risk_coverage([0, 0, 1], prob, weight=[0, 1, 1])
    assert share.tolist() == [0, 0.5, 1]
    np.testing.assert_array_equal(risk, [np.nan, 1, 0.5])
    assert float(area_under_risk_coverage([0, 0, 1], prob, weight=[0, 1, 1])) == 0.75


def test_no_rows_have_no_points_and_no_area():
    share, risk = risk_coverage(np.zeros(0, int), np.zeros((0, 2)))
    assert share.shape == risk.shape == (0,)
    assert np.isnan(area_under_risk_coverage(np.zeros(0, int), np.zeros((0, 2))))


@pytest.mark.parametrize("call", [risk_coverage, area_under_risk_coverage])
@pytest.mark.parametrize(
    ("y", "prob", "confidence", "weight", "message"),
    [
        ([0, 2], [[0.5, 0.5]] * 2, None, None, r"must lie in 0\.\.1"),
        ([0, 1], [[0.5, 1.5]] * 2, None, None, "outside 0 to 1"),
        ([0, 1], [[0.5, 0.5]] * 2, [0.1], None, "expected 2 confidences"),
        ([0, 1], [[0.5, 0.5]] * 2, [0.1, np.nan], None, "not finite"),
        ([0, 1], [[0.5, 0.5]] * 2, None, [1.0], "weights of shape"),
    ],
)
def test_malformed_arrays_are_named(call, y, prob, confidence, weight, message):
    with pytest.raises(DataError, match=message):
        call(y, prob, confidence, weight)
