"""The verbs that hold a model against another, against recipes, and against worse photographs."""

from __future__ import annotations

import json

import pytest
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
