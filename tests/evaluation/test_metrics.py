"""Every metric equals scikit-learn's where both are defined, and is nan where it is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from lobule.errors import DataError, UsageError
from lobule.evaluation.calibration import expected_calibration_error
from lobule.evaluation.metrics import (
    all_metrics,
    average_precision,
    brier,
    confusion,
    decision_metrics,
    roc_auc,
    score_metrics,
    why_undefined,
)

BINARY = {
    "roc_auc",
    "average_precision",
    "brier",
    "ece",
    "accuracy",
    "balanced_accuracy",
    "kappa",
    "mcc",
    "precision",
    "sensitivity",
    "specificity",
    "npv",
    "f1",
}
MULTICLASS = {
    "roc_auc",
    "average_precision",
    "brier",
    "ece",
    "accuracy",
    "balanced_accuracy",
    "kappa",
    "mcc",
    "macro_f1",
}


def sample(seed, n, classes, decimals=None):
    """Rows whose truth and decision both hold every class, so that scikit-learn is defined."""
    rng = np.random.default_rng(seed)
    y = np.append(rng.integers(classes, size=n), np.repeat(np.arange(classes), 2))
    prob = rng.dirichlet(np.ones(classes), size=len(y)) + 0.3 * np.eye(classes)[y]
    prob /= prob.sum(axis=1, keepdims=True)
    if decimals is not None:
        # scikit-learn wants rows that add up to one
        prob = prob.round(decimals)
        prob[:, -1] = np.clip(1 - prob[:, :-1].sum(axis=1), 0, 1)
        prob /= prob.sum(axis=1, keepdims=True)
    decision = np.append(prob[:n].argmax(axis=1), np.tile(np.arange(classes), 2))
    weight = np.append(rng.integers(0, 4, size=n), rng.integers(1, 4, size=2 * classes))
    return y, prob, decision, weight


def by_sklearn(y, prob, decision, weight):
    """Return the same numbers from scikit-learn; npv and specificity from swapped classes."""
    classes, w = prob.shape[1], {"sample_weight": weight}
    found = {
        "accuracy": reference.accuracy_score(y, decision, **w),
        "balanced_accuracy": reference.balanced_accuracy_score(y, decision, **w),
        "kappa": reference.cohen_kappa_score(y, decision, **w),
        "mcc": reference.matthews_corrcoef(y, decision, **w),
    }
    if classes == 2:
        p = prob[:, 1]
        return found | {
            "roc_auc": reference.roc_auc_score(y, p, **w),
            "average_precision": reference.average_precision_score(y, p, **w),
            "brier": reference.brier_score_loss(y, p, **w),
            "precision": reference.precision_score(y, decision, **w),
            "sensitivity": reference.recall_score(y, decision, **w),
            "specificity": reference.recall_score(y, decision, pos_label=0, **w),
            "npv": reference.precision_score(y, decision, pos_label=0, **w),
            "f1": reference.f1_score(y, decision, **w),
        }
    one_hot = np.eye(classes)[y]
    return found | {
        # scikit-learn's own one-vs-rest of class indices takes no weights
        "roc_auc": reference.roc_auc_score(one_hot, prob, average="macro", **w),
        "average_precision": reference.average_precision_score(one_hot, prob, average="macro", **w),
        "brier": reference.brier_score_loss(y, prob, **w),
        "macro_f1": reference.f1_score(y, decision, average="macro", **w),
    }


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(0, 120),
    classes=st.sampled_from([2, 3, 8]),
    decimals=st.sampled_from([None, 1]),
)
def test_every_metric_equals_scikit_learn(seed, n, classes, decimals):
    y, prob, decision, weight = sample(seed, n, classes, decimals)
    for w in (weight, np.ones(len(y), int)):
        found = all_metrics(y, prob, decision, w)
        expected = by_sklearn(y, prob, decision, w)
        assert set(found) == set(expected) | {"ece"}
        for name, value in expected.items():
            assert abs(float(found[name]) - value) < 1e-12, name
        assert float(found["ece"]) == float(expected_calibration_error(y, prob, w))


def test_three_class_auc_equals_scikit_learn_from_class_indices():
    y, prob, _, _ = sample(4, 90, 3)
    expected = reference.roc_auc_score(y, prob, multi_class="ovr", average="macro")
    assert abs(float(score_metrics(y, prob)["roc_auc"]) - expected) < 1e-12


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    classes=st.sampled_from([2, 3]),
    decimals=st.sampled_from([None, 1]),
)
def test_a_weight_is_a_number_of_repeats(seed, classes, decimals):
    y, prob, decision, weight = sample(seed, 60, classes, decimals)
    rows = np.repeat(np.arange(len(y)), weight)
    weighted = all_metrics(y, prob, decision, weight)
    repeated = all_metrics(y[rows], prob[rows], decision[rows])
    for name in weighted.keys() - {"ece"}:  # the bins of ece come from the rows as they are
        assert abs(float(weighted[name]) - float(repeated[name])) < 1e-12, name


@pytest.mark.parametrize("classes", [2, 3])
def test_draws_are_taken_one_by_one(classes):
    y, prob, decision, _ = sample(8, 50, classes)
    weight = np.random.default_rng(2).integers(0, 3, size=(2, 5, len(y)))
    weight[..., -2 * classes :] = 1
    together = all_metrics(y, prob, decision, weight)
    assert set(together) == (BINARY if classes == 2 else MULTICLASS)
    for name, values in together.items():
        assert values.shape == (2, 5), name
        assert values.dtype == np.float64
        for draw in np.ndindex(2, 5):
            alone = all_metrics(y, prob, decision, weight[draw])[name]
            assert alone.shape == ()
            assert abs(values[draw] - float(alone)) < 1e-12


@pytest.mark.parametrize("classes", [2, 3])
def test_doubled_weights_change_nothing(classes):
    y, prob, decision, _ = sample(11, 80, classes)
    once = all_metrics(y, prob, decision)
    twice = all_metrics(y, prob, decision, np.full(len(y), 2))
    for name, value in once.items():
        assert abs(float(value) - float(twice[name])) < 1e-12, name


@pytest.mark.parametrize("classes", [2, 3])
def test_order_of_rows_changes_nothing(classes):
    y, prob, decision, weight = sample(12, 80, classes, decimals=1)
    mixed = np.random.default_rng(0).permutation(len(y))
    found = all_metrics(y, prob, decision, weight)
    again = all_metrics(y[mixed], prob[mixed], decision[mixed], weight[mixed])
    for name, value in found.items():
        assert abs(float(value) - float(again[name])) < 1e-12, name


# Whole numbers, so that a monotone function parts and ties them as before.
tied_scores = st.lists(
    st.tuples(st.integers(0, 1), st.integers(-5, 5), st.integers(0, 3)), min_size=2, max_size=60
)


@given(tied_scores)
def test_auc_is_the_share_of_pairs_in_order(rows):
    positive = [(s, w) for y, s, w in rows if y == 1]
    negative = [(s, w) for y, s, w in rows if y == 0]
    pairs = sum(v * w for _, v in positive for _, w in negative)
    assume(pairs > 0)
    won = sum(v * w * ((s > t) + (s == t) / 2) for s, v in positive for t, w in negative)
    y, score, weight = np.array(rows).T
    assert abs(float(roc_auc(y, score, weight)) - won / pairs) < 1e-12


@given(tied_scores)
def test_auc_ignores_monotone_transformations(rows):
    y, score, weight = np.array(rows).T
    plain = roc_auc(y, score, weight)
    np.testing.assert_equal(roc_auc(y, np.exp(score / 3) - 7, weight), plain)
    np.testing.assert_allclose(roc_auc(y, -score, weight), 1 - plain, atol=1e-12)


@given(tied_scores)
def test_auc_of_swapped_classes_is_its_complement(rows):
    y, score, weight = np.array(rows).T
    swapped = roc_auc(1 - y, score, weight)
    np.testing.assert_allclose(swapped, 1 - roc_auc(y, score, weight), atol=1e-12)


def test_brier_of_two_rows_by_hand():
    assert float(brier([1, 0], [[0.2, 0.8], [0.6, 0.4]])) == pytest.approx(0.1)
    # (0.04 + 0.01 + 0.01) and (0.36 + 0.09 + 0.09), halved
    prob = [[0.8, 0.1, 0.1], [0.4, 0.3, 0.3]]
    assert float(brier([0, 0], prob)) == pytest.approx((0.06 + 0.54) / 2)


def test_confusion_has_truth_in_rows():
    table = confusion([0, 0, 1, 2], [0, 1, 1, 0], 3, [1, 2, 3, 4])
    assert table.tolist() == [[1, 2, 0], [0, 3, 0], [4, 0, 0]]
    assert confusion([0, 1], [1, 1], 2, np.ones((5, 2))).shape == (5, 2, 2)


def test_decision_metrics_of_a_table_by_hand():
    # 40 benign of which 30 called so; 60 malignant of which 45 called so
    found = decision_metrics(np.array([[30, 10], [15, 45]]))
    expected = {
        "accuracy": 0.75,
        "balanced_accuracy": 0.75,
        "sensitivity": 0.75,
        "specificity": 0.75,
        "precision": 45 / 55,
        "npv": 30 / 45,
        "f1": 90 / 115,
        "kappa": (0.75 - 0.51) / (1 - 0.51),
        "mcc": (30 * 45 - 10 * 15) / np.sqrt(55 * 60 * 40 * 45),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, abs=1e-14), name


def undefined(y, prob, decision):
    found = all_metrics(y, prob, decision)
    return {name for name, value in found.items() if np.isnan(value)}


def test_undefined_is_nan_and_never_a_number():
    y, p = np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.4, 0.9])
    prob = np.stack([1 - p, p], axis=1)
    ones, zeros = np.ones(4, int), np.zeros(4, int)
    of_truth = {"roc_auc", "balanced_accuracy", "mcc"}
    assert undefined(y, prob, y) == set()
    assert undefined(y, prob, ones) == {"npv", "mcc"}
    assert undefined(y, prob, zeros) == {"precision", "mcc"}
    assert undefined(ones, prob, y) == of_truth | {"specificity"}
    assert undefined(zeros, prob, y) == of_truth | {"sensitivity", "average_precision"}
    assert undefined(ones, prob, ones) == of_truth | {"specificity", "npv", "kappa"}
    assert undefined(zeros, prob, zeros) == of_truth | {
        "sensitivity",
        "average_precision",
        "precision",
        "f1",
        "kappa",
    }
    assert undefined(zeros[:0], prob[:0], zeros[:0]) == BINARY


def test_a_metric_that_is_defined_and_zero_is_zero():
    y, decision = [0, 1, 1], [1, 0, 0]
    found = decision_metrics(confusion(y, decision, 2))
    assert float(found["f1"]) == 0
    assert float(found["precision"]) == 0
    assert float(found["sensitivity"]) == 0


def test_a_class_that_is_absent_leaves_the_mean_over_classes_undefined():
    rng = np.random.default_rng(0)
    y = np.array([0, 0, 1, 1, 0, 1])
    prob = rng.dirichlet(np.ones(3), size=6)
    of_truth = {"roc_auc", "average_precision", "balanced_accuracy"}
    assert undefined(y, prob, y) == of_truth | {"macro_f1"}
    called = np.array([2, 0, 1, 1, 0, 1])
    assert undefined(y, prob, called) == of_truth  # f1 of class 2 is now 0


def test_only_the_undefined_draws_are_nan():
    y, score = np.array([0, 1, 1]), np.array([0.2, 0.1, 0.7])
    found = roc_auc(y, score, [[1, 1, 1], [0, 2, 1], [2, 0, 1], [0, 0, 0]])
    np.testing.assert_array_equal(found, [0.5, np.nan, 1.0, np.nan])
    found = average_precision(y, score, [[0, 2, 1], [3, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(found, [1.0, np.nan, 1.0])


NAMES = ("benign", "malignant")


@pytest.mark.parametrize(
    ("name", "y", "decision", "reason"),
    [
        ("roc_auc", [1, 1], [0, 1], "no benign image"),
        ("balanced_accuracy", [0, 0], [0, 1], "no malignant image"),
        ("average_precision", [0, 0], [0, 1], "no malignant image"),
        ("sensitivity", [0, 0], [0, 1], "no malignant image"),
        ("specificity", [1, 1], [0, 1], "no benign image"),
        ("precision", [0, 1], [0, 0], "no image was called malignant"),
        ("npv", [0, 1], [1, 1], "no image was called benign"),
        ("f1", [0, 0], [0, 0], "no image is, or was called, malignant"),
        ("mcc", [0, 1], [0, 0], "all images are, or were called, one class"),
        ("kappa", [0, 0], [0, 0], "all images are, and were called, one class"),
        ("brier", [], [], "no image"),
        ("mcc", [], [], "no image"),
    ],
)
def test_the_reason_names_what_is_missing(name, y, decision, reason):
    assert why_undefined(name, y, decision, NAMES) == reason


def test_the_reason_of_a_mean_over_classes_names_the_absent_ones():
    names = ("adenosis", "fibroadenoma", "tubular adenoma")
    assert why_undefined("roc_auc", [1, 1], [0, 1], names) == "no adenosis or tubular adenoma image"
    expected = "no image is, or was called, tubular adenoma"
    assert why_undefined("macro_f1", [1, 1], [0, 1], names) == expected


@pytest.mark.parametrize("name", sorted(BINARY | MULTICLASS))
def test_every_metric_has_a_reason(name):
    assert why_undefined(name, [0, 0], [0, 0], NAMES)


def test_an_unknown_metric_is_refused():
    with pytest.raises(UsageError, match="no metric is named auroc"):
        why_undefined("auroc", [0, 1], [0, 1], NAMES)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: roc_auc([0, 1], [0.1, np.nan]), "1 of 2 scores are not finite"),
        (lambda: roc_auc([0, 2], [0.1, 0.2]), r"must lie in 0\.\.1"),
        (lambda: roc_auc([0, 1, 1], [0.1, 0.2]), "expected 2 class indices"),
        (lambda: average_precision([0, 1], [0.1, 0.2], [1.0]), "weights of shape"),
        (lambda: brier([0, 1], [[0.5, 0.5], [-0.2, 1.2]]), "outside 0 to 1"),
        (lambda: confusion([0, 1], [0, 2], 2), r"must lie in 0\.\.1"),
        (lambda: confusion([0, 1], [0], 2), "expected 2 class indices"),
        (lambda: decision_metrics(np.zeros((2, 3))), r"matrices \(\.\.\., K, K\)"),
    ],
)
def test_malformed_arrays_are_named(call, message):
    with pytest.raises(DataError, match=message):
        call()


def test_one_class_makes_no_confusion_matrix():
    with pytest.raises(UsageError, match="two classes or more, got 1"):
        confusion([0], [0], 1)
