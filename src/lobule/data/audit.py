"""What is wrong with the data before anything is learned from it: the search for findings."""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from lobule.data.duplicates import (
    FINGERPRINT_SIZE,
    Fingerprint,
    find_near_duplicates,
    fingerprint,
)
from lobule.data.findings import FEW_PATIENTS, MANY_IMAGES, Audit, Finding, Severity
from lobule.data.images import decode, read_file, read_header
from lobule.data.layouts import read_name
from lobule.data.manifest import Manifest, Skipped
from lobule.data.rows import Rows
from lobule.errors import ImageError, name_some, show
from lobule.parallel import ahead
from lobule.progress import Progress, no_progress


def audit(manifest: Manifest, *, progress: Progress = no_progress) -> Audit:
    """Decode every image once and look for what spoils a classifier or its figures.

    Looks for unreadable files, one class, few patients, unknown patients, one patient in two
    splits or classes, exact and near duplicates (re-encoded, resized, flipped, turned by 90
    degrees) and where they lie, names that contradict their folder, mixed sizes and modes, and
    unbalanced classes.
    """
    seen = _look_at(manifest, progress)
    table = manifest.table
    exact = _exact_pairs(table)
    same = find_near_duplicates(seen.prints)
    near = [(seen.readable[pair.first], seen.readable[pair.second]) for pair in same]
    sha256 = table["sha256"].fillna("")
    near = [(i, j) for i, j in near if sha256.iat[i] != sha256.iat[j] or not sha256.iat[i]]

    found = [
        *_unreadable(seen.unreadable),
        *_changed(seen.changed),
        *_classes(manifest),
        *_patients(manifest),
        *_patient_twice(table),
        *_duplicates(table, exact, near),
        *_names(table),
        *_shapes(table, seen.modes),
        *_skipped(manifest.skipped),
    ]
    rank = {"blocking": 0, "warning": 1, "note": 2}
    return Audit(
        findings=tuple(sorted(found, key=lambda finding: rank[finding.severity])),
        n_images=len(table),
        n_patients=int(table["patient"].nunique()),
        patients_known=manifest.patients_known,
        duplicates=tuple(sorted({*exact, *near})),
    )


@dataclass(frozen=True)
class _Seen:
    """What one look at every file gave.

    prints: fingerprints of the images that could be read; readable: their rows of the manifest.
    unreadable: paths, and why. changed: paths whose hash is not that of the manifest. modes: of
    every image, "" where its header could not be read.
    """

    prints: Rows = field(default_factory=lambda: Rows(FINGERPRINT_SIZE))
    readable: array[int] = field(default_factory=lambda: array("q"))
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    modes: list[str] = field(default_factory=list)


def _look_at(manifest: Manifest, progress: Progress) -> _Seen:
    """Read and decode every image once."""

    def look(row: int) -> tuple[Fingerprint | str, str, str | None]:
        """Return fingerprint, or why there is none; mode; hash."""
        path = manifest.table["path"].iat[row]
        sha256 = None
        try:
            data = read_file(manifest.file(path))
            sha256 = hashlib.sha256(data).hexdigest()
            header = read_header(data, path)
            mode = f"{header.mode}, {header.frames} pages" if header.frames > 1 else header.mode
            return fingerprint(decode(data, path)), sys.intern(mode), sha256
        except ImageError as error:
            return error.what, "", sha256

    seen = _Seen()
    n = len(manifest.table)
    stated = manifest.table["sha256"]
    for row, (found, mode, sha256) in enumerate(
        progress(ahead(look, range(n)), total=n, task="auditing")
    ):
        path = manifest.table["path"].iat[row]
        if isinstance(found, str):
            seen.unreadable.append((path, found))
        else:
            seen.readable.append(row)
            seen.prints.append(found)
        seen.modes.append(mode)
        if sha256 is not None and pd.notna(stated.iat[row]) and stated.iat[row] != sha256:
            seen.changed.append(path)
    return seen


