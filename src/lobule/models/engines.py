"""How a frozen network is run: plain torch, or OpenVINO where it is faster and agrees.

On a CPU, OpenVINO fuses what torch runs one operation at a time: EfficientNet-Lite0 at 700 x 460
takes a quarter of the processor time in the same fp32 (docs/decisions/0004-openvino-on-cpu.md).
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Batch = NDArray[np.float32]

Engine = Callable[[Batch], Batch]
"""Maps (n, 3, h, w) float32 to (n, n_features) float32."""

EngineName = Literal["auto", "torch", "openvino"]

TOLERANCE = 1e-3
"""Largest difference between OpenVINO and torch that is accepted, as a share of the largest
feature. Measured: 1e-6; a wrongly converted network is off by more than 0.1."""

_log = logging.getLogger(__name__)


def make_engine(network: nn.Module, name: EngineName = "auto") -> tuple[str, Engine]:
    """Return the name and the function that runs a frozen network.

    "auto" takes torch on a CUDA device if there is one, otherwise OpenVINO on the CPU.
    """
    if name == "torch" or (name == "auto" and torch.cuda.is_available()):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return f"torch-{device}", _torch(network, device)
    return "openvino-cpu", _openvino(network)


def _torch(network: nn.Module, device: str) -> Engine:
    network = network.to(device)

    def run(batch: Batch) -> Batch:
        with torch.inference_mode():
            tensor = torch.from_numpy(batch).to(device, memory_format=torch.channels_last)
            features: Batch = network(tensor).float().cpu().numpy()
        return features

    return run


def _openvino(network: nn.Module) -> Engine:
    """Convert once, and check against torch on the first batch of each shape.

    Tracing can turn what depends on the size (padding, above all) into constants; a program that
    is right at one size may be wrong at the next, so none is trusted unchecked.
    """
    plain = _torch(network, "cpu")
    agrees: dict[tuple[int, ...], bool] = {}
    programs: list[Callable[[Batch], Any]] = []

    def convert(shape: tuple[int, ...]) -> Callable[[Batch], Any]:
        # imported only where something has to be computed: with all features kept it is not
        openvino = _import_openvino()
        with warnings.catch_warnings(), torch.no_grad():
            # OpenVINO converts by torch.jit.trace, which torch announces to retire, and which
            # warns of every size that might become a constant: that is what the check is for
            warnings.simplefilter("ignore")
            model = openvino.convert_model(network, example_input=torch.zeros(shape))
        program: Callable[[Batch], Any] = openvino.Core().compile_model(
            model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        return program

    def run(batch: Batch) -> Batch:
        shape = batch.shape
        if not agrees.get(shape, True):
            return plain(batch)
        try:
            if not programs:
                programs.append(convert(shape))
            features: Batch = programs[0](np.ascontiguousarray(batch))[0].copy()
        except RuntimeError as error:
            # not every network can be converted, nor run at every size
            _log.warning("OpenVINO cannot run this network (%s); torch is used", error)
            agrees[shape] = False
            return plain(batch)
        if shape not in agrees:
            reference = plain(batch)
            off = float(np.abs(features - reference).max() / np.abs(reference).max())
            agrees[shape] = off <= TOLERANCE
            if not agrees[shape]:
                _log.warning("OpenVINO is off by %.2g at shape %s; torch is used", off, shape)
                return reference
        return features

    return run


def _import_openvino() -> Any:  # noqa: ANN401  a module without types
    # OpenVINO reports each conversion to its maker unless its telemetry package is absent; nothing
    # about a user's work may leave the machine.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino
