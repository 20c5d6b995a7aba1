"""Several processes, on one machine or many, that train one network: torchrun sets the scene.

The first process (the leader) runs the whole job as if it were alone and is the only one that
writes. The others wait for networks to train: for each they get what the leader has, take their
share of every batch, and come out with the same weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from lobule.errors import TrainingError
from lobule.training.signals import Stopped

WAIT = timedelta(days=30)
"""How long a process waits for the others; the leader's part between two networks may be long."""


@dataclass(frozen=True)
class World:
    """Which of how many processes this one is; alone, every exchange gives back what it got."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process runs the job and writes."""
        return self.rank == 0

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of `values` over all processes, on their device."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def align(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give `tensors` the leader's values in every process."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def share(self, value: Any) -> Any:  # noqa: ANN401  whatever the leader sends
        """Return the leader's `value` in every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]


ALONE = World()


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined() -> Iterator[World]:
    """Join the processes that torchrun started, and leave them at the end."""
    if not launched():
        yield ALONE
        return
    local_rank = int(os.environ["LOCAL_RANK"])
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=WAIT)
    try:
        yield World(dist.get_rank(), dist.get_world_size(), local_rank)
    finally:
        dist.destroy_process_group()


@contextmanager
def leading(world: World) -> Iterator[None]:
    """Send the others home at the end, unless they have met the same end themselves."""
    try:
        yield
    except (Stopped, TrainingError):
        raise
    except BaseException:
        # whatever it is, the others would wait for ever; it is raised again
        world.share(None)
        raise
    world.share(None)
