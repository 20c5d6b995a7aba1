"""How a frozen network is run: by torch, OpenVINO or ONNX Runtime. Imports none of them itself.

On a CPU, OpenVINO fuses what torch runs one operation at a time, and is fastest where it is told
the exact size and gets one image a core (docs/decisions/0004-openvino-on-cpu.md).
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lobule.measured import cores

if TYPE_CHECKING:
    from torch import nn

Batch = NDArray[np.float32]

Run = Callable[[Batch], Batch]
"""Maps (n, 3, h, w) float32 to (n, n_features) float32; may be called by several threads."""

EngineName = Literal["auto", "torch", "openvino", "onnx"]
Precision = Literal["fp32", "bf16", "int8"]

ENGINES: tuple[EngineName, ...] = get_args(EngineName)

TOLERANCE = 1e-3
"""Largest difference between OpenVINO and torch that is accepted, as a share of the largest
feature. Measured: 1e-6; a wrongly converted network is off by more than 0.1."""

PROGRAMS = 16
"""Sizes that OpenVINO is used at: a program takes some 150 MB, and seconds to make and compare."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Engine:
    """A frozen network, ready to run.

    name: what runs it, on what and in which precision, as in "openvino-cpu-fp32"; features are
    kept under it. run: see `Run`. sizes: how many sizes of images it is to be used at, if not any.
    """

    name: str
    run: Run
    sizes: int | None = None


class NotRunnableError(RuntimeError):
    """A program cannot be made or run at this size by this engine."""


def make_engine(
    network: nn.Module, name: EngineName = "auto", precision: Precision = "fp32"
) -> Engine:
    """Return what runs a frozen network that is in memory.

    "auto" takes torch on a CUDA device if there is one, otherwise OpenVINO on the CPU, whose
    fp32 features are compared with torch's at every new size.
    """
    import torch

    cuda = torch.cuda.is_available()
    if name == "torch" or (name == "auto" and cuda):
        return torch_engine(network, precision)
    converted: list[Any] = []

    def model_of(shape: Shape) -> Any:  # noqa: ANN401  OpenVINO has no types
        if not converted:
            converted.append(convert(network, shape))
        return converted[0]

    program = openvino_engine(model_of, precision)
    if precision != "fp32":
        return program

    def relative(found: Batch, expected: Batch) -> float:
        return float(np.abs(found - expected).max() / np.abs(expected).max())

    plain = torch_engine(network, device="cpu")
    return checked(program, lambda: plain, relative, tolerance=TOLERANCE)


def torch_engine(
    network: nn.Module, precision: Precision = "fp32", *, device: str | None = None
) -> Engine:
    """Run by torch, on a CUDA device if there is one and no other is named."""
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    network = network.to(device)
    bf16 = precision == "bf16"
    if device == "cpu":
        # without it bfloat16 is many times slower; the weights stay the same
        network = network.to(memory_format=torch.channels_last)
    # one at a time: every call takes all cores, or the device
    turn = threading.Lock()

    def run(batch: Batch) -> Batch:
        # outside: inference mode and autocast belong to the thread that calls
        with turn, torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=bf16):
            tensor = torch.from_numpy(batch).to(device, memory_format=torch.channels_last)
            features: Batch = network(tensor).float().cpu().numpy()
        return features

    return Engine(f"torch-{device}-{precision}", run)


Shape = tuple[int, int]
"""Height and width in pixels."""


def openvino_engine(model_of: Callable[[Shape], Any], precision: Precision) -> Engine:
    """Run by OpenVINO on the CPU: a program for every size, an image at a time on every core.

    model_of: returns an OpenVINO model, of which a copy is made for each size. int8 is a matter
    of the model; its other layers are fp32 and may not be rounded as well.
    """
    openvino = import_openvino()
    n = cores()
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": n,
        "NUM_STREAMS": n,
        # on a shared machine a pinned core may be another's
        "ENABLE_CPU_PINNING": False,
    }

    def compile_for(shape: Shape) -> Run:
        try:
            model = model_of(shape).clone()
            model.reshape([1, 3, *shape])
            program = openvino.Core().compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise NotRunnableError(f"OpenVINO cannot run this network: {error}") from error
        # as many at once as there are streams
        requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(n):
            requests.put(program.create_infer_request())

        def one(image: Batch) -> Batch:
            request = requests.get()
            try:
                features: Batch = next(iter(request.infer(image[None]).values()))[0].copy()
            finally:
                requests.put(request)
            return features

        return _each(one, n)

    return Engine(f"openvino-cpu-{precision}", _by_shape(compile_for), sizes=PROGRAMS)


