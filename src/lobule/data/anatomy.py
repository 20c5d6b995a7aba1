"""What made-up tissue is made of: stroma, fat, glands, tumour and nuclei, as amounts of two dyes.

Everything is painted on a `Canvas` in place; positions are in pixels, (x, y).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.spatial import cKDTree

_Plane = NDArray[np.float32]
_Points = NDArray[np.float64]
_Each = NDArray[np.float64] | float


@dataclass(frozen=True)
class Canvas:
    """Densities of both dyes, (h, w), painted in place, and the run of the fibres in radians."""

    hematoxylin: _Plane
    eosin: _Plane
    direction: _Plane

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.eosin.shape[0], self.eosin.shape[1]

    def lay(self, where: tuple[slice, slice], alpha: _Plane, dyes: tuple[float, float]) -> None:
        """Replace what is there by (hematoxylin, eosin) densities as far as alpha (0..1) says."""
        for plane, value in zip((self.hematoxylin, self.eosin), dyes, strict=True):
            plane[where] += alpha * (np.float32(value) - plane[where])


_ALL = (slice(None), slice(None))


def _clouds(rng: np.random.Generator, shape: tuple[int, int], scale_px: float) -> _Plane:
    """Smooth noise of mean 0 and variance 1 whose lumps are about `scale_px` wide."""
    height, width = shape
    rows, cols = int(height / scale_px) + 5, int(width / scale_px) + 5
    grid = Image.fromarray(rng.standard_normal((rows, cols), dtype=np.float32))
    x, y = rng.uniform(1, 2, 2)
    box = (x, y, x + width / scale_px, y + height / scale_px)
    noise = np.array(grid.resize((width, height), Image.Resampling.BICUBIC, box=box))
    return np.asarray((noise - noise.mean()) / (noise.std() + 1e-6), dtype=np.float32)


def _ramp(values: _Plane, start: float, end: float) -> _Plane:
    return np.asarray(np.clip((values - start) / (end - start), 0, 1), dtype=np.float32)


def lay_stroma(rng: np.random.Generator, shape: tuple[int, int], background: float) -> Canvas:
    """Pink collagen: streaks of noise bent along a slowly turning direction, with clefts."""
    y, x = np.indices(shape, dtype=np.float32)
    run = rng.uniform(0, np.pi)
    bend, sway = _clouds(rng, shape, 75), rng.uniform(4, 15)
    wave = rng.uniform(0.5, 2.5) * np.sin((x * np.cos(run) + y * np.sin(run)) / rng.uniform(7, 12))
    across = y * np.cos(run) - x * np.sin(run) + sway * bend + wave
    along = x * np.cos(run) + y * np.sin(run)
    streaks = rng.standard_normal((192, 192), dtype=np.float32)
    streaks = ndimage.gaussian_filter(streaks, (0.8, 7), mode="wrap", truncate=2.5)
    fibres = ndimage.map_coordinates(
        streaks / streaks.std(), [across, along], order=1, mode="grid-wrap"
    )
    slope_y, slope_x = np.gradient(bend)
    direction = run - np.arctan(sway * (slope_y * np.cos(run) - slope_x * np.sin(run)))
    loose = _clouds(rng, shape, 60)
    pink = 0.42 * (1 + 0.22 * fibres - 0.22 * loose)
    pink *= 1 - 0.9 * _ramp(-fibres - 1.9 + rng.uniform(0.3, 0.7) * loose, 0, 0.5)
    blue = background * (0.6 + 0.2 * fibres) * np.minimum(1, pink / 0.3) + 0.02
    return Canvas(
        np.clip(blue, 0, None, dtype=np.float32),
        np.clip(pink, 0.015, None, dtype=np.float32),
        direction.astype(np.float32),
    )


def lay_fat(rng: np.random.Generator, canvas: Canvas) -> None:
    """Fat cells: empty polygons with thin pink walls, in one part of the field."""
    height, width = canvas.shape
    where = _clouds(rng, canvas.shape, 90)
    edge = float(np.quantile(where, rng.uniform(0.7, 0.9)))
    pitch = rng.uniform(22, 30)
    y, x = np.mgrid[-pitch : height + pitch : pitch, -pitch : width + pitch : pitch]
    cells = np.stack([y.ravel(), x.ravel()], axis=1) + rng.normal(0, 0.24 * pitch, (y.size, 2))
    half = np.mgrid[0:height:2, 0:width:2].reshape(2, -1).T
    near, next_near = cKDTree(cells).query(half, k=2)[0].T
    gap = (next_near - near).reshape((height + 1) // 2, (width + 1) // 2).astype(np.float32)
    full = Image.fromarray(gap).resize((width, height), Image.Resampling.BICUBIC)
    fat = _ramp(where, edge, edge + 0.08)
    canvas.lay(_ALL, fat, (0.04, 0.3))
    canvas.lay(_ALL, fat * _ramp(np.array(full), 1.2, 2.6), (0.0, 0.015))


def _cells(
    xy: _Points,
    angle: _Each,
    *,
    radius_px: _Each,
    spread: _Each = 0.1,
    stretch: _Each = 1.2,
    density: _Each = 0.8,
) -> _Points:
    """Nuclei to draw, one a row: x, y, angle of the long axis, and the looks they vary around."""
    looks = np.broadcast_arrays(xy[:, 0], angle, radius_px, spread, stretch, density)
    return np.column_stack([xy, *looks[1:]])


def _vary(rng: np.random.Generator, cells: _Points) -> _Points:
    """Turn rows of `_cells` into x, y, half axes along and across `angle` (px), angle, dark, rim.

    No two nuclei are the same: the greater a row's spread, the more pleomorphic.
    """
    x, y, angle, radius_px, spread, stretch, density = cells.T
    z = rng.standard_normal((5, len(cells)))
    radius = np.clip(radius_px * np.exp(spread * z[0]), 1.0, 5.5)
    root = np.sqrt(np.clip(stretch * np.exp((0.12 + spread / 2) * z[1]), 1.0, 3.5))
    dark = density * np.exp((0.08 + spread / 2) * z[2])
    rim = np.clip(0.25 + spread / 2 + (0.15 + spread / 2) * z[3], 0, 0.6)
    turned = angle + (0.15 + spread) * z[4]
    return np.column_stack([x, y, radius * root, radius / root, turned, dark, rim])


def place_stromal_cells(rng: np.random.Generator, canvas: Canvas, atypia: float) -> _Points:
    """Spindle-shaped fibroblasts along the fibres and lymphocytes in clouds."""
    height, width = canvas.shape
    area = height * width
    n_spindles = rng.poisson(area * rng.uniform(0.7, 2.2) / 1000)
    n_round = rng.poisson(area * rng.gamma(0.7, 0.35 + 0.3 * atypia) / 1000)
    spindles = rng.uniform(0, 1, (n_spindles, 2)) * (width, height)
    clouds = rng.uniform(0, 1, (3, 2)) * (width, height)
    spread_px = rng.uniform(12, 60)
    lymphocytes = clouds[rng.integers(0, 3, n_round)] + rng.normal(0, spread_px, (n_round, 2))
    xy = np.clip(np.concatenate([spindles, lymphocytes]), 0, (width - 1, height - 1))
    col, row = xy.astype(np.intp).T
    angle = canvas.direction[row, col].astype(np.float64)
    cells = np.concatenate(
        [
            _cells(spindles, angle[:n_spindles], radius_px=1.9, stretch=3.4, density=0.6),
            _cells(lymphocytes, 0.0, radius_px=2.1, stretch=1.05, density=1.0),
        ]
    )
    return np.asarray(cells[canvas.eosin[row, col] > 0.17])


def _box(shape: tuple[int, int], at: tuple[float, float], reach: float) -> tuple[slice, slice]:
    """Rows and columns within `reach` px of at (x, y), cut off at the border of the field."""
    rows, cols = (
        slice(min(max(0, int(c - reach)), side), max(0, min(side, int(c + reach) + 1)))
        for c, side in zip(reversed(at), shape, strict=True)
    )
    return rows, cols


def _gland(
    rng: np.random.Generator,
    canvas: Canvas,
    at: tuple[float, float],
    *,
    radius_px: float,
    atypia: float,
    lesion: NDArray[np.bool_] | None = None,
) -> _Points:
    """Paint a duct, an acinus or, where a lesion is given to mark, a tubule; return its nuclei.

    A benign gland is round, with columnar cells over a flat layer of myoepithelium; with atypia
    cells heap up into the lumen. A tubule is angular and has one layer.
    """
    tubule = lesion is not None
    size = (0.11 if tubule else 0.05 + 0.03 * (radius_px > 15)) * rng.normal(0, 1, 4)
    ripples = size / np.sqrt([1, 2, 3, 4]) * np.exp(2j * np.pi * rng.uniform(0, 1, 4))
    coefficients = np.concatenate([[1, 0], ripples]).astype(np.complex64)
    nucleus = 2.35 + 1.2 * atypia

    def outline(towards: NDArray[np.complexfloating]) -> NDArray[np.floating]:
        # a Fourier series of the angle, as powers of the unit vector z = x + iy
        return np.asarray(radius_px * np.polynomial.polynomial.polyval(towards, coefficients).real)

    where = _box(canvas.shape, at, 1.7 * radius_px)
    y, x = np.ogrid[where]
    z = ((x - at[0]) + 1j * (y - at[1])).astype(np.complex64)
    distance = np.abs(z)
    edge = outline(z / np.maximum(distance, 1e-3))
    inside = np.asarray(edge - distance, dtype=np.float32)
    layers = 1 if tubule else 1 + int(rng.random() < 2.2 * atypia) + int(rng.random() < atypia)
    depth = nucleus * 2.5 * layers + (0 if tubule else 2.2)
    canvas.lay(where, 0.6 * _ramp(inside, -0.3 * radius_px - 2, 0), (0.05, 0.27))
    canvas.lay(where, _ramp(inside, -0.5, 0.8), (0.15, 0.28))
    secretion = rng.random() < 0.25
    canvas.lay(where, _ramp(inside, depth, depth + 1.5), (0.06, 0.14) if secretion else (0, 0.015))
    if lesion is not None:
        lesion[where] |= inside > 0

    # one row a ring of nuclei: depth, spacing (px), then radius, spread, stretch, density, turn
    rings = [] if tubule else [(1.1, 6.5, 1.6, 0.1, 2.2, 0.95, np.pi / 2)]
    for layer in range(layers):
        down = (1.2 if tubule else 3.2) + nucleus * (1.1 + 2.2 * layer)
        if down < radius_px - 1:
            looks = (nucleus, 0.06 + 0.2 * atypia, 1.35, 0.72 + 0.25 * atypia)
            rings.append((down, nucleus * 2.15, *looks, 0.0))
    counts = [max(3, round(2 * np.pi * (radius_px - down) / gap)) for down, gap, *_ in rings]
    steps = np.concatenate([(np.arange(n) + rng.uniform(0, 1)) / n for n in counts])
    n = np.repeat(counts, counts)
    down, _, radius, spread, stretch, density, turn = np.repeat(rings, counts, axis=0).T
    angle = 2 * np.pi * (steps + rng.normal(0, 0.13, len(n)) / n)
    towards = np.exp(1j * angle)
    off = np.maximum(outline(towards) - down + rng.normal(0, 0.35 + 0.5 * atypia, len(n)), 0)
    xy = np.column_stack([at[0] + off * towards.real, at[1] + off * towards.imag])
    return _cells(
        xy,
        angle + turn,
        radius_px=radius,
        spread=spread,
        stretch=stretch,
        density=density,
    )


def lay_benign_glands(rng: np.random.Generator, canvas: Canvas, atypia: float) -> list[_Points]:
    """Separate ducts, and lobules of small acini in pale stroma."""
    height, width = canvas.shape
    nuclei: list[_Points] = []
    taken: list[tuple[float, float, float]] = []

    def free(x: float, y: float, r: float) -> bool:
        return all(np.hypot(x - a, y - b) > r + c for a, b, c in taken)

    wanted = max(1, rng.poisson(height * width / 80500 * (5 + 5 * atypia)))
    for _ in range(6 * wanted):
        if len(taken) >= wanted:
            break
        lobule = rng.random() < 0.45 + 0.3 * atypia
        radius = rng.uniform(30, 56) if lobule else min(13 + rng.gamma(2, 7), 55)
        radius = min(radius, 0.45 * min(height, width))
        x, y = float(rng.uniform(0, width)), float(rng.uniform(0, height))
        if not free(x, y, 1.15 * radius):
            continue
        taken.append((x, y, 1.15 * radius))
        if not lobule:
            nuclei.append(_gland(rng, canvas, (x, y), radius_px=radius, atypia=atypia))
            continue
        where = _box(canvas.shape, (x, y), 1.1 * radius)
        yy, xx = np.ogrid[where]
        ball = (1 - np.hypot(xx - x, yy - y) / (1.1 * radius)).astype(np.float32)
        canvas.lay(where, 0.75 * _ramp(ball, 0, 0.25), (0.08, 0.22))
        acinus = rng.uniform(8.5, 10.5)
        pitch = acinus * (2.3 - 0.3 * atypia)
        for i, j in np.ndindex(9, 9):
            dx = (i - 4 + 0.5 * (j % 2)) * pitch + rng.normal(0, 1.3)
            dy = (j - 4) * 0.87 * pitch + rng.normal(0, 1.3)
            if np.hypot(dx, dy) + 0.7 * acinus < radius and rng.random() < 0.92:
                r = acinus * rng.uniform(0.8, 1.12)
                at = (x + dx, y + dy)
                nuclei.append(_gland(rng, canvas, at, radius_px=r, atypia=atypia))
    return nuclei


def lay_growth(
    rng: np.random.Generator, canvas: Canvas, atypia: float, lesion: NDArray[np.bool_]
) -> list[_Points]:
    """Paint tubules (low atypia) and nests or cords of large crowded nuclei; mark `lesion`.

    With atypia near 1 it is carcinoma of high grade, near 0.5 of low grade, below that the
    adenosis or hyperplasia that is mistaken for it.
    """
    height, width = canvas.shape
    nuclei: list[_Points] = []
    cover = rng.uniform(0.18, 0.3) + atypia * rng.uniform(0.05, 0.42)
    tubular = cover * np.clip(1.5 - 1.5 * atypia + rng.normal(0, 0.1), 0, 0.7)
    for _ in range(400):
        radius = rng.uniform(8, 15)
        if lesion.mean() + 5 * radius**2 / lesion.size > tubular:
            break
        at = (float(rng.uniform(0, width)), float(rng.uniform(0, height)))
        if not lesion[int(at[1]), int(at[0])]:
            gland = _gland(rng, canvas, at, radius_px=radius, atypia=atypia, lesion=lesion)
            nuclei.append(gland)
    cords = rng.random() < 0.4
    score = _clouds(rng, canvas.shape, 22 if cords else 38)
    if cords:
        score = -np.abs(score) + 0.3 * _clouds(rng, canvas.shape, 60)
    score += 0.15 * _clouds(rng, canvas.shape, 9)
    score[lesion] = -9
    edge = float(np.quantile(score, 1 - max(cover - float(lesion.mean()), 0.07)))
    nest = score > edge
    lesion |= nest
    canvas.lay(_ALL, 0.7 * _ramp(score, edge - 0.7, edge), (0.05, 0.24))
    canvas.lay(_ALL, _ramp(score, edge, edge + 0.12), (0.13 + 0.05 * atypia, 0.27))
    slits = _clouds(rng, canvas.shape, 15)
    canvas.lay(_ALL, nest * _ramp(slits, 2.3 - 0.5 * (1 - atypia), 2.6), (0.0, 0.02))
    nucleus = 2.5 + 1.5 * atypia
    pitch = nucleus * rng.uniform(2.3, 2.9)
    y, x = np.mgrid[0:height:pitch, 0:width:pitch]
    xy = np.stack([x.ravel(), y.ravel()], axis=1) + rng.uniform(-0.5, 0.5, (x.size, 2)) * pitch
    xy = np.clip(xy, 0, (width - 1, height - 1))
    col, row = xy.astype(np.intp).T
    xy = xy[nest[row, col] & (slits[row, col] < 2.0)]
    turn = rng.uniform(0, np.pi, len(xy))
    looks = {"spread": 0.08 + 0.24 * atypia, "stretch": 1.3, "density": 0.68 + 0.16 * atypia}
    return [*nuclei, _cells(xy, turn, radius_px=nucleus, **looks)]


def stamp_nuclei(
    rng: np.random.Generator, canvas: Canvas, cells: _Points, *, coarseness: float
) -> None:
    """Lay all nuclei down at once, each as a small patch; overlaps keep the darker."""
    height, width = canvas.shape
    chromatin = np.zeros(canvas.shape, dtype=np.float32)
    nuclei = _vary(rng, cells)
    long = nuclei[:, 2] > 4
    # small nuclei in small patches: most are, and it halves the time
    for group, reach in ((nuclei[~long], 5), (nuclei[long], 11)):
        x, y, a, b, angle, dark, rim = group.astype(np.float32).T[:, :, None, None]
        offset = np.arange(-reach, reach + 1, dtype=np.float32)
        col, row = np.round(x) + offset, np.round(y) + offset[:, None]
        cos, sin = np.cos(angle), np.sin(angle)
        rho = np.hypot(
            ((col - x) * cos + (row - y) * sin) / a, ((row - y) * cos - (col - x) * sin) / b
        )
        body = np.clip((1 - rho) * np.sqrt(a * b) + 0.5, 0, 1)
        patch = dark * body * (1 - rim * np.clip(1 - rho * rho, 0, 1))
        keep = (patch > 0) & (col >= 0) & (col < width) & (row >= 0) & (row < height)
        at = (row * width + col)[keep].astype(np.intp)
        np.maximum.at(chromatin.reshape(-1), at, patch[keep])
    grain = _clouds(rng, canvas.shape, 1.3 + coarseness)
    chromatin *= np.clip(1 + (0.12 + 0.16 * coarseness) * grain, 0.4, 1.7)
    canvas.eosin[...] *= np.clip(1 + 0.07 * grain, 0, None)
    canvas.hematoxylin[...] = np.maximum(canvas.hematoxylin, chromatin)
    canvas.eosin[...] *= 1 - 0.5 * np.minimum(chromatin, 1)
