"""The main job, as the calls it is made of: scan, audit, split, fit, evaluate, report.

A run folder holds what each stage wrote, so that each can be inspected and made again:

    run.json             what was asked, with which versions, and whether the run is complete
    manifest.parquet     the images, with their fold or split
    audit.json           findings
    predictions.parquet  what the evaluation is of: pooled out-of-fold, or the held-out part
    out_of_fold.parquet  only with a held-out part: the scores the threshold was chosen on
    evaluation.json      every figure with its interval
    leakage.json         frozen features under random, slide and patient folds
    training/            only with a tuned network: how each training went (training.json)
    model/               the model folder
    report.html          all of it, for people
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.data.audit import audit
from lobule.data.cache import drop_pixels
from lobule.data.cohort import write_tissue
from lobule.data.findings import Audit, require_clean
from lobule.data.images import Preprocessing
from lobule.data.manifest import (
    Manifest,
    class_indices,
    order_classes,
    read_manifest,
    write_manifest,
)
from lobule.data.scan import scan
from lobule.data.splits import assign_folds, assign_parts, check_disjoint, merge_linked_groups
from lobule.errors import DataError, UsageError, name_some
from lobule.evaluation.evaluate import evaluate
from lobule.evaluation.leakage import Leakage
from lobule.evaluation.predictions import make_predictions, write_predictions
from lobule.explain.neighbours import collect, write_cases
from lobule.files import write_json
from lobule.measured import forget
from lobule.models.bundle import describe, make_model, save_model
from lobule.progress import Progress, no_progress
from lobule.reporting.checklists import Known, checklists, reporting_record
from lobule.reporting.report import report
from lobule.run import Run, claim, complete, refuse_taken
from lobule.training.checkpoint import drop_checkpoints
from lobule.training.crossfit import check_folds, out_of_fold
from lobule.training.features import embed
from lobule.training.final import (
    describe_model,
    gated_out_of_fold,
    keep_frozen,
    keep_tuned,
    lock_final,
    performance,
    versions,
    write_trainings,
)
from lobule.training.finetune import Bench, check_tuning
from lobule.training.leakage import measure_leakage
from lobule.training.machine import Machine
from lobule.training.probe import choose_precision
from lobule.training.recipe import Recipe


@dataclass(frozen=True)
class Prepared:
    """Data that passed the audit: readable, labelled images and what must stay together.

    groups: (n,) patients, where the same photograph under two patients has joined them.
    """

    manifest: Manifest
    groups: NDArray[np.str_]
    audit: Audit


def load_data(
    data: Path | Manifest,
    *,
    pattern: str | None = None,
    metadata: Path | None = None,
    root: Path | None = None,
    positive: str | None = None,
    progress: Progress = no_progress,
) -> Manifest:
    """Return the manifest of a folder (scanned), of a manifest file (read), or as given.

    positive: the class that sensitivity refers to, where names do not tell.
    """
    if positive is not None:
        manifest = load_data(data, pattern=pattern, metadata=metadata, root=root, progress=progress)
        order_classes(manifest.classes, positive)
        return replace(manifest, positive=positive)
    if isinstance(data, Manifest):
        return data
    if data.suffix.lower() in (".csv", ".parquet") and not data.is_dir():
        if pattern is not None or metadata is not None:
            raise UsageError("--pattern and --metadata are for folders, not for a manifest")
        return read_manifest(data, root=root)
    return scan(data, pattern=pattern, metadata=metadata, progress=progress)


def prepare(
    manifest: Manifest, *, allow: Sequence[str] = (), progress: Progress = no_progress
) -> Prepared:
    """Audit, refuse what blocks, leave out what was allowed to be unreadable, join copies."""
    found = audit(manifest, progress=progress)
    require_clean(found, allow)
    unreadable = {file for f in found.findings if f.code == "unreadable" for file in f.files}
    groups = merge_linked_groups(manifest.groups.tolist(), found.duplicates)
    keep = ~manifest.table["path"].isin(unreadable).to_numpy()
    return Prepared(manifest.where(keep), groups[keep], found)


def split(
    data: Path | Manifest,
    *,
    shares: Mapping[str, float] | None = None,
    folds: int | None = None,
    seed: int = 0,
    resplit: bool = False,
    allow: Sequence[str] = (),
    progress: Progress = no_progress,
) -> Manifest:
    """Give every image a part (column `split`) or a fold (column `fold`), whole patients each.

    shares: as {"train": 0.6, "validation": 0.2, "test": 0.2}. folds: number of folds instead.
    A split that the data came with is checked and kept, unless `resplit`.
    Raises LeakageError naming the patients if a given split has one on both sides.
    """
    if (shares is None) == (folds is None):
        raise UsageError("give either shares or folds")
    manifest = load_data(data, progress=progress)
    if resplit:
        manifest = manifest.with_columns(split=None)
    given = manifest.table["split"].notna().any()
    if given and "patient-in-two-splits" not in allow:
        check_disjoint(manifest.table)
    ready = prepare(manifest, allow=allow, progress=progress)
    if given:
        return ready.manifest
    labels, groups = ready.manifest.table["label"].tolist(), ready.groups.tolist()
    if folds is not None:
        fold = assign_folds(labels, groups, folds=folds, seed=seed)
        return ready.manifest.with_columns(fold=fold)
    parts = assign_parts(labels, groups, shares=shares or {}, seed=seed)
    return ready.manifest.with_columns(split=parts)


def train(
    data: Path | Manifest,
    out: Path,
    *,
    recipe: Recipe | None = None,
    allow: Sequence[str] = (),
    cache: Path | None = None,
    machine: Machine | None = None,
    progress: Progress = no_progress,
) -> Run:
    """Turn a folder of images (or a manifest) into a model, its figures and a report at `out`.

    Where the data come with a test part (a column `split`, from train/ and validation/ or test/
    folders or from `split`), the figures are of that part; otherwise of pooled out-of-fold
    predictions of `recipe.folds` patient folds, and the model is fitted on all patients.
    A recipe that tunes the network does so once a fold and once on all patients, and stands beside
    the same network frozen.
    allow: codes of blocking findings to accept (see `audit.OVERRIDABLE`). cache: folder for
    features and pixels. machine: what networks are tuned on.
    A run that was interrupted goes on where it was when it is started again.
    Raises DataError if the audit finds what blocks training, OutputError if `out` is in use,
    TrainingError if a network cannot be tuned further.
    """
    recipe = recipe or Recipe()
    refuse_taken(out)
    manifest = load_data(data, progress=progress)
    ready = prepare(manifest, allow=allow, progress=progress)

    # all that can be refused is refused before the long work and before `out` is taken
    held_out = held_out_rows(ready.manifest)
    learn = Prepared(ready.manifest.where(~held_out), ready.groups[~held_out], ready.audit)
    classes = learn.manifest.classes
    class_indices(ready.manifest.table["label"], classes)
    fold = _folds(learn, recipe)
    check_folds(learn.manifest, fold, learn.groups.tolist())
    check_tuning(learn.manifest, learn.groups.tolist(), fold, recipe)
    backbone = recipe.open_backbone()
    prep = recipe.preprocessing(backbone, learn.manifest)
    claim(out, {"recipe": recipe.to_json(), **data_request(manifest, allow)})

    features = embed(ready.manifest, backbone, prep, cache=cache, progress=progress)
    seen, groups = features.where(~held_out), learn.groups.tolist()
    part = ready.manifest.where(held_out)
    unit = "patient" if learn.manifest.patients_known else "image (patients unknown)"
    frozen = out_of_fold(
        learn.manifest, seen, fold, groups, recipe,
        source=f"pooled out-of-fold predictions of {fold.max() + 1} {unit} folds",
        progress=progress,
    )  # fmt: skip
    if learn.manifest.patients_known:
        gated = gated_out_of_fold(seen, fold, groups, seed=recipe.seed)
        frozen = replace(frozen, table=frozen.table.assign(**vars(gated)))
    learned = keep_frozen(
        learn.manifest, groups, seen, frozen, backbone,
        held_out=features.where(held_out), recipe=recipe,
    )  # fmt: skip
    if recipe.tuning is not None:
        kept = cache or out / "training"
        bench = Bench(
            learn.manifest, tuple(groups), seen, backbone, prep, recipe,
            folder=out / "training", cache=kept, progress=progress,
            machine=choose_precision(
                machine or Machine(), backbone.network, usual_size(learn.manifest, prep),
                batch_size=recipe.tuning.batch_size, cache=kept,
            ),
        )  # fmt: skip
        learned = keep_tuned(bench, fold, learned, held_out=part)
        write_trainings(learned, bench)
    locked = lock_final(learn.manifest, groups, learned.oof, recipe)
    info = describe_model(learn.manifest, recipe, locked, learned)
    model = make_model(info, learned.backbone, prep, learned.heads, learned.gate)

    identity = {"model": model.id, "weights": model.weights_sha256, "preprocessing": prep.id}
    oof = replace(learned.oof, table=learned.oof.table.assign(fold=fold, **identity))
    predictions = oof
    if len(part):
        predictions = make_predictions(
            part,
            model.info.classes,
            locked.answers(learned.held_out),
            locked.limits(),
            learned.held_out_gated,
            **identity,
            source=f"held-out {part.table['split'].iloc[0]} part",
        )
        write_predictions(oof, out / "out_of_fold.parquet")
    else:
        (out / "out_of_fold.parquet").unlink(missing_ok=True)
    evaluation = evaluate(predictions, seed=recipe.seed)
    leakage = measure_leakage(
        learn.manifest, seen, groups, recipe,
        patient_folds=frozen, long_side_px=prep.long_side_px, progress=progress,
    )  # fmt: skip
    everything = _with_folds(ready.manifest, ~held_out, fold)
    model = replace(model, info=replace(model.info, performance=performance(evaluation)))
    lists = checklists(
        Known(everything, ready.audit.findings, evaluation, leakage, describe(model), sorted(allow))
    )
    model = replace(model, info=replace(model.info, reporting=reporting_record(lists)))

    write_manifest(everything, out / "manifest.parquet")
    write_json(out / "audit.json", ready.audit.to_json())
    write_predictions(predictions, out / "predictions.parquet")
    write_json(out / "evaluation.json", evaluation.to_json())
    write_json(out / "leakage.json", leakage.to_json())
    save_model(model, out / "model")
    if recipe.tuning is not None:
        seen = embed(learn.manifest, learned.backbone, prep, progress=progress)
    write_cases(collect(learn.manifest, seen), model, out)
    complete(out, versions())
    drop_checkpoints(out / "training")
    if cache is None:
        drop_pixels(out / "training")
        forget(out / "training")
    report(out)
    return Run(out, ready.audit, evaluation, leakage, model)


def leakage(
    data: Path | Manifest,
    *,
    recipe: Recipe | None = None,
    allow: Sequence[str] = (),
    cache: Path | None = None,
    progress: Progress = no_progress,
) -> Leakage:
    """Measure what the usual random split would have claimed on these data; see `Leakage`."""
    recipe = recipe or Recipe()
    ready = prepare(load_data(data, progress=progress), allow=allow, progress=progress)
    backbone = recipe.open_backbone()
    prep = recipe.preprocessing(backbone, ready.manifest)
    features = embed(ready.manifest, backbone, prep, cache=cache, progress=progress)
    return measure_leakage(
        ready.manifest, features, ready.groups.tolist(), recipe,
        long_side_px=prep.long_side_px, progress=progress,
    )  # fmt: skip


def demo(out: Path, *, seed: int = 0, progress: Progress = no_progress) -> Run:
    """Draw made-up tissue of 24 patients with planted faults, and run the whole job on it.

    Writes `out`/tissue (images, masks, truth.csv) and `out`/run. Needs no network and no cache.
    Raises OutputError if `out` is in use.
    """
    refuse_taken(out)
    tissue = write_tissue(out / "tissue", seed=seed, progress=progress)
    return train(tissue.images, out / "run", recipe=Recipe(seed=seed), progress=progress)


def usual_size(manifest: Manifest, prep: Preprocessing) -> tuple[int, int]:
    """Return height and width, in the network, of the median image."""
    width, height = manifest.table[["width", "height"]].median()
    return prep.size(int(width), int(height))[::-1]


def held_out_rows(manifest: Manifest) -> NDArray[np.bool_]:
    """Return which rows (n,) are the test part: `test` if there is one, else `validation`.

    A folder train/ + validation/ means, as in the tutorial this tool grew from, that validation
    is what the model is judged on. Raises DataError if only some images have a part, or if
    nothing is left to learn from.
    """
    parts = manifest.table["split"]
    if parts.isna().all():
        return np.zeros(len(manifest), dtype=bool)
    if parts.isna().any():
        lost = manifest.table["path"][parts.isna()].tolist()
        raise DataError(
            f"{len(lost)} image(s) lie in no part of the split: {name_some(lost)}",
            fix="move them into train/, validation/ or test/, or split again with --resplit",
        )
    held_out = "test" if (parts == "test").any() else "validation"
    rows: NDArray[np.bool_] = (parts == held_out).to_numpy(dtype=bool)
    if rows.all():
        raise DataError(f"all images are in {held_out}: nothing is left to learn from")
    return rows


def data_request(manifest: Manifest, allow: Sequence[str]) -> dict[str, Any]:
    """Return what makes two runs of one recipe the same: images, and who and where they are."""
    columns = [c for c in ("path", "label", "patient", "slide", "split", "fold")
               if c in manifest.table]  # fmt: skip
    rows = manifest.table[columns].to_csv(index=False).encode()
    return {
        "positive": manifest.positive,
        "data_hash": manifest.data_hash,
        "table_sha256": hashlib.sha256(rows).hexdigest(),
        "allow": sorted(allow),
    }


def _folds(learn: Prepared, recipe: Recipe) -> NDArray[np.int64]:
    """Deal the folds, or take those that the manifest brings (column `fold`), checked."""
    table = learn.manifest.table
    if "fold" not in table:
        labels = table["label"].tolist()
        return assign_folds(labels, learn.groups.tolist(), folds=recipe.folds, seed=recipe.seed)
    if table["fold"].isna().any():
        lost = table["path"][table["fold"].isna()].tolist()
        raise DataError(f"{len(lost)} image(s) have no fold: {name_some(lost)}")
    # copies under two patients count as one group, which folds made by hand may not know
    check_disjoint(table.assign(patient=learn.groups), column="fold")
    return np.unique(table["fold"], return_inverse=True)[1].astype(np.int64)


def _with_folds(manifest: Manifest, learn: NDArray[np.bool_], fold: NDArray[np.int64]) -> Manifest:
    column = np.full(len(manifest), -1)
    column[learn] = fold
    return manifest.with_columns(fold=column)
