"""Evaluation: every figure is that of the rows it claims to be of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from lobule.data.manifest import Manifest, complete
from lobule.errors import DataError
from lobule.evaluation.brier import calibration_line
from lobule.evaluation.decision_curve import net_benefit
from lobule.evaluation.evaluate import Evaluation, evaluate
from lobule.evaluation.intervals import patient_weights
from lobule.evaluation.predictions import Predictions, make_predictions


def cohort(
    seed: int = 0, *, patients: int = 14, classes=("benign", "malignant"), known=True, tuned=False
):
    """Predictions of made-up patients with five images each on two slides."""
    rng = np.random.default_rng(seed)
    k = len(classes)
    patient = np.repeat(np.arange(patients), 5)
    y = patient % k
    logits = rng.normal(0, 1, (len(y), k)) + 1.5 * np.eye(k)[y]
    prob = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    rows = {
        "path": [f"{i:03d}.png" for i in range(len(y))],
        "label": np.array(classes)[y],
        "patient": [f"P{p:02d}" for p in patient] if known else None,
        "slide": [f"{p}{'ab'[i % 2]}" for i, p in enumerate(patient)],
        "magnification": np.where(patient < 10, 40.0, 100.0),
        "subtype": np.where(patient < 6, "few kinds", "another"),
    }
    limits = {"set_quantile": 0.6}
    if k == 2:
        limits |= dict.fromkeys(("threshold", "threshold_slide", "threshold_patient"), 0.37)
    frozen = {"frozen": rng.dirichlet(np.ones(k), len(y)) + 0.3 * np.eye(k)[y]} if tuned else {}
    return make_predictions(
        Manifest(Path(), complete(pd.DataFrame(rows))), tuple(classes),
        {"prob": prob, "plain": prob[::-1], "colour": np.full_like(prob, 1 / k),
         "prior": np.tile(np.bincount(y, minlength=k) / len(y), (len(y), 1))}
        | {kind: p / p.sum(axis=1, keepdims=True) for kind, p in frozen.items()},
        limits, model="m-1", source="test part",
    )  # fmt: skip


@pytest.fixture(scope="module")
def found() -> Evaluation:
    return evaluate(cohort(), draws=200)


def test_image_figures_are_those_of_scikit_learn(found):
    predictions = cohort()
    y, p = predictions.y, predictions.probabilities()[:, 1]
    figures = found.levels["image"].metrics
    assert figures["roc_auc"].estimate == pytest.approx(metrics.roc_auc_score(y, p), abs=1e-12)
    assert figures["brier"].estimate == pytest.approx(metrics.brier_score_loss(y, p), abs=1e-12)
    at_half, locked = found.levels["image"].decisions
    for decision, threshold in ((at_half, 0.5), (locked, 0.37)):
        called = (p >= threshold).astype(int)
        assert decision.threshold == (threshold, threshold)
        assert decision.confusion == metrics.confusion_matrix(y, called).tolist()
        assert decision.metrics["sensitivity"].estimate == metrics.recall_score(y, called)
        assert decision.metrics["kappa"].estimate == pytest.approx(
            metrics.cohen_kappa_score(y, called), abs=1e-12
        )


def test_patient_figures_are_of_mean_probabilities(found):
    table = cohort().table
    by = table.groupby("patient").agg(p=("prob_malignant", "mean"), y=("label", "max"))
    expected = metrics.roc_auc_score(by["y"] == "malignant", by["p"])
    level = found.levels["patient"]
    assert level.metrics["roc_auc"].estimate == pytest.approx(expected, abs=1e-12)
    assert (level.n_units, level.n_images, level.n_patients) == (14, 70, 14)
    assert level.class_units == {"benign": 7, "malignant": 7}


def test_estimates_lie_within_their_intervals(found):
    for level in found.levels.values():
        interval = level.metrics["roc_auc"]
        assert interval.low <= interval.estimate <= interval.high


def test_intervals_of_patients_are_wider_than_those_of_images(found):
    table = cohort().table
    loose = Predictions(table.assign(patient=pd.NA), ("benign", "malignant"))
    images = evaluate(loose, draws=200).levels["image"].metrics["roc_auc"]
    patients = found.levels["image"].metrics["roc_auc"]
    assert patients.estimate == images.estimate
    assert patients.low != images.low


def test_figures_of_calibration_are_those_of_their_functions(found):
    predictions = cohort()
    y, p = predictions.y, predictions.probabilities()[:, 1]
    figures = found.levels["image"].metrics
    line = calibration_line(y, p)
    assert figures["calibration_slope"].estimate == pytest.approx(float(line["slope"]))
    assert figures["calibration_intercept"].estimate == pytest.approx(float(line["intercept"]))
    parts = [figures[f"brier_{n}"].estimate for n in ("reliability", "uncertainty", "within")]
    whole = sum(parts) - figures["brier_resolution"].estimate
    assert whole == pytest.approx(figures["brier"].estimate, abs=1e-12)
    assert found.levels["patient"].metrics["calibration_slope"].draws == 200


def test_the_error_of_a_perfect_model_stands_beside_the_calibration_error(found):
    by_chance = found.levels["image"].metrics["ece_if_calibrated"]
    assert 0 < by_chance.low < by_chance.estimate < by_chance.high < 0.5
    assert "ece_if_calibrated" not in found.baselines["colour statistics"]["image"].metrics


def test_sets_are_judged_per_image_with_every_patient_the_same(found):
    table = cohort().table
    crowded = pd.concat([table, *[table[table["patient"] == "P00"]] * 3], ignore_index=True)
    crowded["path"] = [f"{i}.png" for i in range(len(crowded))]
    again = evaluate(Predictions(crowded, ("benign", "malignant")), draws=20)
    holds = np.where(table["label"] == "benign", table["set_benign"], table["set_malignant"])
    for of in (found, again):
        figures = of.levels["image"].metrics
        assert figures["set_coverage"].estimate == pytest.approx(holds.mean())
        assert figures["set_size"].estimate == pytest.approx(
            table[["set_benign", "set_malignant"]].to_numpy().sum() / len(table)
        )
    assert "set_coverage" not in found.levels["patient"].metrics


def test_decision_curves_are_of_two_classes_at_every_level(found):
    assert set(found.decision_curve) == {"image", "slide", "patient"}
    predictions = cohort()
    expected = net_benefit(predictions.y, predictions.probabilities()[:, 1], [0.05]).item()
    assert found.decision_curve["image"][0].model.estimate == pytest.approx(expected)
    assert evaluate(cohort(classes=("a", "b", "c")), draws=20).decision_curve == {}


def test_baselines_stand_at_every_level_and_the_majority_cannot_rank(found):
    assert set(found.baselines) == {"colour statistics", "majority"}
    for level in ("image", "slide", "patient"):
        assert found.baselines["majority"][level].metrics["roc_auc"].estimate == 0.5


def test_gain_is_the_difference_to_the_colour_baseline(found):
    assert set(found.gain) == {"colour statistics"}
    assert set(found.gain["colour statistics"]) == {"image", "slide", "patient"}
    for level, gain in found.gain["colour statistics"].items():
        model = found.levels[level].metrics["roc_auc"].estimate
        colour = found.baselines["colour statistics"][level].metrics["roc_auc"].estimate
        assert gain.estimate == pytest.approx(model - colour)


@pytest.fixture(scope="module")
def tuned() -> Evaluation:
    return evaluate(cohort(tuned=True), draws=200)


def units_of(level):
    """Truth, model and frozen score of each image or patient, and its patient, by pandas alone."""
    table = cohort(tuned=True).table.assign(y=lambda t: (t["label"] == "malignant").astype(int))
    columns = ["y", "prob_malignant", "frozen_malignant"]
    if level == "patient":
        table = table.groupby("patient")[columns].mean().reset_index()
    return [table[column].to_numpy() for column in (*columns, "patient")]


@pytest.mark.parametrize("level", ["image", "patient"])
def test_frozen_features_are_a_baseline_of_a_tuned_model(tuned, level):
    y, _, frozen, _ = units_of(level)
    figures = tuned.baselines["frozen features"][level]
    expected = metrics.roc_auc_score(y, frozen)
    assert figures.metrics["roc_auc"].estimate == pytest.approx(expected, abs=1e-12)
    assert [decision.rule for decision in figures.decisions] == ["0.5"]
    called = metrics.confusion_matrix(y, frozen >= 0.5).tolist()
    assert figures.decisions[0].confusion == called


@pytest.mark.parametrize("level", ["image", "patient"])
def test_gain_over_frozen_features_is_taken_on_the_same_redrawn_patients(tuned, level):
    y, model, frozen, patient = units_of(level)
    auc = metrics.roc_auc_score
    drawn = []
    for weights in patient_weights(patient, draws=200, seed=0):
        for weight in weights.astype(int):
            rows = np.repeat(np.arange(len(y)), weight)
            if len(set(y[rows])) == 2:
                drawn.append(auc(y[rows], model[rows]) - auc(y[rows], frozen[rows]))
    gain = tuned.gain["frozen features"][level]
    assert gain.estimate == pytest.approx(auc(y, model) - auc(y, frozen), abs=1e-12)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (gain.low, gain.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))
    assert gain.dropped == 200 - len(drawn)


def test_frozen_features_change_no_other_figure(found, tuned):
    assert set(tuned.gain) == {"frozen features", "colour statistics"}
    with_frozen, without = tuned.to_json(), found.to_json()
    for nested in ("baselines", "gain"):
        del with_frozen[nested]["frozen features"]
    assert with_frozen == without


def test_gain_of_three_classes_is_the_mean_over_classes():
    predictions = cohort(classes=("a", "b", "c"), patients=15, tuned=True)
    gain = evaluate(predictions, draws=50).gain["frozen features"]["image"]
    model, frozen = (
        metrics.roc_auc_score(
            predictions.y, predictions.probabilities(kind), multi_class="ovr", average="macro"
        )
        for kind in ("prob", "frozen")
    )
    assert gain.estimate == pytest.approx(model - frozen, abs=1e-12)


def test_baselines_have_no_operating_point_of_the_model(found):
    rules = [d.rule for d in found.baselines["colour statistics"]["image"].decisions]
    assert rules == ["0.5"]


def test_subgroups_reconcile_and_few_patients_get_no_figure(found):
    for column in ("subtype", "magnification"):
        groups = [group for group in found.subgroups if group.column == column]
        assert sum(group.n_images for group in groups) == 70
        assert sum(group.n_patients for group in groups) == 14
    few = next(g for g in found.subgroups if g.value == "100")
    assert few.note == "too few patients (4 of 5)"
    assert few.metrics == {}
    enough = next(g for g in found.subgroups if g.value == "40")
    assert enough.metrics["accuracy at 0.5"].draws == 200


def test_unknown_patients_are_said_to_be_unknown():
    found = evaluate(cohort(known=False), draws=50)
    assert found.patients_known is False
    assert found.n_patients == 70


def test_three_classes_have_figures_but_no_operating_point():
    found = evaluate(cohort(classes=("a", "b", "c"), patients=15), draws=100)
    (decision,) = found.levels["image"].decisions
    assert decision.rule == "most probable"
    assert np.sum(decision.confusion) == 75
    predictions = cohort(classes=("a", "b", "c"), patients=15)
    expected = metrics.roc_auc_score(
        predictions.y, predictions.probabilities(), multi_class="ovr", average="macro"
    )
    assert found.levels["image"].metrics["roc_auc"].estimate == pytest.approx(expected)


def test_one_class_leaves_figures_undefined_with_the_reason():
    predictions = cohort()
    one = predictions.table[predictions.table["label"] == "benign"].reset_index(drop=True)
    found = evaluate(Predictions(one, predictions.classes), draws=50)
    auc = found.levels["image"].metrics["roc_auc"]
    assert np.isnan(auc.estimate)
    assert auc.reason == "no malignant image"
    assert found.levels["image"].decisions[0].metrics["specificity"].reason is None


def test_record_survives_json(tuned):
    text = json.dumps(tuned.to_json(), allow_nan=False)
    back = Evaluation.from_json(json.loads(text))
    assert back.to_json() == tuned.to_json()
    assert back.gain == tuned.gain


def test_images_that_could_not_be_read_are_counted_and_in_no_figure(found):
    failed = {"x.png": "cannot read it", "y.png": "no such file"}
    counted = evaluate(replace(cohort(), failed=failed), draws=200)
    assert (found.n_failed, counted.n_failed) == (0, 2)
    assert counted.to_json() == {**found.to_json(), "n_failed": 2}


def test_a_record_of_before_that_does_not_say_how_many_failed_is_read(found):
    record = found.to_json()
    del record["n_failed"]
    assert Evaluation.from_json(record).to_json() == found.to_json()


@pytest.mark.parametrize("schema", [None, "lobule.evaluation/1"])
def test_another_schema_is_refused_by_name(found, schema):
    with pytest.raises(DataError, match=f"not an evaluation: schema {schema!r}, not"):
        Evaluation.from_json({**found.to_json(), "schema": schema})


def test_same_seed_gives_the_same_intervals():
    one, two = evaluate(cohort(), draws=50, seed=4), evaluate(cohort(), draws=50, seed=4)
    assert one.to_json() == two.to_json()


def test_nothing_to_evaluate_is_an_error():
    predictions = cohort()
    with pytest.raises(DataError, match="no predictions to evaluate"):
        evaluate(Predictions(predictions.table.iloc[:0], predictions.classes))
