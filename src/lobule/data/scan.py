"""From a folder of images to a manifest: where the class, the patient and the split are read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from lobule.data.images import SUFFIXES
from lobule.data.layouts import (
    FIELDS,
    GRAMMARS,
    MEASURED,
    Grammar,
    Name,
    parse_magnification,
    read_name,
    user_grammar,
)
from lobule.data.manifest import SPLITS, Manifest, Skipped, complete, measure
from lobule.errors import DataError, name_some, show
from lobule.files import read_csv
from lobule.parallel import ahead, in_parts
from lobule.progress import Progress, no_progress

WRAPPERS = ("BreaKHis_v1", "histology_slides", "breast")
"""Folders of the BreakHis archive that stand above its classes and mean nothing."""


def scan(
    folder: Path,
    *,
    pattern: str | None = None,
    metadata: Path | None = None,
    failed: dict[str, str] | None = None,
    progress: Progress = no_progress,
) -> Manifest:
    """List every image below `folder` with its class, patient, slide, size and SHA-256.

    The class is the first folder below `folder` (or below train/, validation/, test/); where
    images lie in no class folder, the file name or `metadata` may tell it. Patient, slide,
    magnification and subtype come from, in rising order of authority: the file name (see
    `layouts`), `pattern` (a regular expression with named groups, searched in the path below
    `folder`), and `metadata` (a CSV with a column `path` or `file`; its other columns are kept).
    An image that cannot be read stays in the table without width and height; anything else
    that is no image is listed in `Manifest.skipped`.
    failed: where given, an image whose very bytes cannot be read is noted there with the reason
    and left out, instead of raised.
    Raises DataError if the folder is missing, cannot be listed, or holds no image.
    """
    # not Path.is_dir, which raises where the folder above may not be searched
    if not os.path.isdir(folder):
        reason = "no such folder (or no permission to look there)"
        if os.path.exists(folder):
            reason = "it is a file"
        raise DataError(f"cannot scan {show(folder)}: {reason}", fix="name a folder of images")
    grammar = None if pattern is None else user_grammar(pattern)
    files, skipped = _list_images(folder)
    if not files:
        raise DataError(
            f"no images in {show(folder)}: looked for {', '.join(sorted(SUFFIXES))} "
            f"in it and below, found {len(skipped)} other file(s)",
            fix="put them as DIR/benign/*.png and DIR/malignant/*.png, one folder a class",
        )
    table = _describe(folder, files, lambda file: _place(file, grammar), failed, progress)
    if metadata is not None:
        table, lost = _join_metadata(table, metadata)
        skipped += [Skipped(name, "named in --metadata, but not in the folder") for name in lost]
    skipped += _empty_folders(folder, files)
    return Manifest(folder, table, tuple(skipped))


def _empty_folders(root: Path, files: Sequence[str]) -> list[Skipped]:
    """Return the class folders without an image; their paths end with a slash."""
    holds = {"/".join(parts[:k]) for f in files for parts in [f.split("/")] for k in (1, 2)}
    folders = [p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    for part in [p for p in folders if p.name.lower() in SPLITS]:
        folders += [p for p in sorted(part.iterdir()) if p.is_dir()]
    names = [path.relative_to(root).as_posix() for path in folders if not path.is_symlink()]
    return [Skipped(f"{name}/", "no image in this folder") for name in names if name not in holds]


def scan_files(
    paths: Sequence[Path],
    *,
    failed: dict[str, str] | None = None,
    progress: Progress = no_progress,
) -> Manifest:
    """List files and folders to be predicted; a class is not needed.

    One folder is listed as `scan` does, with paths below it; otherwise the paths stand as given
    and only the file names are read, since the folders above them may mean anything. What is named
    twice is listed once. failed: where given, files that are not there or cannot be read are noted
    there with the reason and left out, instead of raised.
    Raises DataError if one does not exist or no image is among them.
    """
    if len(paths) == 1 and paths[0].is_dir():
        return scan(paths[0], failed=failed, progress=progress)
    files: list[str] = []
    skipped: list[Skipped] = []
    for path in paths:
        # not Path.is_dir, which raises where the folder above may not be searched
        if os.path.isdir(path):
            images, others = _list_images(path)
            files += [(path / image).as_posix() for image in images]
            skipped += [Skipped((path / o.path).as_posix(), o.reason) for o in others]
        elif (reason := _why_no_file(path)) is None:
            files.append(path.as_posix())
        elif failed is None:
            raise DataError(reason)
        else:
            failed[show(path.as_posix())] = reason
    files = list(dict.fromkeys(files))
    if not files and failed:
        raise _none_read(failed)
    if not files:
        raise DataError(
            f"no images in {name_some([str(path) for path in paths])}",
            fix=f"looked for {', '.join(sorted(SUFFIXES))}",
        )

    def place(file: str) -> dict[str, Any]:
        # only the name is read, since the folders above may mean anything
        return {**_place(PurePosixPath(file).name, None), "path": file}

    table = _describe(Path(), files, place, failed, progress)
    return Manifest(Path(), table, tuple(skipped))


def _why_no_file(path: Path) -> str | None:
    if not os.path.exists(path):
        return f"no such file or folder: {show(path)}"
    try:
        os.fspath(path).encode("utf-8")
    except UnicodeEncodeError:
        return f"the name of {show(path)} is not valid UTF-8; rename it"
    return None


_TASK = 32
"""Files that a thread reads before it is asked again: one at a time costs as much in asking."""

_PART = 2_048
"""Rows that become a table at a time, which holds them in a fifth of the memory."""


def _describe(
    root: Path,
    files: Sequence[str],
    place: Callable[[str], dict[str, Any]],
    failed: dict[str, str] | None,
    progress: Progress,
) -> pd.DataFrame:
    """Read size and hash of every file; `place` tells what its path says."""

    def measured(file: str) -> dict[str, Any] | DataError:
        try:
            return measure(root / file)
        except DataError as error:
            return error

    def read(some: Sequence[str]) -> list[dict[str, Any] | DataError]:
        return [measured(file) for file in some]

    def each() -> Iterator[dict[str, Any]]:
        # Reading and hashing leave the interpreter lock, so threads help even from one disk. They
        # do little else: two that wait for the lock in turns are slower than one.
        found: Iterable[dict[str, Any] | DataError]
        found = (row for part in ahead(read, in_parts(files, _TASK)) for row in part)
        found = progress(found, total=len(files), task="scanning")
        for file, row in zip(files, found, strict=True):
            if not isinstance(row, DataError):
                yield {**place(file), **row}
            elif failed is None:
                raise row
            else:
                failed[file] = row.what

    parts = [complete(pd.DataFrame(part)) for part in in_parts(each(), _PART)]
    if not parts:
        raise _none_read(failed or {})
    return parts[0] if len(parts) == 1 else complete(pd.concat(parts, ignore_index=True))


def _none_read(failed: Mapping[str, str]) -> DataError:
    return DataError(f"none of the files can be read; {next(iter(failed.values()))}")


def _list_images(root: Path) -> tuple[list[str], list[Skipped]]:
    """Return image paths below root in sorted order, and the other files with the reason."""
    images: list[str] = []
    skipped: list[Skipped] = []
    for file, reason in _walk(os.fspath(root), ""):
        if reason is None:
            images.append(file)
        else:
            skipped.append(Skipped(file, reason))
    return images, skipped


def _walk(root: str, below: str) -> Iterator[tuple[str, str | None]]:
    """Yield the path of every file from the root down, and why it is no image, if so; sorted."""
    folder = os.path.join(root, below[:-1]) if below else root
    try:
        with os.scandir(folder) as listed:
            # folders with their slash, so that all paths come in order without being held at once
            found = sorted(_read_entry(entry, below) for entry in listed)
    except OSError as error:
        raise DataError(
            f"cannot list {show(folder)}: {(error.strerror or str(error)).lower()}",
            fix="make the folder readable (chmod +rx)",
        ) from error
    for path, reason in found:
        if path.endswith("/"):
            yield from _walk(root, path)
        else:
            yield path, reason or None


def _read_entry(entry: os.DirEntry[str], below: str) -> tuple[str, str]:
    """Return its path, with a slash if it is a folder, and why it is no image, if so."""
    path = f"{below}{entry.name}"
    if entry.is_dir(follow_symlinks=False):
        return f"{path}/", ""
    return path, _why_no_image(entry, path)


def _why_no_image(entry: os.DirEntry[str], path: str) -> str:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "the name is not valid UTF-8; rename it"
    if any(part.startswith(".") for part in path.split("/")):
        return "hidden file"
    try:
        # the listing itself tells what kind of file it is; only links are looked up
        folder, regular = entry.is_dir(), entry.is_file() or not os.path.exists(entry.path)
    except OSError:
        folder, regular = False, True
    if folder:
        return "link to a folder, not followed"
    if os.path.splitext(entry.name)[1].lower() not in SUFFIXES:
        return "not an image by its ending"
    # of a link to nowhere, reading it will say what is wrong
    return "" if regular else "a pipe or device, not a file"


def _place(file: str, grammar: Grammar | None) -> dict[str, Any]:
    """Read class, split and the fields of the name from a path below the root."""
    path = PurePosixPath(file)
    folders = list(path.parts[:-1])
    if "SOB" in folders:
        folders = [name for name in folders if name not in WRAPPERS]
    split = SPLITS.get(folders[0].lower()) if folders else None
    if split is not None:
        folders = folders[1:]
    told = read_name(path.stem, GRAMMARS) or Name()
    fields: dict[str, Any] = {key: getattr(told, key) for key in FIELDS}
    own = dict(told.extra or {})
    if len(folders) > 1 and folders[0] == told.patient:
        # one folder a patient, and in it one a class, as the IDC patches come
        folders = folders[1:]
    # the folder is what the user says and the name only fills in; `audit` compares the two
    if folders:
        fields["label"] = folders[0]
    if grammar is not None and (match := grammar.pattern.search(file)) is not None:
        said = grammar.read(match)
        fields.update({k: getattr(said, k) for k in FIELDS if getattr(said, k) is not None})
        own.update(said.extra or {})
    return {"path": file, "split": split, **fields, **own}


def _join_metadata(table: pd.DataFrame, metadata: Path) -> tuple[pd.DataFrame, list[str]]:
    """Lay the columns of the user's CSV over the table, by path or by bare file name.

    Returns the table, and the names in the CSV that are not in the folder.
    """
    try:
        given = read_csv(metadata, "string")
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise DataError(f"cannot read --metadata {show(metadata)}: {error}") from error
    key = next((name for name in ("path", "file", "filename") if name in given), None)
    if key is None:
        raise DataError(
            f"--metadata {show(metadata)} has no column 'path' or 'file' "
            f"(its columns: {name_some(list(given.columns))})",
            fix="add one that names each image below the folder scanned",
        )
    aliases = {key: "path", "patient_id": "patient", "slide_id": "slide"}
    given = given.rename(columns={a: b for a, b in aliases.items() if b not in given})
    given = given.dropna(subset=["path"])
    named = given["path"].tolist()
    if len(set(named)) != len(named):
        twice = given["path"][given["path"].duplicated()].tolist()
        raise DataError(f"--metadata {show(metadata)} names images twice: {name_some(twice)}")
    if not set(named) & set(table["path"]):
        names = table["path"].map(lambda path: PurePosixPath(path).name)
        if names.duplicated().any() or not set(named) & set(names):
            raise DataError(
                f"--metadata {show(metadata)} names no image of the folder; "
                f"it has {name_some(named, 2)}, the folder {name_some(table['path'].tolist(), 2)}",
                fix="write the paths as they stand below the folder scanned",
            )
        path_of = dict(zip(names, table["path"], strict=True))
        given["path"] = given["path"].map(lambda name: path_of.get(name, name))
    lost = sorted(set(given["path"]) - set(table["path"]))
    if "magnification" in given:
        given["magnification"] = given["magnification"].map(parse_magnification, na_action="ignore")
    given = given.set_index("path").drop(columns=list(MEASURED), errors="ignore")
    indexed = table.set_index("path")
    for column in given.columns:
        known = indexed[column] if column in indexed else pd.Series(pd.NA, index=indexed.index)
        indexed[column] = given[column].reindex(indexed.index).combine_first(known)
    return complete(indexed.reset_index()), lost
