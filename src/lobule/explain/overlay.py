"""A heat map as a picture: colours, lines of equal evidence, a legend in numbers.

Viridis is as dark where evidence is low as it is bright where it is high, also in grey and to the
colour-blind.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from contourpy import contour_generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from lobule.data.images import ImageArray
from lobule.explain.maps import Grid, Map

OPACITY = 0.45

CONTOURS = (0.8, 0.9, 0.95)
"""Shares of the photograph with less evidence than on each line."""

_STRIP_PX, _MARGIN_PX, _BAR_PX = 74, 8, 12


def limits(found: Map) -> tuple[float, float]:
    """Return the lowest and highest evidence of a map: the ends of its legend."""
    return float(found.evidence.min()), float(found.evidence.max())


def unit(found: Map) -> str:
    """Return what the numbers of a legend are in."""
    return "log-odds" if found.method == "cam" else "gradient x activation, no unit"


def coloured(found: Map, width_px: int, height_px: int) -> ImageArray:
    """Return the map in viridis at the size of its photograph, (height_px, width_px, 3) uint8."""
    return _viridis(found.over(width_px, height_px), limits(found))


def overlay(image: ImageArray, found: Map, *, opacity: float = OPACITY) -> ImageArray:
    """Return the photograph (h, w, 3) uint8 under its map; opacity 0 shows the photograph alone."""
    height, width = image.shape[:2]
    mixed = (1 - opacity) * image + opacity * coloured(found, width, height)
    return np.round(mixed).astype(np.uint8)


def contours(found: Map, width_px: int, height_px: int) -> NDArray[np.uint8]:
    """Return lines of equal evidence, (height_px, width_px, 4) uint8, clear between the lines.

    Each is in its colour of the legend, with a dark edge, so that it shows on any stain.
    """
    over = found.over(width_px, height_px)
    picture = Image.new("RGBA", (width_px, height_px))
    draw = ImageDraw.Draw(picture)
    thin = max(2, round(max(width_px, height_px) / 350))
    if np.ptp(over) > 0:
        lines = contour_generator(z=over)
        for level in np.quantile(over, CONTOURS):
            colour = tuple(_viridis(np.array([[level]], np.float32), limits(found))[0, 0])
            for width, ink in ((thin + 2, (0, 0, 0)), (thin, colour)):
                for line in lines.lines(level):
                    draw.line(np.asarray(line).ravel().tolist(), fill=(*ink, 255), width=width)
    return np.asarray(picture)


def legend(found: Map, width_px: int = 256, height_px: int = _BAR_PX) -> ImageArray:
    """Return the bar of colours from the lowest to the highest evidence, (h, w, 3) uint8."""
    row = np.linspace(*limits(found), width_px, dtype=np.float32)
    return _viridis(np.tile(row, (height_px, 1)), limits(found))


def sheet(image: ImageArray, found: Map, *, said: str, notice: str) -> ImageArray:
    """Return photograph and map with a legend below, (h + strip, w, 3) uint8.

    said: what the map is of, one line. notice: what it may be used for.
    """
    height, width = image.shape[:2]
    width = max(width, 320)
    page = Image.new("RGB", (width, height + _STRIP_PX), "white")
    page.paste(Image.fromarray(overlay(image, found)), (0, 0))
    font, draw = ImageFont.load_default(11), ImageDraw.Draw(page)
    bar = legend(found, width - 2 * _MARGIN_PX)
    top = height + _MARGIN_PX
    page.paste(Image.fromarray(bar), (_MARGIN_PX, top))
    low, high = limits(found)
    below = top + _BAR_PX + 2
    right = width - _MARGIN_PX
    draw.text((_MARGIN_PX, below), f"{low:.3g}", "black", font)
    draw.text((width / 2, below), f"evidence, {unit(found)}", "black", font, anchor="ma")
    draw.text((right, below), f"{high:.3g}", "black", font, anchor="ra")
    draw.text((_MARGIN_PX, below + 17), _fitting(draw, said, font, right), "black", font)
    draw.text((_MARGIN_PX, below + 32), notice, "black", font)
    return np.asarray(page)


def signed(
    image: ImageArray, found: Map, *, of_class: str, identity: Mapping[str, object]
) -> bytes:
    """Return photograph (h, w, 3) uint8, map and legend as PNG.

    identity: who says so, `model` and `notice` among it, which also stand in the picture; all of it
    is in the file as text.
    """
    said = f"evidence for {of_class} by {found.method}; {identity['model']}"
    page = sheet(image, found, said=said, notice=str(identity["notice"]))
    return to_png(page, {name: str(value) for name, value in identity.items()})


def to_png(picture: NDArray[np.uint8], said: Mapping[str, str]) -> bytes:
    """Return a picture (h, w, 3 or 4) uint8 as PNG that carries `said` as text by name."""
    info = PngInfo()
    for name, text in said.items():
        info.add_itxt(name, text)
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG", pnginfo=info)
    return out.getvalue()


def _fitting(
    draw: ImageDraw.ImageDraw,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width_px: float,
) -> str:
    """Return as much of a line as there is room for."""
    if draw.textlength(text, font) <= width_px:
        return text
    while text and draw.textlength(f"{text}...", font) > width_px:
        text = text[:-1]
    return f"{text}..."


def _viridis(values: Grid, ends: tuple[float, float]) -> ImageArray:
    low, high = ends
    share = (values - low) / (high - low) if high > low else np.zeros_like(values)
    colours: ImageArray = mpl.colormaps["viridis"](np.clip(share, 0, 1), bytes=True)[..., :3]
    return colours
