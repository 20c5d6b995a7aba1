"""Stain normalisation: an image as it might look had another laboratory stained it.

Owns what a set of images looks like (`StainTarget`), and the change of one image towards it. Where
an image does not tell its own stains it is left as it is, and the reason is said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lobule.errors import DataError, UsageError, nearest

if TYPE_CHECKING:
    # its preprocessing normalises, so at run time it is the one that imports
    from lobule.data.images import ImageArray

FloatArray = NDArray[np.float64]

StainMethod = Literal["macenko", "reinhard"]

PARTS: Mapping[str, Mapping[str, int]] = {
    "macenko": {"glass": 3, "haematoxylin": 3, "eosin": 3, "strength": 2},
    "reinhard": {"mean": 3, "std": 3},
}
"""What the numbers of each method are, in order, and how many of each."""

TISSUE_DENSITY = 0.15
"""Least optical density of stained tissue above that of the glass, of all channels together (the
length of the vector). Source: Macenko et al. (2009)."""

LEAST_TISSUE = 0.01
"""Least share of the pixels, and LEAST_PX their least number, that must have TISSUE_DENSITY."""

LEAST_PX = 50

TISSUE_SHARE = 0.25
"""What is taken for tissue in an image that has some: this share of the density that one pixel in a
hundred exceeds. In the BreakHis fields that is 0.07 to 0.34, 0.12 in the middle one; unlike a fixed
density it takes the same pixels however strong the stain."""

GLASS = 0.01
"""Share of the pixels, the lightest, whose mean density is taken for that of empty glass."""

MOST_OFF_PLANE = 0.75
"""Colours of two stains lie in a plane: how large the mean square density off it may be, as a share
of that along the weaker of its two directions. Measured on 422 BreakHis fields at 100X: 0.30 in the
middle one, below 0.66 in 95 of 100. Noise has above 0.85 from 64 x 64 pixels on."""

LEAST_APART = 0.05
"""Least difference of red density between haematoxylin and eosin, as vectors of length 1. Below
it, which is which is anyone's guess; 8 in 100 of the BreakHis fields are, most of them tinted."""

LEAST_STRENGTH = 0.1
"""Least optical density of the strongest stained pixels; the BreakHis fields have 0.13 and more."""

LEAST_SPREAD = 5e-4
"""Least standard deviation along each axis of l-alpha-beta; the BreakHis fields have 0.001."""

_MOST_SAMPLED = 50_000
_MOST_NUMBER = 10.0  # densities and logarithms of 8-bit images reach 2.4

DENSITY = -np.log10(np.arange(1, 257) / 256)
"""Optical density of each grey level, (256,), as if it were a level lighter: so black is finite."""

# Of colours as rows. Source of both: Reinhard et al. (2001).
_RGB_TO_LMS = np.array(
    [[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]]
).T
_LMS_TO_LAB = (np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]]) / np.sqrt([[3], [6], [2]])).T


