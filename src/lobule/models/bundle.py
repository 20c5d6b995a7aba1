"""The model folder: weights.safetensors, model.json and README.md, read and written.

Nothing in it is code, and reading it runs none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import safetensors

from lobule.data.images import Preprocessing
from lobule.errors import DataError, ModelError, show
from lobule.files import replacing, write_json, write_text
from lobule.models.card import model_card
from lobule.models.classifier import Heads, LinearHead, Matrix
from lobule.models.folder import (
    CARD,
    INFO,
    SCHEMA,
    WEIGHTS,
    Pooling,
    hash_stored,
    pooled_id,
    read_info,
    read_weights,
)
from lobule.models.gate import Gate

if TYPE_CHECKING:
    from lobule.models.backbones import Backbone


@dataclass(frozen=True)
class ModelInfo:
    """What model.json says besides the network: plain types only.

    classes: names in the order of the probabilities; of two, the last is the positive class.
    operating_points: by level (image, slide, patient): threshold, target, value, achieved, source;
        empty with more than two classes.
    calibration: method, its numbers and source. sets: coverage asked for, quantile (None: every
    class is in), patients and source. out_of_fold: quantiles of the scores, and source. gate: share
    of images it was to let through, patients and source. reporting: what is said to the items of
    reporting guidelines. These four are empty in models of before.
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
    sets: dict[str, Any] = field(default_factory=dict)
    out_of_fold: dict[str, Any] = field(default_factory=dict)
    gate: dict[str, Any] = field(default_factory=dict)
    reporting: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Model:
    """All that a prediction needs: the network, its preprocessing, the heads, and its record.

    weights_sha256: of the weights file, as written or read. features_id: as of `Backbone`. folder:
    where it lies, if it does. network: builds the backbone, when it is first asked for. gate: tells
    what is unlike the training images; None in a model that lets everything through.
    """

    info: ModelInfo
    preprocessing: Preprocessing
    heads: Heads
    weights_sha256: str
    features_id: str
    network: Callable[[], Backbone] = field(repr=False, compare=False)
    folder: Path | None = None
    gate: Gate | None = None

    @cached_property
    def backbone(self) -> Backbone:
        """The network without its head. Where an export runs in its place, torch is not needed."""
        return self.network()

    @property
    def id(self) -> str:
        """Name and the first twelve digits of the weights' hash."""
        return f"{self.info.name}-{self.weights_sha256[:12]}"


def make_model(
    info: ModelInfo,
    backbone: Backbone,
    preprocessing: Preprocessing,
    heads: Heads,
    gate: Gate | None = None,
) -> Model:
    """Put a model together; its identity is the hash of the weights file it will have."""
    data = _pack(backbone, heads, gate)
    sha256 = hashlib.sha256(data).hexdigest()
    return Model(
        info, preprocessing, heads, sha256, backbone.features_id, network=lambda: backbone,
        gate=gate,
    )  # fmt: skip


def save_model(model: Model, folder: Path) -> None:
    """Write the three files of a model, each atomically; raises OutputError.

    model.json is written last: a folder without it is no model.
    """
    with replacing(folder / WEIGHTS) as temporary:
        temporary.write_bytes(_pack(model.backbone, model.heads, model.gate))
    record = describe(model)
    write_text(folder / CARD, model_card(record))
    write_json(folder / INFO, record)


def _pack(backbone: Backbone, heads: Heads, gate: Gate | None) -> bytes:
    import safetensors.torch
    import torch

    tensors = {f"{_BACKBONE}{key}": value for key, value in backbone.network.state_dict().items()}
    for name, part in (("tissue", heads.tissue), ("colour", heads.colour)):
        tensors[f"{name}.weight"] = torch.from_numpy(part.weight)
        tensors[f"{name}.bias"] = torch.from_numpy(part.bias)
    tensors["prior"] = torch.from_numpy(heads.prior)
    for name, values in ({} if gate is None else gate.to_tensors()).items():
        tensors[f"{_GATE}{name}"] = torch.from_numpy(values)
    return safetensors.torch.save({key: value.contiguous() for key, value in tensors.items()})


def describe(model: Model) -> dict[str, Any]:
    """Return what model.json holds."""
    return {
        "schema": SCHEMA,
        "id": model.id,
        **asdict(model.info),
        "positive": model.info.classes[-1],
        "preprocessing": {**model.preprocessing.to_json(), "id": model.preprocessing.id},
        "backbone": {
            "name": model.backbone.name,
            "weights": model.backbone.weights,
            "license": model.backbone.license,
            "n_features": model.backbone.n_features,
            "arguments": model.backbone.arguments,
            "pooling": model.backbone.pooling,
        },
        "weights_sha256": model.weights_sha256,
    }


