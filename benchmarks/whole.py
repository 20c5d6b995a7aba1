"""From a folder to an evaluated classifier: `lobule train` beside 60 epochs of the tutorial.

The tutorial's time is that of 60 epochs at the rates measured here: four fifths of the photographs
trained on, one fifth predicted for validation, as it splits them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.peers import Peer

EPOCHS, IMAGES = 60, 128


def measure(data: Path) -> dict[str, Any]:
    """Return seconds of the first and the second run, and of the tutorial."""
    n = sum(1 for _ in data.rglob("*.jpg"))
    with Peer("keras", data) as keras:
        keras.warm()
        rates = {"train": [keras.rate("train", images=IMAGES)], "predict": [keras.rate("predict")]}
        with tempfile.TemporaryDirectory() as folder:
            seconds, aucs = [], []
            for name in ("first", "second"):
                out = Path(folder) / name
                seconds.append(run(data, out, Path(folder) / "cache"))
                found = json.loads((out / "evaluation.json").read_text())
                aucs.append(found["levels"]["image"]["metrics"]["roc_auc"])
        # before and after, since the machine may have been busier at one end
        rates["train"].append(keras.rate("train", images=IMAGES))
        rates["predict"].append(keras.rate("predict"))
    epochs = [
        0.8 * n / train + 0.2 * n / predict
        for train, predict in zip(rates["train"], rates["predict"], strict=True)
    ]
    tutorial = [EPOCHS * epoch for epoch in epochs]
    mean = sum(tutorial) / len(tutorial)
    print(f"| what | {n} photographs, seconds |\n| --- | --- |")
    print(f"| the tutorial, {EPOCHS} epochs | {min(tutorial):.0f} to {max(tutorial):.0f} |")
    print(f"| lobule train, nothing in the cache | {seconds[0]:.1f} |")
    print(f"| the same again | {seconds[1]:.1f} |")
    print(
        f"\n{mean / seconds[0]:.0f} times as fast the first time, "
        f"{mean / seconds[1]:.0f} times the second"
    )
    return {
        "tutorial_s": tutorial,
        "first_s": seconds[0],
        "second_s": seconds[1],
        "roc_auc": aucs[0],
    }


def run(data: Path, out: Path, cache: Path) -> float:
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "lobule", "train", str(data), "-o", str(out)],
        check=True, capture_output=True, env={**os.environ, "LOBULE_CACHE": str(cache)},
    )  # fmt: skip
    return time.perf_counter() - began
