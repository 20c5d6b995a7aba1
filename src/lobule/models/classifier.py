"""The linear heads that turn features into class probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class LinearHead:
    """logits = features @ weight.T + bias; standardisation is already folded in.

    weight: (K, n_features) float64. bias: (K,) float64.
    """

    weight: Matrix
    bias: Matrix

    def probabilities(self, features: NDArray[np.floating]) -> Matrix:
        """Return (..., K) float64 class probabilities of (..., n_features); they sum to 1."""
        probabilities: Matrix = softmax(features.astype(np.float64) @ self.weight.T + self.bias, -1)
        return probabilities


@dataclass(frozen=True)
class Features:
    """What the heads see of n images.

    views: (n, 8, d) float32, the backbone's features of each dihedral view.
    colour: (n, 12) float32, see `training.features.colour_statistics`.
    """

    views: NDArray[np.float32]
    colour: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.views)

    def where(self, keep: NDArray[np.bool_]) -> Features:
        """Return the features of the images for which `keep` is true."""
        return Features(self.views[keep], self.colour[keep])


@dataclass(frozen=True)
class Heads:
    """The classifier and the two baselines that always stand beside it.

    tissue: on the backbone's features. colour: on colour statistics only. prior: (K,) class
    shares of the training images, the answer of one who does not look.
    """

    tissue: LinearHead
    colour: LinearHead
    prior: Matrix

    def probabilities(self, features: Features) -> dict[str, Matrix]:
        """Return (n, K) by kind, as in `evaluation.predictions.KINDS`.

        prob is the mean over the eight exact views, which does not depend on how the slide lay
        on the stage; plain is the first view alone.
        """
        return {
            "prob": mean_over_views(self.tissue, features.views),
            "plain": self.tissue.probabilities(features.views[:, 0]),
            "colour": self.colour.probabilities(features.colour),
            "prior": np.tile(self.prior, (len(features), 1)),
        }


def mean_over_views(head: LinearHead, views: NDArray[np.floating]) -> Matrix:
    """Return (n, K) probabilities averaged over the views of (n, views, n_features)."""
    mean: Matrix = head.probabilities(views).mean(axis=1)
    return mean
