"""The predictions table: the one hand-off from models to evaluation, report and user.

Columns, one row an image:

    path                    as in the manifest
    label, patient, slide, magnification, subtype   where known
    prob_<class> ...        mean over the eight views; rows sum to 1
    plain_<class> ...       the plain view alone
    raw_<class> ...         prob before it was recalibrated, if it was
    colour_<class> ...      baseline that sees colour statistics only
    frozen_<class> ...      of a tuned network: a linear head on the same network before tuning
    prior_<class> ...       baseline that sees nothing: class shares of the training images
    threshold, threshold_slide, threshold_patient   operating point locked before (two classes)
    set_<class> ...         whether the class is in the set that holds the true one at a stated rate
    ood_score               how unlike the training images it is (see `models.gate`)
    accepted                whether the gate lets it through; if not, the rest means little
    decision                class at the operating point (two classes) or of highest probability
    model, weights, preprocessing, source, training_data, tool, time, notice
                            identity: who said so, of what, when, and what it is for
    error                   why an image could not be read; then all but path and identity is empty
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from lobule.data.manifest import Manifest, class_indices, groups_of, order_classes
from lobule.errors import DataError, name_some, show
from lobule.evaluation.conformal import prediction_sets
from lobule.files import TABLES, read_csv, read_lines, table_kind, write_lines, write_table

Level = Literal["image", "slide", "patient"]

LEVELS: tuple[Level, ...] = ("image", "slide", "patient")

KINDS = ("prob", "plain", "raw", "frozen", "colour", "prior")
"""Prefixes of the probability columns."""

IDENTITY = (
    "model", "weights", "preprocessing", "source", "training_data", "tool", "time", "notice",
)  # fmt: skip
"""Columns that are the same in all rows of one call."""

TEXT = ("path", "label", "patient", "slide", "subtype", "decision", *IDENTITY, "error")
"""Columns that are text, whatever they look like."""

KNOWN = ("label", "patient", "slide", "magnification", "subtype")
"""Manifest columns that evaluation needs."""

ENDINGS = (*TABLES, ".jsonl")
"""Endings of files that predictions are kept in."""

ROW_SCHEMA = "lobule.prediction/1"
"""Of one of the JSON lines."""


@dataclass(frozen=True)
class Predictions:
    """A predictions table and its classes in the order of their columns (positive last of two).

    failed: images that were asked for and could not be read, with the reason by path; they are
    in no row of the table, and so in no figure.
    """

    table: pd.DataFrame
    classes: tuple[str, ...]
    failed: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.table)

    def probabilities(self, kind: str = "prob") -> NDArray[np.float64]:
        """Return the (n, K) columns of one of KINDS."""
        columns = [self.table[f"{kind}_{name}"].to_numpy(np.float64) for name in self.classes]
        values: NDArray[np.float64] = np.column_stack(columns)
        return values

    @property
    def score(self) -> NDArray[np.float64]:
        """Return (n,) the probability of the positive class of two, of more the highest one."""
        prob = self.probabilities()
        score: NDArray[np.float64] = prob[:, 1] if len(self.classes) == 2 else prob.max(axis=1)
        return score

    def has(self, kind: str) -> bool:
        """Whether the table has the probability columns of `kind`."""
        return all(f"{kind}_{name}" in self.table for name in self.classes)

    @property
    def sets(self) -> NDArray[np.bool_] | None:
        """Return which classes are in the set of each image, (n, K), if the table says so."""
        columns = [f"set_{name}" for name in self.classes]
        if not all(column in self.table for column in columns):
            return None
        members: NDArray[np.bool_] = np.column_stack(
            [self.table[column].to_numpy(np.bool_) for column in columns]
        )
        return members

    @property
    def members(self) -> list[list[str]] | None:
        """Return the names of the classes in the set of each image, if the table says so."""
        sets = self.sets
        if sets is None:
            return None
        return [[c for c, k in zip(self.classes, row, strict=True) if k] for row in sets]

    @property
    def accepted(self) -> NDArray[np.bool_] | None:
        """Return which images the gate lets through, (n,), if there was one."""
        if "accepted" not in self.table:
            return None
        values: NDArray[np.bool_] = self.table["accepted"].to_numpy(dtype=np.bool_)
        return values

    @property
    def decided(self) -> pd.Series[Any]:
        """The class decided on, missing where the gate lets an image not through."""
        decision, accepted = self.table["decision"], self.accepted
        return decision if accepted is None else decision.where(accepted)

    @property
    def identity(self) -> dict[str, str]:
        """Who says so: of IDENTITY what the table has."""
        return {name: str(self.table[name].iloc[0]) for name in IDENTITY if name in self.table}

    @property
    def y(self) -> NDArray[np.int64]:
        """Class index of each image's label, (n,)."""
        return class_indices(self.table["label"], self.classes)

    @property
    def groups(self) -> pd.Series[str]:
        """The patient of each image, or the image itself where that is unknown."""
        return groups_of(self.table)

    @property
    def patients_known(self) -> bool:
        """Whether every image has a patient."""
        return bool(self.table["patient"].notna().all())


