"""Exporting a model's network for OpenVINO or ONNX Runtime, in fp32 or int8.

An export is compared with the original on real images, and kept only if it gives the same answers:
in fp32 every probability to 1e-4; in int8 all but a hundredth of the labels, and the AUC.
"""

from __future__ import annotations

import contextlib
import io
import logging
import secrets
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lobule.data.images import N_VIEWS, decode, dihedral_view
from lobule.data.manifest import Manifest
from lobule.errors import DataError, ModelError, UsageError, first_line
from lobule.files import write_json, writing
from lobule.inference.agreement import compare_labels, compare_probabilities
from lobule.inference.choice import agreement_key
from lobule.measured import keep
from lobule.models.bundle import Model
from lobule.models.engines import (
    Batch,
    Precision,
    Shape,
    convert,
    import_openvino,
)
from lobule.models.exports import (
    FOLDER,
    NETWORK,
    RECORD,
    RUNTIMES,
    Export,
    hash_file,
    onnx_name,
    read_export,
)
from lobule.progress import Progress, no_progress

CALIBRATION = 96
"""Images from which int8 takes the ranges of activations, each in one view."""


def export(
    model: Model,
    images: Manifest,
    *,
    to: Literal["openvino", "onnx"] = "openvino",
    int8: bool = False,
    cache: Path | None = None,
    progress: Progress = no_progress,
) -> Export:
    """Write the network beside the model, for another engine, if it agrees with the original.

    images: those that the model was trained on, as in RUN/manifest.parquet; of the held-out part
    int8 takes no ranges. Its labels and AUC are counted on that part, or where there is none on
    the training images that gave no ranges.
    Raises ModelError if it does not agree (nothing is kept then) or cannot be converted,
    DataError if int8 is asked for and the images are not the training images.
    """
    if model.folder is None:
        raise ModelError("a model is exported into its folder; save it first", fix="save_model")
    if int8 and to == "onnx":
        raise UsageError("int8 is made for OpenVINO", fix="use --to openvino --int8")
    for package in (
        RUNTIMES[to],
        *(("nncf",) if int8 else ()),
        *(("onnxscript",) * (to == "onnx")),
    ):
        if find_spec(package) is None:
            raise ModelError(f"{package} is not installed", fix="pip install 'lobule[export]'")
    precision: Precision = "int8" if int8 else "fp32"
    target = model.folder / FOLDER / f"{to}-{precision}"
    with _replacing_folder(target) as temporary:
        shape = _shape(model, images)
        used = np.zeros(len(images), dtype=bool)
        if to == "onnx":
            for height, width in sorted({shape, shape[::-1]}):
                write_onnx(model, temporary / onnx_name(height, width), (height, width))
        else:
            network = convert(model.backbone.module, shape)
            if int8:
                used = _calibration_rows(model, images)
                network = quantize(network, model, images.where(used))
            import_openvino().save_model(network, temporary / NETWORK, compress_to_fp16=False)
        files = {path.name: hash_file(path) for path in sorted(temporary.iterdir())}
        made = Export(temporary, to, precision, model.weights_sha256, files, {}, _versions(to))
        engine = made.open(precision)
        if int8:
            agreement = compare_labels(model, engine, images, used, cache=cache, progress=progress)
        else:
            agreement = compare_probabilities(model, engine, images, progress=progress)
        made = replace(made, agreement=agreement)
        write_json(temporary / RECORD, made.to_json())
    # compared on this machine just now
    height, width = shape
    for seen in {(height, width), (width, height)}:
        keep(cache, f"{agreement_key(engine, model.weights_sha256, made.sha256)} {seen}", True)
    return read_export(target)


@contextlib.contextmanager
def _replacing_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder that takes the place of `target` on success."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with writing(target):
            temporary.mkdir(parents=True)
        yield temporary
        with writing(target):
            if target.exists():
                shutil.rmtree(target)
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _shape(model: Model, images: Manifest) -> Shape:
    """Return height and width of the first image as it enters the network."""
    sizes = images.table[["width", "height"]].dropna()
    if sizes.empty:
        raise DataError("none of the images can be read, so an export cannot be compared")
    width, height = model.preprocessing.size(*(int(v) for v in sizes.iloc[0]))
    return height, width


def _versions(to: str) -> dict[str, str]:
    packages = {RUNTIMES[to], "torch", "timm"} | ({"onnx"} if to == "onnx" else {"nncf"})
    return {name: version(name) for name in sorted(packages) if find_spec(name)}


def write_onnx(model: Model, file: Path, shape: Shape) -> None:
    """Write the network as ONNX for images of one size; raises ModelError.

    For any size torch needs minutes where padding depends on it, and the program is slower.
    """
    import torch

    example = torch.zeros(1, 3, *shape)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            # what torch says of its own insides is nobody's concern here
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model.backbone.module.cpu(), (example,), file, dynamo=True, external_data=False,
                input_names=["image"], output_names=["features"], verbose=False,
            )  # fmt: skip
    except (RuntimeError, ValueError, torch.onnx.OnnxExporterError) as error:
        raise ModelError(
            f"torch cannot write this network as ONNX: {first_line(error)}",
            fix="use --to openvino",
        ) from error


def _calibration_rows(model: Model, images: Manifest) -> NDArray[np.bool_]:
    """Return which training images int8 takes its ranges from, spread over all of them."""
    learned = np.ones(len(images), dtype=bool)
    if "fold" in images.table:
        learned = (images.table["fold"] >= 0).to_numpy(dtype=bool)
    if images.where(learned).data_hash != model.info.training["data_hash"]:
        raise DataError(
            f"these {learned.sum()} images are not those that the model was trained on, and int8 "
            "may take its ranges from no others",
            fix="give the run's own manifest.parquet with --images, and its folder with --root",
        )
    rows = np.flatnonzero(learned)
    used = np.zeros(len(images), dtype=bool)
    used[rows[np.linspace(0, len(rows) - 1, min(CALIBRATION, len(rows))).astype(int)]] = True
    # half of them must be left to count labels on, where nothing is held out
    if learned.all() and used.sum() > len(rows) // 2:
        used[rows[1::2]] = False
    return used


def quantize(network: Any, model: Model, images: Manifest) -> Any:  # noqa: ANN401
    """Return an OpenVINO model in int8, its ranges taken from one view of each image.

    The layer that sees the pixels stays as it is, activations may be rounded around another middle
    than 0, and what rounding shifts is measured layer by layer: of decisions out of fold, 0.95%
    change instead of 1.66% (docs/performance.md), at the same speed.
    """
    import_openvino()
    import nncf

    logging.getLogger(nncf.__name__).setLevel(logging.ERROR)

    def ready(numbered: tuple[int, str]) -> Batch:
        i, path = numbered
        image = model.preprocessing(decode(images.file(path))).transpose(1, 2, 0)
        return np.ascontiguousarray(dihedral_view(image, i % N_VIEWS).transpose(2, 0, 1))[None]

    paths = list(enumerate(images.table["path"]))
    with contextlib.redirect_stdout(io.StringIO()):
        return nncf.quantize(
            network,
            nncf.Dataset(paths, ready),
            subset_size=len(paths),
            preset=nncf.QuantizationPreset.MIXED,
            fast_bias_correction=False,
            ignored_scope=nncf.IgnoredScope(names=_first_layer(network)),
        )


def _first_layer(network: Any) -> list[str]:  # noqa: ANN401  OpenVINO has no types
    """Return the name of the first convolution; none where there is no convolution."""
    layers = (op for op in network.get_ordered_ops() if op.get_type_name() == "Convolution")
    return [op.get_friendly_name() for op in layers][:1]
