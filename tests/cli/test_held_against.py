"""The verbs that hold a model against another, against recipes, and against other photographs."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from lobule.cli.app import app


def call(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


# ---- compare


def test_compare_takes_runs_and_tables(finished_run):
    run, table = finished_run.folder, finished_run.folder / "predictions.parquet"
    found = json.loads(call("compare", run, table, "--json").stdout)
    assert found["schema"] == "lobule.compare/1"
    assert {row["difference"]["estimate"] for row in found["differences"]} == {0}
    told = call("compare", run, table).stdout
    assert "12 patients" in told
    assert "not told apart" in told
    assert "DeLong's test" in told


def test_compare_says_what_cannot_be_read(finished_run, tmp_path):
    refused = call("compare", finished_run.folder, tmp_path)
    assert refused.exit_code == 3
    assert "cannot read the predictions" in refused.stderr


# ---- study


def test_study_writes_a_report_and_says_every_recipe(tissue, tmp_path):
    (tmp_path / "plan.toml").write_text(
        'folds = 2\nseeds = [0]\n[recipes.a]\nbackbone = "test_efficientnet"\nweights = "none"\n'
        'long_side_px = 48\n[recipes.b]\nbackbone = "test_efficientnet"\nweights = "none"\n'
    )
    words = ("study", tmp_path / "plan.toml", tissue.images, "-o", tmp_path / "out", "--no-cache")
    done = call(*words)
    assert done.exit_code == 0, done.stderr
    assert "image ROC AUC, and its difference from a" in done.stdout
    assert (tmp_path / "out" / "report.html").exists()
    again = call(*words)
    assert again.exit_code == 2
    assert "already holds a finished run" in again.stderr


def test_study_refuses_a_plan_before_anything_is_read(tmp_path):
    (tmp_path / "plan.toml").write_text("[recipes.a]\n")
    done = call("study", tmp_path / "plan.toml", tmp_path / "nothing", "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert "needs two or more recipes" in done.stderr


# ---- stress


@pytest.mark.slow
def test_stress_tells_what_is_left_and_warns_of_images_trained_on(finished_run, tissue, tmp_path):
    words = ("stress", finished_run.folder / "model", tissue.images, "-o", tmp_path,
             "--damage", "jpeg", "--damage", "jpeg")  # fmt: skip
    done = call(*words)
    assert done.exit_code == 0, done.stderr
    assert "the model was trained on these very images" in done.stderr
    assert done.stdout.count("jpeg") == 4
    assert "50 points of quality lost *" in done.stdout
    record = json.loads((tmp_path / "stress.json").read_text())
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 2
    for row in record["rows"]:
        assert f'value="{row["value"]["estimate"]}"' in page
    assert json.loads(call(*words, "--json").stdout) == record


@pytest.mark.slow
def test_stress_takes_the_held_out_part_where_there_is_one(finished_run, tissue, tmp_path):
    manifest = tmp_path / "m.parquet"
    assert call("split", tissue.images, "-o", manifest, "--validation", 0).exit_code == 0
    done = call("stress", finished_run.folder / "model", manifest, "-o", tmp_path, "--damage",
                "brightness", "--json")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert "trained on these very images" not in done.stderr
    assert 0 < json.loads(done.stdout)["n_patients"] < 12


def test_stress_refuses_an_unknown_damage_with_the_nearest(tmp_path):
    done = call("stress", tmp_path, tmp_path, "-o", tmp_path, "--damage", "brightnes")
    assert done.exit_code == 2
    assert "did you mean brightness?" in done.stderr


# ---- external


@pytest.mark.slow
def test_external_tells_what_holds_and_warns_of_images_trained_on(finished_run, tissue, tmp_path):
    words = ("external", finished_run.folder / "model", tissue.images, "-o", tmp_path)
    done = call(*words)
    assert done.exit_code == 0, done.stderr
    assert "warning: the model was trained on 48 of these images" in done.stderr
    assert "the image ROC AUC is" in done.stdout
    assert "What this cannot know:" in done.stdout
    record = json.loads((tmp_path / "external.json").read_text())
    assert record["schema"] == "lobule.external/1"
    assert len(pd.read_parquet(tmp_path / "predictions.parquet")) == record["n_images"] == 48
    assert "What this cannot know" in (tmp_path / "report.html").read_text()
    assert json.loads(call(*words, "--json").stdout) == record


@pytest.mark.slow
def test_external_takes_a_bare_folder_of_another_format_and_names_what_it_leaves_out(
    finished_run, tissue, tmp_path
):
    site = tmp_path / "site"
    site.mkdir()
    for i, path in enumerate(sorted(tissue.images.rglob("*.png"))[:6]):
        Image.open(path).resize((150, 100)).save(site / f"{i}.jpg")
    (site / "broken.tif").write_bytes(b"II*\0")
    (site / "notes.txt").write_text("x")
    done = call("external", finished_run.folder / "model", site, "-o", tmp_path / "out")
    assert done.exit_code == 5, done.stderr
    assert "passed over notes.txt" in done.stderr
    assert "skipped: cannot read" in done.stderr
    assert "6 images without a label" in done.stdout
    assert "What the 1 image(s) show that could not be read" in done.stdout
    assert json.loads((tmp_path / "out" / "external.json").read_text())["evaluation"] is None


def test_external_refuses_classes_of_another_name(finished_run, tissue, tmp_path):
    shutil.copytree(tissue.images / "benign", tmp_path / "site" / "normal")
    done = call("external", finished_run.folder / "model", tmp_path / "site", "-o", tmp_path)
    assert done.exit_code == 3
    assert "no image of class normal was there to learn from" in done.stderr
    assert "call the class folders as the model calls its classes" in done.stderr
