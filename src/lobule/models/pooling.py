"""What is taken from a network as the features of an image.

The last layer of a network trained on everyday photographs says what things are. The stage before
it still says what they are made of (docs/results.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lobule.errors import ModelError, first_line
from lobule.models.folder import Pooling


class Stages(nn.Module):
    """A timm network and what `Pooling` "stages" takes from it: (n, 3, h, w) to (n, d + 2 c).

    d: the network's own features. c: channels of the stage before the last.
    """

    def __init__(self, network: nn.Module) -> None:
        """Wrap `network`; its weights are shared."""
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return the features, those of the network first."""
        last, (stage,) = self.network.forward_intermediates(images, indices=[-2])  # type: ignore[operator]
        own = self.network.forward_head(last, pre_logits=True)  # type: ignore[operator]
        return torch.cat([own, *moments(stage)], dim=1)


def moments(stage: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation over the places of (n, c, h, w), each (n, c)."""
    mean = stage.mean(dim=(2, 3))
    spread = (stage - mean[:, :, None, None]).square().mean(dim=(2, 3))
    # a channel that is the same everywhere has no derivative at 0
    return mean, (spread + 1e-12).sqrt()


def pool(name: str, network: nn.Module, pooling: Pooling) -> nn.Module:
    """Return what maps images to features. Raises ModelError if the network has no such stages."""
    if pooling == "last":
        return network
    module = Stages(network).eval()
    try:
        with torch.inference_mode():
            config: Any = network.pretrained_cfg
            module(torch.zeros(1, *config["input_size"]))
    except (AttributeError, TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ModelError(
            f"{name} has no stages whose features could be taken: {first_line(error)}",
            fix="take its last layer: --set pooling=last",
        ) from error
    return module
