"""A sheet of what augmentation makes of images, to be looked at before it is believed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lobule.data.cache import PixelCache
from lobule.data.images import ImageArray
from lobule.files import replacing
from lobule.training.augment import augment, draw, lay
from lobule.training.batches import Examples, canvas_of
from lobule.training.tuning import Tuning

ORIGINALS, DRAWN = 4, 5
"""Rows of the sheet, and augmented columns beside each original."""

GAP_PX = 4

WIDTH_PX = 1080


def augmentation_sheet(
    pixels: PixelCache, examples: Examples, tuning: Tuning, *, seed: int
) -> ImageArray:
    """Return a sheet (h, w, 3) uint8: some originals, and beside each its first epochs.

    The originals are taken evenly from the examples of every class, or of the first few classes
    where there are more than rows.
    """
    classes = np.unique(examples.y)
    places = np.linspace(0, 1, -(-ORIGINALS // len(classes)) + 2)[1:-1]
    chosen = [
        int(rows[int(place * len(rows))])
        for place in places
        for label in classes
        if len(rows := examples.rows[examples.y == label])
    ][:ORIGINALS]
    canvas = canvas_of([pixels.sizes[row] for row in examples.rows])
    lines = [_line(pixels, row, tuning, seed, canvas) for row in chosen]
    sheet: ImageArray = np.concatenate(lines)[: -GAP_PX or None]
    return sheet


def _line(
    pixels: PixelCache, row: int, tuning: Tuning, seed: int, canvas: tuple[int, int]
) -> ImageArray:
    height, width = pixels.sizes[row]
    cells = [_laid(lay(pixels[row], 0, canvas[::-1] if height > width else canvas), canvas)]
    for epoch in range(1, DRAWN + 1):
        drawn = draw([pixels.sha256[row]], tuning, seed=seed, epoch=epoch, n_features=1)
        view = int(drawn.view[0])
        # what stands after its view was drawn stands in training too
        stands = (height > width) != bool(view % 2)
        turned = lay(pixels[row], view, canvas[::-1] if stands else canvas)
        light = augment(torch.from_numpy(turned[None]), drawn)[0]
        cells.append(_laid((light.permute(1, 2, 0) * 255).round().byte().numpy(), canvas))
    gap = ((0, GAP_PX), (0, GAP_PX), (0, 0))
    line: ImageArray = np.concatenate([np.pad(c, gap, constant_values=255) for c in cells], axis=1)
    return line[:, :-GAP_PX]


def _laid(image: ImageArray, canvas: tuple[int, int]) -> ImageArray:
    """Lay an upright image down, so that it fits the sheet."""
    return image if image.shape[:2] == canvas else np.rot90(image)


def write_sheet(sheet: ImageArray, path: Path) -> None:
    """Write a sheet as JPEG, no wider than WIDTH_PX, atomically."""
    image = Image.fromarray(sheet)
    image.thumbnail((WIDTH_PX, WIDTH_PX))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=88, optimize=True)
    with replacing(path) as temporary:
        temporary.write_bytes(out.getvalue())
