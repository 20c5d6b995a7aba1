"""How fast images get ready for tuning, and how fast networks are tuned on this machine.

    python -m benchmarks.tuning ../shared/data/breakhis-100x

The first lines are of loading alone, in one thread: each photograph decoded, resized and augmented
anew by torchvision, as is usual, beside Lobule's cached pixels augmented in batches; the same kinds
of change. They show the median ratio over alternating repetitions, with its range. The table is of
the whole training loop.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torchvision.transforms import v2

from lobule.data.cache import open_pixels
from lobule.data.images import Preprocessing, decode
from lobule.data.manifest import Manifest
from lobule.models.backbones import load_backbone
from lobule.models.network import Network
from lobule.training.augment import augment, normalise
from lobule.training.batches import EpochShare, Examples, load, plan_epoch
from lobule.training.fit import Job
from lobule.training.loop import tune
from lobule.training.machine import Machine, Settled
from lobule.training.recipe import RECIPES
from lobule.training.tuning import Tuning
from lobule.workflow import load_data

IMAGES, REPETITIONS = 64, 5

NETWORKS = (("tf_efficientnet_lite0", "finetune"), ("densenet201", "densenet201"))


def main(folder: Path) -> None:
    data = load_data(folder)
    manifest = data.where(np.arange(len(data)) % (len(data) // IMAGES) == 0)
    with tempfile.TemporaryDirectory() as cache:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        loading(manifest, Path(cache))
        torch.set_num_threads(threads)
        print("\n| network | longer side, px | device | precision | workers | images a second |")
        print("| --- | --- | --- | --- | --- | --- |")
        # a CPU that trains has no core left to load with
        workers = (0, 4) if torch.cuda.is_available() else (0,)
        for name, recipe in NETWORKS:
            for precision in ("fp32", "bf16"):
                for n in workers:
                    training(
                        manifest, Path(cache), name, recipe, Machine(precision=precision, workers=n)
                    )


def loading(manifest: Manifest, cache: Path) -> None:
    tuning = Tuning()
    for side in (224, 384):
        prep = load_backbone().preprocessing(side)
        pixels = open_pixels(manifest, prep, cache)
        examples = Examples(np.arange(len(manifest)), *everything(len(manifest)))
        rates: dict[str, list[float]] = {"torchvision": [], "lobule": []}
        for repetition in range(1, REPETITIONS + 1):
            plan = plan_epoch(pixels, examples, tuning, seed=0, epoch=repetition)
            share = EpochShare(pixels, examples, tuning, plan, 0, repetition, 1280)
            began = time.perf_counter()
            for batch in load(share, start=0, workers=0):
                normalise(augment(batch.images, batch.draws), prep)
            rates["lobule"].append(len(manifest) / (time.perf_counter() - began))
            began = time.perf_counter()
            for members in (p.members for p in plan):
                usual(manifest, members, prep, tuning)
            rates["torchvision"].append(len(manifest) / (time.perf_counter() - began))
        ratios = np.array(rates["lobule"]) / np.array(rates["torchvision"])
        told = ", ".join(f"{name} {np.median(r):.0f} images a second" for name, r in rates.items())
        print(f"{side} px: {told}; {np.median(ratios):.1f} times "
              f"({ratios.min():.1f} to {ratios.max():.1f})")  # fmt: skip


def usual(manifest: Manifest, members: np.ndarray, prep: Preprocessing, tuning: Tuning) -> None:
    width, height = prep.size(700, 460)
    change = v2.Compose([
        v2.ToImage(),
        v2.Resize((height, width), antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandomVerticalFlip(),
        v2.RandomAffine(0, translate=(tuning.shift,) * 2, scale=(1 - tuning.zoom, 1 + tuning.zoom)),
        v2.ColorJitter(brightness=tuning.brightness, saturation=0.1, hue=0.02),
        v2.GaussianBlur(7, (0.1, tuning.blur_px)),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(prep.mean, prep.std),
    ])  # fmt: skip
    torch.stack([change(decode(manifest.root / p)) for p in manifest.table["path"].iloc[members]])


def training(manifest: Manifest, cache: Path, name: str, recipe: str, machine: Machine) -> None:
    # enough of them that a device is not done before its loaders have begun
    n = 512 if torch.cuda.is_available() else len(manifest)
    rate, settled, prep = train_rate(manifest, cache, name, recipe, machine, n)
    device = settled.record()["processor"]
    print(f"| {name} | {prep.long_side_px} | {device} | {machine.precision} | {machine.workers} "
          f"| {rate:.1f} |", flush=True)  # fmt: skip


def train_rate(
    manifest: Manifest,
    cache: Path,
    name: str,
    recipe: str,
    machine: Machine,
    n: int,
    *,
    aspect: Literal["keep", "square"] = "keep",
) -> tuple[float, Settled, Preprocessing]:
    """Return images a second of the training loop over `n` images, and what it ran on."""
    stated = RECIPES[recipe]
    backbone = load_backbone(name, weights="none")
    prep = replace(backbone.preprocessing(stated.long_side_px or 224), aspect=aspect)
    # everything learns from the first step: what an epoch costs once all is unfrozen
    tuning = replace(stated.tuning or Tuning(), epochs=1, head="random", unfreeze_epochs=0)
    everyone = Examples(np.resize(np.arange(len(manifest)), n), *everything(n))
    few = Examples(everyone.rows[:2], everyone.y[:2], everyone.weight[:2])
    network = Network(backbone.network.requires_grad_(True), backbone.n_features, 2)
    network.start_head(seed=0)
    stamps = [time.perf_counter()]

    def watch(items, *, total, task):
        for item in items:
            stamps.append(time.perf_counter())
            yield item

    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            name="bench", folder=Path(folder), pixels=open_pixels(manifest, prep, cache),
            paths=tuple(manifest.table["path"]), train=everyone, validation=few, prep=prep,
            tuning=tuning, seed=0, identity={},
        )  # fmt: skip
        settled = tune(job, network, machine=machine, progress=watch).settled
    images = [len(p.members) for p in plan_epoch(job.pixels, everyone, tuning, seed=0, epoch=1)]
    # the first steps allocate and start the loaders, the last one validates and saves
    counted = slice(max(1, len(images) // 8), -1)
    return sum(images[counted]) / np.diff(stamps)[counted].sum(), settled, prep


def everything(n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(n) % 2, np.ones(n)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
