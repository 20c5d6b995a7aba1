"""A model on the images of a site that it was not trained on: what holds, and what would mend it.

Nothing of the model is changed. What cannot be known from these images is said beside the figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lobule.data.manifest import Manifest, class_indices, read_manifest
from lobule.errors import DataError
from lobule.evaluation.calibration import ratio
from lobule.evaluation.drift import Drift, score_drift
from lobule.evaluation.evaluate import DRAWS, Evaluation, evaluate
from lobule.evaluation.intervals import FloatArray, Interval, patient_bootstrap
from lobule.evaluation.local import CHOICES, LocalGain, Target, gain_from_json, local_gains
from lobule.evaluation.predictions import Predictions
from lobule.inference.predictor import predict
from lobule.inference.unknowns import unknowns
from lobule.models.bundle import Model
from lobule.progress import Progress, no_progress

SCHEMA = "lobule.external/1"

SOURCE = "external images"
"""What the predictions say that they are of."""


@dataclass(frozen=True)
class Photographs:
    """What the images are like that were predicted.

    width_px, height_px: smallest and largest, None where no size is known. endings: of the files.
    magnifications: those known, rising. long_side_px: what the model scales each image to.
    """

    width_px: tuple[int, int] | None
    height_px: tuple[int, int] | None
    endings: tuple[str, ...]
    magnifications: tuple[float, ...]
    long_side_px: int


@dataclass(frozen=True)
class External:
    """What a model is worth on another site's images, as far as these can tell.

    n_images: predicted; n_labelled of them have a label, which `evaluation` and `gains` are of.
    failed: images left out as unreadable, with the reason by path. seen: how many are among those
    the model was trained on, None where that cannot be told. recorded: image ROC AUC that the
    model's own record states, in words. evaluation: None without labels; of the image level alone
    where patients are unknown. drift: None where the model keeps no scores. refused: share of
    images that the model's own gate turns away, None where it has none. target: what the operating
    point was chosen for. gains: see `local.local_gains`; empty where cases are too few.
    predictions: the table behind all this; it is no part of the record.
    """

    classes: tuple[str, ...]
    model: str
    data_hash: str
    n_images: int
    n_labelled: int
    n_patients: int
    patients_known: bool
    photographs: Photographs
    failed: dict[str, str]
    seen: int | None
    recorded: str | None
    evaluation: Evaluation | None
    drift: Drift | None
    refused: Interval | None
    target: Target | None
    gains: tuple[LocalGain, ...]
    predictions: Predictions = field(compare=False, repr=False)

    @property
    def labelled(self) -> Predictions:
        """The predictions of images that have a label."""
        return _labelled(self.predictions)

    @property
    def cannot_know(self) -> list[str]:
        """What these images cannot tell, a sentence each, the weightiest first."""
        return list(unknowns(self))

    def to_json(self) -> dict[str, Any]:
        """Return plain types with a schema; undefined figures are None with a reason."""
        plain = {key: value for key, value in vars(self).items() if key != "predictions"}
        return {
            "schema": SCHEMA,
            **plain,
            "classes": list(self.classes),
            "photographs": {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in vars(self.photographs).items()
            },
            "evaluation": None if self.evaluation is None else self.evaluation.to_json(),
            "drift": None if self.drift is None else self.drift.to_json(),
            "refused": None if self.refused is None else self.refused.to_json(),
            "target": None if self.target is None else list(self.target),
            "gains": [{**vars(g), "difference": g.difference.to_json()} for g in self.gains],
            "cannot_know": self.cannot_know,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any], predictions: Predictions) -> External:
        """Rebuild from `to_json` and the table that was written beside it.

        Raises DataError for another schema or a missing field.
        """
        if record.get("schema") != SCHEMA:
            raise DataError(
                f"not an external record: schema {record.get('schema')!r}, not {SCHEMA!r}"
            )
        names = [name for name in cls.__dataclass_fields__ if name != "predictions"]
        try:
            fields = {key: record[key] for key in names}
            fields["classes"] = tuple(record["classes"])
            photographs: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in record["photographs"].items()
            }
            fields["photographs"] = Photographs(**photographs)
            for key, read in (
                ("evaluation", Evaluation.from_json),
                ("drift", Drift.from_json),
                ("refused", Interval.from_json),
                ("target", tuple),
            ):
                fields[key] = None if record[key] is None else read(record[key])
            fields["gains"] = tuple(gain_from_json(gain) for gain in record["gains"])
            return cls(**fields, predictions=predictions)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"external record cannot be read: {error!r}") from error


def external(
    model: Model,
    manifest: Manifest,
    *,
    cache: Path | None = None,
    draws: int = DRAWS,
    choices: int = CHOICES,
    seed: int = 0,
    progress: Progress = no_progress,
) -> External:
    """Predict a site's images and tell what holds there: ranking, probabilities, scores, updates.

    manifest: images of any size and format; labels and patients where known. Images that cannot
    be read are left out and named. Figures are of the images that have a label, at the operating
    point that the model was saved with. cache: folder of features computed before. draws: of the
    patient bootstrap. choices: of local cases, see `local.local_gains`. seed: of both.
    Raises DataError if an image has a class that the model does not know, or none can be read.
    """
    _check_classes(manifest, model)
    predictions = predict(
        model, manifest, on_error="skip", cache=cache, source=SOURCE, progress=progress
    )
    labelled = _labelled(predictions)
    target = _target(model)
    return External(
        classes=model.info.classes,
        model=model.id,
        data_hash=manifest.data_hash,
        n_images=len(predictions),
        n_labelled=len(labelled),
        n_patients=int(predictions.groups.nunique()),
        patients_known=predictions.patients_known,
        photographs=_photographs(manifest, predictions, model),
        failed=dict(predictions.failed),
        seen=_seen(model, manifest),
        recorded=_recorded(model),
        evaluation=_evaluation(labelled, draws, seed) if len(labelled) else None,
        drift=_drift(model, predictions, draws, seed),
        refused=_refused(predictions, draws, seed),
        target=target,
        gains=local_gains(labelled, target=target, choices=choices, seed=seed, progress=progress)
        if len(labelled)
        else (),
        predictions=predictions,
    )


def _check_classes(manifest: Manifest, model: Model) -> None:
    """Refuse unknown classes now, rather than after all the work."""
    try:
        class_indices(manifest.table["label"].dropna(), model.info.classes)
    except DataError as error:
        raise DataError(
            error.what,
            fix="call the class folders as the model calls its classes, or give the classes in "
            "--metadata; folders that are no classes must not stand at the top",
        ) from error


def _labelled(predictions: Predictions) -> Predictions:
    has_label = predictions.table["label"].notna()
    return replace(predictions, table=predictions.table[has_label].reset_index(drop=True))


def _target(model: Model) -> Target | None:
    point = model.info.operating_points.get("image")
    return None if point is None else (str(point["target"]), float(point["value"]))


def _evaluation(labelled: Predictions, draws: int, seed: int) -> Evaluation:
    """Evaluate, and drop the levels that have no meaning where patients are unknown."""
    found = evaluate(labelled, draws=draws, seed=seed)
    if found.patients_known:
        return found
    return replace(
        found,
        levels={"image": found.levels["image"]},
        baselines={name: {"image": of["image"]} for name, of in found.baselines.items()},
        gain={name: {"image": of["image"]} for name, of in found.gain.items()},
        decision_curve={
            level: curve for level, curve in found.decision_curve.items() if level == "image"
        },
    )


def _drift(model: Model, predictions: Predictions, draws: int, seed: int) -> Drift | None:
    """Hold the scores against those of the model's folds, if it keeps any."""
    kept = model.info.out_of_fold
    if not kept:
        return None
    point = model.info.operating_points.get("image")
    return score_drift(
        predictions.score,
        predictions.groups.tolist(),
        kept["quantiles"],
        threshold=None if point is None else float(point["threshold"]),
        source=str(kept["source"]),
        draws=draws,
        seed=seed,
    )


