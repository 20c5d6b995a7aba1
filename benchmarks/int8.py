"""What int8 costs on patients that the heads have not seen: labels changed and image AUC.

    lobule train ../shared/data/breakhis-100x -o run
    lobule export run/model --int8
    python -m benchmarks.int8 run

For every fold the heads are fitted on fp32 features of the other folds, and answer for its images
once by fp32 and once by int8 (and bf16) features.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from lobule.data.manifest import class_indices, read_manifest
from lobule.evaluation.predictions import decide
from lobule.files import default_cache
from lobule.inference.agreement import auc_gain
from lobule.inference.choice import Running
from lobule.inference.predictor import open_extractor
from lobule.models.bundle import load_model
from lobule.training.crossfit import fit, lock_on
from lobule.training.features import gather
from lobule.training.recipe import Recipe


def main(run: Path) -> None:
    manifest, model = read_manifest(run / "manifest.parquet"), load_model(run / "model")
    manifest = manifest.where(manifest.table["fold"] >= 0)
    kinds = ("fp32", "bf16", "int8")
    features = {
        kind: gather(
            manifest,
            open_extractor(model, manifest, Running("openvino", kind), cache=default_cache()),
            cache=default_cache(),
        )
        for kind in kinds
    }
    classes, groups = manifest.classes, manifest.groups.to_numpy()
    y = class_indices(manifest.table["label"], classes)
    fold = manifest.table["fold"].to_numpy()
    answers = {kind: np.full((len(y), len(classes)), np.nan) for kind in kinds}
    labels = {kind: np.full(len(y), -1) for kind in kinds}
    for k in np.unique(fold):
        train, test = fold != k, fold == k
        fitted = fit(
            features["fp32"].where(train), y[train], groups[train].tolist(), n_classes=len(classes)
        )
        locked = lock_on(
            manifest.where(train), fitted.inner, groups[train].tolist(), Recipe(),
            source="inner folds",
        )  # fmt: skip
        for kind in kinds:
            prob = fitted.heads.probabilities(features[kind].where(test))["prob"]
            answers[kind][test] = prob
            labels[kind][test] = decide(prob, locked.points["image"].threshold)
    print("| features | largest difference | labels changed | image ROC AUC less that of fp32 |")
    print("| --- | --- | --- | --- |")
    for kind in kinds[1:]:
        off = np.abs(answers[kind] - answers["fp32"]).max()
        changed = (labels[kind] != labels["fp32"]).mean()
        gain = auc_gain(manifest, classes, answers[kind], answers["fp32"])
        told = "" if gain is None else f"{gain.estimate:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})"
        print(f"| {kind} | {off:.3f} | {changed:.2%} | {told} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
