"""Writing files so that a reader never meets half of one: text, JSON and tables."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

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


TABLES = (".csv", ".parquet")
"""Endings of files that hold a table."""


def table_kind(path: Path, kinds: tuple[str, ...] = TABLES) -> str:
    """Return the ending of a table's file in lower case; raises UsageError for none of `kinds`."""
    kind = path.suffix.lower()
    if kind not in kinds:
        none_of = f"neither {kinds[0]}" + "".join(f" nor {k}" for k in kinds[1:])
        raise UsageError(
            f"{show(path)} is {none_of}", fix="the ending of the file chooses the format"
        )
    return kind


def write_table(
    table: pd.DataFrame, path: Path, *, metadata: dict[bytes, bytes] | None = None
) -> None:
    """Write a table as CSV or Parquet by the ending of `path`, atomically.

    In CSV, texts that a spreadsheet would execute are written as `harmless` has them, and
    `read_csv` gives back the very texts. metadata: added to that of a Parquet file; CSV has no
    place for it.
    """
    kind = table_kind(path)
    with replacing(path) as temporary:
        if kind == ".csv":
            table = _each_text(table, harmless)
            cells = (*table.columns, *table.to_numpy().ravel())
            returns = any("\r" in str(cell) for cell in cells)
            # Python before 3.13 quotes a line feed, and a carriage return only when told to
            quoting = csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL
            table.to_csv(temporary, index=False, lineterminator="\n", quoting=quoting)
        else:
            arrow = pa.Table.from_pandas(table, preserve_index=False)
            both = {**(arrow.schema.metadata or {}), **(metadata or {})}
            pq.write_table(arrow.replace_schema_metadata(both), temporary)


_EXECUTED = re.compile(
    # blanks, quotes and marks that nobody sees, which spreadsheets may pass over, and then a sign
    r"[\s\x00-\x1f\"'\u00a0\u00ad\u200b-\u200f\u2060\ufeff]*"
    r"[=+\-@|%\t\r\n\uff1d\uff0b\uff0d\uff20]"
)
"""How a text begins that a spreadsheet may take for a formula or a command."""


def harmless(cell: T) -> T | str:
    """Return a cell of a CSV so that no spreadsheet executes it; numbers stay as they are.

    A text that would begin a formula gets an apostrophe in front, and so does one that already
    looks as if it had got one; `as_written` takes it away again. Source: OWASP, "CSV injection".
    """
    if not isinstance(cell, str):
        return cell
    return f"'{cell}" if _EXECUTED.match(cell) else cell


def as_written(cell: str) -> str:
    """Return the text that `harmless` was given; other texts, as of other tools, are kept."""
    return cell[1:] if cell.startswith("'") and harmless(cell[1:]) == cell else cell


def read_csv(path: Path, types: str | Mapping[str, str]) -> pd.DataFrame:
    """Read a CSV table written by `write_table`, or by hand.

    types: of all columns, or by name; a column without one is a number where it looks like one.
    Only an empty cell is missing: "NA" may be a class. Raises OSError, ValueError or
    pandas.errors.ParserError.
    """
    table = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=[""])
    return _each_text(table, as_written)


def plain_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as plain types by name of their column; what is missing is None."""
    plain = table.astype(object).where(table.notna(), None)
    rows: list[dict[str, Any]] = plain.to_dict(orient="records")
    return rows


def write_lines(table: pd.DataFrame, path: Path, *, schema: str) -> None:
    """Write a table as JSON lines, one object a row with its `schema`, atomically."""
    with replacing(path) as temporary, temporary.open("w", encoding="ascii", newline="") as out:
        for start in range(0, len(table), _ROWS):
            for row in plain_rows(table.iloc[start : start + _ROWS]):
                # escaped, since a name may hold what readers take for the end of a line
                out.write(json.dumps({"schema": schema, **row}, allow_nan=False) + "\n")


def read_lines(path: Path) -> pd.DataFrame:
    """Read JSON lines as a table, without `schema`; raises OSError or ValueError."""
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is no JSON object")
    return pd.DataFrame(rows).drop(columns="schema", errors="ignore")


_ROWS = 4_096
"""Rows that are made plain at a time, which takes some kilobytes a row."""


def _each_text(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """Return a table with the names of its columns and all texts in it changed."""

    def changed(value: Any) -> Any:  # noqa: ANN401  a cell
        return change(value) if isinstance(value, str) else value

    table = table.rename(columns=changed)
    for name, column in table.items():
        if not pd.api.types.is_numeric_dtype(column):
            table[name] = column.map(changed).astype(column.dtype)
    return table


def default_cache() -> Path:
    """Return where features are kept between runs: $LOBULE_CACHE, or the user's cache folder."""
    given = os.environ.get("LOBULE_CACHE")
    return Path(given) if given else user_cache_path("lobule")
