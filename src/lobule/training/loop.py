"""The training loop: one network tuned on training patients, its epoch chosen on validation ones.

Where a process is killed does not matter. All that the loop draws is keyed by (seed, epoch,
image), all that it remembers is in the checkpoint (`training.fit`), and what is computed after a
resume is what would have been computed without, to the bit, on the same machine.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lobule.errors import TrainingError, first_line, name_some
from lobule.models.network import Network
from lobule.progress import Progress, no_progress
from lobule.training.augment import augment, normalise
from lobule.training.batches import Batch, EpochShare, Planned, load, plan_epoch
from lobule.training.fit import Fit, Job, State, begin, clone, save
from lobule.training.history import line
from lobule.training.machine import Machine, Settled, relax, repeatable
from lobule.training.optimise import cosine_rate, plateau_rate, set_rates, unfreeze
from lobule.training.signals import Asked, Stopped, noticing
from lobule.training.validate import better, validate

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tuned:
    """A tuned network at the epoch that was kept, on the CPU, and how it went."""

    network: Network
    state: State
    settled: Settled


def tune(
    job: Job,
    network: Network,
    *,
    machine: Machine | None = None,
    progress: Progress = no_progress,
) -> Tuned:
    """Tune `network`, going on from the checkpoints in `job.folder` if there are any.

    Every process of `machine.world` calls this with the same job; the first one writes.
    Raises TrainingError if the loss is not finite or the checkpoints are of another job;
    Stopped, with the state saved, after SIGINT or SIGTERM; OutputError if saving fails.
    """
    with ExitStack() as stack:
        asked = stack.enter_context(noticing())
        cuda = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        fit, goes_on = begin(job, network, machine or Machine())
        stack.enter_context(repeatable(fit.settled))
        if not goes_on and job.tuning.head == "probe":
            # the frozen start is a candidate like any epoch
            _judge(fit, lr=None, loss=None, accuracy=None)
        stack.enter_context(fit.history).start(fit.state.metrics)
        if not fit.state.finished:
            total = _steps_left(fit)
            for _ in progress(_train(fit, asked), total=total, task=f"tuning {job.name}"):
                pass
        fit.network.load_state_dict(fit.best)
    return Tuned(fit.network.cpu().eval().requires_grad_(False), fit.state, fit.settled)


def _steps_left(fit: Fit) -> int:
    """Return how many steps are left if training does not stop early, give or take a few."""
    epochs = fit.job.tuning.epochs - fit.state.epoch
    return epochs * len(_plan(fit)) - fit.state.batch


def _plan(fit: Fit) -> list[Planned]:
    job = fit.job
    return plan_epoch(job.pixels, job.train, job.tuning, seed=job.seed, epoch=fit.state.epoch + 1)


def _train(fit: Fit, asked: Asked) -> Iterator[None]:
    """Do all that is left to do, one step whenever the next is asked for."""
    job, state = fit.job, fit.state
    while not state.finished:
        unfreeze(fit.network, job.tuning, epoch=state.epoch)
        forward: torch.nn.Module = fit.network
        if fit.machine.world.size > 1:
            # made anew every epoch: it watches the parameters that learn when it is made
            forward = DistributedDataParallel(fit.network)
        fit.plan = _plan(fit)
        share = EpochShare(
            job.pixels, job.train, job.tuning, fit.plan, job.seed, state.epoch + 1,
            fit.network.linear.in_features, fit.machine.world.rank, fit.machine.world.size,
        )  # fmt: skip
        loaders = fit.machine.loaders(fit.settled.device)
        for batch in load(share, start=state.batch, workers=loaders):
            stop = _step(fit, forward, batch, asked)
            if state.batch == len(fit.plan):
                _end_epoch(fit)
            due = time.monotonic() - fit.saved_s >= fit.machine.checkpoint_s
            if stop or state.finished or due:
                save(fit)
            if stop:
                raise Stopped(asked.signal or stop)
            yield


def _step(fit: Fit, forward: torch.nn.Module, batch: Batch, asked: Asked) -> int:
    """Take one step; return the signal that asks to stop, or 0."""
    try:
        return _take_step(fit, forward, batch, asked)
    except RuntimeError as error:
        if not relax(error):
            raise
        _log.warning("%s: if it is resumed, it will not be bit-exact: %s",
                     fit.job.name, first_line(error))  # fmt: skip
    return _take_step(fit, forward, batch, asked)


def _take_step(fit: Fit, forward: torch.nn.Module, batch: Batch, asked: Asked) -> int:
    job, state, device = fit.job, fit.state, fit.settled.device
    # for networks that draw inside, as with stochastic depth
    torch.manual_seed(job.seed * 1_000_003 + state.step)
    light = augment(batch.images.to(device), batch.draws)
    y, weight = batch.y.to(device), batch.weight.to(device)
    keep = torch.from_numpy(batch.draws.keep).to(device) if job.tuning.dropout else None
    with torch.autocast(device.type, torch.bfloat16, enabled=fit.settled.bf16):
        logits = forward(normalise(light, job.prep), keep)
    losses = torch.nn.functional.cross_entropy(
        logits, y, reduction="none", label_smoothing=job.tuning.label_smoothing
    )
    loss = (losses * weight).sum()
    counts = weight > 0
    right = (logits.argmax(1) == y) & counts
    asks = torch.tensor(asked.signal, device=device)
    told = torch.stack([loss.detach(), right.sum(), counts.sum(), asks]).double()
    whole, correct, images, stop = fit.machine.world.total(told).tolist()
    if not math.isfinite(whole):
        raise _not_finite(fit, "the loss", whole)
    # the processes' gradients are averaged, their losses are shares of one sum
    _update(fit, loss * fit.machine.world.size)
    state.loss, state.correct = state.loss + whole * images, state.correct + int(correct)
    state.images += int(images)
    state.batch, state.step = state.batch + 1, state.step + 1
    fit.history.speed(state.step, images)
    return int(stop)


def _update(fit: Fit, loss: Tensor) -> None:
    """Move the weights, and their average after them."""
    tuning, state = fit.job.tuning, fit.state
    if tuning.schedule == "cosine":
        rate = cosine_rate(tuning, state.epoch + state.batch / len(fit.plan))
    else:
        rate = plateau_rate(tuning, state.reductions)
    set_rates(fit.optimizer, rate)
    fit.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    learning = [p for group in fit.optimizer.param_groups for p in group["params"]]
    norm = get_total_norm([p.grad for p in learning if p.grad is not None])
    if not math.isfinite(float(norm)):
        # a loss can be finite where its gradient is not; one such step spoils every weight
        raise _not_finite(fit, "the gradient's norm", float(norm))
    if tuning.clip_norm:
        clip_grads_with_norm_(learning, tuning.clip_norm, norm)
    fit.optimizer.step()
    if tuning.ema:
        average = get_ema_multi_avg_fn(tuning.ema)  # type: ignore[no-untyped-call]
        average(list(fit.average.parameters()), list(fit.network.parameters()), None)
        for kept, now in zip(fit.average.buffers(), fit.network.buffers(), strict=True):
            kept.copy_(now)


def _not_finite(fit: Fit, what: str, value: float) -> TrainingError:
    rows = fit.job.train.rows[fit.plan[fit.state.batch].members]
    files = [fit.job.paths[row] for row in rows]
    return TrainingError(
        f"{fit.job.name}: {what} is {value} at step {fit.state.step + 1} (epoch "
        f"{fit.state.epoch + 1}), which was not taken; the batch: {name_some(files, len(files))}",
        fix="look at these files, or try --set lr=1e-5, --set clip_norm=1 or --precision fp32; "
        "the last good checkpoint is kept",
    )


def _end_epoch(fit: Fit) -> None:
    """Judge the epoch, write it down, and decide whether another follows."""
    state, tuning = fit.state, fit.job.tuning
    state.epoch, state.batch = state.epoch + 1, 0
    rate = max(group["lr"] for group in fit.optimizer.param_groups)
    _judge(fit, lr=rate, loss=state.loss / state.images, accuracy=state.correct / state.images)
    state.loss, state.correct, state.images = 0.0, 0, 0
    fit.history.add(state.metrics[-1])
    if fit.machine.world.leads:
        _log.info("%s: %s", fit.job.name, line(state.metrics[-1], tuning.epochs))
    if state.epoch == tuning.epochs:
        state.finished, state.stopped = True, "all epochs"
    elif tuning.patience and state.waited >= tuning.patience:
        state.finished, state.stopped = True, "early"


def _judge(fit: Fit, *, lr: float | None, loss: float | None, accuracy: float | None) -> None:
    """Validate, and keep the weights if they are the best so far.

    lr, loss, accuracy: of the training, None before the first epoch.
    """
    tuning, state = fit.job.tuning, fit.state
    for network in (fit.network, fit.average):
        # statistics of batch norm, which each process has taken of its own share
        fit.machine.world.align(network.buffers())
    found = validate(
        fit.average, fit.job.pixels, fit.job.validation, fit.job.prep,
        settled=fit.settled, batch_size=tuning.batch_size, world=fit.machine.world,
    )  # fmt: skip
    row: dict[str, Any] = {"epoch": state.epoch, "step": state.step, "lr": lr,
                           "train_loss": loss, "train_accuracy": accuracy}  # fmt: skip
    state.metrics.append(row | {f"validation_{name}": value for name, value in found.items()})
    if better(found[tuning.select], state.best, tuning.select):
        state.best, state.best_epoch, state.waited = found[tuning.select], state.epoch, 0
        fit.best = clone(fit.average)
    else:
        state.waited += 1
    if better(found[tuning.plateau_metric], state.plateau_best, tuning.plateau_metric):
        state.plateau_best, state.plateau_waited = found[tuning.plateau_metric], 0
        return
    state.plateau_waited += 1
    if state.plateau_waited >= tuning.plateau_patience:
        state.reductions, state.plateau_waited = state.reductions + 1, 0
