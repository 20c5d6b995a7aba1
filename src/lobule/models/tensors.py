"""Tensors by name: read from a file, told apart, and put into a network if all of them fit."""

from __future__ import annotations

import hashlib
from pathlib import Path

import safetensors
from torch import Tensor, nn

from lobule.errors import ModelError, show

CONVERT = (
    "other formats can run code when they are read; if you trust the maker, convert it with "
    "safetensors.torch.save_file(state_dict, 'weights.safetensors') and add "
    "--weights weights.safetensors"
)
"""What to do about weights that are no safetensors."""

# parts of training that give no features, besides the classifier that timm's record names
_UNUSED = ("head.", "head_dist.", "fc.", "classifier.", "AuxLogits.", "mask_token")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a .safetensors file; raises ModelError for another kind of file or a damaged one."""
    return open_tensors(path)[0]


def open_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a .safetensors file and its metadata; raises as `read_tensors`."""
    if not path.is_file():
        raise ModelError(f"there is no file {show(path)}", fix="check the path of the weights")
    if path.suffix != ".safetensors":
        raise ModelError(f"{show(path)} is not a .safetensors file", fix=CONVERT)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            # tensors are pages of the file until they are used
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  no mapping
            return tensors, file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(
            f"cannot read the weights {show(path)}: {error}", fix="fetch or copy the file again"
        ) from error


def hash_tensors(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and values, in the order of names."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def load_state(network: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load `state` into `network`; raises ModelError naming the first tensor that does not fit.

    A classifier is left out, and so is what a network works out itself. Any other tensor too many
    means another network, whose features are others.
    """
    wanted = network.state_dict()
    missing = sorted(set(wanted) - set(state))
    wrong = sorted(key for key in wanted if key in state and state[key].shape != wanted[key].shape)
    extra = _extra(network, set(state) - set(wanted))
    if not (missing or wrong or extra):
        network.load_state_dict({key: state[key] for key in wanted})
        return
    if missing:
        what = f"tensor {missing[0]!r} is missing"
    elif wrong:
        shapes = tuple(state[wrong[0]].shape), tuple(wanted[wrong[0]].shape)
        what = f"tensor {wrong[0]!r} has shape {shapes[0]}, not {shapes[1]}"
    else:
        what = f"it has no tensor {extra[0]!r}"
    raise ModelError(
        f"the weights from {source} do not fit the network: {what} ({len(missing)} missing, "
        f"{len(wrong)} of the wrong shape, {len(extra)} too many, of {len(wanted)})",
        fix="name the backbone that the weights belong to with --backbone; if it was built with "
        "arguments, that is a folder whose config.json has them as model_args",
    )


def _extra(network: nn.Module, names: set[str]) -> list[str]:
    """Return those of `names` that a network without classifier cannot do without."""
    computed = {name for name, _ in network.named_buffers()}
    classifier = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    unused = (*_UNUSED, *(f"{head}." for head in heads))
    return sorted(name for name in names - computed if not name.startswith(unused))
