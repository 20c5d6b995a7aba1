"""Fitting the refusal gate: its plane, whose scores set its threshold, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from lobule.errors import DataError, UsageError
from lobule.models.classifier import Features
from lobule.training.gate import DIRECTIONS, fit_gate, held_out_scores


def cohort(seed: int, sizes, *, d: int = 60, views: int = 8):
    """Features of patients with a number of images each, all of one kind, and the patients.

    They differ along five directions, which are the same for every seed, and a little in all.
    """
    kind = np.random.default_rng(99)
    middle, axes = kind.normal(0, 1, d) + 2, kind.normal(0, 1, (5, d))
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(len(sizes)), sizes)
    along = rng.normal(0, 0.5, (len(sizes), 5))[patient] + rng.normal(0, 0.3, (len(patient), 5))
    x = (middle + along @ axes)[:, None] + rng.normal(0, 0.2, (len(patient), views, d))
    names = [f"P{p}" for p in patient]
    return Features(x.astype(np.float32), np.zeros((len(x), 12), np.float32)), names


def rows(features: Features, order) -> Features:
    return Features(features.views[order], features.colour[order])


def unit(features: Features):
    mean = features.views.astype(float).mean(axis=1)
    return mean / np.linalg.norm(mean, axis=1)[:, None]


def by_scikit_learn(known: Features, new: Features):
    """How much of the new ones the principal components of the known ones leave over."""
    few = min(DIRECTIONS, len(known) - 1, known.views.shape[2])
    pca = PCA(few, svd_solver="full").fit(unit(known))
    left = unit(new) - pca.inverse_transform(pca.transform(unit(new)))
    return (left**2).sum(axis=1)


@pytest.mark.parametrize(("patients", "each", "d"), [(12, 8, 1280), (12, 8, 60), (3, 2, 448)])
def test_scores_are_what_principal_components_leave_over(patients, each, d):
    known, groups = cohort(0, [each] * patients, d=d)
    new, _ = cohort(1, [4, 4], d=d)
    gate = fit_gate(known, groups)
    assert gate.score(new) == pytest.approx(by_scikit_learn(known, new), rel=1e-7)
    assert gate.basis @ gate.basis.T == pytest.approx(np.eye(len(gate.basis)), abs=1e-9)
    assert len(gate.basis) <= DIRECTIONS


def test_held_out_scores_are_of_a_gate_that_saw_the_other_patients_only():
    features, groups = cohort(2, [6, 9])
    first = np.array(groups) == "P0"
    expected = np.empty(15)
    for one in (first, ~first):
        expected[one] = by_scikit_learn(features.where(~one), features.where(one))
    # one patient is left to each, whose images all weigh the same, as in scikit-learn
    assert held_out_scores(features, groups) == pytest.approx(expected, rel=1e-7)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=9),
    st.floats(0.05, 1),
    st.integers(0, 100),
)
def test_the_threshold_is_the_lowest_that_keeps_the_share_with_patients_counting_the_same(
    sizes, kept, seed
):
    features, groups = cohort(seed, sizes, d=20)
    gate = fit_gate(features, groups, kept=kept, seed=seed)
    scores = held_out_scores(features, groups, seed=seed)

    def share(keeps):
        return np.mean([keeps[np.array(groups) == g].mean() for g in set(groups)])

    assert share(scores <= gate.threshold) >= kept - 1e-9
    assert share(scores < gate.threshold) < kept + 1e-9
    assert gate.threshold in scores


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 100), st.randoms(use_true_random=False))
def test_the_order_of_images_changes_nothing(seed, random):
    features, groups = cohort(seed, [3, 5, 1, 4, 2, 6, 3])
    order = random.sample(range(24), 24)
    one = fit_gate(features, groups, seed=seed)
    other = fit_gate(rows(features, order), [groups[i] for i in order], seed=seed)
    new, _ = cohort(seed + 1, [5])
    assert other.score(new) == pytest.approx(one.score(new), rel=1e-7)
    assert other.threshold == pytest.approx(one.threshold, rel=1e-7)


def test_a_patient_with_each_image_thrice_counts_as_before():
    features, groups = cohort(3, [3, 5, 1, 4, 2, 6, 3])
    order = [i for i, name in enumerate(groups) for _ in range(3 if name == "P3" else 1)]
    one = fit_gate(features, groups)
    other = fit_gate(rows(features, order), [groups[i] for i in order])
    new, _ = cohort(4, [5])
    assert other.score(new) == pytest.approx(one.score(new), rel=1e-7)
    assert other.threshold == pytest.approx(one.threshold, rel=1e-7)


def test_new_patients_are_let_in_and_other_things_are_not():
    known, groups = cohort(5, [8] * 24)
    gate = fit_gate(known, groups)
    new, _ = cohort(6, [8] * 24)
    assert gate.accepts(new).mean() >= 0.9
    views = np.random.default_rng(7).normal(0, 1, (50, 8, 60)) + 2
    strange = Features(views.astype(np.float32), np.zeros((50, 12), np.float32))
    assert not gate.accepts(strange).any()


@pytest.mark.parametrize("d", [16, 448, 1920])
def test_images_that_are_each_their_own_patient_make_a_gate(d):
    features, _ = cohort(8, [1] * 20, d=d)
    gate = fit_gate(features, [str(i) for i in range(20)])
    assert gate.accepts(features).mean() >= 0.95


def test_two_images_are_enough_for_a_gate():
    features, groups = cohort(9, [1, 1])
    gate = fit_gate(features, groups)
    assert gate.accepts(features).all()
    first, second = unit(features)
    assert gate.threshold == pytest.approx(((first - second) ** 2).sum())


def test_the_same_picture_many_times_makes_a_gate_that_accepts_it():
    features, _ = cohort(10, [1])
    same = rows(features, [0] * 12)
    gate = fit_gate(same, [f"P{i % 4}" for i in range(12)])
    assert gate.score(same) == pytest.approx(np.zeros(12), abs=1e-20)


def test_the_same_call_gives_the_same_gate_to_the_bit():
    features, groups = cohort(11, [4] * 9)
    one, other = (fit_gate(features, groups, seed=3) for _ in range(2))
    assert one.threshold == other.threshold
    assert one.basis.tobytes() == other.basis.tobytes()
    assert one.mean.tobytes() == other.mean.tobytes()


def test_one_patient_is_too_few():
    features, groups = cohort(12, [5])
    with pytest.raises(DataError, match=r"two patients or more, got 1(?s:.*)add images") as caught:
        fit_gate(features, groups)
    assert caught.value.fix


def test_features_that_are_not_finite_are_told_with_their_row():
    features, groups = cohort(13, [2, 2])
    features.views[1, 3, 0] = np.inf
    features.views[3, 0, 0] = np.nan
    with pytest.raises(DataError, match=r"2 of 4 images have features that are not finite.* row 1"):
        fit_gate(features, groups)


def test_groups_must_be_one_an_image():
    features, groups = cohort(14, [2, 2])
    with pytest.raises(DataError, match="expected 4 groups, one an image, got 3"):
        fit_gate(features, groups[:3])


@pytest.mark.parametrize("kept", [0, -0.1, 1.01, np.nan])
def test_the_share_kept_must_be_a_share(kept):
    features, groups = cohort(15, [2, 2])
    with pytest.raises(UsageError, match="share kept"):
        fit_gate(features, groups, kept=kept)
