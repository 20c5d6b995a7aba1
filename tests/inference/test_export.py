"""Exports: kept where they agree with the original on real images, and used where they do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from lobule.cli.app import app
from lobule.data.manifest import read_manifest
from lobule.data.scan import scan
from lobule.errors import DataError, ModelError, UsageError
from lobule.inference import agreement
from lobule.inference import export as exporting
from lobule.inference.choice import Running
from lobule.inference.export import export
from lobule.inference.predictor import predict
from lobule.models.bundle import load_model, make_model, open_model, save_model
from lobule.models.classifier import Heads, LinearHead


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of a run that a test may add to."""
    shutil.copytree(finished_run.folder, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def images(run):
    return read_manifest(run / "manifest.parquet")


@pytest.mark.parametrize("to", ["openvino", "onnx"])
def test_an_export_gives_the_probabilities_of_the_original(run, images, to, tmp_path):
    plain = predict(open_model(run / "model"), images, running=Running("torch"))
    made = export(load_model(run / "model"), images, to=to, cache=tmp_path / "cache")
    assert made.agreement["images"] == agreement.COMPARED
    assert made.agreement["largest_difference"] <= 1e-4
    model = replace(open_model(run / "model"), network=lambda: pytest.fail("built the network"))
    found = predict(model, images, running=Running(to), cache=tmp_path / "cache")
    assert np.abs(found.probabilities() - plain.probabilities()).max() < 1e-4
    assert found.table["decision"].tolist() == plain.table["decision"].tolist()


def test_with_an_export_that_was_compared_here_torch_is_not_imported(run, images, tmp_path):
    export(load_model(run / "model"), images, cache=tmp_path / "cache")
    code = (
        # it hung once: should it again, this says where
        "import faulthandler; faulthandler.dump_traceback_later(120, exit=True); "
        "import sys; from pathlib import Path; from lobule.models.bundle import open_model; "
        "from lobule.inference.predictor import predict; "
        "model, image, cache = map(Path, sys.argv[1:]); "
        "print(len(predict(open_model(model), [image], cache=cache)), 'torch' in sys.modules)"
    )
    image = images.file(images.table["path"].iat[0])
    done = subprocess.run(
        [sys.executable, "-c", code, run / "model", image, tmp_path / "cache"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout.split()) == (0, ["1", "False"]), done.stderr


def test_on_another_machine_an_export_is_compared_again(run, images, tmp_path):
    export(load_model(run / "model"), images, cache=tmp_path / "cache")
    asked = []
    model = load_model(run / "model")
    watched = replace(model, network=lambda: asked.append(1) or model.backbone)
    predict(watched, images, cache=tmp_path / "cache")
    assert not asked
    predict(watched, images, cache=tmp_path / "of another machine")
    assert asked


def test_an_interrupted_or_repeated_export_leaves_one_folder(run, images, monkeypatch):
    model = load_model(run / "model")
    first = export(model, images)
    again = export(model, images)
    assert again.files.keys() == first.files.keys()
    monkeypatch.setattr(exporting, "compare_probabilities", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(model, images)
    assert [p.name for p in (run / "model" / "exports").iterdir()] == ["openvino-fp32"]


class _Fickle(nn.Module):
    """Takes a branch by its input, which a traced program cannot."""

    def forward(self, x):
        mean = x.mean(dim=(2, 3))
        return mean if x.sum() <= 0 else -mean


@pytest.fixture
def fickle(finished_run, tmp_path):
    """A saved model whose network OpenVINO converts wrongly."""
    known = finished_run.model
    head = LinearHead(np.array([[0.0, 0, 0], [9, 9, 9]]), np.zeros(2))
    backbone = replace(known.backbone, network=_Fickle().eval(), n_features=3)
    heads = Heads(head, known.heads.colour, known.heads.prior)
    model = make_model(known.info, backbone, known.preprocessing, heads)
    save_model(model, tmp_path / "model")
    return replace(model, folder=tmp_path / "model")


def test_an_export_that_gives_other_answers_is_not_kept(fickle, images):
    with pytest.raises(
        ModelError, match=r"not kept: openvino-cpu-fp32 is off by [01][.\d]* in a p"
    ):
        export(fickle, images)
    assert not list(fickle.folder.rglob("network.*"))


def test_a_wrong_conversion_in_bfloat16_is_not_used(fickle, images, caplog):
    plain = predict(fickle, images, running=Running("torch"))
    found = predict(fickle, images, running=Running("openvino", "bf16"))
    assert np.array_equal(found.probabilities(), plain.probabilities())
    assert "torch is used" in caplog.text


def test_int8_counts_labels_and_auc_on_images_that_gave_no_ranges(
    run, images, tmp_path, monkeypatch
):
    # of 24 images so small one label is more than a hundredth
    monkeypatch.setattr(agreement, "CHANGED", 0.2)
    made = export(load_model(run / "model"), images, int8=True, cache=tmp_path)
    seen = made.agreement
    assert seen["images"] + seen["calibration_images"] == len(images)
    assert 0 < seen["largest_difference"] < 0.2
    assert seen["labels_changed"] <= agreement.CHANGED
    assert seen["roc_auc_gain"]["estimate"] >= -agreement.AUC_LOSS
    found = predict(open_model(run / "model"), images, running=Running(precision="int8"))
    plain = predict(open_model(run / "model"), images)
    assert 0 < np.abs(found.probabilities() - plain.probabilities()).max() < 0.2


@pytest.mark.parametrize(("name", "limit"), [("CHANGED", -0.1), ("AUC_LOSS", -2.0)])
def test_int8_that_changes_more_than_is_allowed_is_not_kept(run, images, name, limit, monkeypatch):
    monkeypatch.setattr(agreement, name, limit)
    with pytest.raises(ModelError, match="not kept: of 24 images int8 gives"):
        export(load_model(run / "model"), images, int8=True)
    assert not list(run.rglob("network.*"))


def test_int8_takes_its_ranges_from_training_images_only(run, images, tissue):
    others = images.where(np.arange(len(images)) > 3)
    with pytest.raises(DataError, match="these 44 images are not those that the model was trained"):
        export(load_model(run / "model"), others, int8=True)
    held_out = images.with_columns(fold=np.where(images.table["patient"] == "P01", -1, 0))
    model = load_model(run / "model")
    learned = held_out.where(held_out.table["fold"] >= 0)
    training = {**model.info.training, "data_hash": learned.data_hash}
    split = replace(model, info=replace(model.info, training=training))
    used = exporting._calibration_rows(split, held_out)
    assert used.any()
    assert (held_out.table["fold"][used] >= 0).all()


def test_an_engine_without_export_says_how_to_make_one(run, images):
    with pytest.raises(ModelError, match="has no export for onnx fp32") as caught:
        predict(open_model(run / "model"), images, running=Running("onnx"))
    assert "lobule export MODEL --to onnx" in str(caught.value)
    with pytest.raises(ModelError, match="has no export for int8"):
        predict(open_model(run / "model"), images, running=Running(precision="int8"))


@pytest.mark.parametrize(
    ("engine", "precision", "views", "said"),
    [
        ("auto", "fp32", 3, "--views must be 1 or 8, got 3"),
        ("torch", "int8", 8, "torch runs no int8"),
        ("onnx", "bf16", 8, "ONNX Runtime has no bf16"),
    ],
)
def test_what_cannot_be_run_is_refused(engine, precision, views, said):
    with pytest.raises(UsageError, match=said):
        Running(engine, precision, views)


def test_the_fastest_of_several_is_taken_and_remembered(run, images, tmp_path):
    model = load_model(run / "model")
    for to in ("openvino", "onnx"):
        export(model, images, to=to, cache=tmp_path)
    predict(model, images, cache=tmp_path)
    told = [json.loads(p.read_text()) for p in tmp_path.rglob("measured/*.json")]
    (choice,) = [r["value"] for r in told if r["what"].startswith("fastest of onnx-fp32 openvino")]
    assert choice in ("onnx-fp32", "openvino-fp32")
    assert len(predict(model, images, cache=tmp_path)) == len(images)
    assert len(list(tmp_path.rglob("measured/*.json"))) == len(told)


def test_one_view_is_the_plain_one(run, images, caplog):
    model = load_model(run / "model")
    one = predict(model, images, running=Running(views=1))
    assert np.allclose(
        one.probabilities(), predict(model, images).probabilities("plain"), atol=1e-6
    )
    assert "chosen on the mean of 8 views" in caplog.text


def test_the_command_line_exports_and_predicts(run, images):
    runner = CliRunner()
    shown = runner.invoke(app, ["export", str(run / "model"), "--json"])
    assert shown.exit_code == 0, shown.output
    record = json.loads(shown.stdout)
    assert record["schema"] == "lobule.export/1"
    assert record["precision"] == "fp32"
    image = str(images.file(images.table["path"].iat[0]))
    shown = runner.invoke(app, ["predict", str(run / "model"), image, "--engine", "openvino"])
    assert shown.exit_code == 0, shown.output
    shown = runner.invoke(app, ["predict", str(run / "model"), image, "--engine", "onnx"])
    assert shown.exit_code == 4
    (run / "manifest.parquet").unlink()
    shown = runner.invoke(app, ["export", str(run / "model")])
    assert shown.exit_code == 3


def test_images_of_another_site_serve_to_compare_an_fp32_export(run, tissue):
    made = export(load_model(run / "model"), scan(tissue.images))
    assert made.precision == "fp32"


def test_torch_does_not_change_its_threads(run, images):
    before = torch.get_num_threads()
    predict(open_model(run / "model"), images, running=Running("torch", "bf16"))
    assert torch.get_num_threads() == before
