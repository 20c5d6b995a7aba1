"""A study from a file of recipes to a report, refused where it must be and resumed where it may."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from lobule.data.scan import scan
from lobule.errors import ModelError, OutputError, UsageError
from lobule.evaluation.predictions import read_predictions
from lobule.evaluation.study import Study
from lobule.reporting.study import forest_figure, study_report, verdict
from lobule.studies import Plan, read_plan, study
from lobule.training.recipe import Recipe
from lobule.workflow import split, train

SMALL = {"backbone": "test_efficientnet", "weights": "none"}

PLAN = """
baseline = "small"
folds = 3
seeds = [4, 0]

[recipes.small]
backbone = "test_efficientnet"
weights = "none"
long_side_px = 64

[recipes."two <stages> & more"]
backbone = "test_efficientnet"
weights = "none"
long_side_px = 64
pooling = "stages"
"""


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "plan.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture(scope="module")
def finished(tissue, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    (folder / "plan.toml").write_text(PLAN)
    plan = read_plan(folder / "plan.toml")
    return plan, folder / "out", study(tissue.images, plan, folder / "out")


# ---- the plan


def test_a_plan_is_read(written):
    plan = read_plan(written(PLAN))
    assert (plan.baseline, plan.folds, plan.seeds) == ("small", 3, (4, 0))
    assert list(plan.recipes) == ["small", "two <stages> & more"]
    assert plan.recipes["small"] == Recipe(**SMALL, long_side_px=64)


def test_unless_told_the_first_recipe_is_the_baseline_of_five_folds_and_seeds(written):
    plan = read_plan(written("[recipes.a]\n[recipes.b]\nlong_side_px = 300\n"))
    assert plan == Plan({"a": Recipe(), "b": Recipe(long_side_px=300)}, "a", 5, (0, 1, 2, 3, 4))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipes", "is not TOML"),
        ("[recipes.a]\n", "needs two or more recipes"),
        ("recipes = 3\n", "needs two or more recipes"),
        ("seed = [1]\n[recipes.a]\n[recipes.b]\n", r"has a key 'seed'(?s:.)*did you mean seeds"),
        ('baseline = "c"\n[recipes.a]\n[recipes.b]\n', "no recipe is called 'c'"),
        ("folds = 1\n[recipes.a]\n[recipes.b]\n", "folds must be a whole number of 2 or more"),
        ("seeds = []\n[recipes.a]\n[recipes.b]\n", "seeds must be different whole numbers"),
        ("seeds = [1, 1]\n[recipes.a]\n[recipes.b]\n", "seeds must be different whole numbers"),
        ("seeds = [-1]\n[recipes.a]\n[recipes.b]\n", "seeds must be different whole numbers"),
        ("[recipes.a]\nseed = 1\n[recipes.b]\n", "recipe 'a' sets seed, which all recipes share"),
        ("[recipes.a]\nsize = 1\n[recipes.b]\n", "recipe 'a': no setting .* is called 'size'"),
        ("[recipes.a]\npooling = 'lost'\n[recipes.b]\n", "pooling takes one of last, stages"),
        ('[recipes.a]\nrecipe = "finetun"\n[recipes.b]\n', "no recipe is called 'finetun'"),
        ('[recipes.a]\nrecipe = "finetune"\npooling = "stages"\n[recipes.b]\n',
         "tunes the network, which takes pooling=last"),
        ("recipes = {a = 1, b = 2}\n", "recipe 'a' must be a table of settings"),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_is_refused_by_name(written, text, message):
    with pytest.raises(UsageError) as caught:
        read_plan(written(text))
    assert re.search(message, str(caught.value))
    assert "plan.toml" in caught.value.what


def test_a_plan_that_is_not_there_is_said(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read the study .*: no such file"):
        read_plan(tmp_path / "none.toml")


# ---- the study


def test_every_recipe_is_predicted_under_every_seed_with_the_same_folds(finished, tissue, tmp_path):
    _, out, found = finished
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.parquet")) == [
        "01-small/0.parquet", "01-small/4.parquet", "02-two-stages-more/0.parquet",
        "02-two-stages-more/4.parquet",
    ]  # fmt: skip
    assert Study.from_json(json.loads((out / "study.json").read_text())) == found
    # the main job under one of the seeds comes to the same predictions
    run = train(tissue.images, tmp_path / "run",
                recipe=Recipe(**SMALL, long_side_px=64, folds=3, seed=0))  # fmt: skip
    expected = read_predictions(run.folder / "predictions.parquet").probabilities()
    assert np.array_equal(read_predictions(out / "01-small/0.parquet").probabilities(), expected)


def test_a_study_that_was_cut_off_goes_on_from_what_it_has(finished, tissue, tmp_path):
    plan, out, found = finished
    kept = tmp_path / "out"
    (kept / "01-small").mkdir(parents=True)
    for name in ("01-small/0.parquet", "01-small/4.parquet"):
        (kept / name).write_bytes((out / name).read_bytes())
    record = json.loads((out / "run.json").read_text())
    (kept / "run.json").write_text(json.dumps(record | {"state": "incomplete"}))
    before = (kept / "01-small/0.parquet").stat().st_mtime_ns
    assert study(tissue.images, plan, kept) == found
    assert (kept / "01-small/0.parquet").stat().st_mtime_ns == before


def test_another_study_does_not_go_on_in_its_folder(finished, tissue, tmp_path):
    plan, out, _ = finished
    (tmp_path / "out").mkdir()
    record = json.loads((out / "run.json").read_text())
    (tmp_path / "out" / "run.json").write_text(json.dumps(record | {"state": "incomplete"}))
    other = Plan(plan.recipes, plan.baseline, plan.folds, (0,))
    with pytest.raises(OutputError, match="an unfinished run of other data or settings"):
        study(tissue.images, other, tmp_path / "out")
    with pytest.raises(OutputError, match="already holds a finished run"):
        study(tissue.images, plan, out)


def test_a_study_does_not_go_on_with_other_patients(finished, tissue, tmp_path):
    plan, out, _ = finished
    (tmp_path / "out").mkdir()
    record = json.loads((out / "run.json").read_text())
    (tmp_path / "out" / "run.json").write_text(json.dumps(record | {"state": "incomplete"}))
    manifest = scan(tissue.images)
    patient = manifest.table["patient"].str.replace("P12", "P11")
    with pytest.raises(OutputError, match="an unfinished run of other data or settings"):
        study(manifest.with_columns(patient=patient), plan, tmp_path / "out")


def test_what_is_held_out_has_no_say(finished, tissue, tmp_path):
    plan, _, _ = finished
    parts = split(tissue.images, shares={"train": 0.7, "test": 0.3})
    left = (parts.table["split"] == "train").to_numpy()
    found = study(parts, Plan(plan.recipes, plan.baseline, 2, (0,)), tmp_path / "out")
    assert found.n_images == left.sum() < len(left)
    predicted = read_predictions(tmp_path / "out/01-small/0.parquet").table["path"]
    assert set(predicted) == set(parts.table["path"][left])


def test_a_recipe_that_cannot_be_run_is_refused_before_the_folder_is_taken(tissue, tmp_path):
    recipes = {"a": Recipe(**SMALL, long_side_px=64), "b": Recipe(backbone="test_efficientnt")}
    with pytest.raises(ModelError, match="no backbone is called 'test_efficientnt'"):
        study(tissue.images, Plan(recipes, "a", 2, (0,)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_tuned_network_can_be_one_of_the_recipes(tissue, tmp_path, tiny_recipe):
    plan = Plan(
        {"frozen": Recipe(**SMALL, long_side_px=64), "tuned": tiny_recipe}, "frozen", 2, (0,)
    )
    found = study(tissue.images, plan, tmp_path / "out")
    assert len(found.findings) == 2 * 2 * 3
    assert list((tmp_path / "out").rglob("metrics.jsonl"))
    assert not list((tmp_path / "out").rglob("*.ckpt"))
    assert read_predictions(tmp_path / "out/02-tuned/0.parquet").has("frozen")


# ---- its report


def test_the_page_says_every_difference_and_escapes_names(finished):
    _, out, found = finished
    page = (out / "report.html").read_text()
    assert "two &lt;stages&gt; &amp; more" in page
    assert "<stages>" not in page
    (row,) = [f for f in found.of("image", "roc_auc") if f.difference]
    assert f"{row.difference.estimate:+.3f}" in page
    assert page.count("<svg") == 2 * 3
    assert "Research use only" in page


def test_the_same_study_gives_the_same_bytes(finished, tmp_path):
    _, out, found = finished
    study_report(found, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == (out / "report.html").read_bytes()


def test_the_verdict_names_every_recipe_but_the_baseline(finished):
    _, _, found = finished
    for level in ("image", "patient"):
        (line,) = [text for text in verdict(found) if f"by {level}" in text]
        assert "two <stages> & more" in line
        assert "small" not in line


def test_the_forest_plot_says_in_words_what_it_shows(finished):
    _, _, found = finished
    svg = forest_figure(found.of("patient", "brier"), name="f")
    assert "two &lt;stages&gt; &amp; more" in svg.split('aria-label="')[1].split('"')[0]
    assert "difference in Brier score" in svg
