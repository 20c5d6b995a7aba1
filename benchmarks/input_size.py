"""Which input size? Pooled out-of-fold AUC of the features recipe on the real photographs.

    python -m benchmarks.input_size ../shared/data/breakhis-100x

Prints a Markdown table: a row a size, mean over three split seeds, with the seconds that the
features took (0 where they came from the cache).
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from lobule.data.splits import assign_folds
from lobule.evaluation.metrics import roc_auc
from lobule.evaluation.predictions import at_level
from lobule.files import default_cache
from lobule.models.backbones import load_backbone
from lobule.training.crossfit import out_of_fold
from lobule.training.features import embed
from lobule.training.recipe import Recipe
from lobule.workflow import load_data, prepare

SIZES_PX = (224, 350, 448, 560, 700)
SEEDS = (0, 1, 2)


def main(folder: Path) -> None:
    ready = prepare(load_data(folder))
    backbone = load_backbone()
    labels, groups = ready.manifest.table["label"].tolist(), ready.groups.tolist()
    print("| longer side, px | image AUC | per seed | patient AUC | per seed | features, s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size in SIZES_PX:
        recipe = Recipe(long_side_px=size)
        started = time.perf_counter()
        features = embed(
            ready.manifest, backbone, recipe.preprocessing(backbone, ready.manifest),
            cache=default_cache(),
        )  # fmt: skip
        took_s = time.perf_counter() - started
        found: dict[str, list[float]] = {"image": [], "patient": []}
        for seed in SEEDS:
            fold = assign_folds(labels, groups, folds=recipe.folds, seed=seed)
            oof = out_of_fold(
                ready.manifest, features, fold, groups, replace(recipe, seed=seed), source="bench"
            )
            for level in ("image", "patient"):
                units = at_level(oof, level)
                found[level].append(float(roc_auc(units.y, units.probabilities()[:, 1])))
        cells = [
            f"{np.mean(found[level]):.3f} | {', '.join(f'{v:.3f}' for v in found[level])}"
            for level in ("image", "patient")
        ]
        print(f"| {size} | {' | '.join(cells)} | {took_s:.0f} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
