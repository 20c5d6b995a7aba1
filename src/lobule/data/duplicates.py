"""Copies of one photograph: re-encoded, resized, flipped or turned by quarter turns.

Owns the fingerprint of an image and the search for pairs of equal fingerprints. Exact copies are
found elsewhere by hash. Shifts or crops of over 5% and turns by a few degrees are not found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dct

from lobule.data.images import N_VIEWS, ImageArray
from lobule.data.rows import Rows
from lobule.errors import UsageError

Fingerprint = NDArray[np.float32]
"""(206,) cosine coefficients of an image, of length 1; all zero if it has no texture."""

FINGERPRINT_SIZE = 206

Fingerprints = Sequence[Fingerprint] | NDArray[np.float32] | Rows
"""n of them, in memory or on disk, of which a slice can be taken."""

MIN_CORRELATION = 0.75
"""Measured on 422 BreakHis fields at 100X: different fields stay below 0.48; re-encoded, resized,
flipped and turned copies lie above 0.99, crops by 2% above 0.92; two fields that were photographed
twice give 0.79 and 0.81."""

MIN_TEXTURE = 1.5
"""Least root mean square of the coefficients, in grey levels of 0 to 255, for an image to be
compared. The emptiest BreakHis field has 4.3; blank glass with shading reaches about 1.2."""

_FREQUENCIES = 16  # finer ones tell fields apart no better and suffer from crops of a few pixels
_LOWEST = 2.5  # below lies the shading of the lamp, which all photographs of a microscope share
_LARGEST_PX = 1024
_TILE = 2048
_ROUNDING = 1e-5  # what float32 products may fall short by
_CHUNK = 16_384

# What `dihedral_view` does to the coefficient of vertical frequency u and horizontal frequency v:
# (transpose first, then multiply by (-1)^u, and by (-1)^v).
_VIEWS = (
    (False, False, False),
    (True, True, False),
    (False, True, True),
    (True, False, True),
    (False, False, True),
    (True, True, True),
    (False, True, False),
    (True, False, False),
)


@dataclass(frozen=True)
class NearDuplicate:
    """Two images that show the same photograph.

    first, second: rows of the fingerprints, first < second.
    view: 0 to 7, such that `images.dihedral_view(second, view)` looks like `first`.
    correlation: of the two fingerprints in that view, at most 1, rounded to six decimals.
    """

    first: int
    second: int
    view: int
    correlation: float


def fingerprint(image: ImageArray) -> Fingerprint:
    """Describe what an image shows, whatever its size, encoding and brightness.

    image: (h, w, 3) uint8. Returns (206,) float32 of length 1: the coefficients of the
    discrete cosine transform (type II) of the luminance, both sides taken as 1 long, with 2.5
    to 16 half waves across the image, each times the square root of its frequency (the
    amplitudes of photographs fall with frequency; this gives all a say). All zero where the
    image is flat (MIN_TEXTURE), so that it matches nothing.

    The eight views of an image have the same coefficients but for sign and transposition.
    """
    grey = Image.fromarray(image).convert("L")
    width, height = (min(side, _LARGEST_PX) for side in grey.size)
    if (width, height) != grey.size:
        grey = grey.resize((width, height), Image.Resampling.BOX)
    pixels = np.asarray(grey, dtype=np.float32)
    u, v = _band()
    coefficients = _transform(pixels)[u, v]
    if np.sqrt(np.sum(coefficients**2)) < MIN_TEXTURE:
        return np.zeros(len(u), dtype=np.float32)
    weighted = coefficients * np.sqrt(np.hypot(u, v))
    unit: Fingerprint = (weighted / np.linalg.norm(weighted)).astype(np.float32)
    return unit


def find_near_duplicates(
    fingerprints: Fingerprints,
    *,
    min_correlation: float = MIN_CORRELATION,
) -> list[NearDuplicate]:
    """List the pairs whose correlation in the best of the eight views is `min_correlation` or more.

    fingerprints: n of them, as from `fingerprint`. The answer is complete: a first pass compares
    all pairs by a bound that is never below their correlation, so it loses none. It takes n^2
    time, slows down as min_correlation falls below 0.7, and takes memory for each pair found;
    what else it needs is on disk. Pairs come sorted by (first, second). If several views are
    equally good, as for an image with symmetry, the lowest is named.
    Raises UsageError unless 0 < min_correlation <= 1.
    """
    if not 0 < min_correlation <= 1:
        raise UsageError(f"min_correlation must be above 0 and at most 1, got {min_correlation}")
    if len(fingerprints) < 2:
        return []
    found = []
    for i, j, first, second in _candidates(fingerprints, min_correlation - _ROUNDING):
        left, right = (_tile(fingerprints, start) for start in (i, j))
        view, correlation = _best_view(left[first], right[second])
        found += [
            NearDuplicate(
                int(first[k]) + i, int(second[k]) + j, int(view[k]), float(correlation[k])
            )
            for k in np.flatnonzero(correlation >= min_correlation)
        ]
    return sorted(found, key=lambda pair: (pair.first, pair.second))


def _tile(values: Fingerprints, start: int) -> NDArray[np.float32]:
    return np.asarray(values[start : start + _TILE], dtype=np.float32)


def _band() -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the vertical and the horizontal frequency of each coefficient, in half waves."""
    axis = np.arange(_FREQUENCIES)
    radius = np.hypot(axis[:, None], axis)
    u, v = np.nonzero((radius >= _LOWEST) & (radius <= _FREQUENCIES))
    return u, v


