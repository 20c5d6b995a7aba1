"""Which images make up which batch of an epoch, and how they are loaded.

The order of an epoch is drawn from (seed, epoch). Images that lie and images that stand upright
after their view was drawn come in batches of their own, so that no view has to be padded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lobule.data.cache import PixelCache
from lobule.parallel import ahead
from lobule.training.augment import Draws, draw, drawn_view, lay
from lobule.training.tuning import Tuning

Size = tuple[int, int]


@dataclass(frozen=True)
class Examples:
    """Images to train on or to validate on.

    rows: (n,) of the pixel cache. y: (n,) class indices. weight: (n,) in the loss.
    """

    rows: NDArray[np.int64]
    y: NDArray[np.int64]
    weight: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Batch:
    """One process's share of a batch, before it is augmented.

    images: (n, h, w, 3) uint8. draws: what becomes of them. y: (n,). weight: (n,) float32, as a
    share of the weight of the whole batch. rows: (n,) of the pixel cache.
    """

    images: Tensor
    draws: Draws
    y: Tensor
    weight: Tensor
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Planned:
    """A batch that is yet to be loaded: positions among the examples, and the size all get."""

    members: NDArray[np.int64]
    canvas: Size


def canvas_of(sizes: Sequence[Size]) -> Size:
    """Return the size that batches have when they lie: the commonest, (height, width) in pixels."""
    lying = Counter((min(size), max(size)) for size in sizes)
    return max(lying, key=lambda size: (lying[size], size))


def plan_epoch(
    pixels: PixelCache, examples: Examples, tuning: Tuning, *, seed: int, epoch: int
) -> list[Planned]:
    """Deal the examples into the batches of an epoch; each is in exactly one.

    Batches are as equal as they can be, and none is larger than tuning.batch_size.
    """
    sizes = [pixels.sizes[row] for row in examples.rows]
    height, width = canvas_of(sizes)
    upright = np.array([
        (h > w) != bool(drawn_view(pixels.sha256[row], seed=seed, epoch=epoch) % 2)
        for row, (h, w) in zip(examples.rows, sizes, strict=True)
    ])  # fmt: skip
    if height == width:
        upright[:] = False
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(examples))
    batches = []
    for stands, canvas in ((False, (height, width)), (True, (width, height))):
        members = order[upright[order] == stands]
        if len(members):
            n = -(-len(members) // tuning.batch_size)
            batches += [Planned(part, canvas) for part in np.array_split(members, n)]
    return [batches[i] for i in rng.permutation(len(batches))]


@dataclass(frozen=True)
class EpochShare:
    """One process's share of an epoch's batches, by number.

    rank, size: which of how many processes. n_features: of the dropout.
    """

    pixels: PixelCache
    examples: Examples
    tuning: Tuning
    plan: Sequence[Planned]
    seed: int
    epoch: int
    n_features: int
    rank: int = 0
    size: int = 1

    def __getitem__(self, number: int) -> Batch:
        """Load batch `number`."""
        planned = self.plan[number]
        total = self.examples.weight[planned.members].sum()
        mine = planned.members[self.rank :: self.size]
        weight = self.examples.weight[mine] / total
        # every process needs as many images as the others, and batch norm needs two; what is
        # missing is filled up with images that count for nothing
        want = max(2, -(-len(planned.members) // self.size))
        lacking = want - len(mine)
        if lacking:
            mine = np.concatenate([mine, np.resize(planned.members, lacking)])
            weight = np.concatenate([weight, np.zeros(lacking)])
        rows = self.examples.rows[mine]
        draws = draw(
            [self.pixels.sha256[row] for row in rows], self.tuning,
            seed=self.seed, epoch=self.epoch, n_features=self.n_features,
        )  # fmt: skip
        images = [
            lay(self.pixels[row], int(view), planned.canvas)
            for row, view in zip(rows, draws.view, strict=True)
        ]
        return Batch(
            images=torch.from_numpy(np.stack(images)),
            draws=draws,
            y=torch.from_numpy(self.examples.y[mine]),
            weight=torch.from_numpy(weight.astype(np.float32)),
            rows=rows,
        )

    def __len__(self) -> int:
        return len(self.plan)


def load(share: EpochShare, *, start: int, workers: int) -> Iterator[Batch]:
    """Yield the batches of an epoch from number `start` on, loaded ahead by `workers` threads.

    Threads and not processes: what they spend their time on, copies of pixels, they do at the same
    time, and a process that is forked from one with threads can be left with what these had locked.
    """
    numbers = range(start, len(share))
    if not workers:
        return map(share.__getitem__, numbers)
    return ahead(share.__getitem__, numbers, threads=workers)


def validation_batches(
    pixels: PixelCache, examples: Examples, *, batch_size: int, rank: int = 0, size: int = 1
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """Yield positions among the examples and images (n, h, w, 3) uint8 of one size, unaltered.

    Each process gets a share of the batches, and together they see each image once.
    """
    by_size: dict[Size, list[int]] = {}
    for i, row in enumerate(examples.rows):
        by_size.setdefault(pixels.sizes[row], []).append(i)
    batches = [
        members[i : i + batch_size]
        for _, members in sorted(by_size.items())
        for i in range(0, len(members), batch_size)
    ]
    for members in batches[rank::size]:
        images = np.stack([pixels[examples.rows[i]] for i in members])
        yield np.array(members), torch.from_numpy(images)