def load_model(folder: Path) -> Model:
    """Read a model folder; raises ModelError if a file is missing, damaged or contradicts another.

    The weights must have the SHA-256 that model.json states.
    """
    model = open_model(folder)
    # asked for here, so that whatever is wrong with it is said now
    _ = model.backbone
    return model


def open_model(folder: Path) -> Model:
    """Read a model folder without building its network, which needs torch; raises ModelError.

    What is wrong with the network's own tensors is told once `Model.backbone` is asked for.
    """
    record = read_info(folder)
    data = read_weights(folder, record)
    with _complete(folder):
        tensors = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
        heads = {k: _as_array(v) for k, v in tensors.items() if not _is_backbone(k)}
        # models of before lack what has a default
        fields: dict[str, Any] = {
            key: record[key]
            for key, of in ModelInfo.__dataclass_fields__.items()
            if key in record or of.default_factory is MISSING
        }
        info = ModelInfo(**fields | {"classes": tuple(record["classes"])})
        spec = {k: v for k, v in record["preprocessing"].items() if k != "id"}
        preprocessing = Preprocessing.from_json(spec)
        if preprocessing.id != record["preprocessing"]["id"]:
            raise ModelError(
                f"{show(folder / INFO)} states preprocessing {record['preprocessing']['id']}, but "
                f"describes {preprocessing.id}",
                fix="copy the whole model folder again",
            )
        return Model(
            info=info,
            preprocessing=preprocessing,
            heads=Heads(
                tissue=_head(heads, "tissue"), colour=_head(heads, "colour"), prior=heads["prior"]
            ),
            weights_sha256=record["weights_sha256"],
            features_id=pooled_id(
                hash_stored(
                    {k.removeprefix(_BACKBONE): v for k, v in tensors.items() if _is_backbone(k)}
                ),
                _pooling(record),
            ),
            network=lambda: _build(folder, record),
            folder=folder,
            gate=_gate(heads),
        )


def _build(folder: Path, record: dict[str, Any]) -> Backbone:
    """Build the network of a model folder and fill it."""
    import safetensors.torch

    from lobule.models.backbones import build, wrap
    from lobule.models.layout import input_of
    from lobule.models.tensors import load_state

    tensors = safetensors.torch.load(read_weights(folder, record))
    with _complete(folder):
        name = record["backbone"]["name"]
        # models of before have no arguments
        arguments = record["backbone"].get("arguments", {})
        network = build(name, arguments)
        state = {k.removeprefix(_BACKBONE): v for k, v in tensors.items() if _is_backbone(k)}
        load_state(network, state, f"file {WEIGHTS}")
        return wrap(
            name,
            network,
            source=record["backbone"]["weights"],
            license=record["backbone"]["license"],
            arguments=arguments,
            config=input_of(record["preprocessing"]),
            pooling=_pooling(record),
        )


def _pooling(record: dict[str, Any]) -> Pooling:
    """Return what is taken from the network; models of before do not say it."""
    found: Pooling = record["backbone"].get("pooling", "last")
    if found not in get_args(Pooling):
        raise ModelError(f"this version knows no pooling {found!r}", fix="a newer Lobule may")
    return found


def _gate(tensors: dict[str, Matrix]) -> Gate | None:
    own = {k.removeprefix(_GATE): v for k, v in tensors.items() if k.startswith(_GATE)}
    return Gate.from_tensors(own) if own else None


_BACKBONE, _GATE = "backbone.", "gate."


def _is_backbone(tensor: str) -> bool:
    return tensor.startswith(_BACKBONE)


@contextmanager
def _complete(folder: Path) -> Iterator[None]:
    """Turn what is missing or odd in a model folder into a ModelError."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, DataError, safetensors.SafetensorError) as error:
        raise ModelError(
            f"{show(folder)} is not a complete model: {type(error).__name__} {error}",
            fix="copy the whole model folder again",
        ) from error


def _as_array(stored: dict[str, Any]) -> Matrix:
    """Return a head's tensor; others than float64 are not ours."""
    if stored["dtype"] != "F64":
        raise TypeError(f"a head of type {stored['dtype']}")
    return np.frombuffer(stored["data"], np.float64).reshape(stored["shape"]).copy()


def _head(tensors: dict[str, Any], name: str) -> LinearHead:
    return LinearHead(tensors[f"{name}.weight"], tensors[f"{name}.bias"])
