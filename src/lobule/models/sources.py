"""Where a backbone comes from: what `--backbone` may name, and what is found there.

    densenet201, densenet201.tv_in1k    a network of timm, with or without the tag of its weights
    hf-hub:ORG/NAME, ...@REVISION       a repository in timm's layout, on the hub or in its cache
    FOLDER                              the same layout on disk, or the model folder of a run
    FILE.safetensors                    that says its architecture, or has a config.json beside it

Nothing that is read can run code.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
from torch import Tensor

from lobule.errors import ModelError, show
from lobule.models import folder as run_model
from lobule.models import layout
from lobule.models.hub import DEFAULT, fetch
from lobule.models.tensors import CONVERT, open_tensors, read_tensors

HUB = "hf-hub:"

BY_MAKER = "as stated by whoever made the file"
"""The licence of weights that came as a file alone."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """What a spec stands for, before any network is built.

    name: timm's name of the architecture. license, origin: of the weights, in words. tensors: by
    timm's names; None for a timm name, or if not asked for. published: the name by which timm has
    safetensors on the hub, if it has. arguments: what builds the network besides the name.
    config: what its makers say of its input, in timm's words (`layout.network_of`).
    """

    name: str
    license: str
    origin: str
    tensors: dict[str, Tensor] | None = None
    published: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


def resolve(spec: str, *, tensors: bool = True) -> Source:
    """Return what `spec` stands for; a repository of the hub is fetched.

    A name of timm is that even beside a folder of the same name, which is ./NAME.
    tensors: whether they are needed; a repository or folder may lack them otherwise.
    Raises ModelError that says what was looked for, and what else could be meant.
    """
    if spec.startswith(HUB):
        return _repository(spec.removeprefix(HUB), tensors=tensors)
    if os.path.isfile(spec):
        return _file(Path(spec), tensors=tensors)
    if _in_timm(spec):
        return _timm(spec)
    if os.path.isdir(spec):
        folder = Path(spec)
        return _folder(folder, f"folder {show(folder.resolve().name)}", tensors=tensors)
    raise _unknown(spec)


def check_name(name: str) -> None:
    """Raise ModelError, with the nearest names, unless timm has a network called `name`."""
    if not _in_timm(name):
        raise _unknown(name)


def _in_timm(name: str) -> bool:
    # timm.is_model looks at what stands before the dot alone
    architecture, dot, tag = name.partition(".")
    return bool(timm.is_model(architecture)) and (not dot or tag in _tags(architecture))


def _tags(architecture: str) -> list[str]:
    names = timm.list_models(f"{architecture}.*", pretrained=True)
    return [name.partition(".")[2] for name in names]


def _unknown(spec: str) -> ModelError:
    architecture, _, tag = spec.partition(".")
    if os.sep in spec or spec.endswith(".safetensors"):
        # ORG/NAME is how the hub itself writes its repositories
        at_hub = re.fullmatch(r"\w[\w.-]*/[\w.-]+(?<!\.safetensors)", spec)
        return ModelError(
            f"there is no file or folder {show(spec)}",
            fix=f"for the repository of that name on the hub: --backbone {HUB}{spec}"
            if at_hub
            else f"check the path; a repository of the hub is written {HUB}ORG/NAME",
        )
    if tag and timm.is_model(architecture):
        return ModelError(
            f"timm has no weights of {architecture} with the tag {tag!r}",
            fix=f"it has: {', '.join(_tags(architecture)) or 'none'}",
        )
    near = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.3)
    return ModelError(
        f"no backbone is called {spec!r}",
        fix=f"the nearest timm names: {', '.join(near)}"
        if near
        else f"names are timm's; the offline default is {DEFAULT}",
    )


def _timm(name: str) -> Source:
    record = layout.published(name)
    architecture, tag = record["architecture"], record.get("tag")
    config = {key: record[key] for key in layout.INPUT}
    return Source(
        name=architecture,
        license=layout.read_license(record.get("license")),
        origin=f"timm, {tag}",
        published=f"{architecture}.{tag}" if record.get("hf_hub_id") else None,
        arguments=layout.fixed_size(architecture, config),
        config=config,
    )


def fetch_published(source: Source) -> tuple[str, Path, str]:
    """Return the name by which timm publishes weights, their file, and where it comes from.

    Raises ModelError if there is none but a pickle, or if it cannot be fetched.
    """
    if source.published is None:
        raise ModelError(
            f"timm publishes no weights of {source.name} as safetensors",
            fix="give some with --weights FILE.safetensors, or random ones with --weights none",
        )
    repository = layout.published(source.published)["hf_hub_id"]
    snapshot = fetch(repository, files=[layout.WEIGHTS])
    origin = f"{HUB}{repository}@{snapshot.name}"
    return source.published, _weights_in(snapshot, origin), origin


def _repository(spec: str, *, tensors: bool) -> Source:
    repository, _, revision = spec.partition("@")
    wanted = [layout.CONFIG, layout.CARD, *([layout.WEIGHTS] if tensors else [])]
    snapshot = fetch(repository, revision or None, files=wanted)
    origin = f"{HUB}{repository}@{snapshot.name}"
    if revision and revision != snapshot.name:
        origin += f" ({revision})"
    return _folder(snapshot, origin, tensors=tensors)


def _folder(folder: Path, origin: str, *, tensors: bool) -> Source:
    if (folder / run_model.INFO).is_file():
        return _run_model(folder, tensors=tensors)
    config = folder / layout.CONFIG
    if not config.is_file():
        in_run = (folder / "model" / run_model.INFO).is_file()
        raise ModelError(
            f"{origin} has no {layout.CONFIG}, which names the architecture",
            fix=f"the model of that run is the backbone: --backbone {show(folder / 'model')}"
            if in_run
            else "name the network yourself: --backbone NAME --weights FILE.safetensors",
        )
    state = read_tensors(_weights_in(folder, origin)) if tensors else None
    return _described(config, origin, state)


def _weights_in(folder: Path, origin: str) -> Path:
    if not (folder / layout.WEIGHTS).is_file():
        others = sorted(show(p.name) for p in folder.iterdir() if p.suffix in (".bin", ".pth"))
        found = f" but {', '.join(others)}" if others else ""
        raise ModelError(f"{origin} has no {layout.WEIGHTS}{found}", fix=CONVERT)
    return folder / layout.WEIGHTS


def _file(path: Path, *, tensors: bool) -> Source:
    state, metadata = open_tensors(path)
    named, config = metadata.get("architecture"), path.parent / layout.CONFIG
    origin, needed = f"file {show(path.name)}", state if tensors else None
    # a config.json of another architecture belongs to another file
    if config.is_file() and named in (None, layout.read_config(config)["architecture"]):
        return _described(config, origin, needed)
    if named is None:
        raise ModelError(
            f"{show(path)} does not say which network it belongs to",
            fix=f"name it: --backbone NAME --weights {show(path)}",
        )
    check_name(named)
    return Source(named, BY_MAKER, origin, needed)


def _described(config: Path, origin: str, tensors: dict[str, Tensor] | None) -> Source:
    record = layout.read_config(config)
    name = record["architecture"]
    if not _in_timm(name):
        raise ModelError(
            f"{show(config)} names {name!r}, which timm {timm.__version__} does not know",
            fix="a newer timm may have it: pip install --upgrade timm",
        )
    arguments, said = layout.network_of(record, config)
    stated = record.get("pretrained_cfg", record).get("license")
    license = layout.read_license(stated, config.parent / layout.CARD)
    return Source(name, license, origin, tensors, arguments=arguments, config=said)


def _run_model(folder: Path, *, tensors: bool) -> Source:
    """Return the backbone of a model that Lobule made."""
    record = run_model.read_info(folder)
    data = run_model.read_weights(folder, record) if tensors else None
    try:
        backbone, training = record["backbone"], record["training"]
        if training.get("tuning") or training["recipe"].get("tuning"):
            _log.warning(
                "the backbone of %s was tuned on %s images: on the same patients it seems better "
                "than it is, whatever the folds",
                record["id"],
                training["n_images"],
            )
        prefix, state = "backbone.", None
        if data is not None:
            packed = safetensors.torch.load(data)
            state = {k.removeprefix(prefix): v for k, v in packed.items() if k.startswith(prefix)}
        return Source(
            name=backbone["name"],
            license=backbone["license"],
            origin=f"model {record['id']}, {backbone['weights']}",
            tensors=state,
            arguments=backbone.get("arguments", {}),
            config=layout.input_of(record["preprocessing"]),
        )
    except (KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        raise ModelError(
            f"{show(folder)} is not a complete model: {type(error).__name__} {error}",
            fix="copy the whole model folder again",
        ) from error
