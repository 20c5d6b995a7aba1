"""Tuning by patient folds: who is set aside, which threshold decides, what becomes of it all."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lobule.data.cohort import write_tissue
from lobule.data.manifest import Manifest, complete, read_manifest
from lobule.data.scan import scan
from lobule.data.splits import assign_folds
from lobule.errors import DataError
from lobule.evaluation.predictions import at_level, read_predictions
from lobule.evaluation.thresholds import choose_threshold
from lobule.inference.predictor import predict
from lobule.models.bundle import load_model
from lobule.training.finetune import check_tuning, set_aside
from lobule.training.machine import Machine
from lobule.training.settings import make_recipe
from lobule.training.signals import Stopped
from lobule.workflow import train


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Made-up tissue with a test part."""
    made = write_tissue(
        tmp_path_factory.mktemp("parts"), patients=16, images_per_patient=2, layout="splits",
        width_px=64, height_px=48, plant=False,
    )  # fmt: skip
    return scan(made.images)


def frame(patients=12):
    rows = [(f"P{p}", ("benign", "malignant")[p % 2]) for p in range(patients) for _ in range(3)]
    manifest_rows = pd.DataFrame(rows, columns=["patient", "label"])
    manifest_rows["path"] = [f"{i}.png" for i in range(len(rows))]
    return Manifest(Path(), complete(manifest_rows))


def test_whole_patients_of_every_class_are_set_aside_from_the_training_patients_only(tiny_recipe):
    manifest = frame()
    groups = manifest.groups.tolist()
    rows = np.arange(len(manifest)) >= 12
    aside = set_aside(manifest, groups, rows, tiny_recipe)
    table = manifest.table
    assert not (aside & ~rows).any()
    chosen, rest = (set(table["patient"][m]) for m in (aside, rows & ~aside))
    assert chosen
    assert not chosen & rest
    assert set(table["label"][aside]) == set(table["label"][rows & ~aside])
    assert (set_aside(manifest, groups, rows, tiny_recipe) == aside).all()
    others = [set_aside(manifest, groups, rows, replace(tiny_recipe, seed=s)) for s in range(1, 6)]
    assert any((other != aside).any() for other in others)


def test_too_few_patients_to_set_one_aside_are_refused_with_what_to_do(tiny_recipe):
    manifest = frame(patients=6)
    labels, groups = manifest.table["label"].tolist(), manifest.groups.tolist()
    fold = assign_folds(labels, groups, folds=3)
    check_tuning(manifest, groups, fold, tiny_recipe)
    few = manifest.where(manifest.table["patient"].isin(["P0", "P1", "P2", "P3", "P5"]))
    fold = np.array([{"P0": 0, "P2": 1}.get(p, 2) for p in few.table["patient"]])
    with pytest.raises(DataError, match=r"set one aside|cannot split") as caught:
        check_tuning(few, few.groups.tolist(), fold, tiny_recipe)
    assert caught.value.exit_code == 3
    check_tuning(few, few.groups.tolist(), fold, make_recipe("features"))


def test_what_cannot_be_tuned_is_refused_before_the_output_is_taken(tmp_path, tissue, tiny_recipe):
    manifest = scan(tissue.images)
    by_class = manifest.table.groupby("label")["patient"].unique()
    kept = [p for patients in by_class for p in patients[:2]]
    few = manifest.where(manifest.table["patient"].isin(kept))
    with pytest.raises(DataError):
        train(few, tmp_path / "run", recipe=tiny_recipe)
    assert not (tmp_path / "run").exists()


def test_a_tuned_run_holds_its_trainings_and_no_checkpoint(tuned_run):
    found = {p.relative_to(tuned_run.folder / "training").as_posix()
             for p in (tuned_run.folder / "training").rglob("*") if p.is_file()}  # fmt: skip
    events = {name for name in found if "events.out.tfevents" in name}
    assert found - events == {
        "training.json", "augmented.jpg", "fold-1/metrics.jsonl", "fold-2/metrics.jsonl",
        "final/metrics.jsonl",
    }  # fmt: skip
    assert {name.split("/")[0] for name in events} == {"fold-1", "fold-2", "final"}
    record = json.loads((tuned_run.folder / "training" / "training.json").read_text())
    assert [fit["name"] for fit in record["fits"]] == ["fold 1", "fold 2", "final"]
    table = read_manifest(tuned_run.folder / "manifest.parquet").table
    for fit in record["fits"]:
        learned = (
            table if fit["name"] == "final" else table[table["fold"] != int(fit["name"][5]) - 1]
        )
        assert fit["n_train_images"] + fit["n_validation_images"] == len(learned)
        assert (
            fit["n_train_patients"] + fit["n_validation_patients"] == learned["patient"].nunique()
        )
        log = (tuned_run.folder / "training" / fit["folder"] / "metrics.jsonl").read_text()
        assert len(log.splitlines()) == 1 + fit["epochs"] == 3


def test_the_network_stands_beside_itself_frozen_under_the_same_folds(tuned_run, tissue, tmp_path):
    features = make_recipe("features", {
        "backbone": "test_efficientnet", "weights": "none", "folds": 2, "long_side_px": 64,
    })  # fmt: skip
    plain = train(tissue.images, tmp_path / "run", recipe=features)
    columns = ["prob_benign", "prob_malignant"]
    frozen = read_predictions(plain.folder / "predictions.parquet").table[columns].to_numpy()
    table = read_predictions(tuned_run.folder / "predictions.parquet").table
    assert table[[f"frozen_{c[5:]}" for c in columns]].to_numpy() == pytest.approx(frozen, abs=1e-9)
    assert not np.allclose(table[columns].to_numpy(), frozen, atol=1e-3)
    auc = tuned_run.evaluation.baselines["frozen features"]["image"].metrics["roc_auc"]
    assert auc == plain.evaluation.levels["image"].metrics["roc_auc"]
    assert tuned_run.leakage.auc == plain.leakage.auc


