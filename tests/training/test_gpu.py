"""On a CUDA device: the same training, repeatable to the bit, and left as exactly."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from small import PREP, make_job, make_network, run, write_images
from torch import nn

from lobule.data.images import Preprocessing
from lobule.models.backbones import build, load_backbone
from lobule.models.engines import make_engine
from lobule.models.network import Network
from lobule.training.augment import augment, draw, normalise
from lobule.training.checkpoint import LAST
from lobule.training.loop import tune
from lobule.training.machine import Machine, Settled, repeatable, settle
from lobule.training.tuning import Tuning

pytestmark = pytest.mark.gpu

SETTINGS = {"schedule": "plateau", "plateau_patience": 1, "dropout": 0.3, "clip_norm": 1.0,
            "norm_statistics": "updated", "unfreeze_epochs": 2}  # fmt: skip

SQUARE = Preprocessing(160, "square", PREP.interpolation, PREP.mean, PREP.std)
"""What a network of attention takes, whose input has one size."""


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def cuda():
    return Settled(torch.device("cuda", 0), bf16=False)


def test_a_cuda_device_comes_before_the_cpu():
    found = settle(Machine(), build("test_efficientnet"), 224)
    assert found.device == torch.device("cuda", 0)
    assert found.bf16 == torch.cuda.is_bf16_supported(including_emulation=False)
    assert settle(Machine(device="cpu"), build("test_efficientnet"), 224).device.type == "cpu"


def test_the_record_names_the_card(cuda):
    record = cuda.record()
    assert record["device"] == "cuda"
    assert record["processor"] == torch.cuda.get_device_name(0)


def test_what_was_set_for_repeatable_bits_is_set_back(cuda):
    def settings():
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.enabled,
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.allow_tf32,
            torch.backends.cuda.matmul.allow_tf32,
        )

    before = settings()
    with repeatable(cuda):
        assert settings() == (True, True, True, False, False)
    assert settings() == before


def test_float32_is_computed_as_float32(cuda):
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 64, 3)
    images = torch.randn(4, 64, 32, 32)
    exact = layer.double()(images.double()).detach()
    with repeatable(cuda):
        found = layer.float().cuda()(images.cuda()).detach().cpu().double()
    # TF32, torch's own choice for a convolution, is off by 3e-4
    assert float((found - exact).norm() / exact.norm()) < 2e-6


def test_augmentation_is_the_same_on_the_device():
    rng = np.random.default_rng(3)
    images = torch.from_numpy(rng.integers(0, 256, (8, 46, 70, 3), dtype=np.uint8))
    names = [f"{i:064x}" for i in rng.integers(2**60, size=8)]
    draws = draw(names, Tuning(), seed=0, epoch=1, n_features=4)
    here = normalise(augment(images, draws), PREP)
    there = normalise(augment(images.cuda(), draws), PREP)
    assert there.device.type == "cuda"
    # a 255th is 0.008 here
    assert float((here - there.cpu()).abs().max()) < 1e-3


def test_features_are_those_of_the_cpu():
    batch = np.random.default_rng(0).normal(size=(4, 3, 97, 64)).astype(np.float32)
    plain = load_backbone("test_efficientnet", weights="none").network
    expected = plain(torch.from_numpy(batch)).numpy()
    made = make_engine(plain)
    name, engine = made.name, made.run
    assert name == "torch-cuda-fp32"
    assert np.abs(engine(batch) - expected).max() < 5e-3 * np.abs(expected).max()


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return np.array([[row["train_loss"], row["validation_loss"]] for row in rows])


def test_a_training_on_the_device_follows_the_one_on_the_cpu(manifest, tmp_path):
    for device in ("cpu", "cuda"):
        job = make_job(manifest, tmp_path / device, epochs=3, lr=1e-4)
        machine = Machine(device=device, precision="fp32")
        tuned = tune(job, make_network("test_convnext"), machine=machine)
        assert tuned.settled.device.type == device
        assert all(p.device.type == "cpu" for p in tuned.network.parameters())
    assert losses(tmp_path / "cuda") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-4)


@pytest.mark.parametrize(
    ("network", "prep"),
    [("test_efficientnet", PREP), ("test_convnext", PREP), ("test_vit", SQUARE)],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stopped_training_goes_on_to_the_same_bits(network, prep, precision, manifest, tmp_path):
    machine = Machine(device="cuda", precision=precision, checkpoint_s=0)
    for folder, stops in (("whole", (21,)), ("stopped", (2, 9, 21)), ("again", (21,))):
        for stop in stops:
            job = make_job(manifest, tmp_path / folder, prep=prep, **SETTINGS)
            workers = {"whole": 0, "stopped": 2, "again": 0}[folder]
            run(job, until=stop, machine=Machine(
                machine.device, machine.precision, workers, machine.checkpoint_s
            ), network=network)  # fmt: skip
    whole, stopped, again = (
        ((tmp_path / f / LAST).read_bytes(), (tmp_path / f / "metrics.jsonl").read_bytes())
        for f in ("whole", "stopped", "again")
    )
    assert whole == again
    assert whole == stopped


class _Resized(nn.Module):
    """A backbone with an operation whose gradient has no repeatable kind on CUDA devices."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3)

    def group_matcher(self, coarse=False):
        return {"stem": "^convolution"}

    def forward(self, images):
        larger = nn.functional.interpolate(self.convolution(images), scale_factor=2, mode="bicubic")
        return larger.mean(dim=(2, 3))


def test_a_network_that_cannot_be_repeated_to_the_bit_is_trained_and_said_so(
    manifest, tmp_path, caplog
):
    network = Network(_Resized(), 8, 2)
    network.start_head(seed=0)
    job = make_job(manifest, tmp_path, epochs=2, lr=1e-3)
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING, logger="lobule"):
        warnings.simplefilter("ignore")
        tuned = tune(job, network, machine=Machine(device="cuda", workers=0))
    assert tuned.state.finished
    (record,) = caplog.records
    assert record.message.startswith("fold 1: if it is resumed, it will not be bit-exact: upsample")
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_command_tunes_on_the_device_without_being_told(tissue, tmp_path):
    words = (
        "train", tissue.images, "-o", tmp_path / "r", "--recipe", "finetune", "--backbone",
        "test_efficientnet", "--weights", "none", "--folds", 2, "--size", 64, "--epochs", 2,
        "--set", "batch_size=8", "--set", "validation=0.25",
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "lobule", *map(str, words)], capture_output=True, text=True,
        env=os.environ, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "r" / "training" / "training.json").read_text())
    assert torch.cuda.get_device_name(0) in json.dumps(told)
    assert (tmp_path / "r" / "report.html").exists()
