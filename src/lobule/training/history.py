"""The log of a training: metrics.jsonl, a line an epoch, and the same for TensorBoard.

metrics.jsonl holds what was learned and no times, so that a training that was interrupted leaves
the same file as one that was not. How fast it went is in TensorBoard's files.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from lobule.files import write_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS = "metrics.jsonl"


class History:
    """Writes the log of one training in `folder`; where `writes` is false it does nothing."""

    def __init__(self, folder: Path, *, writes: bool) -> None:
        self._folder = folder
        self._writes = writes
        self._rows: list[dict[str, Any]] = []
        self._board: SummaryWriter | None = None
        self._since = (time.monotonic(), 0)

    def __enter__(self) -> Self:
        """Return itself; the files are opened by `start`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        """Close TensorBoard's file."""
        if self._board is not None:
            self._board.close()

    def start(self, rows: list[dict[str, Any]]) -> None:
        """Begin with the epochs that are done; what an earlier process wrote after them goes."""
        self._rows = list(rows)
        if not self._writes:
            return
        from torch.utils.tensorboard import SummaryWriter

        self._write()
        # what stands from the last row on is purged, and that row drawn again: each stands once
        last = int(rows[-1]["step"]) if rows else 0
        self._board = SummaryWriter(str(self._folder), purge_step=last)
        if rows:
            self._plot(rows[-1])

    def add(self, row: dict[str, Any]) -> None:
        """Add an epoch."""
        self._rows.append(row)
        if self._writes:
            self._write()
            self._plot(row)

    def speed(self, step: int, images: float) -> None:
        """Note that `images` were learned from at `step`."""
        since, seen = self._since
        passed = time.monotonic() - since
        if passed > 5 and self._board is not None:
            self._board.add_scalar("images per second", (seen + images) / passed, step)
            self._since = (time.monotonic(), 0)
        else:
            self._since = (since, seen + int(images))

    def _write(self) -> None:
        lines = [json.dumps(row, allow_nan=False) + "\n" for row in self._rows]
        write_text(self._folder / METRICS, "".join(lines))

    def _plot(self, row: dict[str, Any]) -> None:
        if self._board is None:
            return
        for name, value in row.items():
            if name not in ("epoch", "step") and value is not None:
                part, _, figure = name.partition("_")
                self._board.add_scalar(f"{figure}/{part}" if figure else name, value, row["step"])
        self._board.flush()


def line(row: dict[str, Any], epochs: int) -> str:
    """Return an epoch in one line, for people."""
    shown = [f"epoch {row['epoch']} of {epochs}"]
    for part in ("train", "validation"):
        loss, accuracy = row[f"{part}_loss"], row[f"{part}_accuracy"]
        shown.append(f"{part} loss {loss:.4f}, accuracy {accuracy:.3f}")
    if row["validation_roc_auc"] is not None:
        shown[-1] += f", ROC AUC {row['validation_roc_auc']:.3f}"
    return "; ".join(shown)
