"""The main job as a whole: what lies in a run, and what a split means for it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from lobule.data.cohort import write_tissue
from lobule.data.manifest import read_manifest, write_manifest
from lobule.data.scan import scan
from lobule.errors import DataError, LeakageError, OutputError, UsageError
from lobule.evaluation.evaluate import evaluate
from lobule.evaluation.predictions import read_predictions
from lobule.training.recipe import Recipe
from lobule.workflow import demo, held_out_rows, load_data, prepare, split, train

SMALL = Recipe(folds=3, long_side_px=96)


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """Made-up tissue filed as train/ and validation/, without planted faults."""
    return write_tissue(
        tmp_path_factory.mktemp("splits"), patients=12, images_per_patient=3, layout="splits",
        width_px=96, height_px=64, plant=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def leaky(tmp_path_factory):
    """The same, with one patient and four copies on both sides."""
    return write_tissue(
        tmp_path_factory.mktemp("leaky"), patients=12, images_per_patient=3, layout="splits",
        width_px=96, height_px=64,
    )  # fmt: skip


def test_a_run_holds_what_each_stage_wrote(finished_run):
    names = sorted(p.name for p in finished_run.folder.iterdir())
    assert names == [
        "audit.json", "cases.parquet", "evaluation.json", "leakage.json", "manifest.parquet",
        "model", "predictions.parquet", "report.html", "run.json",
    ]  # fmt: skip
    record = json.loads((finished_run.folder / "run.json").read_text())
    assert record["state"] == "complete"
    assert set(record["versions"]) >= {"lobule", "torch", "numpy"}


def test_figures_can_be_made_again_from_the_saved_predictions(finished_run):
    again = evaluate(read_predictions(finished_run.folder / "predictions.parquet"))
    assert again.to_json() == finished_run.evaluation.to_json()


def test_no_patient_lies_in_two_folds(finished_run):
    table = read_manifest(finished_run.folder / "manifest.parquet").table
    assert (table.groupby("patient")["fold"].nunique() == 1).all()
    assert sorted(table["fold"].unique()) == [0, 1, 2]


def test_every_number_says_its_source_images_and_patients(finished_run):
    found = finished_run.evaluation
    assert found.source == "pooled out-of-fold predictions of 3 patient folds"
    assert (found.n_images, found.n_patients) == (48, 12)


def test_same_data_and_seed_give_the_same_model_and_figures(finished_run, tissue, tmp_path):
    again = train(tissue.images, tmp_path / "run", recipe=SMALL)
    assert again.model.weights_sha256 == finished_run.model.weights_sha256
    assert again.evaluation.to_json() == finished_run.evaluation.to_json()
    assert again.leakage == finished_run.leakage


def test_with_a_validation_folder_the_figures_are_of_that_part(splits, tmp_path):
    run = train(splits.images, tmp_path / "run", recipe=SMALL)
    validation = {p for p in splits.truth["path"] if p.startswith("validation/")}
    predicted = read_predictions(run.folder / "predictions.parquet").table
    assert set(predicted["path"]) == validation
    assert run.evaluation.source == "held-out validation part"
    learned = read_predictions(run.folder / "out_of_fold.parquet").table
    assert set(learned["path"]) == set(splits.truth["path"]) - validation
    assert run.model.info.training["n_images"] == len(learned)
    # the threshold was locked before the validation part was looked at
    point = run.model.info.operating_points["image"]
    assert set(predicted["threshold"]) == {point["threshold"]}
    malignant = learned["label"] == "malignant"
    reached = (learned["prob_malignant"][malignant] >= point["threshold"]).mean()
    assert reached == pytest.approx(point["achieved"])
    assert reached >= 0.95


def test_labels_of_the_held_out_part_change_nothing_that_is_learned(splits, tmp_path):
    manifest = scan(splits.images)
    table = manifest.table
    held = (table["split"] == "validation").to_numpy()
    other = table["label"].map({"benign": "malignant", "malignant": "benign"})
    lied = manifest.with_columns(label=table["label"].where(~held, other))
    cache = tmp_path / "cache"
    honest = train(manifest, tmp_path / "a", recipe=SMALL, cache=cache)
    lying = train(lied, tmp_path / "b", recipe=SMALL, cache=cache)
    assert honest.model.weights_sha256 == lying.model.weights_sha256
    assert honest.model.info.operating_points == lying.model.info.operating_points


def test_a_patient_on_both_sides_stops_training_and_is_named(leaky, tmp_path):
    shared = next(p for p in leaky.planted if p.kind == "patient in two splits").patients[0]
    with pytest.raises(DataError, match=f"patient-in-two-splits: .*: {shared}") as caught:
        train(leaky.images, tmp_path / "run", recipe=SMALL)
    assert "--allow patient-in-two-splits" in str(caught.value)
    assert "duplicate-in-two-splits" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_split_respects_and_checks_a_given_layout(splits, leaky):
    kept = split(splits.images, shares={"train": 0.5, "test": 0.5})
    assert set(kept.table["split"]) == {"train", "validation"}
    with pytest.raises(LeakageError, match=r"1 patient\(s\) lie on both sides of the split"):
        split(leaky.images, shares={"train": 0.5, "test": 0.5})


def test_resplit_keeps_patients_and_copies_together(leaky):
    again = split(leaky.images, shares={"train": 0.5, "test": 0.5}, resplit=True)
    part = dict(zip(again.table["path"], again.table["split"], strict=True))
    assert (again.table.groupby("patient")["split"].nunique() == 1).all()
    for fact in leaky.planted:
        assert len({part[path] for path in fact.paths}) == 1


def test_a_split_made_here_is_what_train_evaluates(tissue, tmp_path):
    made = split(tissue.images, shares={"train": 0.6, "validation": 0.2, "test": 0.2})
    write_manifest(made, tmp_path / "m.csv")
    run = train(
        read_manifest(tmp_path / "m.csv", root=tissue.images), tmp_path / "run", recipe=SMALL
    )
    test = set(made.table["path"][made.table["split"] == "test"])
    assert set(read_predictions(run.folder / "predictions.parquet").table["path"]) == test


def test_folds_that_the_manifest_brings_are_used(tissue, tmp_path):
    made = split(tissue.images, folds=4, seed=9)
    run = train(made, tmp_path / "run", recipe=SMALL)
    table = read_manifest(run.folder / "manifest.parquet").table
    assert table["fold"].tolist() == made.table["fold"].tolist()


def test_copies_under_two_patients_move_together(tmp_path):
    faulty = write_tissue(
        tmp_path / "t", patients=8, images_per_patient=3, width_px=96, height_px=64
    )
    ready = prepare(scan(faulty.images))
    group = dict(zip(ready.manifest.table["path"], ready.groups, strict=True))
    copies = [fact for fact in faulty.planted if "copy" in fact.kind]
    assert len(copies) == 5
    for fact in copies:
        assert len({group[path] for path in fact.paths}) == 1


def test_unknown_patients_need_an_explicit_option_and_are_said_in_every_figure(tissue, tmp_path):
    folder = tmp_path / "anonymous"
    for i, row in enumerate(tissue.truth.itertuples()):
        (folder / row.label).mkdir(parents=True, exist_ok=True)
        shutil.copy(tissue.images / row.path, folder / row.label / f"x{i}.png")
    with pytest.raises(DataError, match="the patient of every image is unknown"):
        train(folder, tmp_path / "no", recipe=SMALL)
    run = train(folder, tmp_path / "run", recipe=SMALL, allow=["patients-unknown"])
    assert run.evaluation.patients_known is False
    assert "patients unknown" in run.evaluation.source
    assert "patients unknown" in (run.folder / "report.html").read_text()
    assert "Patients unknown" in (run.folder / "model" / "README.md").read_text()


def test_unreadable_images_are_left_out_only_by_name(tissue, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(tissue.images, folder)
    bad = folder / "benign" / "patient-P99_slide-P99a_mag-100_001.png"
    bad.write_text("not an image")
    with pytest.raises(DataError, match=r"unreadable: 1 image\(s\) cannot be read") as caught:
        train(folder, tmp_path / "no", recipe=SMALL)
    assert "P99_slide-P99a_mag-100_001.png: not a PNG" in str(caught.value)
    run = train(folder, tmp_path / "run", recipe=SMALL, allow=["unreadable"])
    assert run.evaluation.n_images == 48


def test_three_classes_run_through_to_a_report(tissue, tmp_path):
    folder = tmp_path / "three"
    for row in tissue.truth.itertuples():
        label = "third" if int(row.patient[1:]) % 3 == 0 else row.label
        (folder / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(tissue.images / row.path, folder / label)
    run = train(folder, tmp_path / "run", recipe=SMALL)
    assert run.model.info.classes == ("benign", "third", "malignant")
    assert run.model.info.operating_points == {}
    assert (run.folder / "report.html").stat().st_size > 10_000


def test_images_without_a_part_are_named(splits):
    manifest = scan(splits.images)
    parts = manifest.table["split"].copy()
    parts.iloc[0] = pd.NA
    with pytest.raises(DataError, match=r"1 image\(s\) lie in no part of the split: train/benign"):
        held_out_rows(manifest.with_columns(split=parts))


def test_nothing_but_a_test_part_leaves_nothing_to_learn_from(splits):
    manifest = scan(splits.images).with_columns(split="test")
    with pytest.raises(DataError, match="all images are in test: nothing is left to learn from"):
        held_out_rows(manifest)


def test_test_part_wins_over_validation(splits):
    parts = np.array(["train", "validation", "test"])[np.arange(36) % 3]
    manifest = scan(splits.images).with_columns(split=parts)
    assert held_out_rows(manifest).tolist() == (parts == "test").tolist()


def test_shares_and_folds_exclude_each_other(tissue):
    with pytest.raises(UsageError, match="give either shares or folds"):
        split(tissue.images)


def test_patients_who_all_have_both_classes_run_through_without_a_patient_threshold(
    tissue, tmp_path
):
    """As in IDC patches: every patient has tissue of both classes, so none is negative."""
    folder = tmp_path / "mixed"
    for i, row in enumerate(tissue.truth.itertuples()):
        label = "10"[i % 2]
        (folder / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(tissue.images / row.path, folder / label)
    run = train(folder, tmp_path / "run", recipe=SMALL)
    assert set(run.model.info.operating_points) == {"image"}
    assert run.model.info.classes == ("0", "1")
    assert "no threshold could be chosen at this level" in (run.folder / "report.html").read_text()


def test_a_class_that_only_the_held_out_part_has_is_refused_before_the_work(splits, tmp_path):
    manifest = scan(splits.images)
    label = manifest.table["label"].where(manifest.table["split"] == "train", "third")
    with pytest.raises(DataError, match="no image of class third was there to learn from"):
        train(manifest.with_columns(label=label), tmp_path / "run", recipe=SMALL)
    assert not (tmp_path / "run").exists()


def test_too_few_patients_are_refused_before_the_work(tissue, tmp_path):
    folder = tmp_path / "few"
    patients = tissue.truth.groupby("label")["patient"].unique()
    for row in tissue.truth.itertuples():
        if row.patient in patients[row.label][:2]:
            (folder / row.label).mkdir(parents=True, exist_ok=True)
            shutil.copy(tissue.images / row.path, folder / row.label)
    with pytest.raises(DataError, match=r"1 patient\(s\) of class 'benign' are left to learn from"):
        train(folder, tmp_path / "run", recipe=SMALL)
    assert not (tmp_path / "run").exists()


def test_the_positive_class_can_be_named(tissue, tmp_path):
    manifest = load_data(tissue.images, positive="benign")
    assert manifest.classes == ("malignant", "benign")
    assert manifest.where(manifest.table["label"] == "benign").positive == "benign"
    with pytest.raises(UsageError, match="--positive 'sick' is no class of the images"):
        load_data(tissue.images, positive="sick")


def test_an_unfinished_run_of_another_split_is_not_taken_up(tissue, tmp_path):
    one = split(tissue.images, shares={"train": 0.6, "test": 0.4}, seed=1)
    two = split(tissue.images, shares={"train": 0.6, "test": 0.4}, seed=2)
    train(one, tmp_path / "run", recipe=SMALL)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**record, "state": "incomplete"}))
    with pytest.raises(OutputError, match="an unfinished run of other data or settings"):
        train(two, tmp_path / "run", recipe=SMALL)


def test_folds_with_holes_are_refused(tissue, tmp_path):
    made = split(tissue.images, folds=3)
    fold = made.table["fold"].astype("Int64")
    fold.iloc[2] = pd.NA
    with pytest.raises(DataError, match=r"1 image\(s\) have no fold: benign/"):
        train(made.with_columns(fold=fold), tmp_path / "run", recipe=SMALL)


@pytest.mark.slow
def test_demo_finds_what_was_planted_and_ends_in_a_report(tmp_path):
    run = demo(tmp_path / "demo")
    codes = {finding.code for finding in run.audit.findings}
    assert codes >= {
        "exact-duplicate", "near-duplicate", "duplicate-in-two-patients", "patient-in-two-classes",
    }  # fmt: skip
    assert run.leakage.auc["image"].estimate > run.leakage.auc["patient"].estimate
    assert (run.folder / "report.html").exists()
