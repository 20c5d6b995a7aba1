"""Net benefit follows from the four counts of a threshold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from lobule.errors import DataError, UsageError
from lobule.evaluation.decision_curve import THRESHOLDS, decision_curve, net_benefit, treat_all

CUTS = [0.05, 0.2, 0.5, 0.75, 0.99]

rows = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.one_of(st.sampled_from([0.0, *CUTS, 1.0]), st.floats(0, 1)),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=40,
)


def columns(sample):
    y, p, weight = (np.array(column) for column in zip(*sample, strict=True))
    assume(weight.sum() > 0)
    return y, p, weight


def by_counts(y, acted, threshold, weight):
    table = confusion_matrix(y, acted, labels=[0, 1], sample_weight=weight)
    (_, false_positives), (_, true_positives) = table
    odds = threshold / (1 - threshold)
    return (true_positives - false_positives * odds) / table.sum()


@settings(deadline=None)
@given(rows)
def test_net_benefit_equals_that_of_scikit_learns_counts(sample):
    y, p, weight = columns(sample)
    found, of_all = net_benefit(y, p, CUTS, weight), treat_all(y, CUTS, weight)
    assert found.shape == of_all.shape == (len(CUTS),)
    for t, cut in enumerate(CUTS):
        assert abs(found[t] - by_counts(y, p >= cut, cut, weight)) < 1e-12
        assert abs(of_all[t] - by_counts(y, np.ones(len(y)), cut, weight)) < 1e-12


@given(rows)
def test_nothing_beats_an_oracle_which_finds_every_positive(sample):
    y, p, weight = columns(sample)
    share = np.average(y, weights=weight)
    np.testing.assert_allclose(net_benefit(y, y, CUTS, weight), share, atol=1e-12)
    assert (net_benefit(y, p, CUTS, weight) <= share + 1e-12).all()


@given(rows)
def test_a_model_that_is_always_sure_treats_all_and_one_that_never_is_treats_none(sample):
    y, _, weight = columns(sample)
    sure = net_benefit(y, np.ones(len(y)), CUTS, weight)
    np.testing.assert_array_equal(sure, treat_all(y, CUTS, weight))
    assert not net_benefit(y, np.zeros(len(y)), CUTS, weight).any()


def test_treating_all_is_worth_nothing_at_the_share_of_positives():
    assert treat_all([1, 0, 0, 1, 0], [0.4]) == pytest.approx([0], abs=1e-15)


def test_net_benefit_of_five_rows_by_hand():
    y, p = [0, 0, 1, 1, 1], [0.1, 0.6, 0.2, 0.7, 0.9]
    # at 0.2, three true and one false of odds 1/4; at 0.6, two and one of odds 3/2
    found = net_benefit(y, p, [0.2, 0.6])
    assert found == pytest.approx([(3 - 1 / 4) / 5, (2 - 3 / 2) / 5], abs=1e-15)
    assert treat_all(y, [0.2, 0.6]) == pytest.approx([(3 - 2 / 4) / 5, 0], abs=1e-15)


def test_draws_are_taken_one_by_one_and_no_weight_is_nan():
    rng = np.random.default_rng(0)
    y, p = rng.integers(2, size=30), rng.uniform(size=30)
    weight = rng.integers(0, 3, size=(2, 4, 30))
    weight[1, 3] = 0
    for together, call in (
        (net_benefit(y, p, CUTS, weight), lambda w: net_benefit(y, p, CUTS, w)),
        (treat_all(y, CUTS, weight), lambda w: treat_all(y, CUTS, w)),
    ):
        assert together.shape == (2, 4, len(CUTS))
        assert np.isnan(together[1, 3]).all()
        assert np.isnan(together).sum() == len(CUTS)
        for draw in np.ndindex(2, 4):
            np.testing.assert_allclose(together[draw], call(weight[draw]), atol=1e-14)


def test_no_rows_are_nan_and_no_thresholds_are_no_points():
    assert np.isnan(net_benefit(np.zeros(0, int), np.zeros(0), CUTS)).all()
    assert np.isnan(treat_all(np.zeros(0, int), CUTS)).all()
    assert net_benefit([0, 1], [0.2, 0.7], []).shape == (0,)


@pytest.mark.parametrize(
    ("cuts", "message"),
    [
        ([0.5, 1.0], "between 0 and 1, got 1.0"),
        ([0.0], "between 0 and 1, got 0.0"),
        ([np.nan], "between 0 and 1, got nan"),
        (0.5, r"shape \(t,\), got \(\)"),
    ],
)
def test_thresholds_out_of_range_are_refused(cuts, message):
    with pytest.raises(UsageError, match=message):
        net_benefit([0, 1], [0.2, 0.7], cuts)
    with pytest.raises(UsageError, match=message):
        treat_all([0, 1], cuts)


@pytest.mark.parametrize(
    ("y", "p", "weight", "message"),
    [
        ([0, 1], [0.1, 1.2], None, "outside 0 to 1"),
        ([0, 2], [0.1, 0.2], None, r"must lie in 0\.\.1"),
        ([0, 1, 1], [0.1, 0.2], None, "expected 2 class indices"),
        ([0, 1], [0.1, 0.2], [1.0], "weights of shape"),
    ],
)
def test_malformed_arrays_are_named(y, p, weight, message):
    with pytest.raises(DataError, match=message):
        net_benefit(y, p, CUTS, weight)


def test_a_curve_has_the_net_benefit_at_each_threshold_and_the_gain_over_the_better_default():
    rng = np.random.default_rng(5)
    y = rng.integers(0, 2, 60)
    p = np.clip(0.5 * y + rng.random(60) * 0.5, 0, 1)
    patient = [f"P{i // 3}" for i in range(60)]
    curve = decision_curve(y, p, patient, draws=50, seed=1)
    assert [b.threshold for b in curve] == list(THRESHOLDS)
    for benefit in curve:
        model = net_benefit(y, p, [benefit.threshold]).item()
        everyone = treat_all(y, [benefit.threshold]).item()
        assert benefit.model.estimate == pytest.approx(model)
        assert benefit.all.estimate == pytest.approx(everyone)
        assert benefit.gain.estimate == pytest.approx(model - max(everyone, 0))
        assert benefit.gain.low <= benefit.gain.high
