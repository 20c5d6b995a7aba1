"""Which engine runs a model on this machine: the fastest that is installed and gives its answers.

What was compared and timed is kept in the cache folder, so that it is done once a machine.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from lobule.data.images import N_VIEWS
from lobule.errors import ModelError, UsageError, show
from lobule.measured import has_nvidia_driver, keep, recall
from lobule.models.bundle import Model
from lobule.models.classifier import LinearHead
from lobule.models.engines import (
    Batch,
    Engine,
    EngineName,
    NotRunnableError,
    Precision,
    Shape,
    checked,
    make_engine,
    torch_engine,
)
from lobule.models.exports import RUNTIMES, TOLERANCES, Export, find_exports

Wanted = Literal["auto", "fp32", "bf16", "int8"]

PRECISIONS: tuple[Wanted, ...] = get_args(Wanted)

REPETITIONS = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """An engine that may be chosen. open: makes it, which can take seconds."""

    name: str
    open: Callable[[], Engine]


@dataclass(frozen=True)
class Running:
    """How a model is to be run.

    engine: "auto" takes torch on a CUDA device; otherwise, of the exports beside the model, the
    fastest here; without any, what training used. precision: "auto" takes the fastest as well.
    views: 8, or 1 for the plain view alone, which takes an eighth of the time.
    """

    engine: EngineName = "auto"
    precision: Wanted = "fp32"
    views: int = N_VIEWS

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if self.views not in (1, N_VIEWS):
            raise UsageError(f"--views must be 1 or {N_VIEWS}, got {self.views}")
        if self.precision == "int8" and self.engine == "torch":
            raise UsageError("torch runs no int8 network", fix="use --engine openvino")
        if self.precision == "bf16" and self.engine == "onnx":
            raise UsageError("ONNX Runtime has no bf16 on a CPU", fix="use --engine openvino")


def choose_engine(
    model: Model, shape: Shape, running: Running, *, cache: Path | None = None
) -> Engine:
    """Return what runs the network of `model` on images of `shape` (height, width) and others.

    Whatever is not the original in torch is compared with it at every size (`TOLERANCES`), once
    a machine where there is a cache.
    Raises ModelError if what is asked for is not there.
    """
    engine, precision = running.engine, running.precision
    candidates = _candidates(model, engine, precision, cache)
    if not candidates:
        what = " ".join(x for x in (engine, precision) if x != "auto")
        place = "the model" if model.folder is None else show(model.folder)
        flag = " --int8" if precision == "int8" else ""
        to = "openvino" if engine == "auto" else engine
        raise ModelError(
            f"{place} has no export for {what}, or what runs it is not installed",
            fix=f"run `lobule export MODEL --to {to}{flag}`; it needs pip install 'lobule[export]'",
        )
    if len(candidates) == 1:
        return candidates[0].open()
    return _fastest(candidates, shape, model, cache)


def _candidates(
    model: Model, engine: EngineName, precision: Wanted, cache: Path | None
) -> list[Candidate]:
    cuda = has_nvidia_driver() and _torch_finds_cuda()
    if engine == "torch" or (engine == "auto" and cuda):
        kinds = _of(precision, "fp32", "bf16")
        return [Candidate(f"torch-{p}", partial(_torch, model, p, cache)) for p in kinds]
    found = []
    for export in find_exports(model.folder, model.weights_sha256):
        if engine in ("auto", export.engine) and export.installed:
            as_it_is = _of(precision, export.precision)
            rounded = export.precision == "fp32" and export.engine == "openvino"
            kinds = as_it_is + (_of(precision, "bf16") if rounded else [])
            found += [
                Candidate(f"{export.engine}-{p}", partial(_exported, model, export, p, cache))
                for p in kinds
            ]
    if any(c.name.endswith(("fp32", "bf16")) for c in found) or engine == "onnx":
        return found
    kinds = _of(precision, "fp32", "bf16")
    return found + [Candidate(f"openvino-{p}", partial(_converted, model, p, cache)) for p in kinds]


def _of(wanted: Wanted, *known: Precision) -> list[Precision]:
    return [p for p in known if wanted in ("auto", p)]


def _torch_finds_cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _torch(model: Model, precision: Precision, cache: Path | None) -> Engine:
    plain = torch_engine(model.backbone.module, precision)
    return plain if precision == "fp32" else _like_the_original(plain, model, precision, "", cache)


def _converted(model: Model, precision: Precision, cache: Path | None) -> Engine:
    """Convert in memory; fp32 is compared by `make_engine` itself, feature by feature."""
    made = make_engine(model.backbone.module, "openvino", precision)
    return made if precision == "fp32" else _like_the_original(made, model, precision, "", cache)


def _exported(model: Model, export: Export, precision: Precision, cache: Path | None) -> Engine:
    return _like_the_original(export.open(precision), model, precision, export.sha256, cache)


def agreement_key(engine: Engine, weights_sha256: str, export_sha256: str) -> str:
    """Return what it depends on whether an engine agrees with the original."""
    package = RUNTIMES.get(engine.name.partition("-")[0], "torch")
    return f"agreement {weights_sha256} {export_sha256} {engine.name} {version(package)}"


def _like_the_original(
    engine: Engine, model: Model, precision: Precision, export_sha256: str, cache: Path | None
) -> Engine:
    """Compare probabilities with those of torch in fp32 at every size that is new to the machine.

    What int8 changes was counted when it was exported; here it only has to be no other network.
    """
    key = agreement_key(engine, model.weights_sha256, export_sha256)
    return checked(
        engine,
        lambda: torch_engine(model.backbone.module, "fp32", device="cpu"),
        lambda found, expected: largest_difference(model.heads.tissue, found, expected),
        tolerance=TOLERANCES[precision],
        recall=lambda shape: recall(cache, f"{key} {shape}"),
        note=lambda shape, agrees: keep(cache, f"{key} {shape}", agrees),
    )


def largest_difference(head: LinearHead, found: Batch, expected: Batch) -> float:
    """Return the largest difference of a probability between two (n, n_features) of one batch."""
    return float(np.abs(head.probabilities(found) - head.probabilities(expected)).max())


def _fastest(candidates: list[Candidate], shape: Shape, model: Model, cache: Path | None) -> Engine:
    """Time four views of an image on each candidate, or remember which was the fastest."""
    versions = " ".join(version(p) for p in ("openvino", "torch"))
    names = " ".join(c.name for c in candidates)
    key = f"fastest of {names} for {model.weights_sha256} at {shape} with {versions}"
    known = recall(cache, key)
    by_name = {c.name: c for c in candidates}
    if known in by_name:
        return by_name[known].open()
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(4, 3, *shape)).astype(np.float32)
    opened, seconds = {}, {}
    for name, candidate in by_name.items():
        try:
            opened[name] = candidate.open()
            seconds[name] = time_run(opened[name], batch)
        except NotRunnableError as error:
            _log.warning("%s is left out: %s", name, error)
    if not seconds:
        raise ModelError("no engine can run this model", fix="see the warnings above")
    best = min(seconds, key=lambda name: seconds[name])
    told = ", ".join(f"{name} {s * 1000:.0f} ms" for name, s in sorted(seconds.items()))
    _log.info("fastest for %d x %d pixels is %s (four views: %s)", shape[1], shape[0], best, told)
    keep(cache, key, best)
    return opened[best]


def time_run(engine: Engine, batch: Batch) -> float:
    """Return the least seconds that a batch took, of a few tries after a first one."""
    engine.run(batch)
    taken = []
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        engine.run(batch)
        taken.append(time.perf_counter() - began)
    return min(taken)
