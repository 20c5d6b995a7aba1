"""Which precision a network is tuned in: a few steps of each are timed, once a machine."""

from __future__ import annotations

import copy
import hashlib
import logging
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from lobule.errors import UsageError
from lobule.measured import keep, recall
from lobule.training.machine import (
    NARROW,
    Machine,
    Settled,
    bf16_is_native,
    choose_device,
    repeatable,
    too_narrow,
)

GAIN = 1.1
"""How many times as fast bfloat16 must be to be worth its rounding."""

STEPS = 2

_log = logging.getLogger(__name__)


def choose_precision(
    machine: Machine, network: nn.Module, size: tuple[int, int], *, batch_size: int, cache: Path
) -> Machine:
    """Return the machine with its precision settled, where "auto" was asked for.

    network: maps (n, 3, h, w) to (n, d); it is left as it is. size: height and width in pixels.
    cache: remembers what was measured here. bfloat16 is timed only where the hardware multiplies
    it, and taken where a step is `GAIN` times as fast: with depthwise convolutions it often is not.
    Raises UsageError if it was asked for on a CPU for images that are `too_narrow`.
    """
    device = choose_device(machine)
    narrow = too_narrow(device, min(size))
    if machine.precision == "bf16" and narrow:
        raise UsageError(
            f"--precision bf16: images of {size[0]} x {size[1]} pixels are too small on a CPU",
            fix=f"leave --precision out, or choose a --size that leaves more than {NARROW} pixels",
        )
    if machine.precision != "auto":
        return machine
    if narrow or not bf16_is_native(device):
        return replace(machine, precision="fp32")
    what = f"training step {_family(network)} {batch_size} x {size} on {_name(device)}"
    seconds = recall(cache, what)
    if seconds is None:
        seconds = {
            name: time_step(network, size, batch_size, Settled(device, bf16=name == "bf16"))
            for name in ("fp32", "bf16")
        }
        keep(cache, what, seconds)
        _log.info(
            "a training step of %d images takes %.2f s in fp32 and %.2f s in bf16",
            batch_size, seconds["fp32"], seconds["bf16"],
        )  # fmt: skip
    better = seconds["fp32"] >= GAIN * seconds["bf16"]
    return replace(machine, precision="bf16" if better else "fp32")


def time_step(
    network: nn.Module, size: tuple[int, int], batch_size: int, settled: Settled
) -> float:
    """Return the seconds of one forward and backward pass, the least of a few after a first."""
    learning = copy.deepcopy(network).requires_grad_(True).train().to(settled.device)
    learning.to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 3, *size, generator=generator).to(settled.device)
    images = images.contiguous(memory_format=torch.channels_last)
    taken = []
    # stochastic depth draws from the global generator, which is not ours to move
    with torch.random.fork_rng(), repeatable(settled):
        for _ in range(1 + STEPS):
            began = time.perf_counter()
            with torch.autocast(settled.device.type, torch.bfloat16, enabled=settled.bf16):
                loss = learning(images).float().square().mean()
            loss.backward()
            if settled.device.type == "cuda":
                torch.cuda.synchronize(settled.device)
            taken.append(time.perf_counter() - began)
    return min(taken[1:])


def _family(network: nn.Module) -> str:
    """Name a network by the shapes of its weights: what it has learned does not matter here."""
    shapes = [(name, tuple(p.shape)) for name, p in network.named_parameters()]
    return hashlib.sha256(repr(shapes).encode()).hexdigest()[:16]


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{torch.get_num_threads()} threads, torch {torch.__version__}"
