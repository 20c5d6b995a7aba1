"""Which photographs the report shows, and each as a small picture inside the page.

A picture and its caption come from one row of one table.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from lobule.data.images import decode, shrink
from lobule.data.manifest import class_indices
from lobule.errors import ImageError
from lobule.evaluation.predictions import Predictions

N_SAMPLES = 12

N_GALLERY = 8

THUMBNAIL_PX = 360

JPEG_QUALITY = 80


@dataclass(frozen=True)
class Picture:
    """One photograph with what its caption says.

    image: a data: URI, or None where `problem` says why there is none. Sizes are those of the
    small picture. patient is None where unknown. decision and what follows are None for a
    photograph shown without a prediction; of_decision and of_positive are probabilities.
    """

    path: str
    label: str
    patient: str | None
    image: str | None
    problem: str | None
    width_px: int = 0
    height_px: int = 0
    decision: str | None = None
    of_decision: float | None = None
    of_positive: float | None = None
    threshold: float | None = None


def samples(table: pd.DataFrame, root: Path, *, limit: int = N_SAMPLES) -> list[Picture]:
    """Return up to `limit` photographs of a manifest's table, classes alike, many patients."""
    rows = sample_rows(table, limit=limit)
    return [_picture(table.iloc[row], root) for row in rows]


def sample_rows(table: pd.DataFrame, *, limit: int) -> list[int]:
    """Choose rows: the same number a class, of each class one a patient before any second."""
    labels = sorted(table["label"].dropna().unique())
    chosen = []
    for label in labels[:limit]:
        rows = table[table["label"] == label].reset_index()
        patient = rows["patient"].fillna("image:" + rows["path"])
        rows = rows.assign(patient=patient, nth=rows.groupby(patient).cumcount())
        order = rows.sort_values(["nth", "patient"])["index"].to_numpy()
        share = max(1, limit // len(labels))
        firsts = order[: patient.nunique()]
        if share < len(firsts):
            order = firsts[np.linspace(0, len(firsts) - 1, share).round().astype(int)]
        chosen += [int(row) for row in order[:share]]
    return chosen


def confident(
    predictions: Predictions, root: Path, *, right: bool, limit: int = N_GALLERY
) -> list[Picture]:
    """Return the photographs decided rightly (or wrongly), the surest decision first."""
    rows = confident_rows(predictions, right=right)[:limit]
    table, prob = predictions.table, predictions.probabilities()
    decided = _of_decision(predictions)
    pictures = []
    for row in rows:
        fields = table.iloc[row]
        threshold = fields.get("threshold")
        pictures.append(
            replace(
                _picture(fields, root),
                decision=str(fields["decision"]),
                of_decision=float(decided[row]),
                of_positive=float(prob[row, -1]),
                threshold=None if threshold is None or pd.isna(threshold) else float(threshold),
            )
        )
    return pictures


def confident_rows(predictions: Predictions, *, right: bool) -> list[int]:
    """Return rows by falling probability of the class decided for; of equals, by path."""
    table = predictions.table
    order = np.lexsort((table["path"].to_numpy(dtype=str), -_of_decision(predictions)))
    agrees = (table["decision"] == table["label"]).to_numpy(dtype=bool)
    return [int(row) for row in order if agrees[row] == right]


def _of_decision(predictions: Predictions) -> NDArray[np.float64]:
    column = class_indices(predictions.table["decision"], predictions.classes)
    chosen: NDArray[np.float64] = predictions.probabilities()[np.arange(len(column)), column]
    return chosen


def _picture(fields: pd.Series[Any], root: Path) -> Picture:
    path, patient = str(fields["path"]), fields["patient"]
    caption = path, str(fields["label"]), None if pd.isna(patient) else str(patient)
    try:
        image, width_px, height_px = thumbnail(root / path)
    except ImageError as error:
        return Picture(*caption, image=None, problem=error.what)
    return Picture(*caption, image=image, problem=None, width_px=width_px, height_px=height_px)


class Thumbnail(NamedTuple):
    """An image inside the page: a JPEG as data: URI, with its size."""

    image: str
    width_px: int
    height_px: int


def thumbnail(path: Path, *, longest_px: int = THUMBNAIL_PX) -> Thumbnail:
    """Return an image file small enough for the page; raises ImageError if it cannot be read."""
    small = Image.fromarray(shrink(decode(path), longest_px))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=JPEG_QUALITY, optimize=True)
    encoded = base64.b64encode(out.getvalue()).decode()
    return Thumbnail(f"data:image/jpeg;base64,{encoded}", *small.size)


def unavailable(*galleries: list[Picture]) -> Iterator[Picture]:
    """Yield the pictures that could not be shown."""
    return (picture for pictures in galleries for picture in pictures if picture.problem)
