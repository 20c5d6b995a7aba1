"""The refusal gate: its score, its answer, and how it is kept."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import null_space, orth

from lobule.models.classifier import Features
from lobule.models.gate import Gate


def seen(seed: int, *, n: int = 7, d: int = 20) -> Features:
    rng = np.random.default_rng(seed)
    views = rng.normal(0.3, 1, (n, 8, d)).astype(np.float32)
    return Features(views, np.zeros((n, 12), np.float32))


def gate(seed: int, *, d: int = 20, r: int = 5, threshold: float = 0.9) -> Gate:
    rng = np.random.default_rng([seed, 1])
    mean = rng.normal(size=d)
    basis = orth(rng.normal(size=(d, r))).T if r else np.empty((0, d))
    return Gate(0.6 * mean / np.linalg.norm(mean), basis, threshold)


@pytest.mark.parametrize(("d", "r"), [(20, 5), (448, 32), (1920, 1), (20, 0)])
def test_score_is_the_squared_length_along_all_that_is_no_row_of_the_basis(d, r):
    features, one = seen(0, d=d), gate(0, d=d, r=r)
    outside = null_space(one.basis) if r else np.eye(d)
    for views, score in zip(features.views.astype(float), one.score(features), strict=True):
        direction = views.mean(axis=0) / np.linalg.norm(views.mean(axis=0))
        expected = np.linalg.norm(outside.T @ (direction - one.mean)) ** 2
        assert score == pytest.approx(expected, rel=1e-9)


@given(st.integers(0, 1000), st.floats(0.01, 100), st.permutations(range(8)))
def test_neither_strength_nor_order_of_views_changes_the_score(seed, strength, order):
    features, one = seen(seed), gate(seed)
    other = Features(np.float32(strength) * features.views[:, order], features.colour)
    assert one.score(other) == pytest.approx(one.score(features), abs=1e-5)
    assert ((one.score(features) >= 0) & (one.score(features) <= 4)).all()


def test_colour_does_not_count():
    features, one = seen(1), gate(1)
    other = Features(features.views, features.colour + 1)
    assert one.score(other).tolist() == one.score(features).tolist()


def test_accepted_is_what_scores_no_higher_than_the_threshold():
    features = seen(2)
    scores = gate(2).score(features)
    at = Gate(gate(2).mean, gate(2).basis, float(np.sort(scores)[3]))
    assert at.accepts(features).sum() == 4
    assert at.accepts(features).tolist() == (scores <= at.threshold).tolist()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused(value):
    features = seen(3)
    features.views[2, 4, 1] = value
    scores = gate(3, threshold=np.inf).score(features)
    assert np.isnan(scores).tolist() == [i == 2 for i in range(7)]
    assert gate(3, threshold=np.inf).accepts(features).tolist() == [i != 2 for i in range(7)]


def test_features_that_are_all_zero_have_a_score():
    one = gate(4)
    empty = Features(np.zeros((1, 8, 20), np.float32), np.zeros((1, 12), np.float32))
    expected = np.linalg.norm(null_space(one.basis).T @ one.mean) ** 2
    assert one.score(empty) == pytest.approx([expected])


@pytest.mark.parametrize("r", [5, 0])
def test_a_gate_comes_back_from_a_safetensors_file_to_the_bit(r):
    features, one = seen(5), gate(5, r=r, threshold=0.1 + 0.2)
    tensors = one.to_tensors()
    assert {value.dtype for value in tensors.values()} == {np.dtype(np.float64)}
    again = Gate.from_tensors(safetensors.numpy.load(safetensors.numpy.save(tensors)))
    assert again.threshold == one.threshold
    assert again.score(features).tolist() == one.score(features).tolist()


@pytest.mark.parametrize("name", ["mean", "basis", "threshold"])
def test_a_gate_without_one_of_its_tensors_is_none(name):
    tensors = gate(6).to_tensors()
    del tensors[name]
    with pytest.raises(KeyError, match=name):
        Gate.from_tensors(tensors)


@pytest.mark.parametrize(
    "change",
    [
        {"mean": np.zeros(20, np.float32)},
        {"mean": np.zeros((20, 1))},
        {"mean": np.zeros(19)},
        {"basis": np.zeros(20)},
        {"threshold": np.array(1.0)},
        {"threshold": np.ones(2)},
    ],
)
def test_tensors_of_another_type_or_shape_are_no_gate(change):
    with pytest.raises(TypeError, match="a gate"):
        Gate.from_tensors(gate(7).to_tensors() | change)