def _exact_pairs(table: pd.DataFrame) -> list[tuple[int, int]]:
    """Pair each file with the next one of the same bytes."""
    # a group for every file of a large folder would take more memory than the table
    shared = np.flatnonzero(table["sha256"].duplicated(keep=False))
    return [
        (int(first), int(second))
        for rows in table.iloc[shared].groupby("sha256").indices.values()
        for first, second in pairwise(shared[np.sort(rows)])
    ]


def _unreadable(bad: list[tuple[str, str]]) -> Iterator[Finding]:
    if bad:
        yield Finding(
            "unreadable",
            "blocking",
            f"{len(bad)} image(s) cannot be read; the first: {bad[0][1]}",
            tuple(path for path, _ in bad),
        )


def _changed(changed: list[str]) -> Iterator[Finding]:
    """Files that are not those of the manifest: features are kept under their hashes."""
    if changed:
        yield Finding(
            "changed",
            "blocking",
            f"{len(changed)} image(s) are not the files that the manifest describes (their "
            f"SHA-256 differs): {name_some(changed)}; scan the folder again",
            tuple(changed),
        )


def _classes(manifest: Manifest) -> Iterator[Finding]:
    table = manifest.table
    unlabelled = table["path"][table["label"].isna()].tolist()
    if unlabelled:
        yield Finding(
            "no-class",
            "blocking",
            f"{len(unlabelled)} image(s) lie in no class folder and no name or metadata "
            f"tells their class: {name_some(unlabelled)}",
            tuple(unlabelled),
        )
    counts = table["label"].value_counts()
    if len(counts) < 2:
        told = f"only {counts.index[0]!r} ({counts.iloc[0]} images)" if len(counts) else "none"
        yield Finding(
            "one-class",
            "blocking",
            f"a classifier needs images of two classes, found {told}; "
            "put each class in a folder of its own",
        )
    elif counts.max() > 4 * counts.min():
        yield Finding(
            "unbalanced",
            "warning",
            f"{counts.index[0]!r} has {counts.iloc[0]} images, {counts.index[-1]!r} "
            f"{counts.iloc[-1]}; accuracy alone misleads here, read sensitivity and specificity",
        )


def _patients(manifest: Manifest) -> Iterator[Finding]:
    table = manifest.table
    unknown = table["path"][table["patient"].isna()].tolist()
    if unknown:
        whose = "every image" if len(unknown) == len(table) else f"{len(unknown)} image(s)"
        yield Finding(
            "patients-unknown",
            "blocking",
            f"the patient of {whose} is unknown, so no split can keep patients apart; "
            "name it with --pattern or --metadata",
            tuple(unknown),
        )
    if not unknown and len(table) >= MANY_IMAGES and table["patient"].is_unique:
        yield Finding(
            "one-image-a-patient",
            "note",
            "every patient has one image; if some should have several, the patient was read too "
            "finely, and images of one may be split: name it with --pattern or --metadata",
        )
    for label, rows in table.dropna(subset=["patient", "label"]).groupby("label"):
        n = rows["patient"].nunique()
        if n == 1 and not unknown:
            yield Finding(
                "one-patient",
                "blocking",
                f"class {label!r} has one patient ({show(rows['patient'].iloc[0])}); one patient "
                "cannot be both learned from and tested on, add another",
                tuple(rows["path"]),
            )
        elif n < FEW_PATIENTS:
            yield Finding(
                "few-patients",
                "warning",
                f"class {label!r} has {n} patients; every figure for it will be wide open",
            )


def _patient_twice(table: pd.DataFrame) -> Iterator[Finding]:
    cases: tuple[tuple[str, str, Severity, str], ...] = (
        ("split", "patient-in-two-splits", "blocking", "lie on both sides of the split"),
        ("label", "patient-in-two-classes", "warning", "have images in two classes"),
    )
    for column, code, severity, says in cases:
        known = table.dropna(subset=[column, "patient"])
        parts = known.groupby("patient")[column].nunique()
        shared = [str(patient) for patient in parts.index[parts > 1]]
        if shared:
            yield Finding(
                code,
                severity,
                f"{len(shared)} patient(s) {says}: {name_some(shared)}",
                tuple(known["path"][known["patient"].isin(shared)]),
            )