def test_the_threshold_of_a_fold_comes_from_the_scores_of_the_other_folds(tuned_run):
    predictions = read_predictions(tuned_run.folder / "predictions.parquet")
    fold = predictions.table["fold"].to_numpy()
    for level, column in (("image", "threshold"), ("patient", "threshold_patient")):
        for k in (0, 1):
            others = replace(predictions, table=predictions.table[fold != k].reset_index(drop=True))
            units = at_level(others, level)
            expected = choose_threshold(units.y, units.probabilities()[:, 1], sensitivity=0.95)
            assert set(predictions.table[column][fold == k]) == {expected}


@pytest.mark.slow
def test_a_held_out_part_is_predicted_as_the_saved_model_predicts_it(parts, tmp_path, tiny_recipe):
    run = train(parts, tmp_path / "run", recipe=tiny_recipe)
    table = read_predictions(run.folder / "predictions.parquet").table
    held_out = parts.where((parts.table["split"] == "validation").to_numpy(dtype=bool))
    model = load_model(run.folder / "model")
    again = predict(model, held_out).table
    for column in ("prob_malignant", "plain_malignant"):
        assert again[column].to_numpy() == pytest.approx(table[column].to_numpy(), abs=1e-6)
    assert (again["decision"] == table["decision"]).all()
    assert {"frozen_malignant", "colour_malignant"} <= set(table)
    assert model.info.training["tuning"]["selected_epoch"] in (0, 1, 2)
    assert run.evaluation.source == "held-out validation part"


@pytest.mark.slow
def test_labels_of_the_held_out_part_change_nothing_that_is_learned(parts, tmp_path, tiny_recipe):
    held = (parts.table["split"] == "validation").to_numpy(dtype=bool)
    other = parts.table["label"].map({"benign": "malignant", "malignant": "benign"})
    lied = parts.with_columns(label=parts.table["label"].where(~held, other))
    honest, lying = (
        train(data, tmp_path / name, recipe=tiny_recipe)
        for data, name in ((parts, "a"), (lied, "b"))
    )
    assert honest.model.weights_sha256 == lying.model.weights_sha256
    assert honest.model.info.operating_points == lying.model.info.operating_points


@pytest.mark.slow
def test_a_validation_part_beside_a_test_part_chooses_the_epoch(parts, tmp_path, tiny_recipe):
    three = parts.table["split"].where(parts.table["split"] == "train", "test")
    patients = sorted(parts.table["patient"][three == "train"].unique())
    by_class = {p[0]: p for p in zip(
        parts.table["label"][parts.table["patient"].isin(patients)],
        parts.table["patient"][parts.table["patient"].isin(patients)], strict=True)}  # fmt: skip
    chosen = {patient for _, patient in by_class.values()}
    given = three.where(~parts.table["patient"].isin(chosen), "validation")
    run = train(parts.with_columns(split=given), tmp_path / "run", recipe=tiny_recipe)
    final = json.loads((run.folder / "training" / "training.json").read_text())["fits"][-1]
    assert final["n_validation_patients"] == len(chosen) == 2
    assert final["n_validation_images"] == int((given == "validation").sum())


@pytest.mark.slow
def test_a_run_stopped_in_its_second_fold_goes_on_to_the_same_model(
    tuned_run, tissue, tmp_path, tiny_recipe
):
    def stop_in_fold_2(items, *, total, task):
        for n, item in enumerate(items):
            yield item
            if task == "tuning fold 2" and n == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    machine = Machine(precision="fp32", checkpoint_s=0)
    with pytest.raises(Stopped):
        train(
            tissue.images,
            tmp_path / "run",
            recipe=tiny_recipe,
            machine=machine,
            progress=stop_in_fold_2,
        )
    assert (tmp_path / "run" / "training" / "fold-2" / "last.ckpt").exists()
    told = []

    def note(items, *, total, task):
        told.append((task, total))
        return iter(items)

    again = train(
        tissue.images, tmp_path / "run", recipe=tiny_recipe, machine=machine, progress=note
    )
    assert again.model.weights_sha256 == tuned_run.model.weights_sha256
    assert again.evaluation.to_json() == tuned_run.evaluation.to_json()
    # the first fold was not trained again, the second went on from its third step
    steps = dict(told)
    assert "tuning fold 1" not in steps
    assert steps["tuning fold 2"] < steps["tuning final"]
    logs = [(run.folder / "training" / "fold-2" / "metrics.jsonl").read_bytes()
            for run in (again, tuned_run)]  # fmt: skip
    assert logs[0] == logs[1]


@pytest.mark.slow
def test_the_origins_recipe_runs_through_to_a_report(tissue, tmp_path):
    recipe = make_recipe("densenet201", {
        "backbone": "test_resnet", "weights": "none", "epochs": 2, "folds": 2, "validation": 0.25,
    })  # fmt: skip
    run = train(tissue.images, tmp_path / "run", recipe=recipe)
    page = (run.folder / "report.html").read_text()
    assert "training" in page.lower()
    log = (run.folder / "training" / "final" / "metrics.jsonl").read_text().splitlines()
    # nothing was fitted before the first step, so there is no epoch 0
    assert [json.loads(line)["epoch"] for line in log] == [1, 2]
