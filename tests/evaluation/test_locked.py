"""What is settled on honest scores, kept with the model, and used on images it has not seen."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.special import expit

from lobule.errors import ModelError, UsageError
from lobule.evaluation.calibration import expected_calibration_error
from lobule.evaluation.conformal import group_quantile
from lobule.evaluation.locked import Locked, Targets, lock
from lobule.evaluation.predictions import Predictions, at_level


def scored(
    patients: int = 40, *, images: int = 6, sharp: float = 1.0, seed: int = 0, classes: int = 2
) -> Predictions:
    """Images of patients who differ; the logits are `sharp` times too large."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), images)
    logits = np.repeat(rng.normal(0, 1, patients), images) + rng.normal(0, 1, len(patient))
    names = [f"class {k}" for k in range(classes)]
    p = expit(sharp * logits)
    y = (rng.random(len(p)) < expit(logits)).astype(int)
    prob = np.stack([1 - p, p, *([np.zeros(len(p))] * (classes - 2))], axis=1)
    table = pd.DataFrame({
        "path": [f"{i}.png" for i in range(len(p))],
        "label": np.array(names)[y],
        "patient": [f"P{k}" for k in patient],
        "slide": [f"S{k}" for k in patient],
        **{f"prob_{name}": prob[:, k] for k, name in enumerate(names)},
    })  # fmt: skip
    return Predictions(table, tuple(names))


def groups(predictions: Predictions) -> list[str]:
    return list(predictions.groups)


def test_points_reach_the_target_that_was_asked_for() -> None:
    units = scored()
    positive, y = units.probabilities()[:, 1], units.y
    by = lock(units, groups(units), Targets(sensitivity=0.9), source="s").points["image"]
    assert (positive[y == 1] >= by.threshold).mean() == by.achieved >= 0.9
    by = lock(units, groups(units), Targets(sensitivity=None, specificity=0.8), source="s").points[
        "patient"
    ]
    units = at_level(units, "patient")
    spared = units.probabilities()[units.y == 0, 1] < by.threshold
    assert spared.mean() == by.achieved >= 0.8
    assert (by.target, by.value, by.level) == ("specificity", 0.8, "patient")


def test_two_targets_or_none_are_refused() -> None:
    units = scored()
    for targets in (Targets(specificity=0.9), Targets(sensitivity=None)):
        with pytest.raises(UsageError, match="exactly one target"):
            lock(units, groups(units), targets, source="s")


def test_sets_are_of_the_group_quantile_of_recalibrated_scores() -> None:
    units = scored(sharp=3)
    found = lock(units, groups(units), Targets(calibration="temperature"), source="s")
    prob = found.recalibration(units.probabilities())
    fit = 1 - prob[np.arange(len(units)), units.y]
    assert found.set_quantile == group_quantile(fit, groups(units), alpha=1 - 0.9)
    assert found.n_groups == 40


def test_too_few_patients_promise_nothing_so_every_class_is_in_the_set() -> None:
    units = scored(patients=8)
    found = lock(units, groups(units), Targets(), source="s")
    assert found.set_quantile == np.inf
    assert found.to_json()["sets"]["quantile"] is None


def test_answers_are_recalibrated_and_what_they_were_is_kept() -> None:
    units = scored(sharp=3, patients=400)
    found = lock(units, groups(units), Targets(calibration="temperature"), source="s")
    given = {"prob": units.probabilities(), "plain": units.probabilities(), "colour": np.eye(2)}
    told = found.answers(given)
    assert np.array_equal(told["raw"], given["prob"])
    assert np.array_equal(told["colour"], given["colour"])
    assert np.array_equal(told["prob"], told["plain"])
    before, after = (expected_calibration_error(units.y, told[kind]) for kind in ("raw", "prob"))
    assert after < before / 2


def test_without_recalibration_no_raw_probabilities_stand_beside() -> None:
    units = scored()
    found = lock(units, groups(units), Targets(), source="s")
    assert set(found.answers({"prob": np.eye(2), "plain": np.eye(2)})) == {"prob", "plain"}


def test_every_patient_weighs_the_same_in_recalibration() -> None:
    units = scored(sharp=2)
    doubled: NDArray[np.intp] = np.flatnonzero(units.table["patient"] == "P0")
    rows = np.concatenate([np.arange(len(units)), *[doubled] * 20])
    crowded = Predictions(units.table.iloc[rows].reset_index(drop=True), units.classes)
    one, other = (
        lock(of, groups(of), Targets(calibration="temperature"), source="s").recalibration
        for of in (units, crowded)
    )
    assert one.temperature == pytest.approx(other.temperature, rel=1e-6)


def test_more_than_two_classes_have_sets_but_no_threshold() -> None:
    units = scored(classes=3)
    found = lock(units, groups(units), Targets(), source="s")
    assert found.points == {}
    assert set(found.limits()) == {"set_quantile"}


@pytest.mark.parametrize("calibration", ["none", "temperature", "isotonic"])
@pytest.mark.parametrize("patients", [8, 40])
def test_a_model_gives_back_what_was_locked(calibration: str, patients: int) -> None:
    units = scored(patients=patients)
    targets = Targets(calibration=calibration)  # type: ignore[arg-type]
    found = lock(units, groups(units), targets, source="out of fold")
    info = SimpleNamespace(**json.loads(json.dumps(found.to_json())))
    assert Locked.of(info) == found  # type: ignore[arg-type]


def test_a_model_from_before_there_were_sets_puts_every_class_into_them() -> None:
    calibration = {"method": "none", "source": "s"}
    info = SimpleNamespace(operating_points={}, sets={}, calibration=calibration)
    assert Locked.of(info).set_quantile == np.inf  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "spoilt",
    [
        {"operating_points": {"image": {"threshold": 0.5}}},
        {"calibration": {"method": "none"}},
        {"sets": {"quantile": "much"}},
    ],
)
def test_a_model_that_lacks_what_was_locked_is_refused(spoilt: dict[str, object]) -> None:
    units = scored()
    kept = lock(units, groups(units), Targets(), source="s").to_json()
    with pytest.raises(ModelError):
        Locked.of(SimpleNamespace(**{**kept, **spoilt}))  # type: ignore[arg-type]