def _duplicates(
    table: pd.DataFrame, exact: list[tuple[int, int]], near: list[tuple[int, int]]
) -> Iterator[Finding]:
    def files(pairs: list[tuple[int, int]]) -> tuple[str, ...]:
        return tuple(table["path"].iat[row] for pair in pairs for row in pair)

    def example(pairs: list[tuple[int, int]]) -> str:
        first, second = files(pairs[:1])
        return f"{show(first)} and {show(second)}"

    for code, pairs, what in (
        ("exact-duplicate", exact, "hold the same bytes"),
        ("near-duplicate", near, "show the same photograph (re-encoded, resized or turned)"),
    ):
        if pairs:
            yield Finding(
                code,
                "warning",
                f"{len(pairs)} pair(s) of files {what}, such as {example(pairs)}",
                files(pairs),
            )
    both = sorted({*exact, *near})
    across: tuple[tuple[str, str, Severity, str], ...] = (
        ("split", "duplicate-in-two-splits", "blocking", "lie on both sides of the split"),
        ("label", "duplicate-in-two-classes", "blocking", "lie in two classes"),
        ("patient", "duplicate-in-two-patients", "warning", "are filed under two patients, who "
         "are kept on one side of every split"),
    )  # fmt: skip
    for column, code, severity, says in across:
        values = table[column]
        apart = [
            (i, j)
            for i, j in both
            if pd.notna(values.iat[i])
            and pd.notna(values.iat[j])
            and values.iat[i] != values.iat[j]
        ]
        if apart:
            yield Finding(
                code,
                severity,
                f"{len(apart)} pair(s) of copies {says}, such as {example(apart)}",
                files(apart),
            )


def _names(table: pd.DataFrame) -> Iterator[Finding]:
    classes = set(table["label"].dropna())
    contradicted = []
    labelled = table.dropna(subset="label")
    for path, label in zip(labelled["path"], labelled["label"], strict=True):
        told = read_name(PurePosixPath(path).stem)
        if told is not None and told.label in classes and told.label != label:
            contradicted.append(path)
    if contradicted:
        yield Finding(
            "name-contradicts-folder",
            "warning",
            f"{len(contradicted)} image(s) lie in a class folder that their name contradicts: "
            f"{name_some(contradicted)}",
            tuple(contradicted),
        )


def _shapes(table: pd.DataFrame, modes: list[str]) -> Iterator[Finding]:
    sizes = table.groupby(["width", "height"]).size().sort_values(ascending=False)
    if len(sizes) > 1:
        told = ", ".join(f"{w} x {h} px ({n})" for (w, h), n in list(sizes.items())[:4])
        areas = np.array([w * h for w, h in sizes.index], dtype=float)
        yield Finding(
            "sizes",
            "warning" if areas.max() > 2 * areas.min() else "note",
            f"images have {len(sizes)} sizes: {told}",
        )
    kinds = Counter(filter(None, modes))
    if kinds.keys() - {"RGB"}:
        odd = [mode not in ("", "RGB") for mode in modes]
        told = ", ".join(f"{kind} ({n})" for kind, n in kinds.most_common())
        yield Finding(
            "modes",
            "note",
            f"not all images are 8-bit RGB: {told}; they are converted, of several pages the "
            "first is taken",
            tuple(table["path"][odd]),
        )


def _skipped(skipped: tuple[Skipped, ...]) -> Iterator[Finding]:
    empty = [file.path for file in skipped if file.path.endswith("/")]
    if empty:
        yield Finding(
            "empty-folder",
            "warning",
            f"{len(empty)} class folder(s) hold no image: {name_some(empty)}",
            tuple(empty),
        )
    others = [file for file in skipped if not file.path.endswith("/")]
    if others:
        reasons = sorted({file.reason for file in others})
        yield Finding(
            "skipped",
            "note",
            f"{len(others)} other file(s) were passed over ({'; '.join(reasons)})",
            tuple(file.path for file in others),
        )
