"""The linear head: the fit, its weights, and the choice of strength."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from lobule.errors import DataError
from lobule.models.classifier import mean_over_views
from lobule.training.head import STRENGTHS, balanced_weights, fit_head, fit_plain


def clustered(seed: int, *, patients: int = 12, per_patient: int = 5, d: int = 20, views: int = 8):
    """Features (n, views, d) with a class signal and a patient signature, y, and groups."""
    rng = np.random.default_rng(seed)
    y_patient = np.arange(patients) % 2
    signature = rng.normal(0, 1, (patients, d))
    signature[:, 0] += 3 * y_patient
    patient = np.repeat(np.arange(patients), per_patient)
    x = signature[patient][:, None] + rng.normal(0, 0.5, (len(patient), views, d))
    return x.astype(np.float32), y_patient[patient], [f"P{p}" for p in patient]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4)), min_size=1, max_size=40).filter(
        lambda rows: {0, 1, 2} == {y for y, _ in rows}
    )
)
def test_every_class_weighs_the_same_and_in_it_every_patient(rows):
    y = np.array([label for label, _ in rows])
    groups = [f"P{p}" for _, p in rows]
    weights = balanced_weights(y, groups)
    assert weights.mean() == pytest.approx(1)
    for k in range(3):
        assert weights[y == k].sum() == pytest.approx(len(y) / 3)
        totals = {
            g: weights[(y == k) & (np.array(groups) == g)].sum()
            for g in {g for g, label in zip(groups, y, strict=True) if label == k}
        }
        assert np.allclose(list(totals.values()), len(y) / 3 / len(totals))


def by_scikit_learn(x, y, groups, strength):
    """Probabilities of the same fit on all features, without the detour."""
    weights = balanced_weights(y, groups)
    mean = np.average(x, axis=0, weights=weights)
    scale = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weights))
    reference = LogisticRegression(C=strength, tol=1e-10, max_iter=10_000)
    reference.fit((x - mean) / scale, y, sample_weight=weights)
    return reference.predict_proba((x - mean) / scale)


def test_fit_in_the_space_of_the_images_equals_scikit_learn_on_all_features():
    x, y, groups = clustered(0, d=90)
    head = fit_plain(x[:, 0], y, groups, n_classes=2, strength=0.05)
    expected = by_scikit_learn(x[:, 0], y, groups, 0.05)
    assert np.abs(head.probabilities(x[:, 0]) - expected).max() < 1e-5


def test_three_classes_fit_as_scikit_learn_does():
    x, _, groups = clustered(1, patients=15)
    y = np.array([int(g[1:]) % 3 for g in groups])
    head = fit_plain(x[:, 0], y, groups, n_classes=3, strength=0.1)
    expected = by_scikit_learn(x[:, 0], y, groups, 0.1)
    assert np.abs(head.probabilities(x[:, 0]) - expected).max() < 1e-5


def test_two_classes_give_the_logistic_of_one_score():
    x, y, groups = clustered(2)
    head = fit_plain(x[:, 0], y, groups, n_classes=2)
    score = x[:, 0].astype(float) @ (head.weight[1] - head.weight[0]) + head.bias[1] - head.bias[0]
    assert np.allclose(head.probabilities(x[:, 0])[:, 1], expit(score), atol=1e-12)


def test_probability_is_the_mean_over_the_views():
    x, y, groups = clustered(3)
    head = fit_head(x, y, groups, n_classes=2).head
    by_hand = np.mean([head.probabilities(x[:, v]) for v in range(8)], axis=0)
    assert np.allclose(mean_over_views(head, x), by_hand, atol=1e-15)


def test_inner_scores_come_from_heads_that_did_not_see_the_patient():
    """Labels drawn by coin per patient: only a head that saw the patient could know them."""
    rng = np.random.default_rng(5)
    patient = np.repeat(np.arange(40), 4)
    coin = np.concatenate([np.zeros(20, int), np.ones(20, int)])
    rng.shuffle(coin)
    signature = rng.normal(0, 1, (40, 60))
    x = signature[patient][:, None] + rng.normal(0, 0.01, (160, 2, 60))
    y, groups = coin[patient], [f"P{p:02d}" for p in patient]
    fitted = fit_head(x.astype(np.float32), y, groups, n_classes=2)
    inner = (fitted.inner.argmax(axis=1) == y).mean()
    seen = (mean_over_views(fitted.head, x).argmax(axis=1) == y).mean()
    assert seen > 0.9
    assert inner < 0.7


def inner_losses(x, y, groups, strength):
    """Weighted loss of each image on the inner folds, of one strength by itself."""
    inner = fit_head(x, y, groups, n_classes=2, strengths=[strength]).inner
    return -np.log(inner[np.arange(len(y)), y]) * balanced_weights(y, groups)


def test_lowest_takes_the_strength_of_the_lowest_inner_loss():
    x, y, groups = clustered(7)
    chosen = fit_head(x, y, groups, n_classes=2, choice="lowest").strength
    assert chosen == min(STRENGTHS, key=lambda c: inner_losses(x, y, groups, c).mean())


def test_one_se_takes_the_strongest_that_is_not_worse_by_a_standard_error_over_groups():
    seen = set()
    for seed in range(7, 15):
        x, y, groups = clustered(seed)
        losses = {c: inner_losses(x, y, groups, c) for c in STRENGTHS}
        best = min(STRENGTHS, key=lambda c: losses[c].mean())
        sums = pd.Series(losses[best]).groupby(groups).sum()
        limit = losses[best].mean() + sums.std() * np.sqrt(len(sums)) / len(y)
        expected = min(c for c in STRENGTHS if losses[c].mean() <= limit)
        assert fit_head(x, y, groups, n_classes=2).strength == expected
        seen.add(expected == best)
    # the rule is not empty on these
    assert False in seen


def test_constant_features_do_no_harm():
    x, y, groups = clustered(8)
    x[..., 3] = 7.0
    head = fit_head(x, y, groups, n_classes=2).head
    assert np.isfinite(head.weight).all()
    assert np.isfinite(mean_over_views(head, x)).all()


def test_class_absent_from_training_gets_no_probability():
    x, y, groups = clustered(9)
    head = fit_plain(x[:, 0], y * 2, groups, n_classes=3)
    assert head.probabilities(x[:, 0])[:, 1].max() < 1e-100


def test_one_patient_in_a_class_is_refused():
    x, y, groups = clustered(10, patients=3)
    with pytest.raises(DataError, match="class '1' has one patient"):
        fit_head(x, y, groups, n_classes=2)
