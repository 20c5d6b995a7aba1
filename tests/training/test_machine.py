"""What training runs on: what is asked for wins, and what is not is chosen by the hardware."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from torch import nn

from lobule.errors import UsageError
from lobule.models.backbones import build
from lobule.training.machine import (
    NARROW,
    Machine,
    Settled,
    cpu_multiplies_bf16,
    has_depthwise,
    settle,
)

CPU = torch.device("cpu")

CPUINFO = Path("/proc/cpuinfo")


def flags() -> set[str]:
    """What Linux says that the processor can do; nothing elsewhere."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    return set(next((line for line in lines if line.startswith("flags")), "").split())


without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@pytest.mark.parametrize(
    ("name", "depthwise"),
    [
        ("test_resnet", False), ("test_vit", False),
        ("test_efficientnet", True), ("test_convnext", True),
        ("tf_efficientnet_lite0", True), ("densenet201", False),
    ],
)  # fmt: skip
def test_depthwise_networks_are_known(name, depthwise):
    assert has_depthwise(build(name)) == depthwise


def test_a_convolution_of_one_channel_or_of_a_few_groups_is_not_depthwise():
    assert not has_depthwise(nn.Conv2d(1, 8, 3))
    assert not has_depthwise(nn.Conv2d(8, 8, 3, groups=4))
    assert has_depthwise(nn.Sequential(nn.Conv2d(8, 16, 3, groups=8)))


@pytest.mark.skipif(not flags(), reason="the processor's flags are not told here")
def test_what_the_processor_multiplies_is_what_linux_says_of_it():
    assert cpu_multiplies_bf16() == bool({"amx_bf16", "avx512_bf16"} & flags())


def test_depthwise_networks_stay_in_float32_on_a_cpu():
    network = build("test_efficientnet")
    assert settle(Machine(device="cpu"), network, NARROW + 1) == Settled(CPU, bf16=False)


def test_other_networks_run_in_bfloat16_where_the_cpu_multiplies_it():
    found = settle(Machine(device="cpu"), build("test_resnet"), NARROW + 1)
    assert found == Settled(CPU, bf16=cpu_multiplies_bf16())


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
@pytest.mark.parametrize(("precision", "bf16"), [("fp32", False), ("bf16", True)])
def test_a_precision_that_is_asked_for_wins(name, precision, bf16):
    found = settle(Machine(device="cpu", precision=precision), build(name), NARROW + 1)
    assert found == Settled(CPU, bf16=bf16)


@pytest.mark.parametrize(("precision", "warnings"), [("auto", 0), ("fp32", 0), ("bf16", 1)])
def test_where_an_image_is_narrow_a_cpu_trains_in_float32_whatever_was_asked_for(
    precision, warnings, caplog
):
    found = settle(Machine(device="cpu", precision=precision), build("test_resnet"), NARROW)
    assert found == Settled(CPU, bf16=False)
    assert len(caplog.records) == warnings


@without_cuda
def test_without_a_cuda_device_the_cpu_is_taken_and_cuda_refused():
    network = nn.Linear(1, 1)
    assert settle(Machine(), network, 224).device == CPU
    with pytest.raises(UsageError) as caught:
        settle(Machine(device="cuda"), network, 224)
    assert str(caught.value) == ("--device cuda: torch finds no CUDA device\n  see `lobule doctor`")


def test_fewer_than_no_workers_are_refused():
    with pytest.raises(UsageError, match="--workers must be 0 or more, got -1"):
        Machine(workers=-1)


@pytest.mark.parametrize(
    ("cores", "processes", "loaders"), [(1, 1, 0), (2, 1, 1), (16, 1, 4), (16, 4, 3), (4, 8, 0)]
)
def test_processes_load_for_a_cuda_device_where_cores_are_free(
    cores, processes, loaders, monkeypatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert Machine().loaders(torch.device("cuda")) == loaders
    assert Machine().loaders(CPU) == 0
    assert Machine(workers=7).loaders(CPU) == Machine(workers=7).loaders(torch.device("cuda")) == 7


def test_the_record_says_what_the_bits_depend_on():
    record = Settled(CPU, bf16=True).record()
    assert record == {
        "device": "cpu",
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "precision": "bf16",
        "threads": str(torch.get_num_threads()),
        "torch": version("torch"),
        "timm": version("timm"),
        "numpy": version("numpy"),
    }
    assert Settled(CPU, bf16=False).record() == record | {"precision": "fp32"}


def test_another_number_of_threads_is_another_record():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 3)
        assert Settled(CPU, bf16=False).record()["threads"] == str(threads + 3)
    finally:
        torch.set_num_threads(threads)
