"""Grammars of file names: what a name says of patient, slide, magnification and class.

A grammar is a regular expression with named groups plus a small function from its match to
manifest fields. The first grammar that matches a name wins; a name that none matches tells
nothing, and its patient stays unknown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from lobule.errors import DataError, UsageError

BREAKHIS_SUBTYPES = {
    "A": "adenosis",
    "F": "fibroadenoma",
    "PT": "phyllodes_tumor",
    "TA": "tubular_adenoma",
    "DC": "ductal_carcinoma",
    "LC": "lobular_carcinoma",
    "MC": "mucinous_carcinoma",
    "PC": "papillary_carcinoma",
}

BACH_CLASSES = {"n": "normal", "b": "benign", "is": "insitu", "iv": "invasive"}


@dataclass(frozen=True)
class Name:
    """What one file name tells; None where it does not."""

    label: str | None = None
    patient: str | None = None
    slide: str | None = None
    magnification: float | None = None
    subtype: str | None = None
    extra: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Grammar:
    """A way of naming image files.

    name: for messages. pattern: matched against the whole stem (the file name without ending).
    read: turns the match into a Name. examples: stems that it reads, which the tests check.
    """

    name: str
    pattern: re.Pattern[str]
    read: Callable[[re.Match[str]], Name]
    examples: tuple[str, ...]


def _read_breakhis(match: re.Match[str]) -> Name:
    year, number, block = match["year"], match["number"], match["block"]
    return Name(
        label={"B": "benign", "M": "malignant"}[match["kind"]],
        # Letters after the number mark several blocks of one examination: 22549AB, 22549CD and
        # 22549G are one case, and a case must not be split.
        patient=f"{year}-{number}",
        slide=f"{year}-{number}{block}",
        magnification=float(match["magnification"]),
        subtype=BREAKHIS_SUBTYPES[match["subtype"]],
    )


def _read_bach(match: re.Match[str]) -> Name:
    # The public names number the images of a class; they do not tell the patient.
    return Name(label=BACH_CLASSES[match["kind"].lower()], magnification=200.0)


def _read_idc(match: re.Match[str]) -> Name:
    return Name(
        label=match["label"],
        patient=match["patient"],
        slide=match["patient"],
        magnification=40.0,
        extra={"x_px": match["x"], "y_px": match["y"]},
    )


def _read_keyed(match: re.Match[str]) -> Name:
    magnification = match["magnification"]
    return Name(
        label=match["label"],
        patient=match["patient"],
        slide=match["slide"],
        magnification=None if magnification is None else float(magnification),
    )


GRAMMARS = (
    Grammar(
        "BreakHis",
        re.compile(
            r"SOB_(?P<kind>[BM])_(?P<subtype>A|F|PT|TA|DC|LC|MC|PC)-(?P<year>\d+)-"
            r"(?P<number>\d+)(?P<block>[A-Z]*)-(?P<magnification>\d+)-(?P<sequence>\d+)"
        ),
        _read_breakhis,
        ("SOB_B_A-14-22549AB-100-001", "SOB_M_PC-15-190EF-40-005", "SOB_M_DC-14-16184CD-400-012"),
    ),
    Grammar(
        "IDC patches",
        re.compile(r"(?P<patient>\d+)_idx5_x(?P<x>\d+)_y(?P<y>\d+)_class(?P<label>[01])"),
        _read_idc,
        ("8863_idx5_x451_y1451_class0", "10253_idx5_x1351_y1101_class1"),
    ),
    Grammar(
        "BACH",
        re.compile(r"(?P<kind>n|b|is|iv)(?P<number>\d{3})", re.IGNORECASE),
        _read_bach,
        ("b001", "is042", "iv100", "n007"),
    ),
    Grammar(
        "keyed names",
        re.compile(
            r"(?:label-(?P<label>[^_]+)_)?patient-(?P<patient>[^_]+)"
            r"(?:_slide-(?P<slide>[^_]+))?(?:_mag-(?P<magnification>\d+(?:\.\d+)?))?(?:_.*)?",
            re.DOTALL,
        ),
        _read_keyed,
        ("patient-P07_slide-P07a_mag-100_003", "patient-12_0001", "label-benign_patient-4_slide-9"),
    ),
)
"""Tried in this order."""

FIELDS = ("label", "patient", "slide", "magnification", "subtype")
"""Manifest columns that a name can fill."""

MEASURED = ("path", "width", "height", "bytes", "sha256")
"""Manifest columns that are found out from the file, and that no one else can say."""


def read_name(stem: str, grammars: tuple[Grammar, ...] = GRAMMARS) -> Name | None:
    """Return what `stem` (a file name without ending) tells, or None if no grammar matches."""
    for grammar in grammars:
        match = grammar.pattern.fullmatch(stem)
        if match is not None:
            return grammar.read(match)
    return None


def user_grammar(pattern: str) -> Grammar:
    r"""Make a grammar of the user's regular expression, searched in the path below the root.

    Named groups that match some text fill the columns of the same name; `label`, `patient`,
    `slide`, `magnification` and `subtype` have a meaning, others become the user's own columns.
    Example: r"(?P<patient>\d+)_(?P<stain>[^_]+)_.*".
    Raises UsageError if it does not compile, names no group, or names a MEASURED column.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"--pattern {pattern!r} is not a regular expression: {error}",
            fix=r"example: --pattern '(?P<patient>\d+)_(?P<slide>\d+)_.*'",
        ) from error
    if not compiled.groupindex:
        raise UsageError(
            f"--pattern {pattern!r} names no group, so it fills no column",
            fix=r"name at least one, as in '(?P<patient>\d+)_.*'",
        )

    if measured := [name for name in compiled.groupindex if name in MEASURED]:
        raise UsageError(
            f"--pattern {pattern!r} names a group {measured[0]!r}, which a scan measures itself",
            fix="give the group another name",
        )

    def read(match: re.Match[str]) -> Name:
        found = {key: value for key, value in match.groupdict().items() if value}
        own = {key: value for key, value in found.items() if key not in FIELDS}
        magnification = found.get("magnification")
        return replace(
            Name(extra=own),
            label=found.get("label"),
            patient=found.get("patient"),
            slide=found.get("slide"),
            subtype=found.get("subtype"),
            magnification=None if magnification is None else parse_magnification(magnification),
        )

    return Grammar("--pattern", compiled, read, ())


def parse_magnification(text: str) -> float:
    """Read "100", "100X" or "2.5x"; raises DataError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*[xX]?\s*", text)
    if match is None:
        raise DataError(
            f"magnification {text!r} is not a number",
            fix="write it as 40, 100X or 2.5x",
        )
    return float(match[1])
