"""A training small enough to be killed a hundred times, and what runs it in another process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from lobule.data.cache import open_pixels
from lobule.data.images import Preprocessing
from lobule.data.manifest import Manifest, complete, measure
from lobule.models.backbones import build
from lobule.models.network import Network
from lobule.training.batches import Examples
from lobule.training.checkpoint import read_checkpoint
from lobule.training.fit import Job
from lobule.training.loop import tune
from lobule.training.machine import Machine
from lobule.training.signals import Stopped
from lobule.training.tuning import Tuning

PREP = Preprocessing(48, "keep", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def write_images(folder: Path, *, n: int = 30) -> Manifest:
    """Write small photographs, the odd ones redder than the even ones, one of them upright."""
    rng = np.random.default_rng(5)
    rows = []
    for i in range(n):
        size = (32, 48) if i == 3 else (48, 32)
        pixels = rng.integers(0, 200, (*size[::-1], 3), dtype=np.uint8)
        pixels[..., 0] += np.uint8(40 * (i % 2))
        path = folder / f"{i:02d}.png"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        label = ("benign", "malignant")[i % 2]
        rows.append({"path": path.name, "label": label, "patient": f"P{i // 2}", **measure(path)})
    return Manifest(folder, complete(pd.DataFrame(rows)))


def make_job(
    manifest: Manifest, folder: Path, *, seed: int = 0, prep: Preprocessing = PREP, **tuning: object
) -> Job:
    """Return a job on such images, the last eight of them for validation."""
    y = (manifest.table["label"] == "malignant").to_numpy().astype(np.int64)
    rows = np.arange(len(y))
    parts = {
        part: Examples(rows[chosen], y[chosen], np.ones(len(rows[chosen])))
        for part, chosen in (("train", slice(None, -8)), ("validation", slice(-8, None)))
    }
    settings = {"epochs": 6, "batch_size": 6, "head": "random", "patience": 0, **tuning}
    return Job(
        name="fold 1",
        folder=folder,
        pixels=open_pixels(manifest, prep, manifest.root / "cache"),
        paths=tuple(manifest.table["path"]),
        prep=prep,
        tuning=Tuning(**settings),
        seed=seed,
        identity={"data": manifest.data_hash, "recipe": str(settings)},
        **parts,
    )


def make_network(name: str = "test_efficientnet", *, seed: int = 0) -> Network:
    """Return a network of 0.1 million random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = build(name)
        width = backbone(torch.zeros(2, 3, 160, 160)).shape[1]
    network = Network(backbone, width, 2)
    network.start_head(seed=seed)
    return network


def run(job: Job, *, until: int | None = None, machine: Machine, network: str) -> None:
    """Train in this process, to the end, or to step `until`, where SIGTERM arrives."""
    # so small a network only waits for a second thread, and long on a busy machine
    torch.set_num_threads(1)
    done = read_checkpoint(job.folder)
    step = 0 if done is None else done.record["state"]["step"]
    if until is not None and step >= until:
        # it was killed after the last checkpoint, on its way out
        return

    def watch(items, *, total, task):
        nonlocal step
        items = iter(items)
        while True:
            if until is not None and step == until - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            try:
                item = next(items)
            except StopIteration:
                return
            step += 1
            yield item

    try:
        tune(job, make_network(network), machine=machine, progress=watch)
    except Stopped:
        if until is None:
            raise
