"""Training DenseNet201: Lobule's recipe beside the tutorial's in Keras, fastai, and torch alone.

All in images a second of an epoch's training part. Lobule's whole loop is in it: pixels from the
cache, augmentation, forward, backward, optimiser, logs. torch alone is the same network on random
tensors of the same sizes, with the same optimiser: what the hardware gives.
"""

from __future__ import annotations

import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import told
from benchmarks.peers import Peer
from benchmarks.tuning import train_rate
from lobule.data.manifest import Manifest
from lobule.models.backbones import load_backbone
from lobule.models.network import Network
from lobule.training.machine import Machine, bf16_is_native, choose_device, repeatable, settle
from lobule.workflow import load_data

IMAGES, REPETITIONS, BATCH = 336, 3, 16

LYING = (147, 224)

SHAPES = {"keep": "224 x 147", "square": "224 x 224"}
"""What the recipe makes of photographs, and what the tutorial and fastai make of them."""


def measure(data: Path) -> dict[str, Any]:
    """Return images a second by way, one figure a repetition."""
    manifest = load_data(data)
    some = manifest.where(np.arange(len(manifest)) % max(1, len(manifest) // IMAGES) == 0)
    kinds = ["fp32"] + (["bf16"] if bf16_is_native(choose_device(Machine())) else [])
    rates: dict[str, list[float]] = {}
    with (
        Peer("keras", data) as keras, Peer("fastai", data) as fastai,
        tempfile.TemporaryDirectory() as folder,
    ):  # fmt: skip
        keras.warm()
        fastai.warm()
        versions = {**keras.ask("versions"), **fastai.ask("versions")}
        # once, so that no one decodes, and oneDNN prepares nothing, while it is timed
        for kind, shape in product(kinds, SHAPES):
            lobule(some, Path(folder), kind, shape)
        for repetition in range(REPETITIONS):
            print(f"repetition {repetition + 1} of {REPETITIONS}", file=sys.stderr, flush=True)
            note(rates, "Keras, the tutorial's recipe", keras.rate("train", images=IMAGES))
            note(rates, "fastai", fastai.rate("train", images=IMAGES))
            for kind in kinds:
                for shape, size in SHAPES.items():
                    rate = lobule(some, Path(folder), kind, shape)
                    note(rates, f"Lobule {kind}, {size}", rate)
                note(rates, f"torch alone {kind}, 224 x 147", torch_alone(kind))
    print(f"{versions}; in images a second:\n")
    print("| way | median (range) | times Keras | times fastai |\n| --- | --- | --- | --- |")
    for name, found in rates.items():
        ratios = [told(list(np.array(found) / rates[base])) for base in list(rates)[:2]]
        print(f"| {name} | {told(found, 1)} | {' | '.join(ratios)} |")
    shares = {}
    for kind in kinds:
        pairs = (
            np.array(rates[f"Lobule {kind}, 224 x 147"]) / rates[f"torch alone {kind}, 224 x 147"]
        )
        shares[kind] = list(pairs)
        print(f"\nshare of torch alone, {kind}: {told(shares[kind])}")
    return {"versions": versions, "images_a_second": rates, "share_of_torch_alone": shares}


def note(rates: dict[str, list[float]], name: str, rate: float) -> None:
    rates.setdefault(name, []).append(rate)


def lobule(some: Manifest, cache: Path, kind: str, shape: str, n: int = IMAGES) -> float:
    machine = Machine(precision=kind)
    return train_rate(some, cache, "densenet201", "densenet201", machine, n, aspect=shape)[0]


def torch_alone(kind: str, *, steps: int = IMAGES // BATCH) -> float:
    """Return images a second of forward, backward and Adam on random tensors."""
    backbone = load_backbone("densenet201", weights="none")
    network = Network(backbone.network.requires_grad_(True), backbone.n_features, 2).train()
    settled = settle(Machine(precision=kind), network)
    network.to(settled.device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), 1e-4, fused=settled.device.type == "cpu")
    y = (torch.arange(BATCH) % 2).to(settled.device)
    sizes = [LYING, LYING[::-1]]
    batches = [
        torch.randn(BATCH, 3, *size)
        .to(settled.device)
        .contiguous(memory_format=torch.channels_last)
        for size in sizes
    ]
    with repeatable(settled):
        for step in range(-2, steps):
            if step == 0:
                began = time.perf_counter()
            with torch.autocast(settled.device.type, torch.bfloat16, enabled=settled.bf16):
                logits = network(batches[step % 2])
            loss = torch.nn.functional.cross_entropy(logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            float(loss.detach())
    return BATCH * steps / (time.perf_counter() - began)
