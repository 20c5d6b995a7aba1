"""The manifest: one row an image, and the table that every later stage begins from."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lobule.data.images import read_file, read_header
from lobule.data.layouts import parse_magnification
from lobule.errors import DataError, ImageError, UsageError, name_some, show
from lobule.files import read_csv, table_kind, write_table

SCHEMA: dict[str, str] = {
    "path": "string",  # below the manifest's root, with forward slashes
    "label": "string",
    "patient": "string",  # the case; missing when unknown
    "slide": "string",
    "magnification": "Float64",
    "subtype": "string",
    "width": "Int64",  # pixels as displayed; missing when the file cannot be read
    "height": "Int64",
    "bytes": "Int64",
    "sha256": "string",
    "split": "string",  # train, validation or test; missing when the data came unsplit
}
"""Columns and pandas dtypes. Columns beyond these are the user's own and are kept."""

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
"""Names of a part of a split (lower case), as of a folder or in a column, and what they mean."""

_ROOT_KEY = b"lobule.root"


@dataclass(frozen=True)
class Skipped:
    """A file that is not in the manifest, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """A table of images and the folder that its paths start from.

    table: columns of SCHEMA in that order, then the user's own; sorted by path.
    skipped: files that were seen and left out (known only right after a scan).
    positive: the class that sensitivity refers to, where the user named it.
    """

    root: Path
    table: pd.DataFrame
    skipped: tuple[Skipped, ...] = ()
    positive: str | None = None

    def __len__(self) -> int:
        return len(self.table)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of their indices; see `order_classes`."""
        return order_classes(self.table["label"].dropna().unique().tolist(), self.positive)

    @property
    def groups(self) -> pd.Series[str]:
        """What must stay together: the patient, or the image itself where that is unknown."""
        return groups_of(self.table)

    @property
    def patients_known(self) -> bool:
        """Whether every image has a patient."""
        return bool(self.table["patient"].notna().all())

    @property
    def data_hash(self) -> str:
        """SHA-256 over the sorted content hashes and labels: names the data, not the folder."""
        labels = self.table["label"].fillna("")
        rows = sorted(f"{h} {label}" for h, label in zip(self.table["sha256"], labels, strict=True))
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()

    def file(self, path: str) -> Path:
        """Return where the image of row `path` lies."""
        return self.root / path

    def where(self, keep: pd.Series[bool] | NDArray[np.bool_]) -> Manifest:
        """Return the manifest of the rows for which `keep` is true."""
        return replace(self, table=self.table[keep].reset_index(drop=True))

    def with_columns(self, **columns: object) -> Manifest:
        """Return the manifest with columns added or replaced."""
        return replace(self, table=self.table.assign(**columns))


_POSITIVE = re.compile(
    r"malign|cancer|carcinom|tumou?r|invasive|insitu|idc|positive|pos$", re.IGNORECASE
)
_NEGATIVE = re.compile(r"non|no[^a-z]|not[^a-z]|benign|normal|healthy|negative|neg$|control", re.I)


def order_classes(labels: Iterable[str], positive: str | None = None) -> tuple[str, ...]:
    """Sort class names so that the positive class of a two-class task comes last.

    positive: the class that goes last; by default names that mean disease come after names that
    mean none ("benign", "normal", "non-IDC"), and otherwise the order is alphabetical, so that
    of 0 and 1 the 1 is positive. With two classes the last one is what sensitivity refers to.
    Raises UsageError if `positive` is not among the labels.
    """
    names = set(labels)
    if positive is not None and positive not in names:
        raise UsageError(
            f"--positive {positive!r} is no class of the images; "
            f"they are {name_some(sorted(names))}"
        )

    def rank(label: str) -> tuple[bool, int, str]:
        if _NEGATIVE.match(label):
            return label == positive, 0, label
        return label == positive, 2 if _POSITIVE.search(label) else 1, label

    return tuple(sorted(names, key=rank))


def groups_of(table: pd.DataFrame) -> pd.Series[str]:
    """Return the patient of each row, or a name of the image's own where that is unknown."""
    return table["patient"].fillna("image:" + table["path"])


def class_indices(labels: pd.Series[str], classes: Sequence[str]) -> NDArray[np.int64]:
    """Return the index in `classes` of each label, (n,).

    Raises DataError for a label that is none of them.
    """
    strange = sorted({str(label) for label in labels.unique()} - set(classes))
    if strange:
        raise DataError(
            f"no image of class {name_some(strange)} was there to learn from; "
            f"the classes known are {name_some(list(classes))}"
        )
    index = {name: i for i, name in enumerate(classes)}
    indices: NDArray[np.int64] = labels.map(index).to_numpy(dtype=np.int64)
    return indices


def complete(rows: pd.DataFrame) -> pd.DataFrame:
    """Bring `rows` to SCHEMA: columns in order and typed, the user's own after them."""
    table = rows.copy()
    for column, dtype in SCHEMA.items():
        values = table[column] if column in table else pd.Series(pd.NA, index=table.index)
        try:
            table[column] = values.astype(dtype)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"manifest column {column!r} does not hold what it should ({dtype}): {error}",
                fix="correct the column, or make the manifest again with `lobule scan`",
            ) from error
        if dtype == "string" and column != "path":
            # "P1" and "P1 " in a table are one patient
            table[column] = table[column].str.strip().replace("", pd.NA)
    table["split"] = _parts(table["split"])
    own = [column for column in table.columns if column not in SCHEMA]
    return table[[*SCHEMA, *own]].sort_values("path", kind="stable").reset_index(drop=True)


