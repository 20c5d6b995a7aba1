"""Probabilities are mapped monotonely, and the map is the likeliest one."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, softmax
from sklearn.isotonic import isotonic_regression

from lobule.errors import DataError, ModelError, UsageError
from lobule.evaluation.recalibration import Recalibration, fit_recalibration


def told(n: int, *, sharp: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities whose logits are `sharp` times too large."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, n)
    y = (rng.random(n) < expit(logits)).astype(int)
    p = expit(sharp * logits)
    return y, np.stack([1 - p, p], axis=1)


def test_none_changes_nothing() -> None:
    y, prob = told(50, sharp=2)
    assert np.array_equal(fit_recalibration("none", y, prob)(prob), prob)


@pytest.mark.parametrize("sharp", [0.5, 1.0, 3.0])
def test_temperature_finds_how_much_too_sharp_the_scores_are(sharp: float) -> None:
    y, prob = told(60_000, sharp=sharp)
    assert fit_recalibration("temperature", y, prob).temperature == pytest.approx(sharp, rel=0.04)


def test_temperature_is_the_one_that_another_optimiser_finds_with_three_classes() -> None:
    rng = np.random.default_rng(1)
    prob = softmax(rng.normal(0, 2, (300, 3)), axis=1)
    y, w = rng.integers(0, 3, 300), rng.integers(0, 4, 300)

    def loss(t: np.ndarray) -> float:
        told = log_softmax(np.log(prob) / t[0], axis=1)[np.arange(300), y]
        return float(-(w * told).sum())

    best = minimize(loss, [1.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    # no temperature is better than one that says nothing, so it stops at the bound
    expected = min(20.0, float(best.x[0]))
    found = fit_recalibration("temperature", y, prob, w)
    assert found.temperature == pytest.approx(expected, rel=1e-4)


def test_isotonic_passes_through_the_pooled_shares_of_the_labels() -> None:
    y, prob = told(400, sharp=2)
    found = fit_recalibration("isotonic", y, prob)
    order = np.argsort(prob[:, 1])
    expected = isotonic_regression(y[order].astype(float), y_min=1e-6, y_max=1 - 1e-6)
    assert found(prob)[order, 1] == pytest.approx(expected, abs=1e-9)


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=40),
    st.sampled_from(["temperature", "isotonic"]),
    st.integers(0, 99),
)
def test_the_order_of_images_stays_and_rows_sum_to_1(
    p: list[float], method: str, seed: int
) -> None:
    y, prob = told(80, sharp=2, seed=seed)
    found = fit_recalibration(method, y, prob)  # type: ignore[arg-type]
    positive = np.sort(np.array(p))
    mapped = found(np.stack([1 - positive, positive], axis=1))
    assert np.diff(mapped[:, 1]).min(initial=0) >= -1e-12
    assert mapped.sum(axis=1) == pytest.approx(1)
    assert mapped.min() >= 0


@pytest.mark.parametrize("method", ["none", "temperature", "isotonic"])
def test_what_is_stored_maps_alike(method: str) -> None:
    y, prob = told(90, sharp=2)
    found = fit_recalibration(method, y, prob)  # type: ignore[arg-type]
    stored = json.loads(json.dumps(found.to_json() | {"source": "said beside"}))
    assert Recalibration.from_json(stored) == found
    assert np.array_equal(Recalibration.from_json(stored)(prob), found(prob))


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"method": "magic"},
        {"method": "temperature", "temperature": 0},
        {"method": "temperature", "temperature": float("nan")},
        {"method": "isotonic"},
        {"method": "none", "steps": [[0.1, 0.2]]},
        {"method": "isotonic", "steps": [[0.5, 0.5], [0.4, 0.6]]},
        {"method": "isotonic", "steps": [[0.5, 1.5]]},
        {"method": "isotonic", "steps": [[0.5]]},
    ],
)
def test_a_calibration_that_cannot_be_is_refused(record: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="calibration"):
        Recalibration.from_json(record)


def test_unknown_methods_and_too_many_classes_are_refused() -> None:
    y, prob = told(9, sharp=1)
    with pytest.raises(UsageError, match="isotnic"):
        fit_recalibration("isotnic", y, prob)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="two classes, there are 3"):
        fit_recalibration("isotonic", [0, 1], np.full((2, 3), 1 / 3))
    with pytest.raises(DataError, match="no images"):
        fit_recalibration("temperature", y, prob, np.zeros(9))
