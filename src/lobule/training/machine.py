"""What training runs on: device, precision, threads, and how that is chosen.

None of it is part of the recipe: it decides how fast the same training goes, and in which digits
it is rounded.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

import torch
from torch import nn

from lobule.errors import UsageError
from lobule.measured import cores
from lobule.training.distributed import ALONE, World

DeviceName = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16"]

NARROW = 64
"""Shorter side in pixels up to which a CPU trains in float32.

In bfloat16 on a CPU with AMX, convolutions of stride 2 whose output is one pixel wide read memory
that was not written (torch 2.14): seen with images of 32 pixels and a network that reduces them 32
times. Twice that leaves room for one that reduces them more.
"""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Machine:
    """What was asked for.

    workers: threads that load images beside the one that trains; None leaves it to `loaders`.
    checkpoint_s: seconds between checkpoints; 0 writes one after every step. world: the processes
    that train together.
    """

    device: DeviceName = "auto"
    precision: Precision = "auto"
    workers: int | None = None
    checkpoint_s: float = 60.0
    world: World = ALONE

    def __post_init__(self) -> None:
        """Refuse what no machine has."""
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"--workers must be 0 or more, got {self.workers}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("--device cuda: torch finds no CUDA device", fix="see `lobule doctor`")

    def loaders(self, device: torch.device) -> int:
        """Return how many threads load: those asked for, or what pays.

        Beside a CUDA device, which waits for a single loader most of the time, up to four that
        have a core of their own; beside a CPU, which has none to spare, none.
        """
        if self.workers is not None:
            return self.workers
        if device.type != "cuda":
            return 0
        each = cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return max(0, min(4, each - 1))


@dataclass(frozen=True)
class Settled:
    """What will be used: a device, and whether the network runs in bfloat16."""

    device: torch.device
    bf16: bool

    def record(self) -> dict[str, str]:
        """Return what must be the same for the same bits to come out."""
        return {
            "device": str(self.device.type),
            "processor": torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else platform.machine() + (" " + torch.backends.cpu.get_cpu_capability()),
            "precision": "bf16" if self.bf16 else "fp32",
            "threads": str(torch.get_num_threads()),
            **{name: version(name) for name in ("torch", "timm", "numpy")},
        }


def settle(machine: Machine, network: nn.Module, shortest_px: int) -> Settled:
    """Choose what this machine is good at, where it was not named and not measured (`probe`).

    A CUDA device before the CPU. bfloat16 where the hardware multiplies it. On a CPU, networks
    with depthwise convolutions stay in float32, since those have no fast bfloat16 kernel there,
    and so does all where the shortest side of an image is too `NARROW`, whatever was asked for.
    """
    device = choose_device(machine)
    narrow = too_narrow(device, shortest_px)
    if machine.precision == "auto":
        fast = device.type == "cuda" or not has_depthwise(network)
        return Settled(device, bf16_is_native(device) and fast and not narrow)
    if machine.precision == "bf16" and narrow:
        _log.warning("a side of %d pixels is too short for bf16 on a CPU; fp32 it is", shortest_px)
    return Settled(device, machine.precision == "bf16" and not narrow)


def too_narrow(device: torch.device, shortest_px: int) -> bool:
    """Whether images are too small for bfloat16 there."""
    return device.type == "cpu" and shortest_px <= NARROW


def choose_device(machine: Machine) -> torch.device:
    """Return a CUDA device if there is one and no other was asked for."""
    cuda = machine.device == "cuda" or (machine.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda", machine.world.local_rank) if cuda else torch.device("cpu")


def bf16_is_native(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return cpu_multiplies_bf16()


@contextmanager
def repeatable(settled: Settled) -> Iterator[None]:
    """Compute the same bits every time on a CUDA device, and float32 as float32.

    An operation that has no implementation of that kind raises RuntimeError; see `relax`. A CPU
    needs none of this.
    """
    if settled.device.type != "cuda":
        yield
        return
    # torch refuses every matrix product where cuBLAS was not told this
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    memory: Any = torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        memory.fill_uninitialized_memory,
        torch.backends.cuda.matmul.allow_tf32,
    )
    # attention has two kinds of gradient, and takes the repeatable one only where all must be
    torch.use_deterministic_algorithms(True)
    # nothing here reads memory that was not written, and writing it twice takes time
    memory.fill_uninitialized_memory = False
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory, torch.backends.cuda.matmul.allow_tf32 = before[2:]


def relax(error: RuntimeError) -> bool:
    """Whether `error` is of an operation that cannot be repeated to the bit; allow it if so."""
    strict = not torch.is_deterministic_algorithms_warn_only_enabled()
    if strict and "does not have a deterministic implementation" in str(error):
        torch.use_deterministic_algorithms(True, warn_only=True)
        return True
    return False


def cpu_multiplies_bf16() -> bool:
    """Whether the CPU has instructions for bfloat16; False where torch is too old to tell."""
    told: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(told.get("amx_bf16") or told.get("avx512_bf16"))


def has_depthwise(network: nn.Module) -> bool:
    """Whether a convolution has a filter of its own for every channel."""
    return any(
        isinstance(m, nn.Conv2d) and 1 < m.groups == m.in_channels for m in network.modules()
    )
