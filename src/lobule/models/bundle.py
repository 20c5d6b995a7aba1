"""The model folder: weights.safetensors, model.json and README.md, read and written.

Nothing in it is code, and reading it runs none.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from lobule.data.images import Preprocessing
from lobule.errors import DataError, ModelError, show
from lobule.files import replacing, write_json, write_text
from lobule.models.backbones import Backbone, build, wrap
from lobule.models.card import model_card
from lobule.models.classifier import Heads, LinearHead
from lobule.models.folder import CARD, INFO, SCHEMA, WEIGHTS, read_info, read_weights
from lobule.models.layout import input_of
from lobule.models.tensors import load_state


@dataclass(frozen=True)
class ModelInfo:
    """What model.json says besides the network: plain types only.

    classes: names in the order of the probabilities; of two, the last is the positive class.
    operating_points: by level (image, slide, patient): threshold, target, value, achieved, source;
        empty with more than two classes.
    calibration: method and source.
    training: data hash, counts, seed and settings. performance: the figures of the card.
    """

    name: str
    created: str
    classes: tuple[str, ...]
    operating_points: dict[str, dict[str, Any]]
    calibration: dict[str, Any]
    training: dict[str, Any]
    performance: dict[str, Any]
    versions: dict[str, str]


@dataclass(frozen=True)
class Model:
    """All that a prediction needs: the network, its preprocessing, the heads, and its record.

    weights_sha256: of the weights file, as written or read.
    """

    info: ModelInfo
    backbone: Backbone
    preprocessing: Preprocessing
    heads: Heads
    weights_sha256: str

    @property
    def id(self) -> str:
        """Name and the first twelve digits of the weights' hash."""
        return f"{self.info.name}-{self.weights_sha256[:12]}"


def make_model(
    info: ModelInfo, backbone: Backbone, preprocessing: Preprocessing, heads: Heads
) -> Model:
    """Put a model together; its identity is the hash of the weights file it will have."""
    data = _pack(backbone, heads)
    return Model(info, backbone, preprocessing, heads, hashlib.sha256(data).hexdigest())


def save_model(model: Model, folder: Path) -> None:
    """Write the three files of a model, each atomically; raises OutputError.

    model.json is written last: a folder without it is no model.
    """
    with replacing(folder / WEIGHTS) as temporary:
        temporary.write_bytes(_pack(model.backbone, model.heads))
    record = describe(model)
    write_text(folder / CARD, model_card(record))
    write_json(folder / INFO, record)


def _pack(backbone: Backbone, heads: Heads) -> bytes:
    tensors = {f"backbone.{key}": value for key, value in backbone.network.state_dict().items()}
    for name, part in (("tissue", heads.tissue), ("colour", heads.colour)):
        tensors[f"{name}.weight"] = torch.from_numpy(part.weight)
        tensors[f"{name}.bias"] = torch.from_numpy(part.bias)
    tensors["prior"] = torch.from_numpy(heads.prior)
    return safetensors.torch.save({key: value.contiguous() for key, value in tensors.items()})


def describe(model: Model) -> dict[str, Any]:
    """Return what model.json holds."""
    return {
        "schema": SCHEMA,
        "id": model.id,
        **asdict(model.info),
        "positive": model.info.classes[-1],
        "preprocessing": {**asdict(model.preprocessing), "id": model.preprocessing.id},
        "backbone": {
            "name": model.backbone.name,
            "weights": model.backbone.weights,
            "license": model.backbone.license,
            "n_features": model.backbone.n_features,
            "arguments": model.backbone.arguments,
        },
        "weights_sha256": model.weights_sha256,
    }


def load_model(folder: Path) -> Model:
    """Read a model folder; raises ModelError if a file is missing, damaged or contradicts another.

    The weights must have the SHA-256 that model.json states.
    """
    record = read_info(folder)
    data = read_weights(folder, record)
    try:
        tensors = safetensors.torch.load(data)
        fields: dict[str, Any] = {key: record[key] for key in ModelInfo.__dataclass_fields__}
        info = ModelInfo(**fields | {"classes": tuple(record["classes"])})
        spec = {k: v for k, v in record["preprocessing"].items() if k != "id"}
        preprocessing = Preprocessing.from_json(spec)
        if preprocessing.id != record["preprocessing"]["id"]:
            raise ModelError(
                f"{show(folder / INFO)} states preprocessing {record['preprocessing']['id']}, but "
                f"describes {preprocessing.id}",
                fix="copy the whole model folder again",
            )
        name = record["backbone"]["name"]
        # models of before have no arguments
        arguments = record["backbone"].get("arguments", {})
        network = build(name, arguments)
        prefix = "backbone."
        state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        load_state(network, state, f"file {WEIGHTS}")
        return Model(
            info=info,
            backbone=wrap(
                name,
                network,
                source=record["backbone"]["weights"],
                license=record["backbone"]["license"],
                arguments=arguments,
                config=input_of(record["preprocessing"]),
            ),
            preprocessing=preprocessing,
            heads=Heads(
                tissue=_head(tensors, "tissue"),
                colour=_head(tensors, "colour"),
                prior=tensors["prior"].numpy(),
            ),
            weights_sha256=record["weights_sha256"],
        )
    except (KeyError, TypeError, AttributeError, DataError, safetensors.SafetensorError) as error:
        raise ModelError(
            f"{show(folder)} is not a complete model: {type(error).__name__} {error}",
            fix="copy the whole model folder again",
        ) from error


def _head(tensors: dict[str, torch.Tensor], name: str) -> LinearHead:
    weight, bias = tensors[f"{name}.weight"].numpy(), tensors[f"{name}.bias"].numpy()
    return LinearHead(weight.astype(np.float64), bias.astype(np.float64))
