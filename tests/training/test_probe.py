"""The precision of tuning: what was asked for, or what was faster here."""

from __future__ import annotations

import json

import pytest
import torch

from lobule.errors import UsageError
from lobule.models.backbones import build
from lobule.training import machine as machines
from lobule.training.machine import NARROW, Machine, Settled, cpu_multiplies_bf16
from lobule.training.probe import GAIN, choose_precision, time_step

CPU = Machine(device="cpu")


def choose(tmp_path, machine=CPU, size=(NARROW + 1, 96)):
    return choose_precision(machine, build("test_resnet"), size, batch_size=4, cache=tmp_path)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_asked_for_is_taken_unmeasured(tmp_path, precision):
    asked = Machine(device="cpu", precision=precision)
    assert choose(tmp_path, asked) == asked
    assert not list(tmp_path.iterdir())


def test_a_cpu_without_bfloat16_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(machines, "cpu_multiplies_bf16", lambda: False)
    assert choose(tmp_path).precision == "fp32"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [(NARROW, 96), (96, NARROW)])
def test_small_images_are_not_trained_on_in_bfloat16_on_a_cpu(tmp_path, size):
    assert choose(tmp_path, size=size).precision == "fp32"
    assert not list(tmp_path.iterdir())
    asked = Machine(device="cpu", precision="bf16")
    with pytest.raises(UsageError, match=f"images of {size[0]} x {size[1]} pixels are too small"):
        choose(tmp_path, asked, size)


@pytest.mark.skipif(not cpu_multiplies_bf16(), reason="the CPU multiplies no bfloat16")
@pytest.mark.parametrize("faster", [GAIN * 1.01, GAIN * 0.99])
def test_bfloat16_is_taken_where_it_was_measured_to_pay(tmp_path, faster):
    choose(tmp_path)
    (file,) = tmp_path.rglob("*.json")
    record = json.loads(file.read_text())
    assert set(record["value"]) == {"fp32", "bf16"}
    assert min(record["value"].values()) > 0
    # another measurement in its place is believed, so none is made again
    record["value"] = {"fp32": faster, "bf16": 1.0}
    file.write_text(json.dumps(record))
    assert choose(tmp_path).precision == ("bf16" if faster > GAIN else "fp32")
    assert len(list(tmp_path.rglob("*.json"))) == 1


def test_measuring_changes_neither_network_nor_random_numbers():
    network = build("test_resnet")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    assert time_step(network, (32, 48), 4, Settled(torch.device("cpu"), bf16=False)) > 0
    assert torch.equal(torch.rand(4), expected)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
