"""Augmentation: what is drawn for an image, and a batch of images changed accordingly.

Everything drawn for an image depends on (seed, epoch, image) alone. How many processes load, on
how many machines, and whether the run was interrupted change nothing.

The changes, in order: one of the eight exact views; zoom and shift, one factor for both axes,
with mirrored edges; amounts of haematoxylin, eosin and DAB, and brightness; a mild blur.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  torch's own name for it
from numpy.typing import NDArray
from torch import Tensor

from lobule.data.damage import HED
from lobule.data.images import N_VIEWS, ImageArray, Preprocessing, dihedral_view
from lobule.training.tuning import Tuning

BLUR_RADIUS_PX = 3


@dataclass(frozen=True)
class Draws:
    """What was drawn for n images.

    view: (n,) int in 0..7. zoom: (n,) factor, over 1 shows less. shift: (n, 2) right and down, as
    shares of the width and height. stain: (n, 3) factor of each stain. offset: (n, 3) optical
    density added of each. brightness: (n,) factor of the light. blur_px: (n,) sigma of the blur.
    keep: (n, d) what dropout leaves of d features, 0 or 1 / (1 - rate).
    """

    view: NDArray[np.int64]
    zoom: NDArray[np.float32]
    shift: NDArray[np.float32]
    stain: NDArray[np.float32]
    offset: NDArray[np.float32]
    brightness: NDArray[np.float32]
    blur_px: NDArray[np.float32]
    keep: NDArray[np.float32]

    def where(self, rows: slice | NDArray[np.int64]) -> Draws:
        """Return what was drawn for some of the images."""
        return Draws(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def draw(sha256: Sequence[str], tuning: Tuning, *, seed: int, epoch: int, n_features: int) -> Draws:
    """Draw for each image, named by its content, what its turn in `epoch` looks like."""
    drawn = [_draw_one(name, tuning, seed, epoch, n_features) for name in sha256]
    columns = {f.name: np.stack([d[f.name] for d in drawn]) for f in fields(Draws)}
    as_float = {k: v.astype(np.float32) for k, v in columns.items() if k != "view"}
    return Draws(view=columns["view"].astype(np.int64), **as_float)


def drawn_view(sha256: str, *, seed: int, epoch: int) -> int:
    """Return the view that `draw` gives an image, without the rest."""
    return int(_generator(sha256, seed, epoch).integers(N_VIEWS))


def _generator(sha256: str, seed: int, epoch: int) -> np.random.Generator:
    return np.random.default_rng([seed, epoch, int(sha256[:16], 16)])


def _draw_one(
    sha256: str, tuning: Tuning, seed: int, epoch: int, n_features: int
) -> dict[str, NDArray[np.generic]]:
    rng = _generator(sha256, seed, epoch)
    return {
        "view": np.array(rng.integers(N_VIEWS)),
        # as often twice as large as half as large
        "zoom": (1 + tuning.zoom) ** rng.uniform(-1, 1, ()),
        "shift": rng.uniform(-tuning.shift, tuning.shift, 2),
        "stain": rng.uniform(1 - tuning.stain, 1 + tuning.stain, 3),
        "offset": rng.uniform(-tuning.stain, tuning.stain, 3),
        "brightness": rng.uniform(1 - tuning.brightness, 1 + tuning.brightness, ()),
        "blur_px": rng.uniform(0, tuning.blur_px, ()),
        "keep": (rng.random(n_features) >= tuning.dropout) / (1 - tuning.dropout),
    }


def lay(image: ImageArray, view: int, canvas: tuple[int, int]) -> ImageArray:
    """Return a dihedral view of an image on a canvas (height, width) in pixels.

    A canvas of the view's own size is the exact view. Of a larger view the middle is taken, a
    smaller one is continued by mirroring its edges.
    """
    turned: ImageArray = dihedral_view(image, view)
    for axis, want in enumerate(canvas):
        have = turned.shape[axis]
        before = abs(have - want) // 2
        if have > want:
            turned = turned[before : before + want] if axis == 0 else turned[:, before:][:, :want]
        elif have < want:
            pad = [(0, 0)] * turned.ndim
            pad[axis] = (before, want - have - before)
            turned = np.pad(turned, pad, mode="symmetric")
    return np.ascontiguousarray(turned)


def to_light(images: Tensor) -> Tensor:
    """Turn (n, h, w, 3) uint8 into (n, 3, h, w) float32 in [0, 1], channels last in memory."""
    return images.permute(0, 3, 1, 2).float() / 255


def normalise(light: Tensor, prep: Preprocessing) -> Tensor:
    """Return (n, 3, h, w) of `to_light` as the network takes it; `Preprocessing.normalise`."""
    mean, std = (torch.tensor(v, device=light.device)[:, None, None] for v in (prep.mean, prep.std))
    return ((light - mean) / std).contiguous(memory_format=torch.channels_last)


def augment(images: Tensor, draws: Draws, *, blur: bool = True) -> Tensor:
    """Change a batch as drawn; the views are already on the canvas (see `lay`).

    images: (n, h, w, 3) uint8. Returns (n, 3, h, w) float32 in [0, 1], on the same device.
    """
    light = to_light(images)
    light = _move(light, _like(draws.zoom, light), _like(draws.shift, light))
    light = _stain(light, draws)
    if blur:
        light = _blur(light, _like(draws.blur_px, light))
    return light.clamp(0, 1)


def _like(values: NDArray[np.float32], tensor: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(tensor.device)


def _move(light: Tensor, zoom: Tensor, shift: Tensor) -> Tensor:
    if bool((zoom == 1).all()) and bool((shift == 0).all()):
        return light
    # in grid coordinates a canvas is 2 wide
    matrix = torch.zeros(len(light), 2, 3, device=light.device)
    matrix[:, 0, 0] = matrix[:, 1, 1] = 1 / zoom
    matrix[:, :, 2] = -2 * shift / zoom[:, None]
    grid = F.affine_grid(matrix, list(light.shape), align_corners=False)
    return F.grid_sample(light, grid, padding_mode="reflection", align_corners=False)


def stain_matrix(
    stain: NDArray[np.float32], offset: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return how optical densities (.., 3) change: density @ matrix + shift.

    stain, offset: (n, 3). Returns (n, 3, 3) and (n, 3). Densities are unmixed into stains, these
    scaled and shifted, and mixed again. Source: Tellez et al., IEEE Trans. Med. Imaging 37 (2018).
    """
    vectors = HED / np.linalg.norm(HED, axis=1, keepdims=True)
    matrix = np.linalg.inv(vectors) @ (stain[:, :, None].astype(np.float64) * vectors)
    return matrix.astype(np.float32), (offset @ vectors).astype(np.float32)


