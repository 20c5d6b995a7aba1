"""The saved files of a run, read and checked: all that the report knows, images aside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lobule.data.findings import Finding
from lobule.data.manifest import Manifest, read_manifest
from lobule.errors import DataError, show
from lobule.evaluation.evaluate import Evaluation
from lobule.evaluation.leakage import Leakage
from lobule.evaluation.predictions import Predictions, read_predictions
from lobule.reporting.fits import Training
from lobule.reporting.gallery import thumbnail

PREVIEW_PX = 1400
"""Longest side of the sheet of augmented views in the page."""

_FIX = "the run is incomplete or was altered; run `lobule train` again"


@dataclass(frozen=True)
class Saved:
    """What a run folder holds.

    record: run.json. model: model/model.json. out_of_fold: None unless a part was held out.
    training: None unless the network was tuned.
    """

    record: dict[str, Any]
    manifest: Manifest
    findings: tuple[Finding, ...]
    predictions: Predictions
    out_of_fold: Predictions | None
    evaluation: Evaluation
    leakage: Leakage
    model: dict[str, Any]
    training: Training | None = None

    @property
    def allow(self) -> list[str]:
        """Codes of the blocking findings that were accepted for this run."""
        return [str(code) for code in self.record["request"]["allow"]]


def read_run(run: Path) -> Saved:
    """Read the files of a run folder.

    Raises DataError naming the file if one is missing, unreadable or not of the run's kind.
    """
    if not run.is_dir():
        raise DataError(f"{show(run)} is not a run folder", fix="name the -o of `lobule train`")
    with using(run / "run.json") as path:
        record = _json(path)
        _ = record["started"], record["request"]["allow"]
    with using(run / "manifest.parquet") as path:
        # a photograph that is gone is said in its place, so the table alone will do
        manifest = read_manifest(path, with_images=False)
    with using(run / "audit.json") as path:
        findings = tuple(
            Finding(**{**finding, "files": tuple(finding["files"])})
            for finding in _json(path)["findings"]
        )
    with using(run / "predictions.parquet") as path:
        predictions = _predictions(path)
    out_of_fold = None
    if (run / "out_of_fold.parquet").exists():
        with using(run / "out_of_fold.parquet") as path:
            out_of_fold = _predictions(path)
    with using(run / "evaluation.json") as path:
        evaluation = Evaluation.from_json(_json(path))
    with using(run / "leakage.json") as path:
        leakage = Leakage.from_json(_json(path))
    with using(run / "model" / "model.json") as path:
        model = _json(path)
    return Saved(
        record, manifest, findings, predictions, out_of_fold, evaluation, leakage, model,
        training=_training(run / "training"),
    )  # fmt: skip


@contextmanager
def using(path: Path) -> Iterator[Path]:
    """Turn whatever a damaged `path` leads to into a DataError that names it."""
    try:
        yield path
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError(f"cannot read {show(path)}: {reason}", fix=_FIX) from error
    except DataError as error:
        if show(path) in error.what:
            raise
        raise DataError(f"cannot use {show(path)}: {error.what}", fix=_FIX) from error
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__} {error}"
        raise DataError(f"cannot use {show(path)}: {what}", fix=_FIX) from error


def _json(path: Path) -> dict[str, Any]:
    record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict):
        raise DataError(f"it holds a {type(record).__name__}, not a record")
    return record


def _training(folder: Path) -> Training | None:
    if not (folder / "training.json").exists():
        return None
    with using(folder / "training.json") as path:
        training = Training.from_json(_json(path))
    fits = []
    for fit in training.fits:
        with using(folder / fit.folder / "metrics.jsonl") as path:
            fits.append(fit.with_history(path.read_text(encoding="utf-8")))
    with using(folder / "augmented.jpg") as path:
        preview = thumbnail(path, longest_px=PREVIEW_PX)
    return replace(training, fits=tuple(fits), preview=preview)


def _predictions(path: Path) -> Predictions:
    predictions = read_predictions(path)
    if len(predictions) == 0:
        raise DataError("it holds no predictions")
    _ = predictions.table["decision"]
    return predictions
