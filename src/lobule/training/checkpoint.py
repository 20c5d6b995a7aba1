"""Checkpoints: one file each, whole or not at all, and not believed before its hash is checked.

    lobule.checkpoint/1   what the file is
    <64 hex digits>       SHA-256 of all that follows
    {...}                 a JSON record, on one line
    ...                   tensors by name, as safetensors

The one before is kept beside the last, so that a checkpoint that was damaged on the disk costs the
work since the one before and no more.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from lobule.errors import TrainingError, show
from lobule.files import replacing

SCHEMA = "lobule.checkpoint/1"

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name and a record of plain types."""

    tensors: dict[str, Tensor]
    record: dict[str, Any]


def pack(checkpoint: Checkpoint) -> bytes:
    """Return the bytes of a checkpoint file; equal checkpoints give equal bytes."""
    record = json.dumps(checkpoint.record, allow_nan=False)
    tensors = {name: value.detach().cpu().contiguous()
               for name, value in checkpoint.tensors.items()}  # fmt: skip
    payload = record.encode() + b"\n" + safetensors.torch.save(tensors)
    return _header(payload) + payload


def unpack(data: bytes, path: Path) -> Checkpoint:
    """Return the checkpoint that `data`, the bytes of the file `path`, hold.

    Raises TrainingError, before any of it is used, if one bit is not as it was written.
    """
    start = len(_header(b""))
    payload = data[start:]
    if data[:start] != _header(payload):
        raise TrainingError(f"{show(path)} is damaged: {len(data):,} bytes, not those written")
    record, tensors = payload.split(b"\n", maxsplit=1)
    return Checkpoint(safetensors.torch.load(tensors), json.loads(record))


def _header(payload: bytes) -> bytes:
    return f"{SCHEMA}\n{hashlib.sha256(payload).hexdigest()}\n".encode()


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` as the last one of `folder`, keeping the one before.

    At every moment the folder holds a whole checkpoint, once it had one.
    Raises OutputError if it cannot be written; what was there then stays as it was.
    """
    last = folder / LAST
    data = pack(checkpoint)
    with replacing(last) as temporary:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # only now, with the new one safe on the disk, does the last become the one before
        if last.exists():
            last.replace(folder / PREVIOUS)
    _sync_names(folder)


def write_only(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` as the last one and drop the one before: nothing will be added to it."""
    write_checkpoint(folder, checkpoint)
    (folder / PREVIOUS).unlink(missing_ok=True)


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the last whole checkpoint of `folder`, or None if there never was one.

    One that is damaged is named in a warning, and the one before is taken.
    Raises TrainingError if there are checkpoints and all of them are damaged.
    """
    damaged: list[TrainingError] = []
    for path in (folder / LAST, folder / PREVIOUS):
        try:
            found = unpack(path.read_bytes(), path)
        except FileNotFoundError:
            continue
        except TrainingError as error:
            damaged.append(error)
            continue
        for fault in damaged:
            _log.warning("%s; going on from the one before, %s", fault, show(path))
        return found
    if damaged:
        raise TrainingError(
            "; ".join(fault.what for fault in damaged),
            fix=f"delete {show(folder)} to train this part anew",
        )
    return None


def drop_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of all trainings in a folder: their results are kept by now."""
    for name in (LAST, PREVIOUS):
        for path in folder.glob(f"*/{name}"):
            path.unlink(missing_ok=True)


def clear_leftovers(folder: Path) -> None:
    """Remove what a process that was killed while it wrote has left."""
    for path in folder.glob(f".{LAST}.*.tmp"):
        path.unlink(missing_ok=True)


def _sync_names(folder: Path) -> None:
    """Make the renaming itself last through a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
