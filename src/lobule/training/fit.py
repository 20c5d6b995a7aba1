"""All that changes while a network is tuned, and how it becomes a checkpoint and comes back."""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lobule.data.cache import PixelCache
from lobule.data.images import Preprocessing
from lobule.errors import TrainingError, show
from lobule.models.network import Network
from lobule.training.batches import Examples, Planned
from lobule.training.checkpoint import (
    Checkpoint,
    clear_leftovers,
    read_checkpoint,
    write_checkpoint,
    write_only,
)
from lobule.training.history import History
from lobule.training.machine import Machine, Settled, settle
from lobule.training.optimise import make_optimizer
from lobule.training.tuning import Tuning

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One network to tune.

    name: as in "fold 1". folder: for checkpoints and metrics. paths: of the images, by row of the
    pixel cache, for messages. seed: of all that is drawn. identity: what must be the same for a
    checkpoint to be gone on from, each as text.
    """

    name: str
    folder: Path
    pixels: PixelCache
    paths: tuple[str, ...]
    train: Examples
    validation: Examples
    prep: Preprocessing
    tuning: Tuning
    seed: int
    identity: dict[str, str]


@dataclass
class State:
    """Where training is: plain numbers, all of them in every checkpoint.

    epoch: epochs finished. batch: batches finished of the one under way. step: steps in all.
    loss, correct, images: sums over the batches of the epoch under way. best_epoch, best: the
    epoch kept, and its figure. waited: epochs since. plateau_best, plateau_waited, reductions: of
    the plateau schedule. finished: nothing is left to do. stopped: "early" or "all epochs".
    metrics: a row an epoch, as in metrics.jsonl.

    There is no state of a random generator: what is drawn is keyed by seed, epoch and image.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss: float = 0.0
    correct: int = 0
    images: int = 0
    best_epoch: int = 0
    best: float | None = None
    waited: int = 0
    plateau_best: float | None = None
    plateau_waited: int = 0
    reductions: int = 0
    finished: bool = False
    stopped: str = ""
    metrics: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Fit:
    """A training under way.

    average: the moving average of the weights, or the network itself where there is none.
    best: state of the kept epoch. plan: of the epoch under way. saved_s: when, on the clock.
    """

    job: Job
    machine: Machine
    settled: Settled
    network: Network
    average: Network
    optimizer: torch.optim.Optimizer
    state: State
    history: History
    best: dict[str, Tensor]
    plan: list[Planned] = field(default_factory=list)
    saved_s: float = field(default_factory=time.monotonic)


def begin(job: Job, network: Network, machine: Machine) -> tuple[Fit, bool]:
    """Return the training of `network` and whether it goes on from a checkpoint.

    Raises TrainingError if all checkpoints are damaged, or of another job.
    """
    shortest_px = min(min(size) for size in job.pixels.sizes)
    settled, world = settle(machine, network, shortest_px), machine.world
    network.to(settled.device)
    network.to(memory_format=torch.channels_last)
    fit = Fit(
        job=job,
        machine=machine,
        settled=settled,
        network=network,
        average=copy.deepcopy(network) if job.tuning.ema else network,
        optimizer=make_optimizer(network, job.tuning),
        state=State(),
        history=History(job.folder, writes=world.leads),
        best=clone(network),
    )
    stored = None
    if world.leads:
        clear_leftovers(job.folder)
        stored = read_checkpoint(job.folder)
    stored = world.share(stored)
    if stored is not None:
        _restore(fit, stored)
    return fit, stored is not None


def clone(network: Network) -> dict[str, Tensor]:
    """Return a copy of all weights and buffers, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


def save(fit: Fit) -> None:
    """Write a checkpoint; of a finished training only the kept weights, and nothing else stays."""
    if not fit.machine.world.leads:
        return
    record = {
        "state": asdict(fit.state),
        "identity": fit.job.identity,
        "machine": _machine(fit),
    }
    if fit.state.finished:
        best = {f"best.{name}": value for name, value in fit.best.items()}
        write_only(fit.job.folder, Checkpoint(best, record))
    else:
        write_checkpoint(fit.job.folder, Checkpoint(_tensors(fit), record))
    fit.saved_s = time.monotonic()


def _machine(fit: Fit) -> dict[str, str]:
    return fit.settled.record() | {"processes": str(fit.machine.world.size)}


def _tensors(fit: Fit) -> dict[str, Tensor]:
    found = {f"network.{name}": value for name, value in fit.network.state_dict().items()}
    if fit.average is not fit.network:
        found |= {f"average.{name}": value for name, value in fit.average.state_dict().items()}
    found |= {f"best.{name}": value for name, value in fit.best.items()}
    for name, parameter in fit.network.named_parameters():
        # a layer that has not learned yet has no state
        for key, value in fit.optimizer.state.get(parameter, {}).items():
            found[f"optimizer.{key}.{name}"] = value
    return found


def _restore(fit: Fit, stored: Checkpoint) -> None:
    """Bring everything to where the checkpoint left it; refuse one of another job."""
    record, job = stored.record, fit.job
    other = [key for key, value in job.identity.items() if record["identity"].get(key) != value]
    if other:
        raise TrainingError(
            f"the checkpoints in {show(job.folder)} are of other {' and '.join(other)}",
            fix="choose another -o, or delete that folder to train anew",
        )
    fit.state = State(**record["state"])
    was, now = record["machine"], _machine(fit)
    changed = [f"{k} was {was.get(k)}, is {now[k]}" for k in now if was.get(k) != now[k]]
    if changed and not fit.state.finished:
        _log.warning("%s goes on, but not bit-exact: %s", job.name, "; ".join(changed))
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in stored.tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = value
    fit.best = parts["best"]
    if fit.state.finished:
        return
    fit.network.load_state_dict(parts["network"])
    if fit.average is not fit.network:
        fit.average.load_state_dict(parts["average"])
    parameters = dict(fit.network.named_parameters())
    for name, value in parts.get("optimizer", {}).items():
        key, _, of = name.partition(".")
        parameter = parameters[of]
        # Adam counts its steps on the CPU, wherever the weights are. The rest must lie in memory as
        # the weights do, since Adam in one pass (fused) goes through both and looks at no strides
        kept = value if key == "step" else torch.empty_like(parameter).copy_(value)
        fit.optimizer.state[parameter][key] = kept
