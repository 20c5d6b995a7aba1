"""An append-only log in which every line holds the hash of the one before, and of itself.

A line that is changed, taken out, put in or moved breaks the chain, and `verify` names the first
that does not fit. A chain is no lock: whoever may write the file can cut off its end, or write all
of it anew with hashes that fit. Both are seen only by who has kept the head, the hash of the last
line, somewhere else: `verify` compares.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import platformdirs

from lobule.errors import DataError, show
from lobule.files import writing

SCHEMA = "lobule.audit-log/1"

NOTHING = "0" * 64
"""What stands in place of the line before the first one."""


@dataclass(frozen=True)
class Verified:
    """A chain that holds: number of records, time of the first and last, hash of the last line."""

    records: int
    first: str | None
    last: str | None
    head: str


_OWN = frozenset({"schema", "n", "time", "event", "previous", "sha256"})


class AuditLog:
    """A log at `path`; safe to use from many threads and processes."""

    def __init__(self, path: Path) -> None:
        """Name the log; raises DataError if what is there already does not end in a record."""
        self.path = path
        self._turn = threading.Lock()
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a+b") as log:
                self._last(log)

    def append(self, event: str, **fields: Any) -> None:  # noqa: ANN401  what JSON holds
        """Add a record, on disk before this returns; raises OutputError, or DataError as above.

        fields: by names other than those of the chain itself.
        """
        if taken := _OWN & set(fields):
            raise ValueError(f"the chain's own fields cannot be given: {sorted(taken)}")
        with self._turn, writing(self.path), self.path.open("a+b", buffering=0) as log:
            # of several processes, one at a time reads the last line and writes the next
            fcntl.flock(log, fcntl.LOCK_EX)
            last = self._last(log)
            record = {
                "schema": SCHEMA,
                "n": 0 if last is None else last[1]["n"] + 1,
                "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                "event": event,
                **fields,
                "previous": NOTHING if last is None else _sha256(last[0]),
            }
            _write_whole(log, _sealed(record) + b"\n")

    def _last(self, log: IO[bytes]) -> tuple[bytes, dict[str, Any]] | None:
        """Return the last line without its end, and its record; None if there is none."""
        tail, size = b"", 4_096
        end = log.seek(0, os.SEEK_END)
        if end == 0:
            return None
        while tail[:-1].count(b"\n") == 0 and len(tail) < end:
            log.seek(max(0, end - size))
            tail, size = log.read(), size * 2
        fix = (
            "see what is wrong with `lobule audit-log verify`, keep the file, and go on in a "
            "new one"
        )
        if not tail.endswith(b"\n"):
            raise DataError(f"the audit log {show(self.path)} ends within a line", fix=fix)
        last = tail[:-1].rpartition(b"\n")[2]
        return last, _parse(last, self.path, "its last line", fix=fix)


def _write_whole(log: IO[bytes], line: bytes) -> None:
    """Write all of a line to the end of an unbuffered file, and to the disk, or nothing of it."""
    end = log.seek(0, os.SEEK_END)
    try:
        left = memoryview(line)
        while left:
            left = left[log.write(left) :]
        os.fsync(log.fileno())
    except OSError:
        # half a line would end the log for good
        log.truncate(end)
        raise


def default_audit_log() -> Path:
    """Return where `serve` keeps its log unless told otherwise: in the user's state folder."""
    return platformdirs.user_state_path("lobule") / "audit-log.jsonl"


def verify(path: Path, *, head: str | None = None) -> Verified:
    """Check a whole log; raises DataError that names the first line that does not fit, and why.

    head: the hash that `Verified.head` gave before, after which nothing but new lines may stand.
    """
    n, previous, first, last, seen = 0, NOTHING, None, None, head in (None, NOTHING)
    try:
        with path.open("rb") as log:
            for n, line in enumerate(_lines(log), start=1):
                where = f"line {n}"
                if not line.endswith(b"\n"):
                    raise _broken(path, where, "it was not written to its end")
                record = _parse(line[:-1], path, where)
                if record["n"] != n - 1:
                    raise _broken(path, where, _misplaced(record["n"], n - 1))
                if record["previous"] != previous:
                    raise _broken(path, where, "the line before it is not the one it followed")
                previous = _sha256(line[:-1])
                first, last = first or str(record["time"]), str(record["time"])
                seen = seen or previous == head
    except OSError as error:
        raise DataError(f"cannot read {show(path)}: {error.strerror or error}") from error
    if not seen:
        raise DataError(
            f"the audit log {show(path)} does not hold the line of hash {head}: its end was cut "
            "off or rewritten, or it is another log"
        )
    return Verified(n, first, last, previous)


def _lines(log: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines that are there now; what is being written meanwhile is not looked at."""
    fcntl.flock(log, fcntl.LOCK_SH)
    left = os.fstat(log.fileno()).st_size
    fcntl.flock(log, fcntl.LOCK_UN)
    while left > 0 and (line := log.readline()):
        left -= len(line)
        yield line


def _misplaced(n: int, expected: int) -> str:
    why = "a line is missing before it" if n > expected else "it was put in or moved"
    return f"it is record {n}, not {expected}: {why}"


def _sealed(record: dict[str, Any]) -> bytes:
    """Return the line of a record, with its own hash at the end."""
    content = json.dumps(record, allow_nan=False)
    return f'{content[:-1]}, "sha256": "{_sha256(content.encode())}"}}'.encode()


def _parse(line: bytes, path: Path, where: str, *, fix: str | None = None) -> dict[str, Any]:
    """Return a record; raises DataError unless the line is byte for byte one that was written."""
    try:
        record: dict[str, Any] = json.loads(line)
        schema, n, *_ = record["schema"], record["n"], record["previous"], record["time"]
        del record["sha256"]
        whole = _sealed(record) == line
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _broken(path, where, f"it is no record ({type(error).__name__})", fix) from error
    if schema != SCHEMA:
        raise _broken(path, where, f"its schema is {show(str(schema))}", fix)
    if not whole or type(n) is not int:
        raise _broken(path, where, "it was changed: its content does not have its hash", fix)
    return record


def _broken(path: Path, where: str, why: str, fix: str | None = None) -> DataError:
    return DataError(f"the audit log {show(path)} is broken at {where}: {why}", fix=fix)


def _sha256(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
