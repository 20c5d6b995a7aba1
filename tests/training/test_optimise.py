"""Layers, their rates, the schedules, and what frozen means."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.modules.batchnorm import _BatchNorm

from lobule.models.backbones import build
from lobule.models.network import Network
from lobule.training.optimise import (
    cosine_rate,
    layers_of,
    make_optimizer,
    plateau_rate,
    set_rates,
    unfreeze,
)
from lobule.training.tuning import Tuning

pytestmark = pytest.mark.usefixtures("one_thread")


HEAD = {"norm.weight", "norm.bias", "linear.weight", "linear.bias"}


def network_of(name: str) -> Network:
    backbone = build(name)
    network = Network(backbone, backbone.num_features, 2)
    network.start_head(seed=0)
    return network


# ---- layers

FIRST_AND_LAST = {
    "tf_efficientnet_lite0": ("conv_stem.weight", "conv_head.weight"),
    "densenet201": ("features.conv0.weight", "features.norm5.weight"),
    "test_vit": ("patch_embed.proj.weight", "norm.weight"),
    "test_convnext": ("stem.0.weight", "head.norm.weight"),
    "test_resnet": ("conv1.0.weight", "layer4.0.conv2.weight"),
}
"""Parameters of the first and of the last layer before the head, as one reads them in timm."""


@pytest.mark.parametrize("name", FIRST_AND_LAST)
def test_every_parameter_has_a_layer_and_the_head_is_alone_in_the_last(name):
    network = network_of(name)
    layer = layers_of(network)
    assert list(layer) == [key for key, _ in network.named_parameters()]
    head = max(layer.values())
    assert {key for key, number in layer.items() if number == head} == HEAD
    # no number is left out
    assert set(layer.values()) == set(range(head + 1))
    first, last = FIRST_AND_LAST[name]
    assert layer[f"backbone.{first}"] == 0
    assert layer[f"backbone.{last}"] == head - 1


def test_the_blocks_of_a_transformer_are_layers_in_their_order():
    layer = layers_of(network_of("test_vit"))
    blocks = [layer[f"backbone.blocks.{i}.attn.qkv.weight"] for i in range(6)]
    assert blocks == [1, 2, 3, 4, 5, 6]
    assert layer["backbone.blocks.3.mlp.fc2.bias"] == blocks[3]
    assert layer["linear.weight"] == 7


# ---- groups of the optimizer


def test_each_layer_has_a_share_of_the_rate_and_only_matrices_decay():
    network = network_of("test_efficientnet")
    layer = layers_of(network)
    optimizer = make_optimizer(network, Tuning(layer_decay=0.5, weight_decay=0.03, lr=2e-3))
    assert type(optimizer) is torch.optim.AdamW
    named = {id(p): name for name, p in network.named_parameters()}
    seen = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = named[id(parameter)]
            seen.append(name)
            assert group["scale"] == 0.5 ** (layer["linear.weight"] - layer[name])
            assert group["weight_decay"] == (0.03 if parameter.ndim > 1 else 0.0)
    assert sorted(seen) == sorted(layer)
    scales = [group["scale"] for group in optimizer.param_groups]
    # the stem, five stages and the head
    assert (min(scales), max(scales)) == (0.5**6, 1)


def test_a_rate_is_shared_out_by_layer():
    network = network_of("test_efficientnet")
    optimizer = make_optimizer(network, Tuning(layer_decay=0.5))
    set_rates(optimizer, 0.064)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(network.linear.weight)] == 0.064
    assert rates[id(network.backbone.conv_stem.weight)] == pytest.approx(0.001)


def test_the_recipe_of_the_origin_gives_all_layers_one_rate_by_adam():
    optimizer = make_optimizer(
        network_of("test_resnet"), Tuning(optimizer="adam", layer_decay=1, weight_decay=0, lr=1e-4)
    )
    assert type(optimizer) is torch.optim.Adam
    set_rates(optimizer, 1e-4)
    assert len(optimizer.param_groups) == 1
    assert {(g["lr"], g["weight_decay"]) for g in optimizer.param_groups} == {(1e-4, 0)}
    assert {g["betas"] for g in optimizer.param_groups} == {(0.9, 0.999)}


# ---- schedules


def test_the_cosine_rises_in_a_line_and_falls_by_half_a_cosine():
    tuning = Tuning(epochs=12, warmup_epochs=2, lr=1.0, min_lr=0.1)
    known = {
        0: 0.025, 0.1: 0.05, 0.5: 0.25, 1: 0.5, 1.5: 0.75, 2: 1.0,
        4.5: 0.1 + 0.9 * (1 + 2**-0.5) / 2, 7: 0.55, 9.5: 0.1 + 0.9 * (1 - 2**-0.5) / 2, 12: 0.1,
    }  # fmt: skip
    for progress, rate in known.items():
        assert cosine_rate(tuning, progress) == pytest.approx(rate), progress
    assert cosine_rate(tuning, 15) == pytest.approx(0.1)


def test_without_warm_up_the_cosine_begins_at_its_top():
    tuning = Tuning(epochs=10, warmup_epochs=0, lr=3e-4, min_lr=0)
    assert cosine_rate(tuning, 0) == 3e-4
    assert cosine_rate(tuning, 5) == pytest.approx(1.5e-4)
    assert cosine_rate(tuning, 10) == 0


@given(
    st.integers(1, 30), st.integers(0, 30), st.floats(1e-9, 10), st.floats(0, 1), st.floats(0, 40)
)
def test_the_cosine_is_never_above_lr_and_after_the_warm_up_never_rises(
    epochs, warmup, lr, min_lr, progress
):
    tuning = Tuning(epochs=epochs, warmup_epochs=warmup, lr=lr, min_lr=min_lr)
    rate = cosine_rate(tuning, progress)
    assert 0 <= rate <= lr * (1 + 1e-12)
    if progress >= warmup:
        assert rate >= min(lr, min_lr) * (1 - 1e-12)
        assert cosine_rate(tuning, progress + 0.25) <= rate * (1 + 1e-12)


def test_the_plateau_multiplies_by_its_factor_down_to_its_floor():
    tuning = Tuning(lr=1e-4, plateau_factor=0.2, min_lr=1e-7)
    rates = [plateau_rate(tuning, reductions) for reductions in range(7)]
    assert rates == pytest.approx([1e-4, 2e-5, 4e-6, 8e-7, 1.6e-7, 1e-7, 1e-7])


def test_a_floor_above_the_rate_leaves_the_rate():
    tuning = Tuning(lr=1e-3, min_lr=0.5, warmup_epochs=0)
    assert plateau_rate(tuning, 0) == plateau_rate(tuning, 3) == 1e-3
    assert cosine_rate(tuning, 0) == cosine_rate(tuning, tuning.epochs) == 1e-3


# ---- what is frozen


def learn(network: Network, tuning: Tuning, *, epoch: int, steps: int = 3) -> set[str]:
    """Train in `epoch` and return the names of all tensors that are not what they were."""
    unfreeze(network, tuning, epoch=epoch)
    optimizer = make_optimizer(network, tuning)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    generator = torch.Generator().manual_seed(epoch)
    for _ in range(steps):
        images = torch.randn(4, 3, 32, 32, generator=generator)
        optimizer.zero_grad()
        logits = network(images)
        torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1, 0])).backward()
        optimizer.step()
    after = network.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def buffers_of(network: Network) -> set[str]:
    return {name for name, _ in network.named_buffers()}


def layers_with_buffers(network: Network, names: set[str]) -> set[int]:
    """The layers of the batch norms that these buffers belong to."""
    layer = layers_of(network)
    return {layer[f"{name.rpartition('.')[0]}.weight"] for name in names}


def tuning_of(**settings: object) -> Tuning:
    # a rate under which a step is seen in every weight
    plain = {"lr": 0.01, "layer_decay": 1.0, "weight_decay": 0.1, "norm_statistics": "updated",
             "unfreeze_share": 1.0, "unfreeze_epochs": 0}  # fmt: skip
    return Tuning(**{**plain, **settings})


@pytest.mark.parametrize(
    ("epoch", "share", "opened"),
    # of the six layers below the head of this network, over three epochs
    [(0, 1.0, 2), (1, 1.0, 4), (2, 1.0, 6), (7, 1.0, 6), (0, 0.5, 1), (2, 0.5, 3), (7, 0.5, 3)],
)
def test_layers_learn_from_the_last_on_and_the_rest_moves_in_nothing(epoch, share, opened):
    network = network_of("test_efficientnet")
    layer = layers_of(network)
    head = layer["linear.weight"]
    assert head == 6
    learns = set(range(head - opened, head + 1))
    moved = learn(network, tuning_of(unfreeze_epochs=3, unfreeze_share=share), epoch=epoch)
    parameters = {name for name, _ in network.named_parameters()}
    assert {layer[name] for name in moved & parameters} == learns
    # every layer of it has batch norms
    assert layers_with_buffers(network, moved & buffers_of(network)) == learns
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad == (layer[name] in learns), name


def test_in_the_first_of_many_epochs_only_the_last_layer_and_the_head_learn():
    network = network_of("test_efficientnet")
    layer = layers_of(network)
    moved = learn(network, tuning_of(unfreeze_epochs=100), epoch=0)
    assert {layer[name] for name, _ in network.named_parameters() if name in moved} == {5, 6}


def test_without_stages_all_learns_at_once():
    network = network_of("test_resnet")
    moved = learn(network, tuning_of(unfreeze_epochs=0), epoch=0)
    assert {name for name, _ in network.named_parameters()} <= moved
    assert buffers_of(network) <= moved


@pytest.mark.parametrize("unfreeze_epochs", [0, 3])
def test_with_frozen_statistics_no_buffer_moves_at_all(unfreeze_epochs):
    network = network_of("test_efficientnet")
    tuning = tuning_of(norm_statistics="frozen", unfreeze_epochs=unfreeze_epochs)
    assert len(buffers_of(network)) > 20
    for epoch in range(3):
        moved = learn(network, tuning, epoch=epoch)
        assert not moved & buffers_of(network)
        # their weights learn all the same
        assert "norm.weight" in moved
    assert "backbone.bn1.weight" in moved


def test_a_later_epoch_opens_what_an_earlier_one_froze_and_back():
    network = network_of("test_efficientnet")
    tuning = tuning_of(unfreeze_epochs=6)
    stem = network.backbone.bn1
    for epoch, opened in ((0, False), (5, True), (0, False)):
        unfreeze(network, tuning, epoch=epoch)
        assert stem.training == stem.weight.requires_grad == opened


def test_a_share_of_nothing_leaves_the_head_alone_to_learn():
    network = network_of("test_efficientnet")
    assert learn(network, tuning_of(unfreeze_share=0.0), epoch=9) == HEAD | {
        "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}  # fmt: skip


def test_a_network_without_batch_norm_is_frozen_by_layers_too():
    network = network_of("test_convnext")
    assert not any(isinstance(m, _BatchNorm) for m in network.backbone.modules())
    layer = layers_of(network)
    head = layer["linear.weight"]
    moved = learn(network, tuning_of(unfreeze_epochs=2), epoch=0)
    moved_layers = {layer[name] for name, _ in network.named_parameters() if name in moved}
    assert moved_layers == set(range(head - math.ceil(head / 2), head + 1))
