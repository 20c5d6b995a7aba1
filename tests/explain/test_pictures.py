"""Heat maps of many photographs as files: `lobule predict --explain`."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from lobule.cli.app import app
from lobule.data.images import decode
from lobule.explain.maps import explain
from lobule.explain.overlay import overlay
from lobule.models.bundle import load_model


@pytest.fixture
def photographs(tissue, tmp_path):
    """Two photographs and a text called .png, in folders of the same names."""
    files = sorted(tissue.images.rglob("*.png"))
    for part, file in (("one", files[0]), ("two", files[-1])):
        (tmp_path / "new" / part).mkdir(parents=True)
        shutil.copy(file, tmp_path / "new" / part / "a.png")
    (tmp_path / "new" / "two" / "bad.png").write_text("text")
    return tmp_path / "new"


def call(model, *words):
    return CliRunner().invoke(app, ["predict", str(model), *map(str, words), "--json"])


def below(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cam", "gradcam"])
def test_each_photograph_that_was_read_has_the_map_of_what_was_decided(
    finished_run, photographs, tmp_path, method
):
    model, maps = finished_run.folder / "model", tmp_path / "maps"
    words = ("--on-error", "skip", "--explain", maps, "--map-method", method)
    shown = call(model, photographs, *words)
    assert shown.exit_code == 5, shown.stderr
    record = json.loads(shown.stdout)
    assert record["maps"] == str(maps)
    assert below(maps) == ["one/a.png.png", "two/a.png.png"]
    loaded = load_model(model)
    for row in record["predictions"]:
        image = decode(photographs / row["path"])
        # of what the gate refuses, the positive class
        of_class = row["decision"] if row.get("accepted", True) else loaded.info.classes[-1]
        found = explain(loaded, image, target=loaded.info.classes.index(of_class), method=method)
        with Image.open(maps / f"{row['path']}.png") as picture:
            drawn = np.asarray(picture)[: image.shape[0], : image.shape[1]]
            assert np.array_equal(drawn, overlay(image, found))
            assert picture.text["weights"] == record["weights"]
            assert picture.text["notice"] == "Research use only. Not for diagnosis."


@pytest.mark.slow
def test_no_map_is_written_outside_its_folder(finished_run, photographs, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    maps = tmp_path / "here" / "maps"
    files = ["../new/one/a.png", os.path.abspath("../new/two/a.png")]
    shown = call(finished_run.folder / "model", *files, "--explain", "maps")
    assert shown.exit_code == 0, shown.stderr
    assert below(maps) == ["one/a.png.png", "two/a.png.png"]
    assert below(tmp_path / "here") == ["maps/one/a.png.png", "maps/two/a.png.png"]
    assert below(photographs) == ["one/a.png", "two/a.png", "two/bad.png"]


@pytest.mark.slow
def test_answers_are_kept_where_maps_cannot_be_written(finished_run, photographs, tmp_path):
    (tmp_path / "maps").write_text("a file")
    out = tmp_path / "out.csv"
    shown = call(
        finished_run.folder / "model", photographs / "one", "-o", out,
        "--explain", tmp_path / "maps",
    )  # fmt: skip
    assert shown.exit_code not in (0, 5)
    assert "maps" in shown.stderr
    assert out.exists()
