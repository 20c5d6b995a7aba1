"""An append-only log in which every line holds the hash of the one before.

A line that is changed, taken out, put in or moved breaks the chain from there on. What a chain
alone cannot show is that its end was cut off, or that all of it was written anew: keep the head,
the hash of the last line, somewhere else, and have `verify` compare.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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


_OWN = frozenset({"schema", "n", "time", "event", "previous"})


class AuditLog:
    """A log at `path`; safe to use from many threads and processes."""

    def __init__(self, path: Path) -> None:
        """Name the log; raises DataError if what is there already does not end in a record."""
        self.path = path
        self._turn = threading.Lock()
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        self._last_line()

    def append(self, event: str, **fields: Any) -> None:  # noqa: ANN401  what JSON holds
        """Add a record, on disk before this returns; raises OutputError, or DataError as above.

        fields: by names other than those of the chain itself.
        """
        if taken := _OWN & set(fields):
            raise ValueError(f"the chain's own fields cannot be given: {sorted(taken)}")
        with self._turn, writing(self.path), self.path.open("ab") as out:
            # of several processes, one at a time reads the last line and writes the next
            fcntl.flock(out, fcntl.LOCK_EX)
            last = self._last_line()
            record = {
                "schema": SCHEMA,
                "n": 0 if last is None else json.loads(last)["n"] + 1,
                "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                "event": event,
                **fields,
                "previous": NOTHING if last is None else _sha256(last),
            }
            out.write(json.dumps(record, allow_nan=False).encode() + b"\n")
            out.flush()
            os.fsync(out.fileno())

    def _last_line(self) -> bytes | None:
        """Return the last line without its end, None if there is none."""
        tail, size = b"", 4_096
        with self.path.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            if end == 0:
                return None
            while tail[:-1].count(b"\n") == 0 and len(tail) < end:
                log.seek(max(0, end - size))
                tail, size = log.read(), size * 2
        if not tail.endswith(b"\n"):
            raise DataError(
                f"the audit log {show(self.path)} ends within a line",
                fix="see what is wrong with `lobule audit-log verify`, keep the file, and "
                "go on in a new one",
            )
        last = tail[:-1].rpartition(b"\n")[2]
        _parse(last, self.path, "its last line")
        return last


def default_audit_log() -> Path:
    """Return where `serve` keeps its log unless told otherwise: in the user's state folder."""
    return platformdirs.user_state_path("lobule") / "audit-log.jsonl"


def verify(path: Path, *, head: str | None = None) -> Verified:
    """Check a whole log; raises DataError that names the first line that does not fit.

    head: the hash that `Verified.head` gave before, after which nothing but new lines may stand.
    """
    previous, n, first, last, seen = NOTHING, 0, None, None, head in (None, NOTHING)
    try:
        with path.open("rb") as log:
            for n, line in enumerate(log, start=1):
                where = f"line {n}"
                if not line.endswith(b"\n"):
                    raise _broken(path, where, "it was not written to its end")
                record = _parse(line[:-1], path, where)
                if record["n"] != n - 1:
                    raise _broken(path, where, f"it is record {record['n']}, not {n - 1}")
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


def _parse(line: bytes, path: Path, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
        if record["schema"] != SCHEMA:
            raise _broken(path, where, f"its schema is {record['schema']!r}")
        return {**record, "n": int(record["n"]), "previous": str(record["previous"])}
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise _broken(path, where, f"it is no record ({type(error).__name__})") from error


def _broken(path: Path, where: str, why: str) -> DataError:
    return DataError(f"the audit log {show(path)} is broken at {where}: {why}")


def _sha256(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