def _swap(u: NDArray[np.intp], v: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return where the coefficient (v, u) stands, for each coefficient (u, v)."""
    return np.searchsorted(u * _FREQUENCIES + v, v * _FREQUENCIES + u)


def _transform(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the (16, 16) lowest DCT-II coefficients of (h, w) pixels.

    The squares of all coefficients add up to the mean square of the pixels. A side of n pixels
    has n frequencies; the missing ones are zero.
    """
    # not a matrix product: so small a one is slowed 40 times by BLAS threads on a busy machine
    rows = dct(pixels, axis=0, norm="ortho")[:_FREQUENCIES]
    lowest = dct(rows, axis=1, norm="ortho")[:, :_FREQUENCIES] / np.sqrt(pixels.size)
    padding = [(0, _FREQUENCIES - side) for side in lowest.shape]
    return np.pad(lowest, padding).astype(np.float32)


def _invariants(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Map (n, 206) fingerprints to (n, 206) vectors that are the same for all eight views.

    Mirroring changes the signs of odd frequencies and turning swaps (u, v) with (v, u), so
    magnitudes and sorted pairs do not change. Where u and v are both odd their signs go
    together, and the magnitudes of sum and difference keep more. Absolute value, sorting and
    rotation never lengthen a distance and keep the length 1; hence the inner product of two
    results is at least the correlation of the fingerprints in any view.
    """
    u, v = _band()
    swap = _swap(u, v)
    both_even = (u % 2 == 0) & (v % 2 == 0)
    folded = np.where(both_even, values, np.abs(values))
    swapped = folded[:, swap]
    result = np.where(u > v, np.minimum(folded, swapped), np.maximum(folded, swapped))
    upper = np.flatnonzero((u % 2 == 1) & (v % 2 == 1) & (u < v))
    lower = swap[upper]
    result[:, upper] = np.abs(values[:, upper] + values[:, lower]) / np.sqrt(2)
    result[:, lower] = np.abs(values[:, upper] - values[:, lower]) / np.sqrt(2)
    return result


def _candidates(
    values: Fingerprints, bound: float
) -> Iterator[tuple[int, int, NDArray[np.intp], NDArray[np.intp]]]:
    """Yield pairs whose invariants have a product >= bound, each pair once.

    A pair is told as two tiles, by where they begin, and rows (first, second) of these.
    """
    starts = range(0, len(values), _TILE)
    invariants = Rows(FINGERPRINT_SIZE)
    for i in starts:
        invariants.append(_invariants(_tile(values, i)))
    for i in starts:
        left = _tile(invariants, i)
        for j in starts[i // _TILE :]:
            product = left @ _tile(invariants, j).T
            flat = np.flatnonzero(product >= bound)
            for k in range(0, len(flat), _CHUNK):
                first, second = np.divmod(flat[k : k + _CHUNK], product.shape[1])
                later = i + first < j + second
                yield i, j, first[later], second[later]


def _best_view(
    first: NDArray[np.float32], second: NDArray[np.float32]
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return (m,) views of `second` that match `first` best and (m,) correlations, row by row."""
    u, v = _band()
    left, right = first.astype(np.float64), second.astype(np.float64)
    plain, turned = left * right, left * right[:, _swap(u, v)]
    correlations = np.empty((len(left), N_VIEWS))
    for view, (transpose, sign_u, sign_v) in enumerate(_VIEWS):
        signs = (-1.0) ** (u * sign_u + v * sign_v)
        correlations[:, view] = (turned if transpose else plain) @ signs
    best = correlations.max(axis=1)
    # views that differ by rounding only are a tie, so that the answer does not depend on the order
    view = np.argmax(correlations >= best[:, None] - 1e-6, axis=1)
    # coefficients are float32, so that exact copies come within 1e-7 of 1 on either side
    return view, np.round(best, 6)
