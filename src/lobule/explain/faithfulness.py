"""Whether a heat map can be believed: what the model says as the places it names come and go.

Numbers of one photograph say little; those of many are in docs/heat-maps.md.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import stats

from lobule.data.images import ImageArray
from lobule.evaluation.metrics import roc_auc
from lobule.explain.maps import Grid, Map
from lobule.models.bundle import Model
from lobule.models.classifier import Matrix

Score = Callable[[ImageArray], float]
"""Maps a decoded image (h, w, 3) uint8 to the probability of the class that is explained."""

STEPS = 10

N_RANDOM = 3

MARGIN = 0.01
"""Area by which a map must be better, so that what never changes is not called better."""

BLUR = 0.05
"""What stands where nothing is shown: the photograph blurred, sigma as a share of its longer side.
Colour and light stay, and with them the stain; cells and glands are gone."""


@dataclass(frozen=True)
class Curve:
    """Probability of the class against the share of the photograph that is shown, or hidden.

    probability: (steps + 1,), from none of it to all of it.
    """

    probability: tuple[float, ...]

    @property
    def area(self) -> float:
        """Return the area below, 0 to 1, by trapezia."""
        return float(np.trapezoid(self.probability, dx=1 / (len(self.probability) - 1)))


@dataclass(frozen=True)
class Faithfulness:
    """A map beside maps that know nothing; of `Curve.area`.

    insertion: as the places of most evidence are shown first; higher is better. deletion: as they
    are hidden first; lower is better. *_random: mean over maps of random evidence on the same
    grid. *_centre: of a map that names the middle. randomised: rank correlation with the map of
    the same network with shuffled weights, -1 to 1; near 1 the map shows the photograph and not
    what was learned; nan where it was not asked for, or one of them is flat.
    """

    insertion: float
    deletion: float
    insertion_random: float
    deletion_random: float
    insertion_centre: float
    deletion_centre: float
    randomised: float

    @property
    def beats_both(self) -> bool:
        """Whether showing what the map names does more than random places and than the middle.

        Less than MARGIN is no difference.
        """
        return self.insertion > max(self.insertion_random, self.insertion_centre) + MARGIN


def judge(
    found: Map,
    image: ImageArray,
    score: Score,
    *,
    randomised: Map | None = None,
    steps: int = STEPS,
    seed: int = 0,
) -> Faithfulness:
    """Measure a map on its photograph (h, w, 3) uint8.

    score: asked 2 (steps - 1) times for each of the map, the middle and N_RANDOM random ones.
    randomised: the map of `shuffled`. Source: Petsiuk et al., "RISE", BMVC (2018); Adebayo et al.,
    "Sanity checks for saliency maps", NeurIPS (2018).
    """
    hidden = blurred(image)
    ends = score(hidden), score(image)

    def areas(evidence: Grid) -> tuple[float, float]:
        order = ranks(replace(found, evidence=evidence).over(image.shape[1], image.shape[0]))
        return (
            curve(order, hidden, image, score, steps=steps, ends=ends).area,
            curve(order, image, hidden, score, steps=steps, ends=ends[::-1]).area,
        )

    rng = np.random.default_rng(seed)
    shape = found.evidence.shape
    own, centre = areas(found.evidence), areas(middle(shape))
    random = [areas(rng.random(shape, dtype=np.float32)) for _ in range(N_RANDOM)]
    insertion, deletion = np.mean(random, axis=0)
    return Faithfulness(
        insertion=own[0],
        deletion=own[1],
        insertion_random=float(insertion),
        deletion_random=float(deletion),
        insertion_centre=centre[0],
        deletion_centre=centre[1],
        randomised=np.nan if randomised is None else correlation(found, randomised),
    )


def curve(
    order: NDArray[np.intp],
    start: ImageArray,
    end: ImageArray,
    score: Score,
    *,
    steps: int = STEPS,
    ends: tuple[float, float],
) -> Curve:
    """Return how the score goes as the pixels of `start` become those of `end`.

    order: (h, w), the turn in which each pixel does, see `ranks`. ends: the scores of the two.
    """
    found = [ends[0]]
    for step in range(1, steps):
        turned = order < round(step / steps * order.size)
        found.append(score(np.where(turned[..., None], end, start)))
    return Curve((*found, ends[1]))


def ranks(evidence: Grid) -> NDArray[np.intp]:
    """Return the place of each pixel (h, w) in the order of falling evidence, from 0."""
    order = np.empty(evidence.size, dtype=np.intp)
    order[np.argsort(-evidence, axis=None, kind="stable")] = np.arange(evidence.size)
    return order.reshape(evidence.shape)


def middle(shape: tuple[int, ...]) -> Grid:
    """Return a map (h, w) that falls from the middle of a photograph to its corners."""
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) if n > 1 else np.zeros(1) for n in shape)
    return (-np.hypot(y[:, None], x[None, :])).astype(np.float32)


def blurred(image: ImageArray) -> ImageArray:
    """Return an image (h, w, 3) uint8 in which no cell can be seen; see `BLUR`."""
    sigma = BLUR * max(image.shape[:2])
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))


def correlation(one: Map, other: Map) -> float:
    """Return Spearman's rank correlation of two maps, nan if one is flat."""
    first, second = one.evidence.ravel(), other.evidence.ravel()
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(stats.spearmanr(first, second).statistic)


def lesion_auc(evidence: Grid, lesion: NDArray[np.bool_]) -> float:
    """Return how well evidence (h, w) tells lesion pixels (h, w) from the others: an ROC AUC.

    nan where all or none are lesion.
    """
    return roc_auc(lesion.ravel().astype(np.int64), evidence.ravel()).item()


def shuffled(model: Model, *, seed: int = 0) -> Model:
    """Return a model whose numbers are the same, but not in their places: it has learned nothing.

    Each tensor of network and head is shuffled within itself, so that layers keep their scale.
    """
    generator = torch.Generator().manual_seed(seed)
    network = deepcopy(model.backbone.network)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                mixed = torch.randperm(tensor.numel(), generator=generator)
                tensor.copy_(tensor.flatten()[mixed].reshape(tensor.shape))
    backbone = replace(model.backbone, network=network)
    rng = np.random.default_rng(seed)
    head = model.heads.tissue
    weight: Matrix = rng.permuted(head.weight.ravel()).reshape(head.weight.shape)
    heads = replace(model.heads, tissue=replace(head, weight=weight))
    return replace(model, heads=heads, network=lambda: backbone)
