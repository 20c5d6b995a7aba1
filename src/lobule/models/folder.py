"""A model folder as it lies on disk: model.json, and the weights file that it describes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from lobule.errors import ModelError, show

SCHEMA = "lobule.model/1"

WEIGHTS, INFO, CARD = "weights.safetensors", "model.json", "README.md"

Pooling = Literal["last", "stages"]
"""What is taken from a network as the features of an image. last: its own. stages: these, and mean
and standard deviation over the image of every channel of the stage before the last."""


def pooled_id(weights_sha256: str, pooling: Pooling) -> str:
    """Return what names a network and what is taken from it, for features that are kept."""
    return weights_sha256 if pooling == "last" else f"{weights_sha256} {pooling}"


def read_info(folder: Path) -> dict[str, Any]:
    """Return model.json as it stands; raises ModelError if it is none of ours."""
    try:
        record = json.loads((folder / INFO).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{show(folder)} is not a model folder: cannot read {INFO} ({error})",
            fix="a model lies at RUN/model after `lobule train DIR -o RUN`",
        ) from error
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != SCHEMA:
        raise ModelError(
            f"{show(folder / INFO)} has schema {schema!r}; this version reads {SCHEMA!r}",
            fix="use the version of Lobule that wrote it, or train again",
        )
    return dict(record)


def read_weights(folder: Path, record: dict[str, Any]) -> bytes:
    """Return the weights file; raises ModelError unless it has the SHA-256 that `record` states."""
    try:
        data = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {show(folder / WEIGHTS)}: {error.strerror}") from error
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != record.get("weights_sha256"):
        raise ModelError(
            f"{show(folder / WEIGHTS)} is not the file that {INFO} describes: SHA-256 {sha256}, "
            f"stated {record.get('weights_sha256')}",
            fix="copy the whole model folder again",
        )
    return data


_TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def hash_stored(tensors: dict[str, dict[str, Any]]) -> str:
    """Return what `tensors.hash_tensors` gives for tensors as safetensors stores them.

    tensors: by name, each with dtype, shape and data, as `safetensors.deserialize` returns them.
    Needs no torch.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        stored = tensors[name]
        kind, shape = _TORCH_NAMES[stored["dtype"]], tuple(stored["shape"])
        digest.update(f"{name} torch.{kind} {shape}\n".encode())
        digest.update(stored["data"])
    return digest.hexdigest()
