"""Exported networks beside a model: RUN/model/exports/<engine>-<precision>/, and how they are read.

Each has the network's file, and export.json, which says of which weights it is, and how far it was
found to agree with the original. Nothing in either is code.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lobule.errors import ModelError, show
from lobule.models.engines import (
    Engine,
    EngineName,
    Precision,
    import_openvino,
    onnx_engine,
    openvino_engine,
)

SCHEMA = "lobule.export/1"

FOLDER, RECORD = "exports", "export.json"

RUNTIMES: dict[str, str] = {"openvino": "openvino", "onnx": "onnxruntime"}
"""By engine, the package that runs it."""

NETWORK = "network.xml"
"""The network as OpenVINO writes it; its weights are in network.bin."""

_NAMES = {
    "openvino": re.compile(r"network\.(xml|bin)"),
    "onnx": re.compile(r"network-(\d+)x(\d+)\.onnx"),
}
"""By engine, what its files are called; of ONNX there is one for each height and width."""

TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "bf16": 0.02, "int8": 0.2}
"""Largest difference of a probability from the original that is accepted, on any view. What int8
may change is counted in labels and AUC when it is made (see `inference.export`); here it only has
to be no other network."""


@dataclass(frozen=True)
class Export:
    """An exported network as its folder describes it.

    precision: "fp32" or "int8"; an fp32 network may be run in bf16. weights_sha256: of the model's
    weights. files: SHA-256 by name. agreement: how it was compared with the original, and what
    came out. versions: of what made it.
    """

    folder: Path
    engine: EngineName
    precision: Precision
    weights_sha256: str
    files: dict[str, str]
    agreement: dict[str, Any]
    versions: dict[str, str]

    @property
    def name(self) -> str:
        """Engine and precision, as its folder is called."""
        return f"{self.engine}-{self.precision}"

    @property
    def sha256(self) -> str:
        """One hash for all files."""
        return hashlib.sha256(json.dumps(self.files, sort_keys=True).encode()).hexdigest()

    @property
    def installed(self) -> bool:
        """Whether what runs it is there."""
        return find_spec(RUNTIMES[self.engine]) is not None

    def to_json(self) -> dict[str, Any]:
        """Return what export.json holds."""
        fields = asdict(self) | {"schema": SCHEMA}
        del fields["folder"]
        return fields

    def open(self, precision: Precision) -> Engine:
        """Return what runs it; raises ModelError if a file is not the one that was checked."""
        for name, sha256 in self.files.items():
            if hash_file(self.folder / name) != sha256:
                raise ModelError(
                    f"{show(self.folder / name)} is not the file that {RECORD} describes",
                    fix="export again, or delete that folder to do without it",
                )
        if self.engine == "onnx":
            sizes = {name: _NAMES["onnx"].fullmatch(name) for name in self.files}
            return onnx_engine(
                {
                    (int(size[1]), int(size[2])): self.folder / name
                    for name, size in sizes.items()
                    if size is not None
                },
                precision,
            )
        model = import_openvino().Core().read_model(self.folder / NETWORK)
        return openvino_engine(lambda shape: model, precision)


def onnx_name(height: int, width: int) -> str:
    """Return what the network for images of that size is called."""
    return f"network-{height}x{width}.onnx"


def find_exports(model: Path | None, weights_sha256: str) -> Iterator[Export]:
    """Yield the exports of a model folder that are of these weights; raises ModelError."""
    if model is None or not (model / FOLDER).is_dir():
        return
    for folder in sorted((model / FOLDER).iterdir()):
        # one that was interrupted has no record yet
        if (folder / RECORD).is_file():
            found = read_export(folder)
            if found.weights_sha256 == weights_sha256:
                yield found


def read_export(folder: Path) -> Export:
    """Read an export.json; raises ModelError if it is none of ours or damaged."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        schema = record.pop("schema")
        if schema == SCHEMA:
            found = Export(folder, **record)
            if found.files and all(map(_NAMES[found.engine].fullmatch, found.files)):
                return found
            raise _damaged(folder, f"it names the files {', '.join(map(show, found.files))}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, f"{type(error).__name__} {error}") from error
    raise _damaged(folder, f"schema {schema!r}")


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file; raises ModelError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(
            f"cannot read {show(path)}: {error.strerror}", fix="export the model again"
        ) from error


def _damaged(folder: Path, reason: str) -> ModelError:
    return ModelError(
        f"{show(folder / RECORD)} cannot be used: {reason}",
        fix="export again, or delete that folder to do without it",
    )