@dataclass(frozen=True, eq=False)
class Gated:
    """What a gate says of n images: ood_score (n,) float, accepted (n,) bool."""

    ood_score: NDArray[np.float64]
    accepted: NDArray[np.bool_]


def make_predictions(
    manifest: Manifest,
    classes: tuple[str, ...],
    probabilities: dict[str, NDArray[np.float64]],
    limits: Mapping[str, NDArray[np.float64] | float],
    gated: Gated | None = None,
    **identity: str,
) -> Predictions:
    """Put the table together.

    probabilities: by kind (see KINDS), each (n, K). limits: as `locked.Locked.limits` names them,
    each (n,) or the same for all images; no thresholds with more than two classes. gated: what the
    gate says, if there is one. identity: of IDENTITY what is known.
    """
    columns: dict[str, Any] = {name: manifest.table[name].array for name in ("path", *KNOWN)}
    for kind, values in probabilities.items():
        columns.update({f"{kind}_{name}": values[:, k] for k, name in enumerate(classes)})
    columns.update({k: v for k, v in limits.items() if k.startswith("threshold")})
    prob = probabilities["prob"]
    if "set_quantile" in limits:
        sets = prediction_sets(prob, limits["set_quantile"])
        columns.update({f"set_{name}": sets[:, k] for k, name in enumerate(classes)})
    if gated is not None:
        columns.update(vars(gated))
    index = decide(prob, limits.get("threshold"))
    columns["decision"] = np.array(classes)[index]
    # lists, which pandas types several times faster than a text that it is to repeat
    columns.update({name: [text] * len(manifest) for name, text in identity.items()})
    return Predictions(pd.DataFrame(columns), classes)


def threshold_column(level: Level) -> str:
    """Return the column that holds the threshold of a level."""
    return "threshold" if level == "image" else f"threshold_{level}"


def decide(
    prob: NDArray[np.float64], threshold: NDArray[np.float64] | float | None
) -> NDArray[np.int64]:
    """Return class indices: positive iff its probability reaches the threshold, else arg-max.

    prob: (n, K). threshold: of the positive class of two; None takes the most probable class.
    """
    if threshold is None:
        return np.asarray(prob.argmax(axis=1), dtype=np.int64)
    return np.asarray(prob[:, 1] >= threshold, dtype=np.int64)


def threshold_of(units: Predictions) -> NDArray[np.float64] | float | None:
    """Return what `decide` takes: the operating point of each unit (n,), or 0.5 where one lacks it.

    None with more than two classes, of which the most probable one is decided on.
    """
    if len(units.classes) > 2:
        return None
    if "threshold" not in units.table or units.table["threshold"].isna().any():
        return 0.5
    thresholds: NDArray[np.float64] = units.table["threshold"].to_numpy(dtype=np.float64)
    return thresholds


