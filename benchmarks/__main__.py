"""Measure this machine: tables on standard output, figures and plots in a folder.

python -m benchmarks ../shared/data/breakhis-100x -o docs/performance [--only growth]
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path

from benchmarks import growth, memory, prediction, startup, training, whole
from benchmarks.measure import bars
from lobule import measured

PARTS = {
    "training": training,
    "prediction": prediction,
    "whole": whole,
    "startup": startup,
    "growth": growth,
    "memory": memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("data", type=Path, help="folder of photographs")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the figures")
    parser.add_argument("--only", choices=PARTS, action="append", help="measure this part only")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(f"{machine()}\n")
    for name in arguments.only or PARTS:
        print(f"## {name}\n", flush=True)
        found = PARTS[name].measure(arguments.data)
        written = {"machine": machine(), "figures": found}
        (arguments.out / f"{name}.json").write_text(json.dumps(written, indent=1) + "\n")
        picture = arguments.out / f"{name}.png"
        if "images_a_second" in found:
            bars(found["images_a_second"], picture)
        elif name == "growth":
            growth.plot(found, picture)
        print()


def machine() -> str:
    """Say what was measured on."""
    return (f"{measured.machine()}, Python {platform.python_version()}, torch {version('torch')}, "
            f"OpenVINO {version('openvino')}, numpy {version('numpy')}")  # fmt: skip


if __name__ == "__main__":
    main()