def _stain(light: Tensor, draws: Draws) -> Tensor:
    matrix, shift = stain_matrix(draws.stain, draws.offset)
    # light that is a tenth brighter is a density that is lower everywhere
    shift = shift - np.log10(draws.brightness)[:, None]
    unchanged = np.abs(matrix - np.eye(3, dtype=np.float32)).max() < 1e-6 and not shift.any()
    if unchanged:
        return light
    density = -torch.log10(light.clamp_min(1 / 255))
    # (n, 3, 3)^T on the channel axis of (n, 3, h w)
    mixed = torch.baddbmm(
        _like(shift, light)[:, :, None],
        _like(matrix.transpose(0, 2, 1), light),
        density.flatten(2),
    )
    return torch.pow(10.0, -mixed).view_as(light)


def _blur(light: Tensor, sigma: Tensor) -> Tensor:
    """Blur by a Gaussian of its own for each image, rows then columns."""
    if not bool((sigma > 0).any()):
        return light
    n, channels, height, width = light.shape
    reach = min(BLUR_RADIUS_PX, height - 1, width - 1)
    offsets = torch.arange(-reach, reach + 1, device=light.device, dtype=light.dtype)
    # a sigma of nearly 0 is the identity, without dividing by 0
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp_min(1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    flat = light.reshape(1, n * channels, height, width)
    flat = F.pad(flat, (reach,) * 4, mode="reflect")
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=n * channels)
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=n * channels)
    return flat.view_as(light)