def write_predictions(predictions: Predictions, path: Path, *, failures: bool = False) -> None:
    """Write CSV, Parquet or JSON lines by the ending of `path`, atomically, to the last digit.

    In CSV no cell is one that a spreadsheet would execute. failures: add a column `error`, and a
    row for each image that could not be read, in which only path, identity and reason stand.
    """
    kind = table_kind(path, ENDINGS)
    table = _with_failed(predictions) if failures else predictions.table
    if kind == ".jsonl":
        write_lines(table, path, schema=ROW_SCHEMA)
    else:
        write_table(table, path)


def _with_failed(predictions: Predictions) -> pd.DataFrame:
    table, failed = predictions.table, predictions.failed
    # the kinds that can be empty
    kinds = {np.dtype(np.bool_): "boolean", np.dtype(np.int64): "Int64"}
    table = table.astype({n: kinds[kind] for n, kind in table.dtypes.items() if kind in kinds})
    lost = {"path": list(failed), **predictions.identity, "error": list(failed.values())}
    rows = pd.DataFrame(lost)
    rows = rows.astype("string").reindex(columns=[*table.columns, "error"])
    typed = {name: kind for name, kind in table.dtypes.items() if name not in TEXT}
    table = pd.concat([table, rows.astype(typed)])
    return table.sort_values("path", kind="stable").reset_index(drop=True)


def _without_failed(table: pd.DataFrame, classes: tuple[str, ...]) -> Predictions:
    """Take out the rows of images that could not be read: a reason stands there, and no answer."""
    if "error" not in table:
        return Predictions(table, classes)
    answered = table[[f"prob_{name}" for name in classes]].notna().any(axis=1)
    lost = table["error"].notna() & ~answered
    failed = dict(zip(table["path"][lost], table["error"][lost], strict=True))
    kept = table[~lost].reset_index(drop=True)
    if kept["error"].isna().all():
        kept = kept.drop(columns="error")
    # beside empty cells, true and false were read as something else
    flags = [c for c in kept if c.startswith("set_") or c == "accepted"]
    return Predictions(kept.astype(dict.fromkeys(flags, bool)), classes, failed)


def _read(path: Path) -> pd.DataFrame:
    kind = table_kind(path, ENDINGS)
    if kind == ".csv":
        # "NA" may be a class and "007" a patient
        return read_csv(path, dict.fromkeys(TEXT, "string"))
    return read_lines(path) if kind == ".jsonl" else pd.read_parquet(path)


def read_predictions(path: Path, *, manifest: Manifest | None = None) -> Predictions:
    """Read predictions; labels and patients may come from a manifest, matched by path.

    Rows of images that could not be read become `Predictions.failed`.
    Raises DataError if the file cannot be read, holds no probabilities, has probabilities that
    do not sum to 1, or if labels are missing or unknown to the model.
    """
    try:
        table = _read(path)
        table = table.astype({name: "string" for name in TEXT if name in table})
    except (OSError, ValueError, pa.ArrowInvalid, pd.errors.ParserError) as error:
        raise DataError(f"cannot read the predictions {show(path)}: {error}") from error
    classes = tuple(c.removeprefix("prob_") for c in table.columns if c.startswith("prob_"))
    if "model" not in table:
        # a table of ours has its columns in order; in another's the order says nothing
        classes = order_classes(classes)
    if "path" not in table or len(classes) < 2:
        raise DataError(
            f"{show(path)} is not a predictions table: it needs 'path' and two or more columns "
            f"'prob_<class>' (its columns: {name_some([str(c) for c in table.columns])})",
            fix="make one with `lobule predict MODEL DIR -o predictions.csv`",
        )
    found = _without_failed(table, classes)
    table = found.table if manifest is None else _join_known(found.table, manifest, path)
    for name in KNOWN:
        if name not in table:
            table[name] = pd.Series(pd.NA, index=table.index, dtype="string")
    predictions = replace(found, table=table)
    _check(predictions, path)
    return predictions


