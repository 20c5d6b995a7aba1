"""Known cases that look like a photograph: the nearest training images, of other patients.

A run keeps the directions of its training images' features in cases.parquet, beside the model and
not in it: a model may be passed on, who the patients were may not.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lobule.data.images import ImageArray, decode, read_file
from lobule.data.manifest import Manifest
from lobule.errors import DataError, ImageError, show
from lobule.files import replacing
from lobule.models.bundle import Model
from lobule.models.classifier import Features
from lobule.models.gate import directions

CASES = "cases.parquet"

SCHEMA = "lobule.cases/1"

FAR = 0.95
"""Share of the training images that have an image of another patient within the limit."""

_COLUMNS = ("path", "label", "patient", "slide", "sha256")


@dataclass(frozen=True)
class Case:
    """One known image: where it lies below the root, what it is, and how far it is.

    distance: 1 less the cosine of the two directions, 0 to 2. patient: None where unknown.
    """

    path: str
    label: str
    patient: str | None
    distance: float


@dataclass(frozen=True)
class Similar:
    """The nearest cases, one image a patient, nearest first.

    limit: the distance within which 95% of the training images have one of another patient.
    none_close: whether even the nearest is farther than that, or there is none.
    """

    cases: tuple[Case, ...]
    limit: float

    @property
    def none_close(self) -> bool:
        """Whether no case is as near as training images are to each other."""
        return not self.cases or self.cases[0].distance > self.limit


@dataclass(frozen=True, eq=False)
class Cases:
    """The training images of a model.

    table: one row an image, columns path, label, patient, slide, sha256. directions: (n, d)
    float32 of length 1. limit: see `Similar`. root: the folder that paths start from.
    """

    table: pd.DataFrame
    directions: NDArray[np.float32]
    limit: float
    root: Path

    def similar(
        self, features: Features, *, sha256: str, patient: str | None = None, k: int = 5
    ) -> Similar:
        """Return the `k` nearest cases of one image; never of its patient, nor the same file.

        features: of one image. sha256: of its file. patient: its patient, if known. Where the file
        is a training image, its patient is known by that.
        """
        if len(features) != 1:
            raise ValueError(f"{len(features)} images, not one")
        own = self.table["sha256"] == sha256
        who = set(self.groups[own.to_numpy()]) | ({patient} if patient is not None else set())
        other = ~np.isin(self.groups, sorted(who)) & ~own.to_numpy()
        distance = 1 - self.directions.astype(np.float64) @ directions(features)[0]
        order = np.argsort(distance, kind="stable")
        order = order[other[order]]
        _, first = np.unique(self.groups[order], return_index=True)
        rows = order[np.sort(first)][:k]
        return Similar(tuple(self._case(row, distance[row]) for row in rows), self.limit)

    @property
    def groups(self) -> NDArray[np.str_]:
        """Return the patient of each image, or the image itself where that is unknown."""
        named = self.table["patient"].fillna("image:" + self.table["path"])
        groups: NDArray[np.str_] = named.to_numpy(dtype=str)
        return groups

    def read(self, case: Case) -> ImageArray:
        """Return the photograph of a case, (h, w, 3) uint8.

        Raises ImageError if it is not where it was, or is another file by now.
        """
        return self.read_row(int(np.flatnonzero(self.table["path"] == case.path)[0]))

    def read_row(self, row: int) -> ImageArray:
        """Return the photograph of a row of the table; otherwise as `read`."""
        path, known = self.table.loc[row, ["path", "sha256"]]
        data = read_file(self.root / path)
        if hashlib.sha256(data).hexdigest() != known:
            raise ImageError(
                f"{show(path)} is no longer the file that the model learned from",
                fix="put the original back, or train again",
            )
        return decode(data, path)

    def _case(self, row: int, distance: float) -> Case:
        fields = self.table.iloc[row]
        patient = None if pd.isna(fields["patient"]) else str(fields["patient"])
        return Case(str(fields["path"]), str(fields["label"]), patient, max(0.0, float(distance)))


def collect(manifest: Manifest, features: Features) -> Cases:
    """Return the cases of training images and their features, in the same order."""
    table = manifest.table[list(_COLUMNS)].reset_index(drop=True)
    cases = Cases(table, directions(features).astype(np.float32), np.inf, manifest.root.absolute())
    nearest = nearest_of_others(cases.directions, cases.groups)
    known = nearest[np.isfinite(nearest)]
    limit = float(np.quantile(known, FAR, method="inverted_cdf")) if len(known) else np.inf
    return Cases(table, cases.directions, limit, cases.root)


_AT_ONCE = 1_024
"""Images whose distances to all others are held at a time."""


def nearest_of_others(
    directions: NDArray[np.float32], groups: NDArray[np.str_]
) -> NDArray[np.float64]:
    """Return each image's distance to the nearest of another group, (n,); inf where none is."""
    found = np.full(len(directions), np.inf)
    for start in range(0, len(directions), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        distance = 1 - directions[part].astype(np.float64) @ directions.T.astype(np.float64)
        distance[groups[part, None] == groups[None, :]] = np.inf
        found[part] = distance.min(axis=1)
    # rounding may take the cosine of equal directions above 1
    nearest: NDArray[np.float64] = np.maximum(found, 0)
    return nearest


def write_cases(cases: Cases, model: Model, run: Path) -> None:
    """Write cases.parquet into a run folder, atomically; raises OutputError."""
    rows = pa.FixedSizeListArray.from_arrays(
        pa.array(cases.directions.ravel()), cases.directions.shape[1]
    )
    table = pa.Table.from_pandas(cases.table, preserve_index=False).append_column("direction", rows)
    record = {
        "schema": SCHEMA,
        "features": _features_of(model),
        "limit": cases.limit,
        "root": str(cases.root),
    }
    metadata = {**(table.schema.metadata or {}), b"lobule": json.dumps(record).encode()}
    with replacing(run / CASES) as temporary:
        pq.write_table(table.replace_schema_metadata(metadata), temporary)


def read_cases(model: Model, run: Path | None = None, *, root: Path | None = None) -> Cases | None:
    """Return the cases of a model; None if there is no cases.parquet.

    run: the folder it lies in; default: that of the model's own run. root: where the images are
    now, if not where they were. Raises DataError if the file cannot be read or is of another model.
    """
    folder = run
    if folder is None:
        if model.folder is None:
            return None
        folder = model.folder.absolute().parent
    file = folder / CASES
    if not file.exists():
        return None
    try:
        table = pq.read_table(file)
        record: dict[str, Any] = json.loads(table.schema.metadata[b"lobule"])
        directions = np.stack(table["direction"].to_numpy())
        known = table.select(list(_COLUMNS)).to_pandas().astype("string")
        limit, kept = float(record["limit"]), Path(record["root"])
        if record["features"] != _features_of(model):
            raise DataError(
                f"{show(file)} holds the cases of another model", fix="give the model's own run"
            )
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowInvalid) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"cannot read {show(file)}: {type(error).__name__} {error}", fix="train again"
        ) from error
    return Cases(known, directions.astype(np.float32), limit, root or kept)


def _features_of(model: Model) -> str:
    return f"{model.features_id} {model.preprocessing.id}"
