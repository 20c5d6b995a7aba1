"""Engines: OpenVINO gives what torch gives, or torch is used."""

from __future__ import annotations

import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from lobule.models import backbones
from lobule.models.backbones import load_backbone
from lobule.models.engines import make_engine


@pytest.mark.parametrize("shape", [(4, 3, 97, 64), (4, 3, 64, 97), (1, 3, 33, 47)])
def test_openvino_equals_torch_at_odd_sizes_and_both_ways_round(shape):
    network = load_backbone().network
    batch = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    _, fast = make_engine(network, "openvino")
    _, plain = make_engine(network, "torch")
    expected = plain(batch)
    assert np.abs(fast(batch) - expected).max() < 1e-4 * np.abs(expected).max()
    other = batch[::-1].copy()
    assert np.abs(fast(other) - plain(other)).max() < 1e-4 * np.abs(expected).max()


def test_same_batch_gives_the_same_bits():
    _, run = make_engine(load_backbone().network, "auto")
    batch = np.random.default_rng(1).normal(size=(4, 3, 64, 48)).astype(np.float32)
    assert np.array_equal(run(batch), run(batch))


class _Fickle(nn.Module):
    """Takes a branch by its input's sign, which a traced program cannot."""

    def forward(self, x):
        mean = x.mean(dim=(2, 3))
        return mean if x.sum() <= 0 else -mean


def test_a_program_that_disagrees_with_torch_is_not_used(caplog):
    _, run = make_engine(_Fickle().eval(), "openvino")
    batch = np.ones((2, 3, 8, 8), np.float32)
    with caplog.at_level(logging.WARNING, logger="lobule.models.engines"):
        first, second = run(batch), run(2 * batch)
    assert np.allclose(first, -1)
    assert np.allclose(second, -2)
    assert "torch is used" in caplog.text


def test_engine_says_its_name():
    network = load_backbone().network
    assert make_engine(network, "openvino")[0] == "openvino-cpu"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert make_engine(network, "torch")[0] == f"torch-{device}"


def test_openvino_is_kept_from_reporting_its_use():
    code = (
        "import sys; from lobule.models.engines import _import_openvino; _import_openvino(); "
        "print([m for m in sys.modules if m.startswith('openvino_telemetry') and sys.modules[m]])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_network_of_one_input_size_runs_at_that_size():
    network = backbones.build("vit_tiny_patch16_224").eval()
    batch = np.random.default_rng(2).normal(size=(1, 3, 224, 224)).astype(np.float32)
    fast, plain = make_engine(network, "openvino")[1], make_engine(network, "torch")[1]
    assert np.abs(fast(batch) - plain(batch)).max() < 1e-3


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "ghostnet_050", "resnet10t"])
def test_width_is_that_of_the_output(name):
    made = backbones.wrap(name, backbones.build(name), source="", license="")
    assert made.network(torch.zeros(1, 3, 64, 64)).shape == (1, made.n_features)
