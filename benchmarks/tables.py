"""Markdown tables of a run, for docs/results.md.

lobule train ../shared/data/breakhis-100x -o run
python -m benchmarks.tables run
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lobule.evaluation.evaluate import Evaluation, LevelFigures
from lobule.evaluation.intervals import Interval
from lobule.evaluation.leakage import Leakage

RANKING = (
    *("roc_auc", "average_precision", "brier", "aurc", "ece", "ece_if_calibrated"),
    *("calibration_slope", "calibration_intercept", "calibration_in_the_large"),
    *("brier_reliability", "brier_resolution", "brier_uncertainty"),
    *("set_coverage", "set_size", "set_single", "accepted"),
)
DECIDED = ("sensitivity", "specificity", "balanced_accuracy", "precision", "f1", "kappa", "mcc")


def main(run: Path) -> None:
    found = Evaluation.from_json(json.loads((run / "evaluation.json").read_text()))
    leakage = Leakage.from_json(json.loads((run / "leakage.json").read_text()))
    print(f"{found.source}: {found.n_images} images, {found.n_patients} patients\n")
    print("| figure | image | slide | patient |\n| --- | --- | --- | --- |")
    levels = found.levels
    row("units", [str(figures.n_units) for figures in levels.values()])
    for name in RANKING:
        found_at = [figures.metrics.get(name) for figures in levels.values()]
        row(name, ["" if value is None else told(value) for value in found_at])
    for k, rule in enumerate(d.rule for d in levels["image"].decisions):
        for name in ("accuracy", *DECIDED):
            cells = [told(figures.decisions[k].metrics[name]) for figures in levels.values()]
            row(f"{name} at {rule}", cells)
    for name, baseline in found.baselines.items():
        row(f"roc_auc of {name}", [auc(baseline[level]) for level in levels])
    row("roc_auc of the plain view", ["" if found.plain is None else auc(found.plain), "", ""])
    for name, gain in found.gain.items():
        row(f"gain over {name}", [told(gain[level]) for level in levels])
    print(f"\n| folds, {leakage.long_side_px} px | image ROC AUC |\n| --- | --- |")
    for name, value in leakage.auc.items():
        row(f"by {name}", [told(value)])
    row("inflation: by image less by patient", [told(leakage.inflation)])


def row(name: str, cells: list[str]) -> None:
    print(f"| {name} | {' | '.join(cells)} |")


def auc(figures: LevelFigures) -> str:
    return told(figures.metrics["roc_auc"])


def told(value: Interval) -> str:
    return f"{value.estimate:.3f} ({value.low:.3f} to {value.high:.3f})"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
