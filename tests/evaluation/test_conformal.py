"""New groups are covered as promised; with one image a group it is mapie's split conformal."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapie.classification import SplitConformalClassifier
from sklearn.base import BaseEstimator, ClassifierMixin

from lobule.errors import DataError, UsageError
from lobule.evaluation.conformal import (
    coverage,
    group_quantile,
    mean_size,
    prediction_sets,
    true_class_scores,
)

rows = st.lists(st.tuples(st.integers(0, 8), st.sampled_from("abcdefgh")), min_size=1, max_size=40)
percent = st.integers(1, 99)


def columns(sample):
    score, groups = zip(*sample, strict=True)
    return np.array(score) / 8, np.array(groups)


def by_definition(score, groups, alpha):
    """Add up exact masses: the lowest score up to which 1 - alpha of it lies."""
    names, size = np.unique(groups, return_counts=True)
    mass = {
        name: Fraction(1, (len(names) + 1) * int(n)) for name, n in zip(names, size, strict=True)
    }
    for cut in np.unique(score):
        if sum(mass[g] for s, g in zip(score, groups, strict=True) if s <= cut) >= 1 - alpha:
            return cut
    return np.inf


@settings(deadline=None)
@given(rows, percent)
def test_the_quantile_equals_its_definition_in_fractions(sample, per_cent):
    score, groups = columns(sample)
    found = group_quantile(score, groups, alpha=per_cent / 100)
    assert found == by_definition(score, groups, Fraction(per_cent, 100))


def test_a_quantile_by_hand():
    # masses of a third: a twice 1/6, b once 1/3, the new group 1/3
    score, groups = [0.1, 0.3, 0.2], ["a", "a", "b"]
    assert group_quantile(score, groups, alpha=0.9) == 0.1
    assert group_quantile(score, groups, alpha=0.5) == 0.2
    assert group_quantile(score, groups, alpha=0.4) == 0.3
    assert group_quantile(score, groups, alpha=0.3) == np.inf


@pytest.mark.parametrize("n", [9, 19, 99, 999])
def test_the_fewest_groups_for_alpha_give_the_highest_score(n):
    # in floating point, nine tenths add up to less than 0.9
    score, alpha = np.arange(n) / n, 1 / (n + 1)
    assert group_quantile(score, np.arange(n), alpha=alpha) == score[-1]
    assert group_quantile(score[1:], np.arange(n - 1), alpha=alpha) == np.inf


@given(rows, percent, percent)
def test_a_stricter_alpha_gives_no_lower_quantile(sample, one, other):
    score, groups = columns(sample)
    strict, lax = sorted((one / 100, other / 100))
    assert group_quantile(score, groups, alpha=strict) >= group_quantile(score, groups, alpha=lax)


@given(rows, percent, st.integers(2, 5))
def test_a_group_counts_the_same_however_often_it_is_photographed(sample, per_cent, times):
    score, groups = columns(sample)
    many = np.where(groups == groups[0], times, 1)
    again = group_quantile(np.repeat(score, many), np.repeat(groups, many), alpha=per_cent / 100)
    assert again == group_quantile(score, groups, alpha=per_cent / 100)


class Given(ClassifierMixin, BaseEstimator):
    """A model whose features are the probabilities that it answers with."""

    def __init__(self, classes_=None):
        self.classes_ = classes_

    def fit(self, x, y):
        return self

    def predict_proba(self, x):
        return x

    def predict(self, x):
        return x.argmax(axis=1)


@pytest.mark.parametrize("n", [23, 50, 107, 422])
@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("classes", [2, 5])
def test_with_one_image_a_group_the_sets_are_mapies(n, alpha, classes):
    rng = np.random.default_rng(n)
    y = np.append(np.arange(classes), rng.integers(classes, size=n - classes))
    prob = rng.dirichlet(np.ones(classes), size=n) + np.eye(classes)[y]
    prob /= prob.sum(axis=1, keepdims=True)
    new = rng.dirichlet(np.ones(classes), size=400)
    mapie = SplitConformalClassifier(
        Given(np.arange(classes)), confidence_level=1 - alpha, conformity_score="lac", prefit=True
    )
    _, expected = mapie.conformalize(prob, y).predict_set(new)
    quantile = group_quantile(true_class_scores(y, prob), np.arange(n), alpha=alpha)
    np.testing.assert_array_equal(prediction_sets(new, quantile), expected[:, :, 0])
    assert 0 < mean_size(expected[:, :, 0]) < classes


# ---- the promise


def population(seed, n_groups=2000, classes=3):
    """Groups of 1 to 40 images; some are easy and some are hard, and the easy ones are large."""
    rng = np.random.default_rng(seed)
    ease = rng.normal(1, 1.5, n_groups)
    size = np.clip(np.exp(1 + ease).round().astype(int), 1, 40)
    group = np.repeat(np.arange(n_groups), size)
    y = rng.integers(classes, size=len(group))
    logits = ease[group, None] * np.eye(classes)[y] + rng.normal(0, 1, (len(group), classes))
    prob = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return y, prob, group, 1 / size[group]


def coverage_of_new_groups(k, alpha, splits=300, by_group=True):
    """Mean over random splits of the coverage in groups that were not calibrated on."""
    y, prob, group, even = population(0)
    score = true_class_scores(y, prob)
    rng = np.random.default_rng(1)
    found = []
    for _ in range(splits):
        seen = (rng.permutation(group[-1] + 1) < k)[group]
        names = group[seen] if by_group else np.arange(seen.sum())
        sets = prediction_sets(prob[~seen], group_quantile(score[seen], names, alpha=alpha))
        found.append(float(coverage(sets, y[~seen], even[~seen])))
    return np.mean(found)


@pytest.mark.parametrize("k", [15, 40, 300])
@pytest.mark.parametrize("alpha", [0.1, 0.3])
def test_new_groups_are_covered_as_promised(k, alpha):
    found = coverage_of_new_groups(k, alpha)
    assert found > 1 - alpha - 0.02
    if k == 300:
        assert found < 1 - alpha + 0.02


def test_a_quantile_that_takes_images_as_independent_covers_fewer():
    assert coverage_of_new_groups(300, 0.1, splits=20, by_group=False) < 0.8


# ---- scores and sets


def test_scores_and_sets_by_hand():
    prob = np.array([[0.75, 0.25, 0.0], [0.25, 0.5, 0.25]])
    assert true_class_scores([0, 2], prob).tolist() == [0.25, 0.75]
    sets = prediction_sets(prob, 0.5)
    assert sets.tolist() == [[True, False, False], [False, True, False]]
    assert prediction_sets(prob, 0.75).tolist() == [[True, True, False], [True, True, True]]
    assert prediction_sets(prob, 0.1).sum() == 0
    assert prediction_sets(prob, np.inf).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), percent)
def test_the_row_that_set_the_quantile_is_covered(p, per_cent):
    p = np.array(p)
    y, prob = np.ones(len(p), int), np.stack([1 - p, p], axis=1)
    score = true_class_scores(y, prob)
    quantile = group_quantile(score, np.arange(len(p)), alpha=per_cent / 100)
    np.testing.assert_array_equal(prediction_sets(prob, quantile)[:, 1], score <= quantile)


def test_coverage_and_size_by_hand():
    sets = np.array([[1, 1, 0], [0, 0, 0], [0, 1, 0], [1, 1, 1]], dtype=bool)
    y = [0, 1, 1, 2]
    assert float(coverage(sets, y)) == 0.75
    assert float(mean_size(sets)) == 1.5
    weight = [[1, 1, 0, 0], [0, 3, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(coverage(sets, y, weight), [0.5, 0.25, np.nan])
    np.testing.assert_array_equal(mean_size(sets, weight), [1, 0.25, np.nan])
    assert np.isnan(coverage(sets[:0], np.zeros(0, int)))


def test_without_groups_nothing_is_promised():
    assert group_quantile([], [], alpha=0.1) == np.inf


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 5, float("nan")])
def test_an_alpha_out_of_range_is_refused(alpha):
    with pytest.raises(UsageError, match="alpha must lie between 0 and 1"):
        group_quantile([0.1], ["a"], alpha=alpha)


def test_a_quantile_that_is_no_number_is_refused():
    with pytest.raises(UsageError, match="not a number"):
        prediction_sets([[0.5, 0.5]], np.nan)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: true_class_scores([0, 2], [[0.5, 0.5]] * 2), r"must lie in 0\.\.1"),
        (lambda: true_class_scores([0], [[0.5, 1.5]]), "outside 0 to 1"),
        (lambda: prediction_sets([0.5, 0.5], 0.1), r"shape \(n, classes\)"),
        (lambda: group_quantile([0.1, np.inf], ["a", "b"], alpha=0.1), "not finite"),
        (lambda: group_quantile([0.1, 0.2], ["a"], alpha=0.1), "expected 2 groups"),
        (lambda: group_quantile([0.1, 0.2], ["a", None], alpha=0.1), "1 of 2 .* row 1"),
        (lambda: coverage([[0.5, 0.5]], [0]), "sets as booleans"),
        (lambda: mean_size([True, False]), "sets as booleans"),
        (lambda: coverage([[True, False]], [2]), r"must lie in 0\.\.1"),
    ],
)
def test_malformed_arrays_are_named(call, message):
    with pytest.raises(DataError, match=message):
        call()