@dataclass(frozen=True)
class StainTarget:
    """What images are made to look like.

    numbers: as PARTS has them. Macenko: optical density of empty glass in R, G, B; of haematoxylin
    and of eosin, as vectors of length 1; and how much of the two the strongest stained pixels have
    beyond the glass. Reinhard: mean and standard deviation of tissue in l-alpha-beta, decadic.
    """

    method: StainMethod
    numbers: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the method, and the numbers by name of their part."""
        left = iter(self.numbers)
        parts = {name: list(islice(left, n)) for name, n in PARTS[self.method].items()}
        return {"method": self.method, **parts}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> StainTarget:
        """Rebuild from `to_json`; raises DataError on unknown, missing or unusable fields."""
        try:
            method = fields["method"]
            parts = PARTS[method]
            if fields.keys() != {"method", *parts}:
                raise ValueError(f"its fields are {', '.join(map(str, fields))}")
            values = {name: [float(v) for v in fields[name]] for name in parts}
            _check(values, parts)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"stain target cannot be used: {error!r}") from error
        return cls(method, tuple(number for value in values.values() for number in value))


def _check(values: Mapping[str, list[float]], parts: Mapping[str, int]) -> None:
    for name, value in values.items():
        if len(value) != parts[name] or not all(abs(v) <= _MOST_NUMBER for v in value):
            raise ValueError(f"{name} is {value}, not {parts[name]} numbers within {_MOST_NUMBER}")
        if name in ("strength", "std") and min(value) <= 0:
            raise ValueError(f"{name} is {value}, not above 0")


def fit_stain_target(images: Iterable[ImageArray], method: StainMethod) -> StainTarget:
    """Return the target that stands in the middle of some images.

    images: each (h, w, 3) uint8; one at a time is held. Each number is the median over the images,
    so that a few odd ones do not matter. Images that do not tell their stains are passed over.
    Raises DataError if none is left, UsageError for an unknown method.
    """
    if method not in get_args(StainMethod):
        known = nearest(method, get_args(StainMethod))
        raise UsageError(f"no stain normalisation is named {method!r}", fix=known)
    found = [_estimate(image, method) for image in images]
    told = [numbers for numbers in found if not isinstance(numbers, str)]
    if not told:
        reasons = Counter(reason for reason in found if isinstance(reason, str)).most_common()
        raise DataError(
            f"none of {len(found)} image(s) tells its stain"
            + "".join(f"; {reason} ({n})" for reason, n in reasons),
            fix="name images of stained tissue, or do without stain normalisation",
        )
    middle = np.median(told, axis=0)
    if method == "macenko":
        middle[3:6] /= np.linalg.norm(middle[3:6])
        middle[6:9] /= np.linalg.norm(middle[6:9])
    return StainTarget(method, tuple(middle.tolist()))


def normalise_stain(image: ImageArray, target: StainTarget) -> tuple[ImageArray, str | None]:
    """Return the image stained like `target`, and None; or the image itself, and why not.

    image: (h, w, 3) uint8; so is the result. The reasons: "too little tissue", "no stains" (the
    colours are not those of two stains, as in noise), "one stain only" and "no variation".
    Sources: "macenko" is Macenko et al., ISBI (2009), with density counted from the glass of each
    image (GLASS), since many cameras show it grey or tinted. "reinhard" is Reinhard et al., IEEE
    Comput. Graph. Appl. 21 (2001), with mean and standard deviation of the tissue.
    """
    own = _estimate(image, target.method)
    if isinstance(own, str):
        return image, own
    return _METHODS[target.method].carry(image, own, np.array(target.numbers)), None


def _estimate(image: ImageArray, method: StainMethod) -> FloatArray | str:
    """Return the numbers of an image, or why there are none."""
    pixels = image.reshape(-1, 3)
    density = DENSITY[pixels[:: -(-len(pixels) // _MOST_SAMPLED)]]
    total = density.sum(axis=1)
    glass = density[total <= np.quantile(total, GLASS)].mean(axis=0)
    beyond = density - glass
    length = np.linalg.norm(beyond, axis=1)
    if (length > TISSUE_DENSITY).sum() < max(LEAST_PX, LEAST_TISSUE * len(length)):
        return "too little tissue"
    tissue = beyond[length > TISSUE_SHARE * np.quantile(length, 0.99)]
    # the plane of the two stains goes through the glass, so nothing is centred
    off, along = np.linalg.eigvalsh(tissue.T @ tissue)[:2]
    if off > MOST_OFF_PLANE * along:
        return "no stains"
    return _METHODS[method].estimate(tissue, glass)


def _macenko(tissue: FloatArray, glass: FloatArray) -> FloatArray | str:
    _, vectors = np.linalg.eigh(tissue.T @ tissue)
    first, second = vectors[:, 2], vectors[:, 1]
    # tissue is darker than glass; turned its way, no angle lies near the jump from pi to -pi
    first = first * np.sign(first.sum())
    angles = np.arctan2(tissue @ second, tissue @ first)
    ends = [np.cos(a) * first + np.sin(a) * second for a in np.percentile(angles, [1, 99])]
    eosin, haematoxylin = sorted(ends, key=lambda vector: float(vector[0]))
    if haematoxylin[0] - eosin[0] < LEAST_APART:
        return "one stain only"
    amounts = tissue @ np.linalg.pinv(np.stack([haematoxylin, eosin]))
    strength = np.percentile(amounts, 99, axis=0)
    if strength.min() < LEAST_STRENGTH:
        return "one stain only"
    return np.concatenate([glass, haematoxylin, eosin, strength])


def _carry_macenko(image: ImageArray, own: FloatArray, target: FloatArray) -> ImageArray:
    """Unmix by least squares, scale, and mix anew: one 3 x 3 matrix on the densities."""
    scale = np.diag(target[9:] / own[9:])
    matrix = np.linalg.pinv(own[3:9].reshape(2, 3)) @ scale @ target[3:9].reshape(2, 3)
    shift = target[:3] - own[:3] @ matrix
    density = DENSITY.astype(np.float32)[image] @ matrix.astype(np.float32)
    density += shift.astype(np.float32)
    return to_levels(10 ** -np.maximum(density, 0, out=density))


def _reinhard(tissue: FloatArray, glass: FloatArray) -> FloatArray | str:
    lab = np.log10(10 ** -(tissue + glass) @ _RGB_TO_LMS) @ _LMS_TO_LAB
    spread = lab.std(axis=0)
    if spread.min() < LEAST_SPREAD:
        return "no variation"
    return np.concatenate([lab.mean(axis=0), spread])


def _carry_reinhard(image: ImageArray, own: FloatArray, target: FloatArray) -> ImageArray:
    """Shift and stretch along the three axes, which is one 3 x 3 matrix on log LMS."""
    # the axes stand at right angles, so turning them back takes no inverse
    scale = target[3:] / own[3:]
    matrix = _LMS_TO_LAB @ np.diag(scale) @ _LMS_TO_LAB.T
    shift = (target[:3] - scale * own[:3]) @ _LMS_TO_LAB.T
    light = (np.arange(1, 257, dtype=np.float32) / 256)[image]
    lms = np.log10(light @ _RGB_TO_LMS.astype(np.float32)) @ matrix.astype(np.float32)
    lms += shift.astype(np.float32)
    # far beyond what 8 bits hold either way
    lms = 10 ** np.clip(lms, -4, 1, out=lms)
    return to_levels(lms @ np.linalg.inv(_RGB_TO_LMS).astype(np.float32))


def to_levels(light: NDArray[np.float32]) -> ImageArray:
    """Return the grey level of light, 10 to the power of minus a density: undoes DENSITY."""
    return np.clip(np.rint(256 * light - 1), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class _Method:
    """estimate: numbers from densities of tissue above the glass (n, 3), and of the glass (3,).

    carry: an image from its own numbers to those of a target.
    """

    estimate: Callable[[FloatArray, FloatArray], FloatArray | str]
    carry: Callable[[ImageArray, FloatArray, FloatArray], ImageArray]


_METHODS = {
    "macenko": _Method(_macenko, _carry_macenko),
    "reinhard": _Method(_reinhard, _carry_reinhard),
}
