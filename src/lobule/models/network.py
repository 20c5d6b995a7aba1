"""The network that is trained: a backbone, and the head of pooled features on it.

    images (n, 3, h, w) -> backbone -> (n, d) -> batch norm -> dropout -> linear -> (n, K) logits

The origin put dropout before the batch normalisation, whose statistics then differ between training
and use (Li et al., CVPR 2019, "variance shift"); here the order is the other way round, with the
same parameters. In use the head is one affine map, so a trained network is stored as what every
other model is: a backbone and a `LinearHead`.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lobule.models.classifier import LinearHead, Matrix


class Network(nn.Module):
    """A backbone with its head, in float32.

    backbone: maps (n, 3, h, w) to (n, n_features). The head gives every class the same until
    `start_head` or `take_head`.
    """

    def __init__(self, backbone: nn.Module, n_features: int, n_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.norm = nn.BatchNorm1d(n_features)
        # without torch's own start, which would draw from the global generator
        self.linear = nn.utils.skip_init(  # type: ignore[no-untyped-call]
            nn.Linear, n_features, n_classes
        )
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return (n, K) logits.

        keep: (n, n_features) what dropout leaves, 0 or 1 / (1 - rate); None leaves all. It is an
        argument, so that what is dropped depends on the image and not on a global state.
        """
        features = self.backbone(images).float()
        # the backbone may run in bfloat16; the few numbers after it are cheap and stay exact
        with torch.autocast(features.device.type, enabled=False):
            features = self.norm(features)
            logits: Tensor = self.linear(features if keep is None else features * keep)
        return logits

    @torch.no_grad()
    def start_head(self, *, seed: int) -> None:
        """Draw the head anew from a generator of its own (uniform, as torch's Linear does)."""
        generator = torch.Generator().manual_seed(seed)
        bound = self.linear.in_features**-0.5
        self.linear.weight.uniform_(-bound, bound, generator=generator)
        self.linear.bias.uniform_(-bound, bound, generator=generator)

    @torch.no_grad()
    def take_head(self, head: LinearHead, features: NDArray[np.floating]) -> None:
        """Start from a head fitted on frozen features: the same logits, from standardised inputs.

        features: (n, d), what the head was fitted on; gives the norm its mean and variance.
        """
        # a feature that never varies is zero after the norm, whatever its scale
        mean, variance = features.mean(axis=0, dtype=np.float64), features.var(axis=0)
        running_mean, running_var = _statistics(self.norm)
        running_mean.copy_(torch.from_numpy(mean))
        running_var.copy_(torch.from_numpy(variance))
        scale = (running_var.double() + self.norm.eps).sqrt().numpy()
        self.linear.weight.copy_(torch.from_numpy(head.weight * scale))
        self.linear.bias.copy_(torch.from_numpy(head.bias + head.weight @ mean))

    @torch.no_grad()
    def folded_head(self) -> LinearHead:
        """Return norm and linear layer as the one affine map they are in use, in float64."""
        mean, variance = (t.double().cpu().numpy() for t in _statistics(self.norm))
        scale, shift = (p.double().cpu().numpy() for p in (self.norm.weight, self.norm.bias))
        weight, bias = (p.double().cpu().numpy() for p in (self.linear.weight, self.linear.bias))
        scale = scale / np.sqrt(variance + self.norm.eps)
        folded: Matrix = weight * scale
        return LinearHead(folded, bias + weight @ shift - folded @ mean)


def _statistics(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    return cast("Tensor", norm.running_mean), cast("Tensor", norm.running_var)
