"""The test by ranks equals the definition by pairs, and what it says it assumes, it needs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from lobule.errors import DataError
from lobule.evaluation.delong import DeLong, delong

# Whole numbers, so that a monotone function parts and ties them as before.
paired_scores = st.tuples(
    *(
        st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=2, max_size=25)
        for _ in range(2)
    )
)


def columns(rows):
    negatives, positives = rows
    first, second = np.array([*negatives, *positives], dtype=float).T
    return np.repeat([0, 1], [len(negatives), len(positives)]), first, second


def by_definition(y, first, second):
    """Both areas and the variance of their difference, from every pair of a 0 and a 1."""
    placed_positive, placed_negative = [], []
    for score in (first, second):
        one, zero = score[y == 1][:, None], score[y == 0][None, :]
        won = (one > zero) + (one == zero) / 2
        placed_positive.append(won.mean(axis=1))
        placed_negative.append(won.mean(axis=0))
    of_areas = np.cov(placed_positive) / (y == 1).sum() + np.cov(placed_negative) / (y == 0).sum()
    contrast = np.array([1, -1])
    return [v.mean() for v in placed_positive], contrast @ of_areas @ contrast


@settings(deadline=None)
@given(paired_scores)
def test_every_number_equals_the_definition(rows):
    y, first, second = columns(rows)
    found = delong(y, first, second)
    areas, variance = by_definition(y, first, second)
    assert found.first == pytest.approx(roc_auc_score(y, first), abs=1e-12)
    assert found.second == pytest.approx(roc_auc_score(y, second), abs=1e-12)
    assert found.difference == pytest.approx(areas[0] - areas[1], abs=1e-12)
    assert found.standard_error**2 == pytest.approx(variance, abs=1e-12)
    if variance > 1e-12:
        z = abs(areas[0] - areas[1]) / np.sqrt(variance)
        assert found.p_value == pytest.approx(2 * (1 - norm.cdf(z)), abs=1e-9)


def test_areas_of_many_distinct_scores_equal_the_definition():
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=500)
    first, second = y + rng.normal(0, 1, 500), y + rng.normal(0, 1.3, 500)
    areas, variance = by_definition(y, first, second)
    found = delong(y, first, second)
    z = (areas[0] - areas[1]) / np.sqrt(variance)
    expected = (*areas, areas[0] - areas[1], np.sqrt(variance), 2 * norm.sf(abs(z)))
    for name, value in zip(DeLong.__dataclass_fields__, expected, strict=True):
        assert getattr(found, name) == pytest.approx(value, abs=1e-12), name


@given(paired_scores)
def test_swapped_scores_differ_in_sign_alone(rows):
    y, first, second = columns(rows)
    found, swapped = delong(y, first, second), delong(y, second, first)
    assert (swapped.first, swapped.second) == (found.second, found.first)
    assert swapped.difference == -found.difference
    assert swapped.standard_error == found.standard_error
    assert swapped.p_value == found.p_value


@given(paired_scores)
def test_monotone_transformations_change_nothing(rows):
    y, first, second = columns(rows)
    assert delong(y, np.exp(first), second**3 - 7) == delong(y, first, second)


@given(paired_scores)
def test_a_score_does_not_differ_from_itself(rows):
    y, first, _ = columns(rows)
    found = delong(y, first, 2 * first)
    assert (found.difference, found.standard_error, found.p_value) == (0, 0, 1)


def test_a_difference_without_variance_is_certain():
    found = delong([0, 0, 1, 1], [1, 2, 3, 4], [4, 3, 2, 1])
    assert found == DeLong(1.0, 0.0, 1.0, 0.0, 0.0)


def test_too_few_rows_of_a_class_are_nan():
    alone = delong([0, 1, 1], [1, 2, 3], [1, 2, 0])
    assert (alone.first, alone.second, alone.difference) == (1, 0.5, 0.5)
    assert math.isnan(alone.standard_error)
    assert math.isnan(alone.p_value)
    assert math.isnan(delong([0, 1, 1], [1, 2, 3], [1, 2, 3]).p_value)
    for y in ([1, 1, 1], [0, 0, 0]):
        found = delong(y, [1, 2, 3], [1, 2, 0])
        assert all(math.isnan(getattr(found, name)) for name in DeLong.__dataclass_fields__)
    assert math.isnan(delong([], [], []).first)


def share_rejected(patients, images, trials=400):
    """How often two equally good scores are told apart at 0.05."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(patients) % 2, images)
    rejected = 0
    for _ in range(trials):
        scores = [
            y + np.repeat(rng.normal(0, 1, patients), images) + rng.normal(0, 0.5, len(y))
            for _ in range(2)
        ]
        rejected += delong(y, *scores).p_value < 0.05
    return rejected / trials


def test_equal_scores_of_independent_images_are_told_apart_as_rarely_as_stated():
    assert 0.02 < share_rejected(patients=100, images=1) < 0.09


def test_images_of_one_patient_make_it_too_sure():
    assert share_rejected(patients=20, images=10) > 0.25


@pytest.mark.parametrize(
    ("y", "first", "second", "message"),
    [
        ([0, 1], [0.1, np.nan], [0.1, 0.2], "1 of 2 scores are not finite"),
        ([0, 2], [0.1, 0.2], [0.1, 0.2], r"must lie in 0\.\.1"),
        ([0, 1, 1], [0.1, 0.2], [0.1, 0.2], "expected 2 class indices"),
        ([0, 1], [0.1, 0.2], [0.1, 0.2, 0.3], "two scores a row, got 2 and 3"),
    ],
)
def test_malformed_arrays_are_named(y, first, second, message):
    with pytest.raises(DataError, match=message):
        delong(y, first, second)
