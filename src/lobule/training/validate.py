"""What a network says of the validation patients, and which of two epochs is the better."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.special import log_softmax

from lobule.data.cache import PixelCache
from lobule.data.images import Preprocessing
from lobule.evaluation.metrics import confusion, decision_metrics, score_metrics
from lobule.models.network import Network
from lobule.training.augment import normalise, to_light
from lobule.training.batches import Examples, validation_batches
from lobule.training.distributed import ALONE, World
from lobule.training.machine import Settled
from lobule.training.tuning import Metric

LEAST = 1e-4
"""By how much a figure must be better to count: less is within what rounding may do."""


def validate(
    network: Network,
    pixels: PixelCache,
    examples: Examples,
    prep: Preprocessing,
    *,
    settled: Settled,
    batch_size: int,
    world: World = ALONE,
) -> dict[Metric, float | None]:
    """Return each figure of `tuning.METRICS` on the plain view; undefined ones are None.

    The loss has the weights of the examples, the others count images.
    """
    logits = torch.zeros(len(examples), network.linear.out_features, device=settled.device)
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    batches = validation_batches(
        pixels, examples, batch_size=batch_size, rank=world.rank, size=world.size
    )
    with torch.inference_mode():
        for members, images in batches:
            light = normalise(to_light(images.to(settled.device)), prep)
            with torch.autocast(settled.device.type, torch.bfloat16, enabled=settled.bf16):
                logits[torch.from_numpy(members)] = network(light)
        told = world.total(logits).double().cpu().numpy()
    for module, was in modes:
        module.training = was
    log_prob = log_softmax(told, axis=1)
    y, weight = examples.y, examples.weight / examples.weight.sum()
    scored = score_metrics(y, np.exp(log_prob))
    decided = decision_metrics(confusion(y, log_prob.argmax(1), log_prob.shape[1]))
    figures: dict[Metric, float] = {
        "loss": float(-(log_prob[np.arange(len(y)), y] * weight).sum()),
        "accuracy": float(decided["accuracy"]),
        "balanced_accuracy": float(decided["balanced_accuracy"]),
        "roc_auc": float(scored["roc_auc"]),
        "average_precision": float(scored["average_precision"]),
    }
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def better(value: float | None, best: float | None, metric: Metric) -> bool:
    """Whether `value` beats `best` by more than LEAST; undefined beats nothing, all beats None."""
    if value is None:
        return False
    if best is None:
        return True
    gain = best - value if metric == "loss" else value - best
    return gain > LEAST
