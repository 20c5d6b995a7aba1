"""What happens to photographs between one laboratory and another, each kind by one severity.

Every damage takes an image (h, w, 3) uint8 and a severity, and returns an image of that size. At
severity 0 it returns the very same pixels; the same image and severity always give the same result.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from lobule.data.images import ImageArray, recompressed
from lobule.data.stain import DENSITY, to_levels
from lobule.errors import UsageError

HED = np.array([[0.65, 0.70, 0.29], [0.27, 0.57, 0.78], [0.07, 0.99, 0.11]])
"""Optical density in R, G, B of haematoxylin, DAB and eosin. Source: Ruifrok & Johnston, Anal.
Quant. Cytol. Histol. 23 (2001)."""


@dataclass(frozen=True)
class Damage:
    """One kind of damage and the severities to try.

    unit: of the severities. levels: rising. moderate: that of the levels which a classifier should
    bear, since two laboratories may well differ by as much.
    """

    name: str
    unit: str
    levels: tuple[float, ...]
    moderate: float
    change: Callable[[ImageArray, float], ImageArray]

    def apply(self, image: ImageArray, level: float) -> ImageArray:
        """Return the damaged image; raises UsageError unless 0 <= level <= the last of levels."""
        if not 0 <= level <= self.levels[-1]:
            raise UsageError(
                f"damage {self.name!r} cannot have severity {level} ({self.unit})",
                fix=f"name one from 0, which changes nothing, to {self.levels[-1]}",
            )
        return self.change(image, level)


def stain(image: ImageArray, level: float) -> ImageArray:
    """Make haematoxylin 1 + level times as dense and eosin 1 - level times.

    Densities are unmixed into stains, these scaled, and mixed again, as in augmentation. Source:
    Tellez et al., IEEE Trans. Med. Imaging 37 (2018).
    """
    vectors = HED / np.linalg.norm(HED, axis=1, keepdims=True)
    matrix = np.linalg.inv(vectors) @ np.diag([1 + level, 1, 1 - level]) @ vectors
    density = DENSITY.astype(np.float32)[image] @ matrix.astype(np.float32)
    return to_levels(10**-density)


def brightness(image: ImageArray, level: float) -> ImageArray:
    """Take away a share of the light, 0 to 1; grey levels are taken to be proportional to it."""
    return _rounded(np.arange(256) * (1 - level))[image]


def blur(image: ImageArray, level: float) -> ImageArray:
    """Put the image out of focus: a Gaussian of sigma `level` pixels, with mirrored edges."""
    return _rounded(gaussian_filter(image.astype(np.float32), (level, level, 0)))


def jpeg(image: ImageArray, level: float) -> ImageArray:
    """Save as JPEG of quality 100 - level, level 0 to 99, where 0 stands for not at all."""
    if level == 0:
        return image
    return recompressed(image, round(100 - level))


def scale(image: ImageArray, level: float) -> ImageArray:
    """Make all that is seen smaller by a share below 1, as under a weaker objective.

    The field is continued by mirroring its edges, so that nothing which the label rests on gets
    lost. Below 0 it is made larger, and the middle is kept.
    """
    height, width = image.shape[:2]
    size = max(1, round(width * (1 - level))), max(1, round(height * (1 - level)))
    resized = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    return _on_canvas(np.asarray(resized), height, width)


def rotation(image: ImageArray, level: float) -> ImageArray:
    """Turn anticlockwise by `level` degrees, bilinear, with mirrored edges."""
    height, width = image.shape[:2]
    # no corner of the canvas reaches further beyond an edge
    beyond = math.ceil(max(height, width) * abs(math.sin(math.radians(level))) / 2)
    wide = Image.fromarray(_on_canvas(image, height + 2 * beyond, width + 2 * beyond))
    turned = np.asarray(wide.rotate(level, Image.Resampling.BILINEAR))
    return turned[beyond : beyond + height, beyond : beyond + width]


def noise(image: ImageArray, level: float) -> ImageArray:
    """Add sensor noise, Gaussian with standard deviation `level` in grey levels of 0 to 255.

    It depends on the content of the image alone; a higher level is the same noise, stronger.
    """
    content = hashlib.sha256(np.ascontiguousarray(image).data).digest()
    rng = np.random.default_rng(int.from_bytes(content))
    return _rounded(image + np.float32(level) * rng.standard_normal(image.shape, np.float32))


def _rounded(levels: NDArray[np.floating]) -> ImageArray:
    rounded: ImageArray = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return rounded


def _on_canvas(image: ImageArray, height: int, width: int) -> ImageArray:
    """Return the middle of an image, continued by mirroring its edges where it is too small."""
    wide = image[:, _mirrored(image.shape[1], width)]
    return wide[_mirrored(image.shape[0], height)]


def _mirrored(have: int, want: int) -> NDArray[np.intp]:
    """Return which of `have` rows stands in each of `want`: ... 1 0 | 0 1 2 | 2 1 ..."""
    at = (np.arange(want) - (want - have) // 2) % (2 * have)
    return np.minimum(at, 2 * have - 1 - at)


DAMAGES: Mapping[str, Damage] = {
    damage.name: damage
    for damage in (
        Damage("stain", "share of density", (0.1, 0.2, 0.3, 0.5), 0.2, stain),
        Damage("brightness", "share of light lost", (0.1, 0.2, 0.35, 0.5), 0.2, brightness),
        Damage("blur", "px", (0.5, 1, 2, 4), 1, blur),
        Damage("jpeg", "points of quality lost", (30, 50, 70, 90), 50, jpeg),
        Damage("scale", "share of size lost", (0.1, 0.2, 0.35, 0.5), 0.2, scale),
        Damage("rotation", "degrees", (5, 15, 30, 45), 15, rotation),
        Damage("noise", "grey levels", (2, 5, 10, 20), 5, noise),
    )
}
"""By name. The severities are chosen, not measured: no two laboratories were compared for them."""
