"""The chosen threshold keeps its promise and no better one exists."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lobule.errors import DataError, UsageError
from lobule.evaluation.thresholds import OperatingPoint, choose_threshold

rows = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.one_of(st.integers(-4, 4).map(float), st.floats(-1e300, 1e300)),
        st.integers(0, 3),
    ),
    min_size=2,
    max_size=40,
)
targets = st.one_of(st.sampled_from([1.0, 0.95, 0.55, 0.5, 0.1]), st.floats(0.001, 1.0))


def share(y, score, weight, threshold, label):
    """Weight of rows of `label` that are decided rightly, over all of that label."""
    right = [
        w for k, s, w in zip(y, score, weight, strict=True) if k == label == int(s >= threshold)
    ]
    return sum(right) / sum(w for k, w in zip(y, weight, strict=True) if k == label)


def both_classes(sample):
    y, score, weight = (list(column) for column in zip(*sample, strict=True))
    assume({k for k, w in zip(y, weight, strict=True) if w} == {0, 1})
    return y, score, weight


@given(rows, targets)
def test_sensitivity_is_reached_by_no_higher_cut(sample, target):
    y, score, weight = both_classes(sample)
    threshold = choose_threshold(y, score, sensitivity=target, weight=weight)
    assert share(y, score, weight, threshold, 1) >= target
    seen = [s for s, w in zip(score, weight, strict=True) if w]
    higher = [s for s in (*seen, np.inf) if s > threshold]
    kept = [s for s in seen if s >= threshold]
    # a higher cut that calls fewer rows positive misses the target
    for cut in higher:
        if sum(s >= cut for s in seen) < len(kept):
            assert share(y, score, weight, cut, 1) < target


@given(rows, targets)
def test_specificity_is_reached_by_no_lower_cut(sample, target):
    y, score, weight = both_classes(sample)
    threshold = choose_threshold(y, score, specificity=target, weight=weight)
    assert share(y, score, weight, threshold, 0) >= target
    for cut in {s for s, w in zip(score, weight, strict=True) if w and s < threshold}:
        assert share(y, score, weight, cut, 0) < target


@given(rows, st.sampled_from(["sensitivity", "specificity"]), targets)
def test_a_weight_is_a_number_of_repeats(sample, name, target):
    y, score, weight = both_classes(sample)
    repeated = choose_threshold(np.repeat(y, weight), np.repeat(score, weight), **{name: target})
    assert choose_threshold(y, score, weight=weight, **{name: target}) == repeated


@given(rows, st.sampled_from(["sensitivity", "specificity"]), targets, st.randoms())
def test_order_of_rows_changes_nothing(sample, name, target, random):
    y, score, weight = both_classes(sample)
    mixed = list(range(len(y)))
    random.shuffle(mixed)
    again = choose_threshold(
        [y[i] for i in mixed],
        [score[i] for i in mixed],
        weight=[weight[i] for i in mixed],
        **{name: target},
    )
    assert choose_threshold(y, score, weight=weight, **{name: target}) == again


def test_thresholds_by_hand_lie_midway():
    y, score = [0, 0, 1, 0, 1, 1], [0.1, 0.2, 0.4, 0.6, 0.8, 0.9]
    assert choose_threshold(y, score, sensitivity=1.0) == pytest.approx(0.3)
    assert choose_threshold(y, score, sensitivity=0.6) == pytest.approx(0.7)
    assert choose_threshold(y, score, sensitivity=0.3) == pytest.approx(0.85)
    assert choose_threshold(y, score, specificity=1.0) == pytest.approx(0.7)
    assert choose_threshold(y, score, specificity=0.6) == pytest.approx(0.3)
    assert choose_threshold(y, score, specificity=0.3) == pytest.approx(0.15)


def test_scores_off_by_a_rounding_are_decided_alike():
    rng = np.random.default_rng(0)
    y = np.tile([0, 1], 100)
    score = rng.permutation(np.linspace(0, 1, 200))
    threshold = choose_threshold(y, score, sensitivity=0.95)
    for error in (-1e-6, 1e-6):
        np.testing.assert_array_equal(score + error >= threshold, score >= threshold)


def test_all_or_none_positive_where_the_target_asks_it():
    # the lowest score is the only positive one
    assert choose_threshold([1, 0, 0], [0.2, 0.5, 0.7], sensitivity=0.95) == 0.2
    # the highest score is negative
    threshold = choose_threshold([1, 0, 0], [0.2, 0.5, 0.7], specificity=1.0)
    assert 0.7 < threshold < 0.7 + 1e-15


def test_equal_scores_fall_on_one_side():
    y, score = [1, 0, 1, 0], [0.5, 0.5, 0.5, 0.1]
    assert choose_threshold(y, score, sensitivity=0.5) == pytest.approx(0.3)


@pytest.mark.parametrize(("hits", "n"), [(7, 50), (28, 50), (31, 60), (55, 100), (19, 20)])
def test_a_target_met_exactly_is_met(hits, n):
    # in floating point, the first four have hits < (hits / n) * n
    y = [1] * n + [0]
    score = [*range(n, 0, -1), 0]
    assert choose_threshold(y, score, sensitivity=hits / n) == n - hits + 0.5


def test_neighbouring_floats_are_still_parted():
    low = 0.5
    high = float(np.nextafter(low, 1))
    threshold = choose_threshold([0, 1], [low, high], sensitivity=1.0)
    assert low < threshold <= high


@pytest.mark.parametrize("target", [{}, {"sensitivity": 0.9, "specificity": 0.9}])
def test_one_target_is_asked_for(target):
    with pytest.raises(UsageError, match="exactly one target"):
        choose_threshold([0, 1], [0.1, 0.9], **target)


@pytest.mark.parametrize("name", ["sensitivity", "specificity"])
@pytest.mark.parametrize("value", [0, -0.1, 1.01, 95, float("nan")])
def test_a_target_out_of_range_is_refused(name, value):
    with pytest.raises(UsageError, match=f"{name} must be over 0 and at most 1"):
        choose_threshold([0, 1], [0.1, 0.9], **{name: value})


@pytest.mark.parametrize(
    ("y", "weight", "message"),
    [
        ([0, 0, 0], None, "none of 3 rows is positive"),
        ([1, 1, 1], None, "none of 3 rows is negative"),
        ([1, 0, 0], [1, 0, 0], "none of 1 rows is negative"),
        ([1, 0, 0], np.ones((2, 3)), "one weight a row"),
        ([1, 0], None, "expected 3 class indices"),
    ],
)
def test_rows_without_both_classes_choose_nothing(y, weight, message):
    with pytest.raises(DataError, match=message):
        choose_threshold(y, [0.1, 0.2, 0.3], sensitivity=0.9, weight=weight)


def test_an_operating_point_survives_its_fields():
    point = OperatingPoint(0.37, "sensitivity", 0.95, 0.956, "23 patients, 422 images", "image")
    assert OperatingPoint(**asdict(point)) == point
