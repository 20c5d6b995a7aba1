"""What a user names to be predicted: files, folders, patterns, and lists on standard input."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lobule.data.images import SUFFIXES
from lobule.errors import DataError, show

STANDARD_INPUT = "-"
"""What stands for the paths on standard input; a file of that name is `./-`."""

_MAGIC = frozenset("*?[")


def expand(names: Sequence[str], listed: Callable[[], bytes]) -> list[Path]:
    """Return the files and folders that `names` mean, in their order.

    names: paths; patterns as of a shell, in which `**` stands for any folders; and `-` for the
    paths that `listed` returns, one a line, or each ended by a NUL if there is one. Those are
    taken as they are, and so is a path that exists, whatever is in it. Of what a pattern matches
    only folders and what ends as an image does are taken, and nothing hidden.
    Raises DataError for a pattern that matches no image, and for an empty list.
    """
    found: list[Path] = []
    for name in dict.fromkeys(names):
        if name == STANDARD_INPUT:
            found += [Path(path) for path in _paths(listed())]
        elif _MAGIC & set(name) and not os.path.lexists(name):
            found += _matches(name)
        else:
            found.append(Path(name))
    return found


def _paths(listed: bytes) -> list[str]:
    """Return the paths of a list, ended by NUL or, without one, by a line's end."""
    ends_nul = b"\0" in listed
    parts = listed.split(b"\0") if ends_nul else listed.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    paths = [os.fsdecode(part) for part in parts if part.strip()]
    if not ends_nul:
        # of a list made on Windows, unless a file is really called so
        paths = [path if os.path.lexists(path) else path.removesuffix("\r") for path in paths]
    if not paths:
        raise DataError(
            "there are no paths on standard input",
            fix="give one a line, or as `find -print0` does: find DIR -name '*.png' -print0",
        )
    return paths


def _matches(pattern: str) -> list[Path]:
    """Return what a pattern matches, sorted; links to folders are not followed by `**`."""
    parts = Path(pattern).parts
    plain = next(i for i, part in enumerate(parts) if _MAGIC & set(part))
    below = Path(*parts[:plain])
    try:
        found = sorted(_wanted(below, os.path.join(*parts[plain:])))
    except (ValueError, NotImplementedError, OSError) as error:
        raise DataError(f"{show(pattern)} is no pattern that can be looked for: {error}") from error
    if not found:
        raise DataError(
            f"no image matches {show(pattern)}, and no file or folder is called so",
            fix=f"looked for {', '.join(sorted(SUFFIXES))}; `**` stands for any folders",
        )
    return found


def _wanted(below: Path, pattern: str) -> Iterator[Path]:
    hidden = any(part.startswith(".") for part in Path(pattern).parts)
    for path in below.glob(pattern):
        inside = path.relative_to(below).parts
        if not hidden and any(part.startswith(".") for part in inside):
            continue
        if path.suffix.lower() in SUFFIXES or path.is_dir():
            yield path
