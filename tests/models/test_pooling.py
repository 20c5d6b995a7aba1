"""What is taken from a network: its own features, and those of the stage before the last."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from lobule.data.images import Preprocessing
from lobule.errors import ModelError
from lobule.models.backbones import load_backbone
from lobule.models.bundle import ModelInfo, load_model, make_model, open_model, save_model
from lobule.models.classifier import Heads, LinearHead
from lobule.models.engines import make_engine
from lobule.models.pooling import pool

NETWORKS = ["test_efficientnet", "test_resnet", "test_convnext", "test_vit", "densenet201"]


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))


def test_stages_are_the_own_features_and_statistics_of_the_stage_before_the_last(images):
    backbone = load_backbone("test_efficientnet", weights="none", pooling="stages")
    seen: dict[str, torch.Tensor] = {}
    # what the last block but one with its stride puts out, caught where it passes
    stage = backbone.network.blocks[3]
    with torch.inference_mode():
        hook = stage.register_forward_hook(lambda _m, _i, out: seen.update(out=out))
        features = backbone.module(images).numpy()
        hook.remove()
        own = backbone.network(images).numpy()
    flat = seen["out"].double().flatten(2).numpy()
    expected = np.concatenate([own, flat.mean(axis=2), flat.std(axis=2)], axis=1)
    assert features.shape == (2, backbone.n_features)
    assert features == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_own_features_stand_first_in_every_family(name):
    backbone = load_backbone(name, weights="none", pooling="stages")
    side = backbone.fixed_size_px or 64
    batch = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        own, features = backbone.network(batch), backbone.module(batch)
    assert features.shape == (1, backbone.n_features)
    assert backbone.n_features > own.shape[1]
    assert torch.allclose(features[:, : own.shape[1]], own, atol=1e-5)


def test_last_is_the_network_itself():
    backbone = load_backbone("test_resnet", weights="none")
    assert backbone.module is backbone.network
    assert backbone.features_id == backbone.weights_sha256


def test_features_are_not_kept_under_those_of_another_pooling():
    last, stages = (
        load_backbone("test_resnet", weights="none", pooling=p) for p in ("last", "stages")
    )
    assert last.weights_sha256 == stages.weights_sha256
    assert last.features_id != stages.features_id


def test_openvino_gives_the_same(images):
    module = load_backbone("test_efficientnet", weights="none", pooling="stages").module
    with torch.inference_mode():
        expected = module(images).numpy()
    assert make_engine(module, "openvino").run(images.numpy()) == pytest.approx(expected, abs=1e-4)


def test_a_network_without_stages_is_refused_with_what_to_do():
    plain = nn.Sequential(nn.Flatten())
    with pytest.raises(ModelError, match="mine has no stages") as caught:
        pool("mine", plain, "stages")
    assert caught.value.fix == "take its last layer: --set pooling=last"


@pytest.fixture
def saved(tmp_path):
    backbone = load_backbone("test_efficientnet", weights="none", pooling="stages")
    heads = Heads(
        LinearHead(np.ones((2, backbone.n_features)), np.zeros(2)),
        LinearHead(np.zeros((2, 12)), np.zeros(2)),
        np.full(2, 0.5),
    )
    prep = Preprocessing(64, "keep", "bicubic", (0.5,) * 3, (0.5,) * 3)
    info = ModelInfo("m", "", ("a", "b"), {}, {"method": "none", "source": ""}, {
        "n_images": 1, "n_patients": 1, "patients_known": True, "classes": {}, "recipe": {},
        "strength": 1.0, "tuning": None, "data_hash": ""}, {"source": "", "rows": []},
        {"lobule": "0"})  # fmt: skip
    save_model(make_model(info, backbone, prep, heads), tmp_path / "model")
    return tmp_path / "model", backbone


def test_a_saved_model_takes_the_same_from_its_network(saved, images):
    folder, backbone = saved
    model = load_model(folder)
    assert open_model(folder).features_id == model.backbone.features_id == backbone.features_id
    with torch.inference_mode():
        assert torch.equal(model.backbone.module(images), backbone.module(images))


def test_a_pooling_of_another_version_is_refused(saved):
    folder, _ = saved
    record = json.loads((folder / "model.json").read_text())
    record["backbone"]["pooling"] = "attention"
    (folder / "model.json").write_text(json.dumps(record))
    with pytest.raises(ModelError, match="knows no pooling 'attention'"):
        open_model(folder)
