"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lobule.errors import OutputError, show

_REASONS = {
    errno.ENOSPC: ("no space left on the device", "free some space, or write to another place"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or write to another place"),
    errno.EACCES: ("permission denied", "choose a place you may write to"),
    errno.EPERM: ("permission denied", "choose a place you may write to"),
    errno.EROFS: ("the file system is read-only", "choose a place you may write to"),
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure of the system while `path` is written into an OutputError."""
    try:
        yield
    except OSError as error:
        reason, fix = _REASONS.get(
            error.errno or 0, ((error.strerror or str(error)).lower(), "choose another place")
        )
        raise OutputError(f"cannot write {show(path)}: {reason}", fix=fix) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and takes `path`'s place.

    On any failure the temporary file is removed and an earlier file at `path` stays as it was.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.tmp")
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically; NaN is refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
