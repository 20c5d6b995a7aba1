"""Where in a photograph the evidence for a class lies, on the mean of its eight views.

Two ways. "cam" takes the score apart: where features are means over places, the score is the mean
of what each place gives, and nothing is left over. "gradcam" asks instead which channels of an
earlier, finer stage the score answers to, and shows where those are strong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from lobule.data.images import N_VIEWS, ImageArray, dihedral_view, undo_view
from lobule.errors import ModelError, UsageError, first_line
from lobule.models.bundle import Model
from lobule.models.pooling import moments

Method = Literal["cam", "gradcam"]

METHODS: tuple[Method, ...] = get_args(Method)

Grid = NDArray[np.float32]

EXACT = 1e-3
"""How far features may be from the mean of the maps, as a share of the largest, to be called it."""


@dataclass(frozen=True, eq=False)
class Map:
    """A heat map of one photograph.

    evidence: (h, w) float32, one number a cell of the network's grid, over the whole photograph.
        Of "cam" in log-odds: its mean and `bias` together are the score of the class, which is its
        logit less the mean of the others', averaged over the views. Of "gradcam" at least 0 and in
        no unit.
    target: index of the class. bias: what the head says before it looks; 0 for "gradcam".
    """

    evidence: Grid
    method: Method
    target: int
    bias: float

    def over(self, width_px: int, height_px: int) -> Grid:
        """Return the evidence at the size of a photograph, (height_px, width_px), interpolated."""
        size = (width_px, height_px)
        return np.asarray(Image.fromarray(self.evidence).resize(size, Image.Resampling.BILINEAR))


def explain(
    model: Model,
    image: ImageArray,
    *,
    target: int,
    method: Method = "cam",
    views: int = N_VIEWS,
) -> Map:
    """Return where the evidence for class `target` lies in a decoded image (h, w, 3) uint8.

    Each view is explained by itself, turned back, and the maps are averaged.
    Raises ModelError where the network keeps no map of places, or, for "cam", where its features
    are no means over them; UsageError for another method, class or number of views.
    Source: "cam" Zhou et al., "Learning deep features for discriminative localization", CVPR
    (2016); "gradcam" Selvaraju et al., "Grad-CAM", ICCV (2017), at the stage before the last.
    """
    n_classes = len(model.info.classes)
    if method not in METHODS:
        raise UsageError(f"no method {method!r}", fix=f"there are: {', '.join(METHODS)}")
    if not 0 <= target < n_classes:
        raise UsageError(f"class {target} of {n_classes}, counted from 0")
    if not 1 <= views <= N_VIEWS:
        raise UsageError(f"{views} views of {N_VIEWS}")
    others = np.arange(n_classes) != target
    head = model.heads.tissue
    direction = torch.from_numpy(head.weight[target] - head.weight[others].mean(axis=0)).float()
    bias = float(head.bias[target] - head.bias[others].mean())
    ready = model.preprocessing(image).transpose(1, 2, 0)
    turned = [
        np.ascontiguousarray(dihedral_view(ready, k).transpose(2, 0, 1)) for k in range(views)
    ]
    found: dict[int, Grid] = {}
    # even views lie like the image, odd ones across: two batches, each of one shape
    for first in range(min(2, views)):
        # without channels last, a CPU takes twice as long
        batch = torch.from_numpy(np.stack(turned[first::2])).to(memory_format=torch.channels_last)
        grids = (_cam if method == "cam" else _gradcam)(model, batch, direction)
        found.update(zip(range(first, views, 2), grids.numpy(), strict=True))
    back = [undo_view(found[k], k) for k in range(views)]
    evidence: Grid = np.stack(back).mean(axis=0, dtype=np.float64).astype(np.float32)
    return Map(evidence, method, target, bias if method == "cam" else 0.0)


def _cam(model: Model, batch: Tensor, direction: Tensor) -> Tensor:
    """Return what each place gives to the score, (n, h, w); its mean is all but the bias."""
    backbone = model.backbone
    network = _network(model)
    with torch.inference_mode():
        last, stage = _places(backbone.name, network, batch)
        own = network.forward_head(last, pre_logits=True)
        maps = _channels_first(network, last)
        off = (maps.mean(dim=(2, 3)) - own).abs().max() if maps.shape[1] == own.shape[1] else None
        if off is None or off > EXACT * own.abs().max():
            raise ModelError(
                f"the features of {backbone.name} are no means over places, so that its score "
                "cannot be taken apart",
                fix="use the method gradcam",
            )
        d = own.shape[1]
        given = _weighed(maps, direction[:d])
        if backbone.pooling == "last":
            return given
        mean, spread = (each[:, :, None, None] for each in moments(stage))
        c = stage.shape[1]
        finer = functional.interpolate(
            given[:, None], stage.shape[2:], mode="bilinear", align_corners=False
        )[:, 0]
        # interpolating must neither add nor take
        finer += (given.mean(dim=(1, 2)) - finer.mean(dim=(1, 2)))[:, None, None]
        # a standard deviation is the mean of squared deviations over itself
        of_mean, of_spread = direction[d : d + c], direction[d + c :]
        return (
            finer + _weighed(stage, of_mean) + _weighed((stage - mean).square() / spread, of_spread)
        )


def _gradcam(model: Model, batch: Tensor, direction: Tensor) -> Tensor:
    """Return Grad-CAM of the stage before the last, (n, h, w), at least 0."""
    backbone = model.backbone
    network = _network(model)
    with torch.enable_grad():
        last, stage = _places(backbone.name, network, batch.requires_grad_())
        features = network.forward_head(last, pre_logits=True)
        if backbone.pooling == "stages":
            features = torch.cat([features, *moments(stage)], dim=1)
        (slope,) = torch.autograd.grad((features @ direction).sum(), stage)
    with torch.inference_mode():
        weight = slope.mean(dim=(2, 3), keepdim=True)
        return (weight * stage.detach()).sum(dim=1).relu()


def _network(model: Model) -> Any:  # noqa: ANN401  timm's networks share no type
    return model.backbone.network.to("cpu").to(memory_format=torch.channels_last)


def _places(name: str, network: nn.Module, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last maps as the network has them, and (n, c, h, w) of the stage before."""
    try:
        last, (stage,) = network.forward_intermediates(  # type: ignore[operator]
            batch, indices=[-2], output_fmt="NCHW"
        )
    except (AttributeError, TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ModelError(f"{name} has no stages to look into: {first_line(error)}") from error
    if last.ndim != 4 or stage.ndim != 4:
        raise ModelError(f"{name} keeps no map of places, so it cannot be asked where it looked")
    return last, stage


def _channels_first(network: nn.Module, maps: Tensor) -> Tensor:
    # timm says so where a network has its channels last
    return maps.permute(0, 3, 1, 2) if getattr(network, "output_fmt", "NCHW") == "NHWC" else maps


def _weighed(maps: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("nchw,c->nhw", maps, weight)
