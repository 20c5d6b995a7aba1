"""The parts make up the Brier score, and the line is the one of greatest likelihood."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from lobule.errors import DataError, UsageError
from lobule.evaluation.brier import (
    CLIP,
    brier_decomposition,
    calibration_in_the_large,
    calibration_line,
)
from lobule.evaluation.metrics import brier

rows = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.one_of(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]), st.floats(0, 1)),
        st.integers(0, 3),
    ),
    min_size=2,
    max_size=40,
)


def columns(sample):
    y, p, weight = zip(*sample, strict=True)
    return np.array(y), np.array(p), np.array(weight)


def logits(p):
    return logit(np.clip(p, CLIP, 1 - CLIP))


def noisy(seed, n=300, slope=0.5, intercept=0.4):
    """Rows whose probabilities are to be recalibrated by the given line."""
    rng = np.random.default_rng(seed)
    p = expit(rng.normal(0, 2, n))
    y = (rng.uniform(size=n) < expit(intercept + slope * logit(p))).astype(int)
    return y, p, rng.integers(0, 4, size=n)


# ---- the parts of the Brier score


def parts_by_loop(y, p, weight, bins):
    """Follow Stephenson, Coelho & Jolliffe bin by bin."""
    n, ranked = len(y), sorted(p)
    starts = [ranked[b * n // bins] for b in range(1, bins)]
    index = np.array([sum(start <= value for start in starts) for value in p])
    total, base = weight.sum(), np.average(y, weights=weight)
    parts = {"reliability": 0, "resolution": 0, "uncertainty": base * (1 - base), "within": 0}
    for b in range(bins):
        w, f, o = weight[index == b], p[index == b], y[index == b]
        if w.sum():
            f_mean, o_mean = np.average(f, weights=w), np.average(o, weights=w)
            parts["reliability"] += w.sum() / total * (f_mean - o_mean) ** 2
            parts["resolution"] += w.sum() / total * (o_mean - base) ** 2
            variance = (w * (f - f_mean) ** 2).sum()
            covariance = (w * (f - f_mean) * (o - o_mean)).sum()
            parts["within"] += (variance - 2 * covariance) / total
    return parts


@settings(deadline=None)
@given(rows, st.integers(1, 20))
def test_every_part_equals_a_loop_over_bins_and_their_sum_scikit_learns_score(sample, bins):
    y, p, weight = columns(sample)
    assume(weight.sum() > 0)
    for w in (weight, np.ones(len(y), int)):
        found = brier_decomposition(y, p, w, bins=bins)
        expected = parts_by_loop(y, p, w, bins)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert abs(float(found[name]) - value) < 1e-12, name
        signs = {"reliability": 1, "resolution": -1, "uncertainty": 1, "within": 1}
        total = sum(sign * found[name] for name, sign in signs.items())
        score = brier_score_loss(y, p, sample_weight=w, labels=[0, 1])
        assert abs(total - score) < 1e-12
        assert abs(total - brier(y, np.stack([1 - p, p], axis=1), w)) < 1e-12


def test_parts_of_four_rows_by_hand():
    # bins of two rows: means 0.2 and 0.7, shares 0.5 and 1, in all rows 0.75
    found = brier_decomposition([0, 1, 1, 1], [0.1, 0.3, 0.6, 0.8], bins=2)
    assert float(found["reliability"]) == pytest.approx((0.3**2 + 0.3**2) / 2)
    assert float(found["resolution"]) == pytest.approx(0.25**2)
    assert float(found["uncertainty"]) == pytest.approx(0.75 * 0.25)
    # the variance is 0.01 in both bins; p and y go together in the first, by 0.1 * 0.5
    assert float(found["within"]) == pytest.approx(0.01 - 2 * 0.05 / 2)


def test_bins_of_equal_probabilities_have_nothing_within():
    rng = np.random.default_rng(0)
    p = np.repeat([0.1, 0.4, 0.8], 50)
    y = (rng.uniform(size=150) < p).astype(int)
    assert abs(float(brier_decomposition(y, p, bins=3)["within"])) < 1e-15


def test_a_perfect_oracle_resolves_all_uncertainty():
    y = np.array([0, 1, 1, 0, 1, 0])
    found = brier_decomposition(y, y.astype(float), bins=2)
    assert float(found["reliability"]) == 0
    assert float(found["within"]) == 0
    assert float(found["resolution"]) == float(found["uncertainty"]) == 0.25


# ---- the line


@pytest.mark.parametrize("seed", range(5))
def test_the_line_equals_scikit_learns_regression_without_a_penalty(seed):
    y, p, weight = noisy(seed)
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-11, max_iter=1000)
    model.fit(logit(p)[:, None], y, sample_weight=weight)
    found = calibration_line(y, p, weight)
    assert float(found["slope"]) == pytest.approx(model.coef_.item(), abs=1e-9)
    assert float(found["intercept"]) == pytest.approx(model.intercept_.item(), abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_calibration_in_the_large_equals_a_root_search(seed):
    y, p, weight = noisy(seed)
    expected = brentq(lambda a: weight @ (y - expit(a + logit(p))), -20, 20, xtol=1e-13)
    assert float(calibration_in_the_large(y, p, weight)) == pytest.approx(expected, abs=1e-9)


def parted(y, p, weight):
    """Whether some cut has all rows of one class on one side or on it, and the other opposite."""
    x = logits(p)
    zero, one = x[(y == 0) & (weight > 0)], x[(y == 1) & (weight > 0)]
    if not len(zero) or not len(one):
        return True
    return zero.max() <= one.min() + 1e-6 or one.max() <= zero.min() + 1e-6


@settings(deadline=None)
@given(rows)
def test_the_line_solves_the_equations_of_greatest_likelihood_wherever_it_exists(sample):
    y, p, weight = columns(sample)
    found = calibration_line(y, p, weight)
    assert np.isnan(found["slope"]) == np.isnan(found["intercept"]) == parted(y, p, weight)
    if not parted(y, p, weight):
        # the likelihood is concave, so that a flat place is its highest
        missed = weight * (y - expit(found["intercept"] + found["slope"] * logits(p)))
        assert abs(missed.sum()) < 1e-7
        assert abs(missed @ logits(p)) < 1e-7


@settings(deadline=None)
@given(rows)
def test_calibration_in_the_large_makes_the_mean_right(sample):
    y, p, weight = columns(sample)
    found = calibration_in_the_large(y, p, weight)
    seen = set(y[weight > 0])
    assert np.isnan(found) == (seen != {0, 1})
    if seen == {0, 1}:
        assert abs(weight @ (y - expit(found + logits(p)))) < 1e-7


def test_probabilities_of_the_right_mean_need_no_shift():
    y, p = np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.5, 0.8])
    assert float(calibration_in_the_large(y, p)) == pytest.approx(0, abs=1e-12)


def test_a_line_of_four_points_by_hand():
    # of ten rows each, 2 and 6 are of class 1: the line runs through both logits
    p = np.repeat([0.3, 0.9], 10)
    y = np.tile(np.arange(10), 2) < np.repeat([2, 6], 10)
    slope = (logit(0.6) - logit(0.2)) / (logit(0.9) - logit(0.3))
    found = calibration_line(y, p)
    assert float(found["slope"]) == pytest.approx(slope, abs=1e-12)
    assert float(found["intercept"]) == pytest.approx(logit(0.2) - slope * logit(0.3), abs=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.floats(0.2, 4), st.floats(-2, 2))
def test_recalibrated_probabilities_lie_on_the_diagonal(seed, slope, intercept):
    y, p, weight = noisy(seed, slope=slope, intercept=intercept)
    first = calibration_line(y, p, weight)
    mended = expit(first["intercept"] + first["slope"] * logit(p))
    assume(mended.min() > 2 * CLIP)
    assume(mended.max() < 1 - 2 * CLIP)
    second = calibration_line(y, mended, weight)
    assert float(second["slope"]) == pytest.approx(1, abs=1e-9)
    assert float(second["intercept"]) == pytest.approx(0, abs=1e-9)
    assert float(calibration_in_the_large(y, mended, weight)) == pytest.approx(0, abs=1e-9)


def test_certain_probabilities_are_clipped():
    y, low, high = [0, 1, 0, 1, 1, 0], 1e-6, 1 - 1e-6
    certain, clipped = [0, 1, 1, 0, 0.7, 0.2], [low, high, high, low, 0.7, 0.2]
    assert logits(0) == logit(low)
    assert calibration_line(y, certain) == calibration_line(y, clipped)
    assert calibration_in_the_large(y, certain) == calibration_in_the_large(y, clipped)


@pytest.mark.parametrize(
    ("y", "p"),
    [
        ([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9]),
        ([1, 1, 0, 0], [0.1, 0.2, 0.8, 0.9]),
        ([0, 0, 1, 1], [0.1, 0.5, 0.5, 0.9]),  # only rows on the cut are mixed
        ([0, 1, 0, 1], [0.3, 0.3, 0.3, 0.3]),
        ([1, 1, 1, 1], [0.1, 0.2, 0.8, 0.9]),
    ],
)
def test_classes_that_a_cut_parts_have_no_finite_line(y, p):
    found = calibration_line(y, p)
    assert np.isnan(found["slope"])
    assert np.isnan(found["intercept"])


def test_a_line_is_found_where_whole_newton_steps_overshoot():
    # nearly all are certain and right; a few near 1/2 make the line steep
    x = np.array([-13.8, 13.8, -0.0774, -0.1767, -0.0763, -0.0965, 0.0052, 0.0151])
    y = np.array([0, 1, 0, 1, 0, 0, 1, 1])
    weight = np.array([3333, 4492, 350, 3, 366, 835, 17, 11])
    found = calibration_line(y, expit(x), weight)
    assert float(found["slope"]) > 20
    missed = weight * (y - expit(found["intercept"] + found["slope"] * logits(expit(x))))
    assert abs(missed.sum()) < 1e-7


@pytest.mark.parametrize("y", [[0, 1, 0, 1], [1, 0, 1, 0]])
def test_logits_that_are_equal_but_for_rounding_have_no_line(y):
    apart = np.array([-3, -1, 1, 3])
    assert np.isnan(calibration_line(y, expit(1 + 1e-7 * apart))["slope"])
    # wider apart they have one, as many times flatter
    far, near = (calibration_line(y, expit(1 + s * apart))["slope"] for s in (1e-2, 1e-5))
    assert float(near) == pytest.approx(float(far) * 1e3, rel=1e-6)


# ---- what all three share


def everything(y, p, weight=None):
    return (
        brier_decomposition(y, p, weight)
        | calibration_line(y, p, weight)
        | {"in the large": calibration_in_the_large(y, p, weight)}
    )


def test_draws_are_taken_one_by_one_and_only_the_undefined_ones_are_nan():
    y, p, _ = noisy(3, n=60)
    weight = np.random.default_rng(2).integers(0, 3, size=(2, 5, len(y)))
    weight[0, 1] = 0
    weight[1, 2, y == 1] = 0
    of_one_class = {"slope", "intercept", "in the large"}
    for name, values in everything(y, p, weight).items():
        assert values.shape == (2, 5), name
        undefined = {(0, 1), (1, 2)} if name in of_one_class else {(0, 1)}
        assert set(zip(*np.nonzero(np.isnan(values)), strict=True)) == undefined, name
        for draw in np.ndindex(2, 5):
            alone = everything(y, p, weight[draw])[name]
            assert alone.shape == ()
            np.testing.assert_allclose(values[draw], alone, rtol=0, atol=1e-11)


def test_a_weight_is_a_number_of_repeats():
    y, p, weight = noisy(4)
    repeated = np.repeat(y, weight), np.repeat(p, weight)
    assert float(calibration_in_the_large(y, p, weight)) == pytest.approx(
        float(calibration_in_the_large(*repeated)), abs=1e-11
    )
    found, again = calibration_line(y, p, weight), calibration_line(*repeated)
    for name, value in found.items():
        assert float(value) == pytest.approx(float(again[name]), abs=1e-11), name


def test_no_rows_are_nan():
    for name, value in everything(np.zeros(0, int), np.zeros(0)).items():
        assert np.isnan(value), name
    for name, value in everything(np.zeros(0, int), np.zeros(0), np.zeros((3, 0))).items():
        assert np.isnan(value).tolist() == [True] * 3, name


@pytest.mark.parametrize("call", [brier_decomposition, calibration_line, calibration_in_the_large])
@pytest.mark.parametrize(
    ("y", "p", "weight", "message"),
    [
        ([0, 1], [0.1, 1.2], None, "outside 0 to 1"),
        ([0, 1], [0.1, np.nan], None, "not finite"),
        ([0, 2], [0.1, 0.2], None, r"must lie in 0\.\.1"),
        ([0, 1], [0.1, 0.2], [1.0], "weights of shape"),
    ],
)
def test_malformed_arrays_are_named(call, y, p, weight, message):
    with pytest.raises(DataError, match=message):
        call(y, p, weight)


@pytest.mark.parametrize("bins", [0, -1])
def test_zero_bins_are_refused(bins):
    with pytest.raises(UsageError, match=f"at least one bin, got {bins}"):
        brier_decomposition([0, 1], [0.1, 0.9], bins=bins)
