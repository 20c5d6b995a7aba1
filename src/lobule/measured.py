"""What was found out about this machine by measuring, kept from one run to the next."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from functools import cache as once
from pathlib import Path
from typing import Any

from lobule.files import write_json

FOLDER = "measured"


def cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0))


@once
def machine() -> str:
    """Name the processor, its cores, and whether a graphics card's driver is loaded."""
    model = platform.processor() or platform.machine()
    told = Path("/proc/cpuinfo")
    if told.exists():
        lines = told.read_text(encoding="utf-8", errors="replace").splitlines()
        model = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")),
                     model)  # fmt: skip
    return f"{model}, {cores()} cores" + (", NVIDIA driver" if has_nvidia_driver() else "")


def has_nvidia_driver() -> bool:
    """Whether torch may find a CUDA device; told without importing torch."""
    return any(Path(p).exists() for p in ("/dev/nvidiactl", "/dev/dxg"))


def recall(cache: Path | None, what: str) -> Any:  # noqa: ANN401  whatever JSON holds
    """Return what `keep` wrote about `what` on this machine, or None."""
    if cache is None:
        return None
    try:
        record = json.loads(_file(cache, what).read_text(encoding="utf-8"))
        return record["value"] if record["what"] == what else None
    except (OSError, ValueError, KeyError, TypeError):
        # it can be measured again
        return None


def keep(cache: Path | None, what: str, value: Any) -> None:  # noqa: ANN401
    """Write down what was measured: plain types of JSON."""
    if cache is not None:
        write_json(_file(cache, what), {"machine": machine(), "what": what, "value": value})


def forget(cache: Path) -> None:
    """Remove all that was kept in `cache`, if anything was."""
    if (cache / FOLDER).exists():
        shutil.rmtree(cache / FOLDER)


def _file(cache: Path, what: str) -> Path:
    name = hashlib.sha256(f"{machine()}\n{what}".encode()).hexdigest()[:24]
    return cache / FOLDER / f"{name}.json"
