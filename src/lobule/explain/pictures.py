"""Heat maps of many photographs as files, one PNG each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lobule.data.images import decode
from lobule.evaluation.predictions import Predictions
from lobule.explain.maps import Method, explain
from lobule.explain.overlay import signed
from lobule.files import replacing
from lobule.models.bundle import Model
from lobule.progress import Progress, no_progress


def write_maps(
    model: Model,
    predictions: Predictions,
    root: Path,
    folder: Path,
    *,
    method: Method = "cam",
    progress: Progress = no_progress,
) -> None:
    """Write a heat map of every photograph in a predictions table.

    Of the class decided on; where the gate let a photograph not pass, of the positive class.
    root: what the paths of the table begin from. A file is called as its photograph, with `.png`
    added, and lies in `folder` where that lay below the folder that all of them share.
    Raises ImageError if a photograph cannot be read any more, ModelError if the network has no such
    map, OutputError if a file cannot be written.
    """
    table, classes = predictions.table, predictions.classes
    wanted = predictions.decided.fillna(classes[-1])
    rows = zip(table["path"], _below(list(table["path"]), root), wanted, strict=True)
    for path, below, of_class in progress(rows, total=len(table), task="explaining"):
        image = decode(root / path)
        found = explain(model, image, target=classes.index(of_class), method=method)
        png = signed(image, found, of_class=of_class, identity=predictions.identity)
        with replacing(folder / f"{below}.png") as temporary:
            temporary.write_bytes(png)


def _below(paths: list[str], root: Path) -> Iterator[str]:
    """Yield paths below the folder that all of them share, none of which leads out of it."""
    whole = [os.path.abspath(root / path) for path in paths]
    shared = os.path.commonpath([os.path.dirname(path) for path in whole])
    return (os.path.relpath(path, shared) for path in whole)