def onnx_engine(files: Mapping[Shape, Path], precision: Precision) -> Engine:
    """Run exported networks by ONNX Runtime on the CPU, an image at a time on every core.

    files: by the size of the images that each takes.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3

    def load(shape: Shape) -> Run:
        if shape not in files:
            sizes = " and ".join(f"{width} x {height}" for height, width in files)
            raise NotRunnableError(
                f"it was exported to ONNX for images of {sizes} pixels, not {shape[1]} x {shape[0]}"
            )
        try:
            session = onnxruntime.InferenceSession(
                str(files[shape]), settings, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            # its exceptions share no class of their own
            raise NotRunnableError(
                f"ONNX Runtime cannot read {files[shape].name}: {error}"
            ) from error
        name = session.get_inputs()[0].name

        def one(image: Batch) -> Batch:
            features: Batch = session.run(None, {name: image[None]})[0][0]
            return features

        return _each(one, cores())

    return Engine(f"onnx-cpu-{precision}", _by_shape(load))


def _each(one: Run, at_once: int) -> Run:
    """Return what runs the images of a batch one by one, `at_once` of them at a time."""
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="lobule-engine")

    def run(batch: Batch) -> Batch:
        images = np.ascontiguousarray(batch)
        if len(images) == 1:
            # other threads bring the other images
            return one(images[0])[None]
        return np.stack(list(pool.map(one, images)))

    return run


def _by_shape(compile_for: Callable[[Shape], Run]) -> Run:
    programs: dict[Shape, Run] = {}
    making = threading.Lock()

    def run(batch: Batch) -> Batch:
        shape = (batch.shape[2], batch.shape[3])
        with making:
            if shape not in programs:
                programs[shape] = compile_for(shape)
        return programs[shape](batch)

    return run


def checked(
    engine: Engine,
    reference: Callable[[], Engine],
    difference: Callable[[Batch, Batch], float],
    *,
    tolerance: float,
    recall: Callable[[Shape], bool | None] = lambda shape: None,
    note: Callable[[Shape, bool], None] = lambda shape, agrees: None,
) -> Engine:
    """Compare `engine` with `reference` on the first batch of every size, and use what is right.

    Tracing can turn what depends on the size (padding, above all) into constants; a program that
    is right at one size may be wrong at the next, so none is trusted unchecked. After
    `Engine.sizes` of them the reference takes all others, so that images of many sizes do not fill
    the memory.
    reference: called when it is first needed. difference: of features from expected ones.
    recall, note: whether it agreed at a size before, and what is found now.
    """
    agrees: dict[Shape, bool] = {}
    full = False
    checking = threading.Lock()

    def compare(batch: Batch, shape: Shape) -> bool:
        try:
            off = difference(engine.run(batch), reference().run(batch))
        except NotRunnableError as error:
            # not every network can be converted, nor run at every size
            _log.warning("%s; torch is used", error)
            return False
        if off <= tolerance:
            return True
        _log.warning(
            "%s is off by %.2g at %d x %d pixels, more than %.2g; torch is used",
            engine.name, off, shape[1], shape[0], tolerance,
        )  # fmt: skip
        return False

    def right(batch: Batch, shape: Shape) -> bool:
        nonlocal full
        if full:
            return False
        if sum(agrees.values()) == engine.sizes:
            full = True
            _log.warning(
                "images of more than %d sizes: torch, which is slower, takes the others",
                engine.sizes,
            )
            return False
        known = recall(shape)
        if known is None:
            known = compare(batch, shape)
            note(shape, known)
        return known

    def run(batch: Batch) -> Batch:
        shape = (batch.shape[2], batch.shape[3])
        with checking:
            if shape not in agrees:
                agrees[shape] = right(batch, shape)
        return engine.run(batch) if agrees[shape] else reference().run(batch)

    return replace(engine, run=run)


def convert(network: nn.Module, shape: Shape) -> Any:  # noqa: ANN401  OpenVINO has no types
    """Return a network as an OpenVINO model of any size, traced at `shape`.

    Raises NotRunnableError.
    """
    import torch

    openvino = import_openvino()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # OpenVINO converts by torch.jit.trace, which torch announces to retire, and which
            # warns of every size that might become a constant: that is what the check is for
            warnings.simplefilter("ignore")
            example = torch.zeros(1, 3, *shape)
            return openvino.convert_model(network, example_input=example)
    except RuntimeError as error:
        raise NotRunnableError(f"OpenVINO cannot convert this network: {error}") from error


def import_openvino() -> Any:  # noqa: ANN401  a module without types
    """Return openvino, kept from reporting to its maker."""
    # OpenVINO reports each conversion to its maker unless its telemetry package is absent; nothing
    # about a user's work may leave the machine.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino
