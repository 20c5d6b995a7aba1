"""The model folder: written, read back, and refused when it is not whole."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from lobule.data.images import Preprocessing
from lobule.errors import ModelError
from lobule.models.backbones import load_backbone
from lobule.models.bundle import describe, load_model, make_model, save_model
from lobule.models.classifier import Heads, LinearHead


@pytest.fixture
def folder(finished_run, tmp_path):
    """A copy of a model folder that a test may spoil."""
    copy = tmp_path / "model"
    shutil.copytree(finished_run.folder / "model", copy)
    return copy


def test_a_model_comes_back_as_it_was(finished_run, folder):
    model, back = finished_run.model, load_model(folder)
    assert json.dumps(describe(back)) == json.dumps(describe(model))
    assert back.preprocessing == model.preprocessing
    assert back.backbone.weights_sha256 == model.backbone.weights_sha256
    assert np.array_equal(back.heads.tissue.weight, model.heads.tissue.weight)
    assert np.array_equal(back.heads.colour.bias, model.heads.colour.bias)
    assert np.array_equal(back.heads.prior, model.heads.prior)
    assert np.array_equal(back.gate.basis, model.gate.basis)
    assert back.gate.threshold == model.gate.threshold


def test_saving_again_writes_the_same_weights(folder, tmp_path):
    save_model(load_model(folder), tmp_path / "again")
    name = "weights.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_a_model_from_before_there_were_gates_and_sets_is_read(finished_run, tmp_path):
    model = finished_run.model
    ungated = make_model(model.info, model.backbone, model.preprocessing, model.heads)
    save_model(ungated, tmp_path)
    record = json.loads((tmp_path / "model.json").read_text())
    for field in ("sets", "out_of_fold", "gate", "reporting"):
        del record[field]
    (tmp_path / "model.json").write_text(json.dumps(record))
    back = load_model(tmp_path)
    assert back.gate is None
    assert (back.info.sets, back.info.reporting) == ({}, [])


def test_weights_that_are_not_those_of_the_record_are_refused(folder):
    weights = folder / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(ModelError, match=r"is not the file that model\.json describes: SHA-256"):
        load_model(folder)


def test_a_folder_without_record_is_no_model(tmp_path):
    with pytest.raises(ModelError, match=r"is not a model folder: cannot read model\.json"):
        load_model(tmp_path)


def test_another_schema_is_refused(folder):
    record = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**record, "schema": "lobule.model/9"}))
    with pytest.raises(ModelError, match=r"has schema 'lobule\.model/9'; this version reads"):
        load_model(folder)


def test_missing_weights_are_named(folder):
    (folder / "weights.safetensors").unlink()
    with pytest.raises(ModelError, match=r"cannot read .*weights\.safetensors"):
        load_model(folder)


@pytest.mark.parametrize("field", ["classes", "preprocessing", "backbone", "operating_points"])
def test_a_record_without_a_field_is_refused(folder, field):
    record = json.loads((folder / "model.json").read_text())
    del record[field]
    (folder / "model.json").write_text(json.dumps(record))
    with pytest.raises(ModelError, match="is not a complete model"):
        load_model(folder)


def test_card_states_use_classes_threshold_and_hash(finished_run, folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    point = finished_run.model.info.operating_points["image"]
    for told in (
        "Research use only. Not for diagnosis.",
        "benign / malignant",
        f"{point['threshold']:.4f}",
        point["source"],
        finished_run.model.weights_sha256,
        finished_run.model.info.training["data_hash"],
    ):
        assert told in card


def test_preprocessing_that_was_altered_is_refused(folder):
    record = json.loads((folder / "model.json").read_text())
    record["preprocessing"]["long_side_px"] = 100
    (folder / "model.json").write_text(json.dumps(record))
    with pytest.raises(ModelError, match="states preprocessing"):
        load_model(folder)


def test_a_model_on_a_network_with_arguments_needs_its_folder_alone(
    finished_run, publish, tmp_path
):
    made = publish(
        "test_vit", init_values=1e-5, config={"mean": [0.7, 0.6, 0.5], "license": "cc-by-nc-4.0"}
    )
    backbone = load_backbone(str(made.folder))
    shutil.rmtree(made.folder)
    heads = finished_run.model.heads
    wide = LinearHead(np.ones((2, backbone.n_features)), np.zeros(2))
    model = make_model(
        finished_run.model.info,
        backbone,
        backbone.preprocessing(300),
        Heads(wide, heads.colour, heads.prior),
    )
    save_model(model, tmp_path / "saved")
    back = load_model(tmp_path / "saved")
    assert back.backbone.weights_sha256 == backbone.weights_sha256
    for name in ("name", "arguments", "mean", "std", "interpolation", "fixed_size_px", "license"):
        assert getattr(back.backbone, name) == getattr(backbone, name)
    assert back.backbone.arguments["init_values"] == 1e-5
    assert back.preprocessing == Preprocessing(
        160, "square", backbone.interpolation, (0.7, 0.6, 0.5), backbone.std
    )
    card = (tmp_path / "saved" / "README.md").read_text(encoding="utf-8")
    assert "(licence: cc-by-nc-4.0) may not be used commercially" in card


def test_a_record_of_before_without_arguments_is_read(folder):
    record = json.loads((folder / "model.json").read_text())
    assert record["backbone"].pop("arguments") == {}
    (folder / "model.json").write_text(json.dumps(record))
    assert load_model(folder).backbone.arguments == {}
