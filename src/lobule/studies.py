"""An ablation study as one call: recipes under the same repeated patient folds, and a report.

A study folder holds:

    run.json                    what was asked, and whether the study is complete
    NUMBER-RECIPE/SEED.parquet  out-of-fold predictions of a recipe under one split
    NUMBER-RECIPE/training/     only with tuned networks: how each training went
    study.json                  every figure, and its difference from the baseline
    report.html                 the same for people
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lobule.data.manifest import Manifest
from lobule.data.splits import assign_folds
from lobule.errors import UsageError, nearest, show
from lobule.evaluation.predictions import Predictions, read_predictions, write_predictions
from lobule.evaluation.study import Study, findings
from lobule.files import write_json
from lobule.models.sources import resolve
from lobule.progress import Progress, no_progress
from lobule.reporting.study import study_report
from lobule.run import claim, complete, refuse_taken
from lobule.training.checkpoint import drop_checkpoints
from lobule.training.crossfit import check_folds, out_of_fold
from lobule.training.features import embed
from lobule.training.final import versions
from lobule.training.finetune import Bench, check_tuning, tuned_out_of_fold
from lobule.training.machine import Machine
from lobule.training.recipe import Recipe
from lobule.training.settings import make_recipe
from lobule.workflow import Prepared, data_request, held_out_rows, load_data, prepare

DEFAULT_SEEDS = (0, 1, 2, 3, 4)

_KEYS = ("folds", "seeds", "baseline", "recipes")


@dataclass(frozen=True)
class Plan:
    """What is compared: recipes by name, the one all are held against, and the splits."""

    recipes: dict[str, Recipe]
    baseline: str
    folds: int = 5
    seeds: tuple[int, ...] = DEFAULT_SEEDS

    def to_json(self) -> dict[str, Any]:
        """Return plain types."""
        recipes = {name: recipe.to_json() for name, recipe in self.recipes.items()}
        return {"study": recipes, "baseline": self.baseline, "folds": self.folds,
                "seeds": list(self.seeds)}  # fmt: skip


def read_plan(path: Path) -> Plan:
    """Read a plan from TOML.

        baseline = "224 px"          # default: the first recipe
        folds = 5
        seeds = [0, 1, 2, 3, 4]

        [recipes."224 px"]           # as many as you like; settings as in `train --recipe FILE`
        recipe = "features"
        long_side_px = 224

    Raises UsageError for a file that cannot be read, an unknown key, or fewer than two recipes.
    """
    told = f"the study {show(path)}"
    try:
        record = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"cannot read {told}: {reason}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{told} is not TOML: {error}") from error
    for key in record:
        if key not in _KEYS:
            raise UsageError(f"{told} has a key {key!r}", fix=nearest(key, _KEYS))
    tables = record.get("recipes")
    if not isinstance(tables, dict) or len(tables) < 2:
        raise UsageError(f"{told} needs two or more recipes", fix='as in [recipes."224 px"]')
    recipes = {name: _recipe(told, name, settings) for name, settings in tables.items()}
    baseline = record.get("baseline", next(iter(recipes)))
    if baseline not in recipes:
        raise UsageError(
            f"{told}: no recipe is called {baseline!r}", fix=nearest(baseline, recipes)
        )
    folds, seeds = record.get("folds", 5), record.get("seeds", list(DEFAULT_SEEDS))
    if type(folds) is not int or folds < 2:
        raise UsageError(f"{told}: folds must be a whole number of 2 or more, got {folds!r}")
    if (
        not isinstance(seeds, list)
        or not seeds
        or any(type(seed) is not int or seed < 0 for seed in seeds)
        or len(set(seeds)) != len(seeds)
    ):
        raise UsageError(f"{told}: seeds must be different whole numbers, got {seeds!r}")
    return Plan(recipes, baseline, folds, tuple(seeds))


def _recipe(told: str, name: str, settings: object) -> Recipe:
    if not isinstance(settings, dict):
        raise UsageError(f"{told}: recipe {name!r} must be a table of settings, got {settings!r}")
    of_all = sorted({"folds", "seed"} & set(settings))
    if of_all:
        raise UsageError(
            f"{told}: recipe {name!r} sets {' and '.join(of_all)}, which all recipes share",
            fix="set folds and seeds above the recipes",
        )
    try:
        return make_recipe(str(settings.get("recipe", "features")),
                           {k: v for k, v in settings.items() if k != "recipe"})  # fmt: skip
    except UsageError as error:
        raise UsageError(f"{told}: recipe {name!r}: {error.what}", fix=error.fix) from error


def study(
    data: Path | Manifest,
    plan: Plan,
    out: Path,
    *,
    allow: Sequence[str] = (),
    cache: Path | None = None,
    machine: Machine | None = None,
    progress: Progress = no_progress,
) -> Study:
    """Predict all images out of fold by every recipe under every seed, and hold them together.

    Of data with a test part only the rest is taken. All recipes have the same folds under one
    seed; a network of random weights is the same under all. What was finished of an interrupted
    study is kept, and the same call goes on from it. Other arguments and errors as
    `workflow.train`.
    """
    refuse_taken(out)
    manifest = load_data(data, progress=progress)
    # what is held out judges the recipe that is chosen here, so it has no say in choosing
    manifest = manifest.where(~held_out_rows(manifest))
    ready = prepare(manifest, allow=allow, progress=progress)
    _check(plan, ready)
    claim(out, {**plan.to_json(), **data_request(manifest, allow)})
    predictions = {}
    for number, (name, recipe) in enumerate(plan.recipes.items(), 1):
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        predictions[name] = _predict(
            ready, replace(recipe, folds=plan.folds), plan.seeds, out / f"{number:02d}-{slug}",
            cache=cache, machine=machine or Machine(), progress=progress,
        )  # fmt: skip
    found = Study(
        classes=ready.manifest.classes,
        n_images=len(ready.manifest),
        n_patients=int(ready.manifest.groups.nunique()),
        patients_known=ready.manifest.patients_known,
        data_hash=ready.manifest.data_hash,
        folds=plan.folds,
        seeds=plan.seeds,
        baseline=plan.baseline,
        recipes=plan.to_json()["study"],
        findings=findings(predictions, plan.baseline),
    )
    write_json(out / "study.json", found.to_json())
    study_report(found, out / "report.html")
    complete(out, versions())
    return found


def _check(plan: Plan, ready: Prepared) -> None:
    """Refuse what cannot be done before any of the long work."""
    labels, groups = ready.manifest.table["label"].tolist(), ready.groups.tolist()
    for recipe in plan.recipes.values():
        resolve(recipe.backbone, tensors=False)
    for seed in plan.seeds:
        fold = assign_folds(labels, groups, folds=plan.folds, seed=seed)
        check_folds(ready.manifest, fold, groups)
        for recipe in plan.recipes.values():
            check_tuning(ready.manifest, groups, fold, replace(recipe, seed=seed))


def _predict(
    ready: Prepared,
    recipe: Recipe,
    seeds: Sequence[int],
    folder: Path,
    *,
    cache: Path | None,
    machine: Machine,
    progress: Progress,
) -> list[Predictions]:
    """Return the out-of-fold predictions of one recipe, those kept read and the others made."""
    files = {seed: folder / f"{seed}.parquet" for seed in seeds}
    todo = [seed for seed, file in files.items() if not file.exists()]
    if todo:
        manifest, groups = ready.manifest, ready.groups.tolist()
        labels = manifest.table["label"].tolist()
        backbone = recipe.open_backbone()
        prep = recipe.preprocessing(backbone, manifest)
        features = embed(manifest, backbone, prep, cache=cache, progress=progress)
        for seed in todo:
            seeded = replace(recipe, seed=seed)
            fold = assign_folds(labels, groups, folds=recipe.folds, seed=seed)
            found = out_of_fold(
                manifest, features, fold, groups, seeded,
                source=f"pooled out-of-fold predictions, seed {seed}", progress=progress,
            )  # fmt: skip
            if recipe.tuning is not None:
                training = folder / "training" / str(seed)
                bench = Bench(
                    manifest, tuple(groups), features, backbone, prep, seeded,
                    folder=training, cache=cache or training, machine=machine,
                    progress=progress,
                )  # fmt: skip
                found, _ = tuned_out_of_fold(bench, fold, found)
                drop_checkpoints(training)
            write_predictions(found, files[seed])
    return [read_predictions(files[seed]) for seed in seeds]
