"""timm's layout of published weights: config.json, model.safetensors and README.md.

The files are a stranger's: what is taken from them is checked here, and nothing in them is run.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from huggingface_hub import metadata_load

from lobule.errors import ModelError, show
from lobule.models.license import GATED, NOT_STATED

CONFIG, CARD, WEIGHTS = "config.json", "README.md", "model.safetensors"

INPUT = ("mean", "std", "interpolation", "input_size", "fixed_input_size")
"""What is taken from timm's record of how weights were made."""

_log = logging.getLogger(__name__)


def read_config(path: Path) -> dict[str, Any]:
    """Return a config.json, whose `architecture` is a text; raises ModelError."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot read {show(path)}: {show(str(error))}", fix="fetch or copy it again"
        ) from error
    if not isinstance(record, dict) or not isinstance(record.get("architecture"), str):
        raise ModelError(
            f"{show(path)} names no architecture of timm",
            fix="models of other libraries (transformers, for one) cannot be a backbone; many are "
            "published in timm's layout too",
        )
    return record


def network_of(record: dict[str, Any], path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what builds the network, and what its makers say of its input.

    record: as `read_config` returns it, of an architecture that timm has.
    The first are arguments besides the name, the second those of INPUT that are stated.
    Raises ModelError where one cannot be used.
    """
    arguments = record.get("model_args") or {}
    # an older layout has everything in one level
    stated = record.get("pretrained_cfg", record)
    if not isinstance(arguments, dict) or not isinstance(stated, dict):
        raise _odd(path, "model_args" if isinstance(stated, dict) else "pretrained_cfg", "object")
    checks = {
        "mean": (_is_triple, "three numbers"),
        "std": (lambda v: _is_triple(v) and min(v) > 0, "three numbers over 0"),
        "interpolation": (lambda v: isinstance(v, str), "a name"),
        "input_size": (_is_size, "3, height and width"),
        "fixed_input_size": (lambda v: isinstance(v, bool), "true or false"),
    }
    config = {key: stated[key] for key in checks if stated.get(key) is not None}
    for key, value in config.items():
        fits, wanted = checks[key]
        if not fits(value):
            raise _odd(path, key, wanted, value)
    # no class of theirs is kept; None is how timm writes what was not given
    arguments = {k: v for k, v in arguments.items() if k != "num_classes" and v is not None}
    if arguments.get("in_chans", 3) != 3:
        raise _odd(path, "in_chans", "3", arguments["in_chans"])
    if "img_size" in arguments:
        # what builds the network says its size; the rest may be of the weights it began with
        side = arguments["img_size"]
        config["input_size"] = [3, *(side if isinstance(side, list) else [side, side])]
    return {**fixed_size(record["architecture"], config), **arguments}, config


def published(name: str) -> dict[str, Any]:
    """Return timm's record of the weights that go by `name`, or of the default ones."""
    record: Any = timm.get_pretrained_cfg(name)
    if record is None:
        # a name that timm gave up: it builds the network, and tells today's name there alone
        with torch.device("meta"):
            network: Any = timm.create_model(name)
        return dict(network.pretrained_cfg)
    return dict(record.to_dict()) | {"architecture": name.partition(".")[0]}


def fixed_size(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return the argument that makes a network of one size take that of `config`, if it needs it.

    timm takes the size from its own record otherwise, and a saved model names no other.
    """
    usual, size = published(name), config.get("input_size")
    if not usual["fixed_input_size"] or size is None or [*size] == [*usual["input_size"]]:
        return {}
    return {"img_size": list(size[1:])}


def input_of(preprocessing: dict[str, Any]) -> dict[str, Any]:
    """Return what a model's preprocessing says of the input, in timm's words."""
    config = {key: preprocessing[key] for key in ("mean", "std", "interpolation")}
    if preprocessing["aspect"] == "square":
        side = preprocessing["long_side_px"]
        config |= {"input_size": [3, side, side], "fixed_input_size": True}
    return config


def _is_triple(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(v, int | float) and math.isfinite(v) for v in value)
    )


def _is_size(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(v, int) and 1 <= v <= 4096 for v in value)
        and value[0] == 3
    )


def _odd(path: Path, key: str, wanted: str, found: object = "something else") -> ModelError:
    return ModelError(
        f"{show(path)} has {key} {show(str(found))}, where {wanted} must stand",
        fix="mend it in a copy of the folder, and name that copy with --backbone FOLDER",
    )


def read_license(stated: object, card: Path | None = None) -> str:
    """Return the licence of published weights, in one line.

    stated: what timm or a config.json says of it, if anything. card: the README.md beside that, if
    there is one; its front matter has `license`, or `license_name` where that is "other", and keys
    that begin with `extra_gated` where the page is gated. Two that differ are both named.
    """
    front = {} if card is None else _front_matter(card)
    on_card = front.get("license")
    if on_card in (None, "other"):
        on_card = front.get("license_name") or on_card
    told = dict.fromkeys(text for text in (_text(stated), _text(on_card)) if text)
    gated = any(str(key).startswith("extra_gated") for key in front)
    return (" / ".join(told) or NOT_STATED) + (GATED if gated else "")


def _text(value: object) -> str:
    if isinstance(value, list):
        return " / ".join(filter(None, map(_text, value)))
    if not isinstance(value, str) or value.strip().lower() == "unknown":
        return ""
    return show(value.strip()).lower()


def _front_matter(card: Path) -> dict[Any, Any]:
    if not card.is_file():
        return {}
    try:
        return metadata_load(card) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        # the weights can be used all the same; that their licence was not seen has to be told
        _log.warning("cannot read the licence in %s: %s", show(card), show(str(error)))
        return {}