def _parts(split: pd.Series[str]) -> pd.Series[str]:
    """Bring "Train", "val" and the like to train, validation and test."""
    named = split.str.lower().map(SPLITS)
    strange = sorted(set(split[named.isna() & split.notna()]))
    if strange:
        raise DataError(
            f"column 'split' holds {name_some(strange)}, which is no part of a split",
            fix="use train, validation and test",
        )
    return named.astype("string")


def _check_hashes(sha256: pd.Series[str]) -> None:
    """Refuse what is no SHA-256: features are kept under that name."""
    wrong = sha256[sha256.notna() & ~sha256.str.fullmatch(r"[0-9a-f]{64}").fillna(value=True)]
    if len(wrong):
        raise DataError(
            f"column 'sha256' holds {show(str(wrong.iloc[0]))}, which is no SHA-256",
            fix="leave the column out, it is measured then",
        )


def measure(file: Path) -> dict[str, Any]:
    """Return bytes, sha256, width and height of an image file, by name of their column.

    Width and height are None if it is no image that can be read (`audit` gives the reason).
    Raises DataError if the file itself cannot be read.
    """
    try:
        data = read_file(file)
    except ImageError as error:
        # without its bytes an image has no hash, and no later stage could name it
        raise DataError(error.what, fix=error.fix) from error
    content: dict[str, Any] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    try:
        header = read_header(data, file)
    except ImageError:
        return {**content, "width": None, "height": None}
    return {**content, "width": header.width, "height": header.height}


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Write the table as Parquet or CSV, by the ending of `path`, atomically.

    Parquet remembers the root; of a CSV the reader must be told (`root`), unless it lies there.
    Raises UsageError for another ending, OutputError if the place cannot be written.
    """
    table = manifest.table
    if table_kind(path) == ".csv":
        text = table["magnification"].map("{:g}".format, na_action="ignore")
        table = table.assign(magnification=text)
    root = os.fsencode(manifest.root.resolve())
    write_table(table, path, metadata={_ROOT_KEY: root})


def read_manifest(path: Path, *, root: Path | None = None, with_images: bool = True) -> Manifest:
    """Read a manifest written by `write_manifest` or made by hand.

    root: the folder that the paths start from; by default the one stored in a Parquet file, or
    the manifest's own folder. Sizes and hashes that it does not give are read from the images.
    with_images: False takes the table as it is, for work that needs labels and patients only.
    Raises DataError if it cannot be read, lacks `path` (in any row), names a file twice, or if
    no image is found below the root.
    """
    kind = table_kind(path)
    stored: Path | None = None
    try:
        if kind == ".csv":
            # everything as text first: "007" is a patient, not a number
            rows = read_csv(path, "string")
        else:
            arrow = pq.read_table(path)
            metadata = arrow.schema.metadata or {}
            if _ROOT_KEY in metadata:
                stored = Path(os.fsdecode(metadata[_ROOT_KEY]))
            rows = arrow.to_pandas()
    except (OSError, ValueError, pa.ArrowInvalid, pd.errors.ParserError) as error:
        raise DataError(
            f"cannot read the manifest {show(path)}: {error}",
            fix="make it with `lobule scan DIR -o manifest.csv`",
        ) from error
    if "path" not in rows:
        raise DataError(
            f"{show(path)} is not a manifest: it has no column 'path' "
            f"(its columns: {name_some([str(c) for c in rows.columns])})",
            fix="make one with `lobule scan DIR -o manifest.csv`",
        )
    if kind == ".csv" and "magnification" in rows:
        rows["magnification"] = rows["magnification"].map(parse_magnification, na_action="ignore")
    table = complete(rows)
    _check_hashes(table["sha256"])
    if n_lacking := int(table["path"].isna().sum()):
        raise DataError(
            f"{show(path)} has {n_lacking} row(s) without a path",
            fix="keep one row an image",
        )
    repeated = table["path"][table["path"].duplicated()].tolist()
    if repeated:
        raise DataError(
            f"{show(path)} names {len(repeated)} image(s) twice: {name_some(repeated)}",
            fix="keep one row an image",
        )
    if not with_images:
        return Manifest(root or stored or path.parent, table)
    found = _find_root(path, table, root or stored)
    return Manifest(found, _with_measures(table, found))


def _with_measures(table: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Measure the images that have no hash in the table."""
    lacks = table["sha256"].isna() | (table["width"].isna() & table["bytes"].isna())
    if not lacks.any():
        return table
    rows = table[lacks]
    measures = pd.DataFrame([measure(root / path) for path in rows["path"]], index=rows.index)
    measured = complete(rows.assign(**{name: measures[name] for name in measures}))
    return complete(pd.concat([table[~lacks], measured]))


def _find_root(path: Path, table: pd.DataFrame, root: Path | None) -> Path:
    candidates = [path.parent] if root is None else [root, path.parent]
    if table.empty:
        return candidates[0]
    first = str(table["path"].iloc[0])
    for candidate in candidates:
        if (candidate / first).exists():
            return candidate
    raise DataError(
        f"the images of {show(path)} are not below {show(candidates[0])}: no {show(first)} there",
        fix="name the folder that the paths start from with --root DIR",
    )
