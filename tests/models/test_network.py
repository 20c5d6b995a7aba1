"""The network that is trained: its head against the plain head, and where dropout acts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lobule.models.backbones import build
from lobule.models.classifier import LinearHead
from lobule.models.network import Network


class Given(nn.Module):
    """A backbone whose features are known: the first pixels of its image, as they are."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.n_features = n_features

    def forward(self, images):
        return images.flatten(1)[:, : self.n_features]


def network_of(n_features: int, n_classes: int = 2) -> Network:
    return Network(Given(n_features), n_features, n_classes)


def as_images(features: np.ndarray) -> torch.Tensor:
    """Images (n, 1, 1, d) of which `Given` returns the features."""
    return torch.from_numpy(features.astype(np.float32))[:, None, None, :]


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def some(seed: int, n: int = 40, d: int = 12, k: int = 3):
    """Features of unlike scales, and a head."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, d)) * rng.uniform(0.01, 5, d) + rng.normal(size=d)
    head = LinearHead(rng.normal(size=(k, d)), rng.normal(size=k))
    return features.astype(np.float32), head


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 4))
def test_a_network_that_took_a_head_gives_the_probabilities_of_that_head(seed, n_classes):
    features, head = some(seed, k=n_classes)
    network = network_of(12, n_classes).eval()
    network.take_head(head, features)
    with torch.inference_mode():
        found = network(as_images(features)).double().numpy()
    wanted = softmax(features.astype(np.float64) @ head.weight.T + head.bias)
    assert np.abs(softmax(found) - wanted).max() < 1e-5


def test_what_the_linear_layer_learns_from_is_standardised():
    features, head = some(3, n=500)
    network = network_of(12, 3).eval()
    network.take_head(head, features)
    seen = []
    network.linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        network(as_images(features))
    assert np.abs(seen[0].mean(0).numpy()).max() < 1e-4
    # batch norm adds 1e-5 to the variance
    assert np.abs(seen[0].std(0, correction=0).numpy() - 1).max() < 0.06


def test_a_feature_that_never_varies_gives_finite_weights_and_the_same_answer():
    features, head = some(5)
    features[:, 4] = 2.5
    features[:, 5] = 0
    network = network_of(12, 3).eval()
    network.take_head(head, features)
    with torch.inference_mode():
        found = network(as_images(features)).double().numpy()
    assert np.isfinite(network.linear.weight.detach().numpy()).all()
    wanted = softmax(features.astype(np.float64) @ head.weight.T + head.bias)
    assert np.abs(softmax(found) - wanted).max() < 1e-5


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 4))
def test_the_folded_head_is_norm_and_linear_layer(seed, n_classes):
    features, _ = some(seed)
    network = network_of(12, n_classes).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        network.norm.weight.uniform_(-2, 2, generator=generator)
        network.norm.bias.uniform_(-1, 1, generator=generator)
        network.norm.running_mean.uniform_(-1, 1, generator=generator)
        network.norm.running_var.uniform_(0.3, 4, generator=generator)
        network.linear.weight.uniform_(-1, 1, generator=generator)
        network.linear.bias.uniform_(-1, 1, generator=generator)
    head = network.folded_head()
    assert (head.weight.dtype, head.bias.dtype) == (np.float64, np.float64)
    found = features.astype(np.float64) @ head.weight.T + head.bias
    with torch.inference_mode():
        rounded = network(as_images(features)).numpy()
        exact = network.double().linear(network.norm(torch.from_numpy(features).double())).numpy()
    assert np.abs(found - exact).max() < 1e-9
    assert np.abs(softmax(found) - softmax(rounded)).max() < 1e-5


def test_a_head_taken_and_folded_is_the_head_again():
    features, head = some(11)
    network = network_of(12, 3)
    network.take_head(head, features)
    folded = network.folded_head()
    assert np.allclose(folded.weight, head.weight, rtol=1e-6)
    assert np.allclose(folded.bias, head.bias, atol=1e-5)


# ---- dropout stands after the norm


def test_dropout_acts_on_what_the_norm_gives_and_before_the_linear_layer():
    features, _ = some(2)
    network = network_of(12, 3)
    network.start_head(seed=1)
    network.train()
    keep = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (40, 12)) / 0.5).float()
    logits = network(as_images(features), keep).detach().double().numpy()
    # by hand: batch statistics of the undropped features, then the mask, then the linear layer
    x = features.astype(np.float64)
    normed = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    weight, bias = (p.detach().double().numpy() for p in network.linear.parameters())
    assert np.abs(logits - ((normed * keep.numpy()) @ weight.T + bias)).max() < 1e-5


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_the_norm_gathers_statistics_of_features_that_nothing_was_dropped_from(rate):
    features, _ = some(4)
    network = network_of(12).train()
    network(as_images(features), torch.full((40, 12), 1 - rate))
    x = features.astype(np.float64)
    # torch moves its statistics a tenth of the way, the variance being the unbiased one
    assert np.allclose(network.norm.running_mean.numpy(), 0.1 * x.mean(0), atol=1e-6)
    assert np.allclose(
        network.norm.running_var.numpy(), 0.9 + 0.1 * x.var(0, ddof=1), rtol=1e-5, atol=1e-6
    )


def test_where_all_is_dropped_the_bias_is_left():
    features, _ = some(4)
    network = network_of(12).eval()
    network.start_head(seed=0)
    logits = network(as_images(features), torch.zeros(40, 12))
    assert torch.equal(logits, network.linear.bias.expand(40, 2))


def test_the_head_is_exact_where_the_backbone_runs_in_bfloat16():
    features, head = some(6)
    network = network_of(12, 3).eval()
    network.take_head(head, features)
    with torch.inference_mode():
        plain = network(as_images(features))
        with torch.autocast("cpu", torch.bfloat16):
            found = network(as_images(features))
    assert found.dtype == torch.float32
    assert torch.equal(found, plain)


# ---- a start from nothing


def test_a_fresh_head_depends_on_its_seed_and_leaves_the_global_generator_alone():
    drawn = []
    for seed in (7, 7, 8):
        network = network_of(50)
        before = torch.get_rng_state()
        network.start_head(seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        drawn.append(torch.cat([p.detach().ravel() for p in network.linear.parameters()]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_fresh_head_is_uniform_within_one_over_the_root_of_its_inputs():
    network = network_of(10_000)
    network.start_head(seed=0)
    weight = network.linear.weight.detach().numpy()
    assert 0.0099 < np.abs(weight).max() <= 0.01
    assert np.abs(weight.mean()) < 2e-4
    assert weight.std() == pytest.approx(0.01 / 3**0.5, rel=0.02)


def test_the_network_of_the_origin_has_18_100_610_parameters():
    network = Network(build("densenet201"), 1920, 2)
    learn = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert learn == 18_100_610
    statistics = sum(b.numel() for name, b in network.named_buffers() if "running" in name)
    assert learn + statistics == 18_333_506
