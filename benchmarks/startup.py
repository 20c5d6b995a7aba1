"""How long the program takes before it answers; every figure is of a new process.

`lobule predict` gets one photograph that it has not seen, and a model that was exported for
OpenVINO and has been used on this machine before.
"""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import alternate, spread, told
from lobule.data.manifest import Manifest, read_manifest
from lobule.inference.export import export
from lobule.models.bundle import load_model
from lobule.training.recipe import Recipe
from lobule.workflow import load_data, train

REPETITIONS = 5
PATIENTS = 12


def measure(data: Path) -> dict[str, Any]:
    """Return the seconds of each command: median, smallest, largest."""
    with TemporaryDirectory() as folder:
        few, run, cache = few_patients(data), Path(folder) / "run", Path(folder) / "cache"
        train(few, run, recipe=Recipe(folds=2), cache=cache)
        export(load_model(run / "model"), read_manifest(run / "manifest.parquet"), cache=cache)
        # another photograph every time, so that its features are not in the cache
        photographs = cycle(p for p in sorted(data.rglob("*.jpg")) if p.name not in names(few))

        def start(*arguments: str, photograph: bool = False) -> None:
            more = [str(next(photographs))] if photograph else []
            subprocess.run(
                [sys.executable, *arguments, *more],
                check=True, capture_output=True, env={**os.environ, "LOBULE_CACHE": str(cache)},
            )  # fmt: skip

        predict = ("-m", "lobule", "predict", str(run / "model"))
        # the first finds the export in agreement with torch, which is remembered of this machine
        start(*predict, photograph=True)
        seconds = alternate(
            {
                "python -c pass": lambda: start("-c", "pass"),
                "import lobule": lambda: start("-c", "import lobule"),
                "import torch": lambda: start("-c", "import torch"),
                "lobule --help": lambda: start("-m", "lobule", "--help"),
                "lobule predict, one photograph": lambda: start(*predict, photograph=True),
            },
            REPETITIONS,
        )
    print("| command | seconds |\n| --- | --- |")
    for name, taken in seconds.items():
        print(f"| {name} | {told(taken)} |")
    return {name: spread(taken) for name, taken in seconds.items()}


def names(manifest: Manifest) -> set[str]:
    return {Path(path).name for path in manifest.table["path"]}


def few_patients(data: Path) -> Manifest:
    """Return one image of each of a few patients of every class."""
    manifest = load_data(data)
    few = manifest.table.drop_duplicates("patient").groupby("label").head(PATIENTS)
    return manifest.where(manifest.table["path"].isin(few["path"]))
