"""What training runs on: device, precision, threads, and how that is chosen.

None of it is part of the recipe: it decides how fast the same training goes, and in which digits
it is rounded.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

import torch
from torch import nn

from lobule.errors import UsageError
from lobule.training.distributed import ALONE, World

DeviceName = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Machine:
    """What was asked for.

    workers: processes that load images beside the one that trains. checkpoint_s: seconds between
    checkpoints; 0 writes one after every step. world: the processes that train together.
    """

    device: DeviceName = "auto"
    precision: Precision = "auto"
    workers: int = 0
    checkpoint_s: float = 60.0
    world: World = ALONE

    def __post_init__(self) -> None:
        """Refuse what no machine has."""
        if self.workers < 0:
            raise UsageError(f"--workers must be 0 or more, got {self.workers}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("--device cuda: torch finds no CUDA device", fix="see `lobule doctor`")


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


def settle(machine: Machine, network: nn.Module) -> Settled:
    """Choose what this machine is good at, where it was not named.

    A CUDA device before the CPU. bfloat16 where the hardware multiplies it: on CUDA devices that
    do, on CPUs with AMX or AVX-512 bf16. On a CPU, networks with depthwise convolutions stay in
    float32, since those have no fast bfloat16 kernel and train slower in it.
    """
    cuda = machine.device == "cuda" or (machine.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda", machine.world.local_rank) if cuda else torch.device("cpu")
    if machine.precision != "auto":
        return Settled(device, machine.precision == "bf16")
    if cuda:
        return Settled(device, torch.cuda.is_bf16_supported(including_emulation=False))
    return Settled(device, cpu_multiplies_bf16() and not has_depthwise(network))


def cpu_multiplies_bf16() -> bool:
    """Whether the CPU has instructions for bfloat16; False where torch is too old to tell."""
    told: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(told.get("amx_bf16") or told.get("avx512_bf16"))


def has_depthwise(network: nn.Module) -> bool:
    """Whether a convolution has a filter of its own for every channel."""
    return any(
        isinstance(m, nn.Conv2d) and 1 < m.groups == m.in_channels for m in network.modules()
    )
