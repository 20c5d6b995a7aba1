"""Rows of numbers kept on disk, for what grows with the images and is read a piece at a time."""

from __future__ import annotations

import tempfile
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lobule.files import writing


class Rows:
    """(n, width) float32 in a temporary file, which goes when nobody uses it any more.

    The file is read and not memory-mapped, since pages that were mapped stay in the memory of
    the process. It lies where temporary files do (TMPDIR).
    """

    def __init__(self, width: int) -> None:
        """Begin without a row."""
        self._width, self._n = width, 0
        # what is left in a buffer when the disk is full could not be told of any more
        self._file = tempfile.TemporaryFile(prefix="lobule-", buffering=0)  # noqa: SIM115  lives on
        weakref.finalize(self, self._file.close)

    def append(self, rows: NDArray[np.float32]) -> None:
        """Add (m, width) rows, or one of (width,). Raises OutputError if there is no room."""
        block = np.ascontiguousarray(rows.reshape(-1, self._width), dtype=np.float32)
        left = memoryview(block.tobytes())
        self._file.seek(self._n * 4 * self._width)
        with writing(Path(tempfile.gettempdir())):
            while left:
                left = left[self._file.write(left) :]
        self._n += len(block)

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, part: slice) -> NDArray[np.float32]:
        """Return rows `part`, (m, width)."""
        start, stop, _ = part.indices(self._n)
        self._file.seek(start * 4 * self._width)
        read = self._file.read(max(0, stop - start) * 4 * self._width)
        return np.frombuffer(read, dtype=np.float32).reshape(-1, self._width)
