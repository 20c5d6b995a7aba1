"""The refusal gate: whether an image looks, to the network, like those that it was trained on.

A classifier answers whatever it is shown, a holiday photograph included. The gate says how much of
what the network sees in an image lies outside the few directions in which training images differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.models.classifier import Features, Matrix


@dataclass(frozen=True)
class Gate:
    """What training images have in common, and how far from it an image may lie.

    mean: (d,) float64, of the training images' directions, see `directions`. basis: (r, d) float64,
    orthonormal rows, along which those differ most; r may be 0. threshold: the highest score that
    is accepted.
    """

    mean: Matrix
    basis: Matrix
    threshold: float

    def score(self, features: Features) -> Matrix:
        """Return how strange each image is, (n,) float64 in [0, 4], higher for stranger.

        It is the squared distance of the image's direction from the plane through the mean that
        the basis spans; nan if a feature is not finite. Source: Wang et al., "ViM:
        Out-of-distribution with virtual-logit matching", CVPR (2022), its residual; of features of
        length 1, as in Sun et al., "Out-of-distribution detection with deep nearest neighbors",
        ICML (2022).
        """
        return self.distance(directions(features))

    def distance(self, seen: Matrix) -> Matrix:
        """Return the score of each of `directions` (n, d)."""
        off = seen - self.mean
        rest: Matrix = ((off - (off @ self.basis.T) @ self.basis) ** 2).sum(axis=1)
        return rest

    def accepts(self, features: Features) -> NDArray[np.bool_]:
        """Return (n,) bool: whether the image may be answered; never where the score is nan."""
        return self.passes(self.score(features))

    def passes(self, score: Matrix) -> NDArray[np.bool_]:
        """Return which of scores (n,) are let through."""
        return score <= self.threshold

    def to_tensors(self) -> dict[str, Matrix]:
        """Return float64 arrays by name; `from_tensors` makes the same gate of them."""
        return {"mean": self.mean, "basis": self.basis, "threshold": np.array([self.threshold])}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[Any]]) -> Gate:
        """Return the gate of `to_tensors`.

        Raises KeyError if one of them is missing, TypeError if they are not those of a gate.
        """
        mean, basis, threshold = (tensors[name] for name in ("mean", "basis", "threshold"))
        if any(one.dtype != np.float64 for one in (mean, basis, threshold)):
            raise TypeError("a gate of another type than float64")
        if mean.ndim != 1 or basis.ndim != 2 or basis.shape[1:] != mean.shape:
            raise TypeError(f"a gate with a mean {mean.shape} and a basis {basis.shape}")
        if threshold.shape != (1,):
            raise TypeError(f"a gate with a threshold {threshold.shape}")
        return cls(mean, basis, float(threshold[0]))


def directions(features: Features) -> Matrix:
    """Return the mean features of the views, scaled to length 1, as (n, d) float64.

    How strongly a network responds grows with contrast and staining; which features respond, and
    in what proportion, tells what is seen. All zeros stay so.
    """
    mean = features.views.mean(axis=1, dtype=np.float64)
    length = np.sqrt((mean**2).sum(axis=1, keepdims=True))
    with np.errstate(invalid="ignore"):
        # what is not finite becomes nan, and is told by that
        direction: Matrix = mean / np.where(length == 0, 1, length)
    return direction
