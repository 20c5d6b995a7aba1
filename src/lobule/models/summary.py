"""What a network is made of: its modules in the order they run, their outputs and their sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lobule.errors import UsageError, first_line
from lobule.models.backbones import build, input_config, only_size, width_of
from lobule.models.network import Network
from lobule.models.sources import resolve

SCHEMA = "lobule.summary/1"

MAX_PX = 4096
"""Largest side of an image that is run through a network."""

_STATISTICS = ("running_mean", "running_var")

# what torch and timm raise for an input that a layer cannot take
_TOO_ODD = (RuntimeError, AssertionError, ValueError)


@dataclass(frozen=True)
class Row:
    """One module.

    name: its path in the network. kind: its class. output_shape: of one image, the batch axis left
    out; None if its tensors are used without calling it. n_parameters: trainable numbers of its
    own. n_statistics: running means and variances of its own.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...] | None
    n_parameters: int
    n_statistics: int


@dataclass(frozen=True)
class Summary:
    """A backbone with its head, as it is trained; the rows add up to the totals.

    backbone: timm's name. input_px: side of the square image that ran through it. trainable: all
    trainable numbers. total: these and the running statistics.
    """

    backbone: str
    input_px: int
    n_classes: int
    n_features: int
    rows: tuple[Row, ...]
    trainable: int
    total: int

    def to_json(self) -> dict[str, Any]:
        """Return plain types."""
        return {"schema": SCHEMA, **asdict(self), "rows": [asdict(row) for row in self.rows]}


def summarise(spec: str, *, input_px: int, n_classes: int = 2) -> Summary:
    """Run one image through the network of `spec` and its head, and say what it is made of.

    spec: as `backbones.load_backbone` takes it; no weights are needed, they are random.
    Raises ModelError for a spec that names no network, or none that gives a feature vector;
    UsageError for a size that it cannot take, with one that it takes.
    """
    if not 1 <= input_px <= MAX_PX:
        raise UsageError(f"--input must be 1 to {MAX_PX} pixels, got {input_px}")
    if n_classes < 2:
        raise UsageError(f"a classifier needs 2 classes or more, got {n_classes}")
    source = resolve(spec, tensors=False)
    backbone = build(source.name, source.arguments).eval()
    config = input_config(backbone, source.config)
    n_features = _features(source.name, backbone, config, input_px)
    # what the head draws is shown nowhere, and must not shift what the caller draws next
    with torch.random.fork_rng(devices=[]):
        network = Network(backbone, n_features, n_classes).eval()
    shapes = _shapes(network, input_px)
    rows = tuple(_rows(network, shapes))
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return Summary(
        backbone=source.name,
        input_px=input_px,
        n_classes=n_classes,
        n_features=n_features,
        rows=rows,
        trainable=trainable,
        total=trainable + sum(row.n_statistics for row in rows),
    )


def _features(name: str, backbone: nn.Module, config: dict[str, Any], input_px: int) -> int:
    """Return the width of the features at that size; raises UsageError with a size that works."""
    only = only_size(backbone, config)
    if only not in (None, input_px):
        raise UsageError(
            f"{name} takes images of {only} x {only} px only, not {input_px} x {input_px}",
            fix=f"give --input {only}",
        )
    try:
        features = _run(backbone, input_px)
    except _TOO_ODD as error:
        usual = int(config["input_size"][1])
        smallest = _smallest(backbone, input_px, usual) if input_px < usual else usual
        raise UsageError(
            f"{name} cannot take images of {input_px} x {input_px} px: {first_line(error)}",
            fix=f"it takes {smallest} x {smallest} px: --input {smallest}",
        ) from error
    return width_of(name, features)


def _smallest(backbone: nn.Module, low: int, high: int) -> int:
    """Return the smallest size in (low, high] that works, found by halving."""
    while high - low > 1:
        middle = (low + high) // 2
        try:
            _run(backbone, middle)
        except _TOO_ODD:
            low = middle
        else:
            high = middle
    return high


@torch.inference_mode()
def _run(network: nn.Module, input_px: int) -> object:
    return network(torch.zeros(1, 3, input_px, input_px))


def _shapes(network: nn.Module, input_px: int) -> dict[str, tuple[int, ...] | None]:
    """Return the output shape of each module that runs, in the order in which they begin."""
    shapes: dict[str, tuple[int, ...] | None] = {}

    def begin(name: str) -> None:
        shapes.setdefault(name, None)

    def end(name: str, output: object) -> None:
        first = next(_tensors(output), None)
        if first is not None and shapes[name] is None:
            shapes[name] = tuple(first.shape[1:])

    hooks = []
    for name, module in network.named_modules():
        hooks += [
            module.register_forward_pre_hook(lambda _, __, name=name: begin(name)),
            module.register_forward_hook(lambda _, __, output, name=name: end(name, output)),
        ]
    try:
        _run(network, input_px)
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


def _tensors(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, list | tuple):
        for part in output:
            yield from _tensors(part)


def _rows(network: nn.Module, shapes: dict[str, tuple[int, ...] | None]) -> Iterator[Row]:
    """Yield the modules without parts, and those that own numbers besides their parts."""
    modules = dict(network.named_modules())
    seen: set[int] = set()
    for name in [*shapes, *(name for name in modules if name not in shapes)]:
        module = modules[name]
        # a tensor that two modules share is counted where it is met first
        own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        seen |= {id(p) for p in own}
        parameters = sum(p.numel() for p in own if p.requires_grad)
        buffers = dict(module.named_buffers(recurse=False))
        statistics = sum(buffers[key].numel() for key in _STATISTICS if key in buffers)
        whole = next(module.children(), None) is None
        if parameters or statistics or (whole and name in shapes):
            yield Row(name, type(module).__name__, shapes.get(name), parameters, statistics)
