"""The exceptions a user can meet, each with the exit code of the command line.

    LobuleError              1  something inside failed
    ├── TrainingError        1  a network could not be trained further
    ├── UsageError           2  the call itself is off
    │   └── OutputError      2  the place to write to cannot be used
    ├── DataError            3  the images, the manifest or the split
    │   ├── ImageError       3  one image file
    │   │   ├── UnknownFormatError  no image, or of a format that is not read
    │   │   └── TooLargeError       more pixels than are read
    │   └── LeakageError     3  one patient on both sides of a split
    └── ModelError           4  backbone, weights or model folder

A message says what is wrong, where, and why; `fix` says what to do about it.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable


class LobuleError(Exception):
    """Base of every error that Lobule raises on purpose."""

    exit_code = 1

    def __init__(self, what: str, *, fix: str | None = None) -> None:
        super().__init__(what if fix is None else f"{what}\n  {fix}")
        self.what = what
        self.fix = fix


class TrainingError(LobuleError):
    """Training cannot go on: the loss is not a number, or a checkpoint cannot be used."""


class UsageError(LobuleError):
    """The arguments contradict each other or name something that does not exist."""

    exit_code = 2


class OutputError(UsageError):
    """The place to write to is taken, full or not writable."""


class DataError(LobuleError, ValueError):
    """The data cannot be used as asked."""

    exit_code = 3


class ImageError(DataError):
    """One image file cannot be read."""


class UnknownFormatError(ImageError):
    """A file is no image, or one of a format that is not read."""


class TooLargeError(ImageError):
    """An image has more pixels than are read."""


class LeakageError(DataError):
    """The same patient lies on both sides of a split."""


class ModelError(LobuleError):
    """A backbone, a weights file or a model folder cannot be used."""

    exit_code = 4


def show(path: str | os.PathLike[str]) -> str:
    """Return `path` on one line: control characters and undecodable bytes are escaped.

    A file name may hold a newline or an escape sequence; printed raw it could forge a second
    log line or repaint the terminal.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii")
        for c in os.fspath(path)
    )


def first_line(error: BaseException) -> str:
    """Return the first line that an error says, or its name where it says nothing."""
    lines = (line.strip() for line in str(error).splitlines())
    return show(next(filter(None, lines), type(error).__name__))


def name_some(names: list[str], limit: int = 5) -> str:
    """Join the first `limit` names and say how many more there are."""
    shown = ", ".join(show(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit:,} more"


def nearest(name: str, names: Iterable[str]) -> str:
    """Return what to say of a name that is none of `names`: the nearest first, then all."""
    known = list(names)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    said = f"did you mean {near[0]}? " if near else ""
    return f"{said}there are: {', '.join(known)}"