def _refused(predictions: Predictions, draws: int, seed: int) -> Interval | None:
    if predictions.accepted is None:
        return None
    refused = ~predictions.accepted

    def statistic(weight: FloatArray) -> dict[str, FloatArray]:
        return {"refused": ratio(weight @ refused, weight.sum(axis=-1))}

    groups = predictions.groups.tolist()
    return patient_bootstrap(statistic, groups, draws=draws, seed=seed)["refused"]


def _photographs(manifest: Manifest, predictions: Predictions, model: Model) -> Photographs:
    table = manifest.table[manifest.table["path"].isin(predictions.table["path"])]

    def span(column: str) -> tuple[int, int] | None:
        sizes = table[column].dropna()
        return None if sizes.empty else (int(sizes.min()), int(sizes.max()))

    endings = {Path(path).suffix.lower() for path in table["path"]}
    known = np.unique(table["magnification"].dropna().to_numpy(dtype=np.float64))
    return Photographs(
        width_px=span("width"),
        height_px=span("height"),
        endings=tuple(sorted(endings)),
        magnifications=tuple(known.tolist()),
        long_side_px=model.preprocessing.long_side_px,
    )


def _recorded(model: Model) -> str | None:
    """Return the image ROC AUC of the model's own record, and what it is of."""
    performance = model.info.performance
    for row in performance.get("rows", ()):
        if (row["level"], row["name"]) == ("image", "roc_auc"):
            return f"{row['text']}, {performance['source']}"
    return None


def _seen(model: Model, manifest: Manifest) -> int | None:
    """Count images that the model was trained on, by content; None where nothing tells.

    What it was trained on is known from the manifest of its run, if the model lies in it still.
    """
    trained_on = model.info.training["data_hash"]
    if manifest.data_hash == trained_on:
        return len(manifest)
    if model.folder is None:
        return None
    try:
        run = read_manifest(model.folder.absolute().parent / "manifest.parquet", with_images=False)
    except DataError:
        return None
    if "fold" in run.table:
        run = run.where((run.table["fold"] >= 0).to_numpy(dtype=bool))
    if run.data_hash != trained_on:
        return None
    return int(manifest.table["sha256"].isin(run.table["sha256"]).sum())
