"""Which layers learn, how fast, and how the rates change over the epochs."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from timm.models import group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lobule.models.network import Network
from lobule.training.tuning import Tuning


def layers_of(network: Network) -> dict[str, int]:
    """Return the layer, counted from the input, of each parameter by name; the head is the last.

    What a layer is, timm says for each family of networks.
    """
    matcher = network.backbone.group_matcher(coarse=False)  # type: ignore[operator]
    layer = group_parameters(network.backbone, matcher, reverse=True)
    found = {f"backbone.{name}": int(number) for name, number in layer.items()}
    head = 1 + max(found.values())
    return {name: found.get(name, head) for name, _ in network.named_parameters()}


def make_optimizer(network: Network, tuning: Tuning) -> torch.optim.Optimizer:
    """Return Adam or AdamW over all parameters; `scale` in a group is its share of the rate.

    Biases and norms are not decayed, as is usual.
    """
    layer = layers_of(network)
    last = max(layer.values())
    # few groups, since the optimiser goes through each on its own
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in network.named_parameters():
        scale = tuning.layer_decay ** (last - layer[name])
        groups[scale, tuning.weight_decay if parameter.ndim > 1 else 0.0].append(parameter)
    made = [
        {"params": parameters, "scale": scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]
    kind = torch.optim.AdamW if tuning.optimizer == "adamw" else torch.optim.Adam
    # one pass over the weights; on a CUDA device it would want its step counter there
    on_cpu = all(parameter.device.type == "cpu" for parameter in network.parameters())
    return kind(made, lr=tuning.lr, fused=True if on_cpu else None)


def set_rates(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def cosine_rate(tuning: Tuning, progress: float) -> float:
    """Return the rate after `progress` epochs: a linear rise, then half a cosine to min_lr."""
    if progress < tuning.warmup_epochs:
        # the first step has a rate too, if a small one
        return tuning.lr * max(progress, 0.05) / tuning.warmup_epochs
    rest = max(tuning.epochs - tuning.warmup_epochs, 1)
    share = min((progress - tuning.warmup_epochs) / rest, 1.0)
    floor = min(tuning.min_lr, tuning.lr)
    return floor + (tuning.lr - floor) * (1 + math.cos(math.pi * share)) / 2


def plateau_rate(tuning: Tuning, reductions: int) -> float:
    """Return the rate after that many reductions, never below min_lr."""
    return max(tuning.lr * tuning.plateau_factor**reductions, min(tuning.min_lr, tuning.lr))


def unfreeze(network: Network, tuning: Tuning, *, epoch: int) -> None:
    """Set what learns in `epoch` (from 0): the head, and backbone layers from the last on.

    A frozen layer is frozen in its buffers too: its batch norms use the statistics they have, and
    so do all where norm_statistics are "frozen".
    """
    layer = layers_of(network)
    head = max(layer.values())
    share = tuning.unfreeze_share
    if tuning.unfreeze_epochs:
        share *= min(1.0, (epoch + 1) / tuning.unfreeze_epochs)
    opened = math.ceil(head * share)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(layer[name] >= head - opened)
    network.train()
    for module in network.modules():
        learns = any(p.requires_grad for p in module.parameters(recurse=False))
        if isinstance(module, _BatchNorm) and (tuning.norm_statistics == "frozen" or not learns):
            module.eval()
