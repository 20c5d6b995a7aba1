"""Small networks of timm, written by timm itself in the layout of its hub, and a hub's cache."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import nn

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Published:
    """A folder in timm's layout, and the network that was written there, without its classifier."""

    folder: Path
    network: nn.Module


@pytest.fixture
def publish(tmp_path):
    """Return publish(architecture, name=, card=, config=, **arguments) -> Published.

    Weights and BatchNorm statistics are random; config: extra settings of pretrained_cfg.
    """

    def write(architecture, *, name="published", card=None, config=None, **arguments):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            network = timm.create_model(architecture, num_classes=10, **arguments).eval()
            for key, value in network.state_dict().items():
                if key.endswith(("running_mean", "running_var")):
                    value.uniform_(0.5, 1.5)
        folder = tmp_path / name
        save_for_hf(
            network,
            folder,
            model_config={"pretrained_cfg": config or {}},
            model_args=arguments,
            safe_serialization=True,
        )
        if card is not None:
            (folder / "README.md").write_text(card, encoding="utf-8")
        network.reset_classifier(0)
        return Published(folder, network)

    return write


@pytest.fixture
def offline_hub(tmp_path, monkeypatch):
    """Return keep(repository, folder): files in the hub's cache, while the hub may not be asked."""
    cache = tmp_path / "hub"
    # huggingface_hub reads its environment when it is imported, and these each time
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def keep(repository, folder, *, revision="main", commit=COMMIT):
        home = cache / f"models--{repository.replace('/', '--')}"
        (home / "refs").mkdir(parents=True, exist_ok=True)
        (home / "refs" / revision).write_text(commit)
        shutil.copytree(folder, home / "snapshots" / commit)
        return home / "snapshots" / commit

    return keep
