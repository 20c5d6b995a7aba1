"""A folder of made-up patients with planted mistakes, for `lobule demo` and the tests."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from lobule.data.images import ImageArray
from lobule.data.tissue import check_size, draw_field, draw_stain
from lobule.errors import OutputError, UsageError, show
from lobule.progress import Progress, no_progress


@dataclass(frozen=True)
class Plant:
    """One mistake put into the folder on purpose.

    kind: "exact copy", "JPEG copy", "half-size copy", "flipped copy", "rotated copy",
        "patient in two classes" or "patient in two splits".
    paths: the files it concerns, relative to the images folder; of a copy, (original, copy).
    patients: the patients it concerns, in the order of paths where there are two.
    """

    kind: str
    paths: tuple[str, ...]
    patients: tuple[str, ...]


@dataclass(frozen=True)
class Tissue:
    """What `write_tissue` wrote.

    images, masks: the two folders; a mask has its image's relative path, ending in .png.
    truth: one row an image, in the order of writing: path (POSIX, relative to images), label
        (benign or malignant), patient, slide, magnification, split (train, validation, or "" for
        layout "classes"), planted (a `Plant.kind` or ""), copy_of (the path of the original or "").
    planted: the mistakes, empty for a clean set.
    """

    images: Path
    masks: Path
    truth: pd.DataFrame
    planted: tuple[Plant, ...]


@dataclass(frozen=True)
class _Shot:
    """One row of the truth table; `picture` (patient, image) is what its pixels are keyed by."""

    path: str
    label: str
    patient: str
    slide: str
    magnification: int
    split: str
    planted: str
    copy_of: str
    picture: tuple[int, int]


def write_tissue(  # noqa: PLR0913
    folder: Path,
    *,
    patients: int = 24,
    images_per_patient: int = 10,
    seed: int = 0,
    width_px: int = 350,
    height_px: int = 230,
    layout: Literal["classes", "splits"] = "classes",
    plant: bool = True,
    progress: Progress = no_progress,
) -> Tissue:
    """Write a folder of made-up patients: images/, masks/ and, last of all, truth.csv.

    patients: at least 4; of each two that follow one another one is benign, one malignant.
    layout: "classes" files images under images/<class>, "splits" under
        images/<train or validation>/<class> with about 30 % of the patients in validation.
    plant: file an exact copy under the same patient, file four altered copies under another
        patient of the class (with "splits": of the other part), and let one patient have images in
        both classes or, with "splits", in both parts. Adds 5 images.
    A picture depends on seed, size, patient number and image number only, so asking for more
    patients or images changes none of the others.
    Raises UsageError for arguments out of range, OutputError where the folder is taken or cannot
    be written.
    """
    check_size(width_px, height_px)
    _check_counts(patients, images_per_patient, seed, plant)
    if layout not in ("classes", "splits"):
        raise UsageError(f"layout must be 'classes' or 'splits', got {layout!r}")
    taken = [name for name in ("images", "masks", "truth.csv") if (folder / name).exists()]
    if taken:
        raise OutputError(
            f"{show(folder)} already holds {', '.join(taken)}",
            fix="name a new folder, or remove this one first",
        )
    splits = layout == "splits"
    shots = _plan(seed, patients, images_per_patient, splits=splits, plant=plant)
    try:
        for shot in progress(shots, total=len(shots), task="drawing tissue"):
            image, lesion = _draw_shot(shot, seed, width_px, height_px)
            _save(folder / "images" / shot.path, image)
            mask = np.where(lesion, 255, 0).astype(np.uint8)
            _save(folder / "masks" / Path(shot.path).with_suffix(".png"), mask)
        truth = pd.DataFrame([asdict(shot) for shot in shots])
        truth = truth.drop(columns="picture")
        truth.to_csv(folder / "truth.csv", index=False)
    except OSError as error:
        raise OutputError(
            f"cannot write made-up tissue to {show(folder)}: {error.strerror or error}",
            fix="choose a folder that can be written and has room",
        ) from error
    return Tissue(folder / "images", folder / "masks", truth, _facts(shots))


def _check_counts(patients: int, images_per_patient: int, seed: int, plant: bool) -> None:
    if patients < 4:
        raise UsageError(
            f"patients must be at least 4, got {patients}",
            fix="a split by patient needs two patients of each class",
        )
    least = 2 if plant else 1
    if images_per_patient < least:
        why = "a patient in two classes or splits needs 2" if plant else "give every patient one"
        raise UsageError(
            f"images_per_patient must be at least {least}, got {images_per_patient}", fix=why
        )
    if seed < 0:
        raise UsageError(f"seed must not be negative, got {seed}")


# Which patients the mistakes fall on, as (pair, malignant). Pairs 0 and 1 always exist and lie in
# different splits, and each of their four patients carries one kind of mistake.
_SHARED, _TWICE, _DONOR, _RECIPIENT = (0, True), (1, True), (0, False), (1, False)
_ALTERED = ("JPEG copy", "half-size copy", "flipped copy", "rotated copy")


def _plan(
    seed: int, patients: int, images_per_patient: int, *, splits: bool, plant: bool
) -> list[_Shot]:
    """List every image to write, before any is drawn."""
    first_malignant = [_rng(seed, 0, pair).random() < 0.5 for pair in range((patients + 1) // 2)]
    malignant = [first_malignant[j // 2] == (j % 2 == 0) for j in range(patients)]

    def shot(j: int, k: int, *, moved: bool = False, planted: str = "") -> _Shot:
        # j // 2 is the pair; three pairs in ten go to validation, pair 1 the first of them
        validation = ((j // 2) % 10 in (1, 4, 8)) != moved
        label = "malignant" if malignant[j] != (moved and not splits) else "benign"
        split = ("validation" if validation else "train") if splits else ""
        patient = f"P{j + 1:02d}"
        slide = patient + _slide(j, k)
        ending = "jpg" if planted == "JPEG copy" else "png"
        name = f"patient-{patient}_slide-{slide}_mag-100_{k + 1:03d}.{ending}"
        path = "/".join(filter(None, (split, label, name)))
        return _Shot(path, label, patient, slide, 100, split, planted, "", (j, k))

    who = {(j // 2, malignant[j]): j for j in range(4)}
    shots, n = [], images_per_patient
    for j, k in np.ndindex(patients, n):
        shared = plant and j == who[_SHARED]
        kind = ("patient in two splits" if splits else "patient in two classes") if shared else ""
        shots.append(shot(j, k, moved=shared and k % 2 == 1, planted=kind))
    if not plant:
        return shots
    copies = [("exact copy", who[_TWICE], who[_TWICE], n, 0)]
    copies += [
        (kind, who[_DONOR], who[_RECIPIENT], n + i, i % n) for i, kind in enumerate(_ALTERED)
    ]
    for kind, donor, recipient, k, k_donor in copies:
        original = shots[donor * n + k_donor]
        copy = shot(recipient, k, planted=kind)
        shots.append(replace(copy, copy_of=original.path, picture=original.picture))
    return shots


def _slide(j: int, k: int) -> str:
    """Every third patient has two slides; images come from them two by two in turn."""
    return "b" if j % 3 == 1 and k % 4 >= 2 else "a"


def _facts(shots: list[_Shot]) -> tuple[Plant, ...]:
    patient_of = {shot.path: shot.patient for shot in shots}
    facts = [
        Plant(shot.planted, (shot.copy_of, shot.path), (patient_of[shot.copy_of], shot.patient))
        for shot in shots
        if shot.copy_of
    ]
    shared = [shot for shot in shots if shot.planted and not shot.copy_of]
    if shared:
        paths = tuple(shot.path for shot in shared)
        facts.append(Plant(shared[0].planted, paths, (shared[0].patient,)))
    return tuple(facts)


def _rng(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng([seed, *key])


def _draw_shot(
    shot: _Shot, seed: int, width_px: int, height_px: int
) -> tuple[ImageArray, NDArray[np.bool_]]:
    """Draw the picture of a shot; of a copy, the original's picture, altered."""
    j, k = shot.picture
    of_patient = _rng(seed, 1, j)
    # most patients are near the textbook, a few are hard to tell from the other class
    stain, difficulty = draw_stain(of_patient), float(of_patient.uniform(0, 1) ** 1.4)
    if _slide(j, k) == "b":
        stain = replace(
            stain,
            hematoxylin_strength=stain.hematoxylin_strength * of_patient.uniform(0.85, 1.15),
            eosin_strength=stain.eosin_strength * of_patient.uniform(0.85, 1.15),
        )
    image, lesion = draw_field(
        _rng(seed, 2, j, k),
        stain=stain,
        malignant=shot.label == "malignant",
        width_px=width_px,
        height_px=height_px,
        difficulty=difficulty,
    )
    if shot.planted == "half-size copy":
        size = (width_px // 2, height_px // 2)
        small = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
        return np.asarray(small), np.asarray(Image.fromarray(lesion).resize(size))
    if shot.planted == "flipped copy":
        return image[:, ::-1], lesion[:, ::-1]
    if shot.planted == "rotated copy":
        return np.rot90(image), np.rot90(lesion)
    return image, lesion


def _save(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if path.suffix == ".jpg":
        image.save(path, quality=75)
    else:
        image.save(path, compress_level=1)
