"""Peak memory of scanning, auditing and predicting as the number of images grows.

Each figure is of a new process. The photographs are made up, small, and each of them another; the
network is tiny, so that what grows with the images is not hidden behind it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

SIZES = (1_000, 10_000, 100_000)


def measure(data: Path) -> dict[str, Any]:
    """Return MB at the peak, by stage and number of images."""
    found: dict[str, list[float]] = {"scan": [], "audit": [], "predict": []}
    print("| images | scan, MB | audit, MB | predict, MB |\n| --- | --- | --- | --- |")
    for n in SIZES:
        with TemporaryDirectory() as folder:
            write_photographs(Path(folder), n)
            for stage, peaks in found.items():
                command = [sys.executable, "-m", "benchmarks.memory", stage, folder]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                peaks.append(float(done.stdout.split()[-1]))
        print(f"| {n:,} | " + " | ".join(f"{p[-1]:.0f}" for p in found.values()) + " |", flush=True)
    print()
    for stage, peaks in found.items():
        print(f"{stage}: {SIZES[-1]:,} images take {peaks[-1] / peaks[0]:.2f} times the memory "
              f"of {SIZES[0]:,}")  # fmt: skip
    return {"images": list(SIZES), "peak_mb": found}


def write_photographs(folder: Path, n: int) -> None:
    rng = np.random.default_rng(0)
    for i in range(n):
        path = folder / ("benign", "malignant")[i % 2] / f"P{i // 10:05d}-{i:06d}.png"
        path.parent.mkdir(exist_ok=True)
        # as fine as the search for near duplicates looks, or all would be alike to it
        coarse = rng.integers(90, 250, (16, 24, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((48, 32), Image.Resampling.BILINEAR).save(path)


def stage(name: str, folder: Path) -> None:
    """Do one stage, and print this process's peak."""
    from lobule.data.audit import audit
    from lobule.data.scan import scan

    manifest = scan(folder)
    if name == "audit":
        audit(manifest)
    elif name == "predict":
        predict_all(manifest)
    # not getrusage, whose peak begins with that of the process that started this one
    status = Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024)


def predict_all(manifest: Any) -> None:
    from lobule.inference.predictor import predict
    from lobule.models.backbones import load_backbone
    from lobule.models.bundle import ModelInfo, make_model
    from lobule.models.classifier import Heads, LinearHead

    backbone = load_backbone("test_efficientnet", weights="none")
    info = ModelInfo("benchmark", "", manifest.classes, {}, {}, {}, {}, {})
    heads = Heads(
        LinearHead(np.zeros((2, backbone.n_features)), np.zeros(2)),
        LinearHead(np.zeros((2, 12)), np.zeros(2)),
        np.full(2, 0.5),
    )
    predict(make_model(info, backbone, backbone.preprocessing(48), heads), manifest)


if __name__ == "__main__":
    stage(sys.argv[1], Path(sys.argv[2]))
