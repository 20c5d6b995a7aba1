"""Writing files so that a reader never meets half of one: text, JSON and tables."""

from __future__ import annotations

import csv
import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from platformdirs import user_cache_path

from lobule.errors import OutputError, UsageError, show

T = TypeVar("T")

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


def table_kind(path: Path) -> str:
    """Return ".csv" or ".parquet", by the ending; raises UsageError for another."""
    kind = path.suffix.lower()
    if kind not in (".csv", ".parquet"):
        raise UsageError(
            f"{show(path)} is neither .csv nor .parquet",
            fix="the ending of the file chooses the format",
        )
    return kind


def write_table(
    table: pd.DataFrame, path: Path, *, metadata: dict[bytes, bytes] | None = None
) -> None:
    """Write a table as CSV or Parquet by the ending of `path`, atomically.

    metadata: added to that of a Parquet file; CSV has no place for it.
    """
    kind = table_kind(path)
    with replacing(path) as temporary:
        if kind == ".csv":
            returns = any("\r" in str(cell) for cell in table.to_numpy().ravel())
            # Python before 3.13 quotes a line feed, and a carriage return only when told to
            quoting = csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL
            table.to_csv(temporary, index=False, lineterminator="\n", quoting=quoting)
        else:
            arrow = pa.Table.from_pandas(table, preserve_index=False)
            both = {**(arrow.schema.metadata or {}), **(metadata or {})}
            pq.write_table(arrow.replace_schema_metadata(both), temporary)


_EXECUTED = "=+-@\t\r\n|%"
"""What a spreadsheet takes for the beginning of a formula or command."""


def harmless(cell: T) -> T | str:
    """Return a cell of a CSV so that no spreadsheet executes it; numbers stay as they are.

    A text that would begin a formula, or that begins with an apostrophe already, gets one in front;
    `as_written` takes it away again. Source: OWASP, "CSV injection".
    """
    if not isinstance(cell, str):
        return cell
    begins = cell.lstrip(' "\u00a0\ufeff')[:1]
    return f"'{cell}" if (begins and begins in _EXECUTED) or cell.startswith("'") else cell


def as_written(cell: str) -> str:
    """Return the text that `harmless` was given."""
    return cell[1:] if cell.startswith("'") else cell


def default_cache() -> Path:
    """Return where features are kept between runs: $LOBULE_CACHE, or the user's cache folder."""
    given = os.environ.get("LOBULE_CACHE")
    return Path(given) if given else user_cache_path("lobule")
