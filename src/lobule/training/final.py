"""The model that is kept: fitted on everyone, its thresholds locked, and what is said of it."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule import __version__
from lobule.data.manifest import Manifest, class_indices
from lobule.evaluation.drift import LEVELS
from lobule.evaluation.evaluate import Evaluation
from lobule.evaluation.locked import Locked
from lobule.evaluation.predictions import Gated, Predictions
from lobule.files import write_json
from lobule.identity import now
from lobule.models.backbones import Backbone
from lobule.models.bundle import ModelInfo
from lobule.models.classifier import Features, Heads, Matrix
from lobule.models.gate import Gate
from lobule.training.batches import Examples
from lobule.training.crossfit import fit, lock_on
from lobule.training.finetune import Bench, predict_tuned, tune_model, tuned_out_of_fold
from lobule.training.gate import fit_gate
from lobule.training.preview import augmentation_sheet, write_sheet
from lobule.training.recipe import Recipe

SCHEMA = "lobule.training/1"

KEPT = 0.95
"""Share of images of unseen patients that the gate is to let through."""


@dataclass(frozen=True)
class Learned:
    """What fitting by a recipe comes to.

    oof: out-of-fold predictions of the patients learned from. backbone, heads, gate: of the model
    that is kept. held_out: what it says of the held-out images, (m, K) by kind; held_out_gated:
    what its gate says of them. strength: of a fitted head.
    trainings: a record of each network that was tuned, the kept one last; empty if none was.
    machine: what they were tuned on.
    """

    oof: Predictions
    backbone: Backbone
    heads: Heads
    held_out: dict[str, Matrix]
    strength: float | None
    trainings: list[dict[str, Any]]
    machine: dict[str, str]
    gate: Gate | None = None
    held_out_gated: Gated | None = None


def keep_frozen(
    manifest: Manifest,
    groups: Sequence[str],
    features: Features,
    oof: Predictions,
    backbone: Backbone,
    *,
    held_out: Features,
    recipe: Recipe,
) -> Learned:
    """Fit head, baselines and gate on all patients learned from; the backbone stays frozen.

    Where patients are unknown there is no gate.

    features, oof: of the manifest's images. held_out: features of the images to be judged on.
    """
    y = class_indices(manifest.table["label"], manifest.classes)
    fitted = fit(
        features, y, groups, n_classes=len(manifest.classes), seed=recipe.seed,
        choice=recipe.regularisation,
    )  # fmt: skip
    gate = None
    if manifest.patients_known:
        # how far images of a new patient may lie is not told by others of the same patient
        gate = fit_gate(features, groups, kept=KEPT, seed=recipe.seed)
    return Learned(
        oof,
        backbone,
        fitted.heads,
        fitted.heads.probabilities(held_out),
        fitted.strength,
        [],
        {},
        gate=gate,
        held_out_gated=None if gate is None else ask(gate, held_out),
    )


def ask(gate: Gate, features: Features) -> Gated:
    """Return what a gate says of images."""
    score = gate.score(features)
    return Gated(score, gate.passes(score))


def gated_out_of_fold(
    features: Features, fold: NDArray[np.int64], groups: Sequence[str], *, seed: int
) -> Gated:
    """Return what gates say of each image that were fitted without its fold."""
    found = Gated(np.full(len(fold), np.nan), np.zeros(len(fold), dtype=bool))
    for k in np.unique(fold):
        inside = [g for g, keep in zip(groups, fold != k, strict=True) if keep]
        gate = fit_gate(features.where(fold != k), inside, kept=KEPT, seed=seed)
        said = ask(gate, features.where(fold == k))
        found.ood_score[fold == k], found.accepted[fold == k] = said.ood_score, said.accepted
    return found


def keep_tuned(
    bench: Bench, fold: NDArray[np.int64], frozen: Learned, *, held_out: Manifest
) -> Learned:
    """Tune a network for every fold and one on all patients learned from.

    fold: (n,) of the bench's images. frozen: the same without tuning, which stands beside as kind
    "frozen". held_out: the images to be judged on. A part of the manifest that is called
    validation serves to choose the epoch of the network that is kept.
    """
    oof, trainings = tuned_out_of_fold(bench, fold, frozen.oof)
    everyone = np.ones(len(bench.manifest), dtype=bool)
    given = (bench.manifest.table["split"] == "validation").to_numpy(dtype=bool, na_value=False)
    final = tune_model(bench, everyone, name="final", validation=given if given.any() else None)
    answers = frozen.held_out | {"frozen": frozen.held_out["prob"]}
    if len(held_out):
        answers |= predict_tuned(final, held_out, bench)
    return Learned(
        oof=oof,
        backbone=final.backbone,
        heads=replace(frozen.heads, tissue=final.head),
        held_out=answers,
        strength=None,
        trainings=[*trainings, final.record],
        machine=final.machine,
    )


def write_trainings(learned: Learned, bench: Bench) -> None:
    """Write training.json and the preview of the augmentation."""
    tuning = bench.tuning
    everyone = Examples(np.arange(len(bench.manifest)), bench.y, np.ones(len(bench.manifest)))
    sheet = augmentation_sheet(bench.pixels(), everyone, tuning, seed=bench.recipe.seed)
    write_sheet(sheet, bench.folder / "augmented.jpg")
    write_json(
        bench.folder / "training.json",
        {
            "schema": SCHEMA,
            "select": tuning.select,
            **learned.machine,
            "fits": learned.trainings,
        },
    )


def lock_final(
    manifest: Manifest, groups: Sequence[str], oof: Predictions, recipe: Recipe
) -> Locked:
    """Settle for the model that is kept, on out-of-fold scores of its patients."""
    n = f"{manifest.groups.nunique()} patients, {len(manifest)} images"
    if not manifest.patients_known:
        n = f"{len(manifest)} images, patients unknown"
    scores = oof.probabilities("raw" if oof.has("raw") else "prob")
    return lock_on(manifest, scores, groups, recipe, source=f"pooled out-of-fold scores of {n}")


def score_quantiles(oof: Predictions, locked: Locked) -> dict[str, Any]:
    """Return how out-of-fold probabilities were spread, for scores elsewhere to be held against.

    quantiles: LEVELS, of 0 to 1, of `Predictions.score`.
    """
    quantiles = np.quantile(oof.score, np.linspace(0, 1, LEVELS))
    return {"source": locked.source, "quantiles": quantiles.tolist()}


def describe_model(
    manifest: Manifest,
    recipe: Recipe,
    locked: Locked,
    learned: Learned,
) -> ModelInfo:
    """Return what model.json says of a model fitted on `manifest`."""
    settled = locked.to_json()
    tuning = None
    if recipe.tuning is not None:
        tuning = asdict(recipe.tuning) | learned.trainings[-1]
    return ModelInfo(
        name=f"lobule-{recipe.name}",
        created=now(),
        classes=manifest.classes,
        operating_points=settled["operating_points"],
        calibration=settled["calibration"],
        sets=settled["sets"],
        out_of_fold=score_quantiles(learned.oof, locked),
        gate=_described_gate(learned, locked),
        training={
            "data_hash": manifest.data_hash,
            "n_images": len(manifest),
            "n_patients": int(manifest.groups.nunique()),
            "patients_known": manifest.patients_known,
            "classes": {
                name: {"images": len(rows), "patients": int(rows["patient"].nunique())}
                for name, rows in manifest.table.groupby("label")
            },
            "strength": learned.strength,
            "tuning": tuning,
            "recipe": recipe.to_json(),
        },
        performance={},
        versions=versions(),
    )


def _described_gate(learned: Learned, locked: Locked) -> dict[str, Any]:
    if learned.gate is None:
        return {}
    return {
        "kept": KEPT,
        "accepted": float(learned.oof.table["accepted"].mean()),
        "patients": locked.n_groups,
        "source": locked.source,
    }


def versions() -> dict[str, str]:
    """Return what produced a result: Lobule, Python, platform and the libraries that compute."""
    packages = ("torch", "timm", "numpy", "scikit-learn", "pillow", "pandas")
    return {
        "lobule": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: version(name) for name in packages},
    }


_CARD_FIGURES = ("roc_auc", "brier", "ece")


def performance(evaluation: Evaluation) -> dict[str, Any]:
    """Return the rows of the model card."""
    rows = []
    for level, figures in evaluation.levels.items():
        last = figures.decisions[-1]
        chosen = {name: figures.metrics[name] for name in _CARD_FIGURES}
        chosen |= {
            f"{name} ({last.rule})": interval
            for name, interval in last.metrics.items()
            if name in ("sensitivity", "specificity", "balanced_accuracy")
        }
        rows += [
            {"level": level, "name": name, "text": i.told(), **i.to_json()}
            for name, i in chosen.items()
        ]
    who = f"{evaluation.n_patients} patients" if evaluation.patients_known else "patients unknown"
    return {"source": f"{evaluation.source}: {evaluation.n_images} images, {who}", "rows": rows}
