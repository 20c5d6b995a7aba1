"""Prediction: the same answer by every way, and nothing left out in silence."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

import lobule
from lobule.cli.app import app
from lobule.data.scan import scan
from lobule.errors import DataError, ImageError
from lobule.evaluation.predictions import read_predictions
from lobule.inference.predictor import predict
from lobule.models.bundle import load_model
from lobule.training.recipe import Recipe
from lobule.workflow import train


@pytest.fixture
def folder(tissue, tmp_path):
    root = tmp_path / "new"
    root.mkdir()
    for file in sorted(tissue.images.rglob("*.png"))[::8]:
        shutil.copy(file, root / file.name)
    return root


def test_api_command_line_and_reloaded_model_agree_to_1e_6(finished_run, folder, tmp_path):
    by_api = predict(finished_run.model, folder).table.set_index("path")["prob_malignant"]
    reloaded = load_model(finished_run.folder / "model")
    by_reloaded = predict(reloaded, sorted(folder.iterdir())).table["prob_malignant"]
    out = tmp_path / "p.csv"
    shown = CliRunner().invoke(
        app,
        ["predict", str(finished_run.folder / "model"), str(folder), "-o", str(out), "--json"],
    )
    assert shown.exit_code == 0, shown.output
    by_file = pd.read_csv(out).set_index("path")["prob_malignant"]
    by_json = pd.DataFrame(json.loads(shown.stdout)["predictions"]).set_index("path")
    assert np.abs(by_api - by_reloaded.to_numpy()).max() < 1e-6
    assert np.abs(by_api - by_file).max() < 1e-6
    assert np.abs(by_api - by_json["prob_malignant"]).max() < 1e-6


def test_final_model_repeats_what_training_computed(finished_run, tissue):
    """Predicting the training images from files gives what the fitted heads gave in memory."""
    manifest = scan(tissue.images)
    one = predict(finished_run.model, manifest).probabilities()
    two = predict(load_model(finished_run.folder / "model"), tissue.images).probabilities()
    assert np.abs(one - two).max() < 1e-9


def test_decision_is_taken_at_the_stored_threshold(finished_run, folder):
    table = predict(finished_run.model, folder).table
    threshold = finished_run.model.info.operating_points["image"]["threshold"]
    assert (table["threshold"] == threshold).all()
    expected = np.where(table["prob_malignant"] >= threshold, "malignant", "benign")
    assert table["decision"].tolist() == expected.tolist()


def test_sets_hold_the_classes_that_the_stored_quantile_lets_in(finished_run, folder):
    found = predict(finished_run.model, folder)
    quantile = finished_run.model.info.sets["quantile"]
    limit = np.inf if quantile is None else quantile
    assert np.array_equal(found.sets, 1 - found.probabilities() <= limit)


def test_what_is_no_tissue_is_refused_and_keeps_its_probabilities(finished_run, folder, tmp_path):
    page = Image.new("RGB", (350, 230), "white")
    ImageDraw.Draw(page).text((5, 5), "benign malignant in situ\n" * 15, "black", font_size=14)
    page.save(folder / "page.png")
    model = finished_run.folder / "model"
    found = predict(load_model(model), folder)
    gate = finished_run.model.gate
    assert np.array_equal(found.accepted, found.table["ood_score"] <= gate.threshold)
    accepted = found.table.set_index("path")["accepted"]
    assert not accepted["page.png"]
    assert accepted.drop("page.png").mean() > 0.5
    assert np.allclose(found.probabilities().sum(axis=1), 1)
    shown = CliRunner().invoke(app, ["predict", str(model), str(folder / "page.png")])
    assert shown.exit_code == 0, shown.output
    assert " refused " in shown.stdout


def test_recalibration_is_stored_and_used_on_new_images(tissue, folder, tmp_path):
    recipe = Recipe(folds=3, long_side_px=64, calibration="temperature", specificity=0.8)
    run = train(tissue.images, tmp_path / "run", recipe=recipe)
    info = run.model.info
    assert info.operating_points["image"]["target"] == "specificity"
    found = predict(load_model(run.folder / "model"), folder)
    before, temperature = found.probabilities("raw"), info.calibration["temperature"]
    scaled = before ** (1 / temperature)
    expected = scaled / scaled.sum(axis=1, keepdims=True)
    assert np.abs(found.probabilities() - expected).max() < 1e-6
    oof = read_predictions(run.folder / "predictions.parquet")
    assert oof.has("raw")
    assert not np.allclose(oof.probabilities("raw"), oof.probabilities())


def test_rows_carry_the_identity_of_the_model(finished_run, folder):
    table = predict(finished_run.model, folder, source="ward 7").table
    model = finished_run.model
    assert set(table["model"]) == {model.id}
    assert set(table["weights"]) == {model.weights_sha256}
    assert set(table["preprocessing"]) == {model.preprocessing.id}
    assert set(table["source"]) == {"ward 7"}
    assert set(table["training_data"]) == {model.info.training["data_hash"]}
    assert set(table["tool"]) == {f"lobule {lobule.__version__}"}
    assert set(table["notice"]) == {"Research use only. Not for diagnosis."}
    assert table["time"].nunique() == 1


def test_an_unreadable_image_fails_by_default_and_is_named(finished_run, folder):
    (folder / "zz.png").write_text("no picture")
    with pytest.raises(ImageError, match=r"cannot read .*zz\.png: not a PNG"):
        predict(finished_run.model, folder)


def test_skipped_images_are_named_with_the_reason(finished_run, folder):
    (folder / "zz.png").write_text("no picture")
    found = predict(finished_run.model, folder, on_error="skip")
    assert list(found.failed) == ["zz.png"]
    assert "not a PNG" in found.failed["zz.png"]
    assert "zz.png" not in found.table["path"].tolist()


def test_files_that_are_not_there_are_skipped_with_the_unreadable(finished_run, folder):
    (folder / "zz.png").write_text("no picture")
    paths = [*sorted(folder.iterdir()), folder / "gone.png"]
    found = predict(finished_run.model, paths, on_error="skip")
    assert len(found) == len(paths) - 2
    assert {path.rsplit("/", 1)[-1] for path in found.failed} == {"zz.png", "gone.png"}


def test_nothing_readable_is_an_error(finished_run, tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(DataError, match="none of the images can be read"):
        predict(finished_run.model, tmp_path, on_error="skip")


def test_a_path_that_does_not_exist_is_named(finished_run, tmp_path):
    with pytest.raises(DataError, match=r"no such file or folder: .*nowhere\.png"):
        predict(finished_run.model, [tmp_path / "nowhere.png"])
