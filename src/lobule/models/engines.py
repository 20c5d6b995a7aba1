"""How a frozen network is run: plain torch, or OpenVINO where it is faster and agrees.

On a CPU, OpenVINO fuses what torch runs one operation at a time: EfficientNet-Lite0 at 700 x 460
takes a sixth of the processor time in the same fp32 (docs/decisions/0004-openvino-on-cpu.md).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import numpy as np
import openvino
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
    """Compile one program for each input shape, checked against torch on the first such batch.

    One program for all shapes would be wrong: tracing fixes TensorFlow's "same" padding, which
    depends on the size.
    """
    plain = _torch(network, "cpu")

    @lru_cache(maxsize=16)
    def compiled(shape: tuple[int, ...]) -> openvino.CompiledModel:
        with warnings.catch_warnings(), torch.no_grad():
            # OpenVINO converts by torch.jit.trace, which torch announces to retire, and which
            # warns that sizes become constants: they are, one program a shape
            warnings.simplefilter("ignore")
            model = openvino.convert_model(
                network, example_input=torch.zeros(shape), input=[list(shape)]
            )
        return openvino.Core().compile_model(
            model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        )

    agrees: dict[tuple[int, ...], bool] = {}

    def run(batch: Batch) -> Batch:
        shape = batch.shape
        if agrees.get(shape, True):
            features: Batch = compiled(shape)(np.ascontiguousarray(batch))[0]
            if shape in agrees:
                return features
            reference = plain(batch)
            error = float(np.abs(features - reference).max() / np.abs(reference).max())
            agrees[shape] = error <= TOLERANCE
            if agrees[shape]:
                return features
            _log.warning("OpenVINO is off by %.2g at shape %s; torch is used", error, shape)
        return plain(batch)

    return run