def _join_known(table: pd.DataFrame, manifest: Manifest, path: Path) -> pd.DataFrame:
    known = manifest.table.set_index("path")[list(KNOWN)]
    lacking = [p for p in table["path"] if p not in known.index]
    if lacking:
        raise DataError(
            f"{len(lacking)} image(s) of {show(path)} are not in the manifest: "
            f"{name_some(lacking)}",
            fix="scan the folder that was predicted",
        )
    suffixes = ("", "_of_manifest")
    joined = table.merge(known, left_on="path", right_index=True, how="left", suffixes=suffixes)
    for name in KNOWN:
        if f"{name}_of_manifest" in joined:
            told = joined.pop(f"{name}_of_manifest")
            joined[name] = told.combine_first(joined[name])
    return joined


def _check(predictions: Predictions, path: Path) -> None:
    table, classes = predictions.table, predictions.classes
    repeated = table["path"][table["path"].duplicated()].tolist()
    if repeated:
        raise DataError(
            f"{show(path)} names {len(repeated)} image(s) twice: {name_some(repeated)}",
            fix="keep one row an image",
        )
    try:
        prob = predictions.probabilities()
    except ValueError as error:
        raise DataError(f"{show(path)}: a probability is no number ({error})") from error
    # other tools round to a few digits
    off = ~np.isclose(prob.sum(axis=1), 1.0, atol=2e-3) | (prob < 0).any(axis=1)
    if off.any():
        raise DataError(
            f"{int(off.sum())} row(s) of {show(path)} hold no probabilities (they must be 0 or "
            f"more and sum to 1), the first for {show(str(table['path'][off].iloc[0]))}"
        )
    if table["label"].isna().any():
        unlabelled = table["path"][table["label"].isna()].tolist()
        raise DataError(
            f"{len(unlabelled)} image(s) of {show(path)} have no label: {name_some(unlabelled)}",
            fix="give the manifest that knows them with --manifest FILE",
        )
    strange = sorted(set(table["label"]) - set(classes))
    if strange:
        raise DataError(
            f"{show(path)} has label(s) that the model does not know: {name_some(strange)}; "
            f"its classes are {name_some(list(classes))}"
        )


def at_level(predictions: Predictions, level: Level) -> Predictions:
    """Combine the images of each slide or patient: probabilities are averaged.

    Of two classes a unit has the positive one if any of its images has, since one malignant field
    makes a malignant case; of more, the commonest. Slides of different patients stay apart even
    under one name. Images of unknown slide or patient stand for themselves.
    """
    if level == "image":
        return predictions
    table = predictions.table
    own = "image:" + table["path"]
    patient = groups_of(table)
    slide = table["slide"].fillna(own)
    unit = [patient, slide] if level == "slide" else [patient]
    numeric = [f"{kind}_{name}" for kind in KINDS for name in predictions.classes]
    numeric = [column for column in numeric if column in table]
    thresholds = [c for c in table.columns if c.startswith("threshold")]
    work = table.assign(patient=patient, y=predictions.y)
    grouped = work.groupby(unit, sort=True)
    units = grouped[numeric].mean()
    two = len(predictions.classes) == 2
    units["y"] = grouped["y"].agg("max" if two else lambda y: y.mode().iloc[0])
    units["label"] = np.array(predictions.classes)[units["y"]]
    units["patient"] = grouped["patient"].first()
    units[thresholds] = grouped[thresholds].first()
    if threshold_column(level) in units:
        units["threshold"] = units[threshold_column(level)]
    elif "threshold" in units:
        # an operating point belongs to one level; without its own a level has none
        units = units.drop(columns="threshold")
    units["path"] = ["/".join(key) if isinstance(key, tuple) else key for key in units.index]
    return Predictions(units.reset_index(drop=True), predictions.classes)
