"""What a network says of the validation patients, against scikit-learn; and what is better."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    log_loss,
    roc_auc_score,
)
from torch import nn

from lobule.data.images import Preprocessing
from lobule.models.backbones import build
from lobule.models.network import Network
from lobule.training.batches import Examples
from lobule.training.machine import NARROW, Settled
from lobule.training.tuning import METRICS
from lobule.training.validate import LEAST, better, validate

PREP = Preprocessing(40, "keep", "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

CPU = Settled(torch.device("cpu"), bf16=False)


class Means(nn.Module):
    """A backbone whose features are the mean red, green and blue of its input."""

    def forward(self, images):
        return images.mean(dim=(2, 3))


def network_of(n_classes: int) -> Network:
    network = Network(Means(), 3, n_classes)
    network.start_head(seed=2)
    with torch.no_grad():
        # far from the start that a norm has, so that its statistics matter
        network.norm.running_mean.copy_(torch.tensor([0.3, -0.2, 0.1]))
        network.norm.running_var.copy_(torch.tensor([0.02, 0.05, 0.01]))
    return network.eval()


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = [(24, 40)] * 20 + [(40, 24)] * 8 + [(40, 40)] * 5
    return [(rng.random((*size, 3)) * rng.uniform(120, 255, 3)).astype(np.uint8) for size in sizes]


@pytest.fixture(scope="module")
def pixels(images, keep_pixels):
    return keep_pixels(images)


def examples_of(n: int, n_classes: int, seed: int = 0) -> Examples:
    rng = np.random.default_rng(seed)
    return Examples(rng.permutation(33)[:n], np.arange(n) % n_classes, rng.uniform(0.2, 3, n))


def plain_probabilities(network: Network, images: list[np.ndarray], rows) -> np.ndarray:
    """Probabilities (n, K) of one image after another, in float64 and by hand."""
    weight, bias = (p.detach().double().numpy() for p in network.linear.parameters())
    mean, var = network.norm.running_mean.numpy(), network.norm.running_var.numpy()
    found = []
    for row in rows:
        features = ((images[row] / 255 - PREP.mean) / PREP.std).mean(axis=(0, 1))
        logits = weight @ ((features - mean) / np.sqrt(var + 1e-5)) + bias
        found.append(np.exp(logits) / np.exp(logits).sum())
    return np.array(found)


@pytest.mark.parametrize("batch_size", [2, 7, 64])
def test_figures_of_two_classes_are_those_of_scikit_learn(images, pixels, batch_size):
    network, examples = network_of(2), examples_of(30, 2)
    found = validate(network, pixels, examples, PREP, settled=CPU, batch_size=batch_size)
    prob, y = plain_probabilities(network, images, examples.rows), examples.y
    assert found == pytest.approx({
        "loss": log_loss(y, prob, sample_weight=examples.weight),
        "accuracy": accuracy_score(y, prob.argmax(1)),
        "balanced_accuracy": balanced_accuracy_score(y, prob.argmax(1)),
        "roc_auc": roc_auc_score(y, prob[:, 1]),
        "average_precision": average_precision_score(y, prob[:, 1]),
    }, abs=1e-5)  # fmt: skip
    assert tuple(found) == METRICS
    # the figures are no accident of a network that says the same of all
    assert prob[:, 1].std() > 0.05


def test_figures_of_three_classes_are_those_of_scikit_learn(images, pixels):
    network, examples = network_of(3), examples_of(33, 3)
    found = validate(network, pixels, examples, PREP, settled=CPU, batch_size=8)
    prob, y = plain_probabilities(network, images, examples.rows), examples.y
    one_of_three = np.eye(3)[y]
    assert found == pytest.approx({
        "loss": log_loss(y, prob, sample_weight=examples.weight),
        "accuracy": accuracy_score(y, prob.argmax(1)),
        "balanced_accuracy": balanced_accuracy_score(y, prob.argmax(1)),
        "roc_auc": roc_auc_score(y, prob, multi_class="ovr"),
        "average_precision": average_precision_score(one_of_three, prob),
    }, abs=1e-5)  # fmt: skip


def test_where_a_class_is_absent_a_figure_is_none_and_never_zero(pixels):
    examples = examples_of(10, 1)
    found = validate(network_of(2), pixels, examples, PREP, settled=CPU, batch_size=8)
    assert {name for name, value in found.items() if value is None} == {
        "balanced_accuracy", "roc_auc", "average_precision"}  # fmt: skip
    assert math.isfinite(found["loss"])


def test_the_loss_is_weighted_by_shares_of_the_weight(images, pixels):
    network, examples = network_of(2), examples_of(20, 2)
    doubled = Examples(examples.rows, examples.y, 7 * examples.weight)
    one, other = (
        validate(network, pixels, e, PREP, settled=CPU, batch_size=8)["loss"]
        for e in (examples, doubled)
    )
    assert one == pytest.approx(other, rel=1e-12)
    first = Examples(examples.rows, examples.y, np.eye(20)[4])
    prob = plain_probabilities(network, images, examples.rows)
    found = validate(network, pixels, first, PREP, settled=CPU, batch_size=8)["loss"]
    assert found == pytest.approx(-np.log(prob[4, examples.y[4]]), abs=1e-5)


def test_the_network_is_as_it_was_in_modes_weights_statistics_and_gradients(pixels):
    backbone = build("test_efficientnet")
    network = Network(backbone, backbone.num_features, 2).train()
    network.backbone.blocks[1].eval()
    network.norm.eval()
    modes = {name: module.training for name, module in network.named_modules()}
    assert set(modes.values()) == {True, False}
    before = {name: value.clone() for name, value in network.state_dict().items()}
    validate(network, pixels, examples_of(12, 2), PREP, settled=CPU, batch_size=8)
    assert {name: module.training for name, module in network.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_in_bfloat16_the_figures_are_nearly_those_of_float32(keep_pixels):
    # smaller ones are not validated in bfloat16: see `machine.NARROW`
    sizes = [(NARROW + 1, 96)] * 9 + [(96, NARROW + 1)] * 24
    pixels = keep_pixels([np.full((*s, 3), 7 * i, np.uint8) for i, s in enumerate(sizes)])
    backbone = build("test_resnet")
    network = Network(backbone, backbone.num_features, 2)
    network.start_head(seed=0)
    exact, rounded = (
        validate(
            network, pixels, examples_of(12, 2), PREP, batch_size=6,
            settled=Settled(torch.device("cpu"), bf16=bf16),
        )
        for bf16 in (False, True)
    )  # fmt: skip
    assert rounded["loss"] == pytest.approx(exact["loss"], rel=0.02)
    assert rounded["loss"] != exact["loss"]


# ---- which of two is better


@pytest.mark.parametrize("metric", METRICS)
def test_of_the_loss_less_is_better_and_of_the_others_more(metric):
    assert better(0.4, 0.5, metric) == (metric == "loss")
    assert better(0.5, 0.4, metric) == (metric != "loss")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("gain", "enough"), [(0.0, False), (LEAST / 2, False), (2 * LEAST, True)])
def test_a_gain_that_rounding_could_make_does_not_count(metric, gain, enough):
    value = 0.5 - gain if metric == "loss" else 0.5 + gain
    assert better(value, 0.5, metric) == enough


@pytest.mark.parametrize("metric", METRICS)
def test_what_is_undefined_beats_nothing_and_is_beaten_by_all(metric):
    assert not better(None, None, metric)
    assert not better(None, 0.5, metric)
    assert better(0.0, None, metric)
    assert better(99.0, None, metric)


@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from(METRICS))
def test_of_two_at_most_one_is_better(one, other, metric):
    assert not (better(one, other, metric) and better(other, one, metric))
