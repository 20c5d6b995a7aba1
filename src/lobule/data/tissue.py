"""Made-up H&E breast tissue with known truth: one photograph, its stain and its light.

It resembles tissue; it is no model of disease. `anatomy` lays down what is seen, `cohort` files
such photographs as patients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lobule.data.anatomy import (
    Canvas,
    lay_benign_glands,
    lay_fat,
    lay_growth,
    lay_stroma,
    place_stromal_cells,
    stamp_nuclei,
)
from lobule.data.images import ImageArray
from lobule.errors import UsageError

MIN_SIDE_PX, MAX_SIDE_PX = 48, 4096

# Optical density of each dye in R, G and B, by two laboratories: Ruifrok & Johnston, Anal Quant
# Cytol Histol 23 (2001), and Macenko et al., ISBI (2009). Patients lie between and around them.
_HEMATOXYLIN = ((0.65, 0.70, 0.29), (0.56, 0.72, 0.41))
_EOSIN = ((0.07, 0.99, 0.11), (0.22, 0.80, 0.56))


@dataclass(frozen=True)
class Stain:
    """One slide preparation and scanner: what makes a patient's photographs look alike.

    hematoxylin, eosin: unit optical-density vectors (R, G, B); *_strength multiply them.
    background: hematoxylin left in the stroma, 0 (clean) to 0.2 (lilac).
    white: light through empty glass, (R, G, B) in 0..1. gamma: exponent on the transmitted light.
    vignette: loss of light at the far corner, 0..1, around `centre` (x, y in 0..1 of the field).
    blur_px: focus, a Gaussian sigma. noise: sensor noise, standard deviation of 0..255.
    """

    hematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    hematoxylin_strength: float
    eosin_strength: float
    background: float
    white: tuple[float, float, float]
    gamma: float
    vignette: float
    centre: tuple[float, float]
    blur_px: float
    noise: float


def draw_stain(rng: np.random.Generator) -> Stain:
    """Draw a patient's stain and scanner.

    The vectors lie around and between those of Ruifrok & Johnston (2001) and Macenko et al. (2009).
    """
    light, tint = rng.uniform(0.86, 0.98), rng.uniform(-0.08, 0.08, 3)
    return Stain(
        hematoxylin=_unit(rng, _HEMATOXYLIN),
        eosin=_unit(rng, _EOSIN),
        hematoxylin_strength=rng.uniform(0.6, 1.2),
        eosin_strength=rng.uniform(0.4, 1.1),
        background=rng.uniform(0.0, 0.2),
        white=_triple(np.clip(light + tint, 0.8, 1.0)),
        gamma=rng.uniform(0.75, 1.25),
        vignette=rng.uniform(0.0, 0.2),
        centre=(rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7)),
        blur_px=rng.uniform(0.3, 1.0),
        noise=rng.uniform(1.0, 5.0),
    )


def _triple(values: NDArray[Any]) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def _unit(
    rng: np.random.Generator, ends: tuple[tuple[float, ...], tuple[float, ...]]
) -> tuple[float, float, float]:
    vector = np.array(ends[0]) + rng.uniform(0, 1) * np.subtract(ends[1], ends[0])
    moved = np.clip(vector + rng.normal(0, 0.04, 3), 0.03, None)
    return _triple(moved / np.linalg.norm(moved))


def draw_field(
    rng: np.random.Generator,
    *,
    stain: Stain,
    malignant: bool,
    width_px: int = 350,
    height_px: int = 230,
    difficulty: float = 0.3,
) -> tuple[ImageArray, NDArray[np.bool_]]:
    """Draw one photograph and the truth about it.

    Dyes are laid down as optical densities and turned into light by the Beer-Lambert law. A nucleus
    is about 6 px across, so a larger photograph shows more tissue, not larger cells.
    difficulty: 0 is textbook, 1 is nearly as much like the other class as like its own (crowded
        adenosis and hyperplasia; small tubular carcinoma of low grade).
    Returns the image, (h, w, 3) uint8, and the lesion, (h, w) bool: True in malignant tissue
    (5 to 80 % of the field), False everywhere in a benign one.
    Raises UsageError if a side is outside 48..4096 px or difficulty outside 0..1.
    """
    check_size(width_px, height_px)
    if not 0 <= difficulty <= 1:
        raise UsageError(f"difficulty must lie in 0..1, got {difficulty}")
    atypia = 0.6 * difficulty * rng.uniform(0.7, 1.2)
    atypia = 1 - atypia if malignant else atypia
    canvas = lay_stroma(rng, (height_px, width_px), stain.background)
    if rng.random() < 0.4:
        lay_fat(rng, canvas)
    nuclei = []
    lesion = np.zeros((height_px, width_px), dtype=np.bool_)
    if not malignant or rng.random() < difficulty:
        nuclei += lay_benign_glands(rng, canvas, min(atypia, 0.6))
    if malignant:
        nuclei += lay_growth(rng, canvas, atypia, lesion)
    elif rng.random() < 1.2 * difficulty:
        nuclei += lay_growth(rng, canvas, atypia, np.zeros_like(lesion))
    # after the glands, so that no fibroblast floats in a lumen
    nuclei.append(place_stromal_cells(rng, canvas, atypia))
    stamp_nuclei(rng, canvas, np.concatenate(nuclei), coarseness=atypia)
    return _photograph(rng, canvas, stain), lesion


def _photograph(rng: np.random.Generator, canvas: Canvas, stain: Stain) -> ImageArray:
    """Beer-Lambert: light = white * 10 ** -density; then focus, vignette, gamma and noise."""
    height, width = canvas.shape
    blue = stain.hematoxylin_strength * rng.normal(1, 0.04) * canvas.hematoxylin
    pink = stain.eosin_strength * rng.normal(1, 0.04) * canvas.eosin
    y, x = np.ogrid[:height, :width]
    far = (x / width - stain.centre[0]) ** 2 + (y / height - stain.centre[1]) ** 2
    lamp = (1 - stain.vignette * np.minimum(far, 1)).astype(np.float32)
    planes = []
    for white, h, e in zip(stain.white, stain.hematoxylin, stain.eosin, strict=True):
        density = np.float32(h) * blue + np.float32(e) * pink
        light = np.exp(np.float32(-np.log(10)) * density) * lamp
        light = ndimage.gaussian_filter(light, stain.blur_px, truncate=3)
        planes.append(255 * np.float32(white) * light ** np.float32(stain.gamma))
    image = np.stack(planes, axis=-1)
    image += np.float32(stain.noise) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def check_size(width_px: int, height_px: int) -> None:
    """Raise UsageError unless both sides lie within MIN_SIDE_PX and MAX_SIDE_PX."""
    for name, side in (("width_px", width_px), ("height_px", height_px)):
        if not MIN_SIDE_PX <= side <= MAX_SIDE_PX:
            raise UsageError(
                f"{name} must lie in {MIN_SIDE_PX}..{MAX_SIDE_PX}, got {side}",
                fix="a smaller photograph would not hold one gland",
            )
