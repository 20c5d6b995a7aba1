"""A folder of made-up patients: what is in it, and the mistakes planted on purpose."""

from __future__ import annotations

import filecmp
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lobule.data.cohort import Tissue, write_tissue
from lobule.data.images import decode
from lobule.errors import OutputError, UsageError

TINY = {"width_px": 96, "height_px": 64}


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Tissue:
    folder = tmp_path_factory.mktemp("classes") / "set"
    return write_tissue(folder, patients=6, images_per_patient=5, seed=3, **TINY)


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Tissue:
    folder = tmp_path_factory.mktemp("splits") / "set"
    return write_tissue(folder, patients=10, images_per_patient=3, layout="splits", **TINY)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Tissue:
    folder = tmp_path_factory.mktemp("clean") / "set"
    sizes = {"patients": 12, "images_per_patient": 4}
    return write_tissue(folder, seed=1, layout="splits", plant=False, **sizes, **TINY)


def pictures(tissue: Tissue) -> dict[tuple[str, str], np.ndarray]:
    """Pixels by (patient, number in the file name)."""
    rows = zip(tissue.truth.path, tissue.truth.patient, strict=True)
    return {(patient, Path(path).stem[-3:]): decode(tissue.images / path) for path, patient in rows}


def relative_files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_same_seed_writes_the_same_bytes(classes, tmp_path):
    again = write_tissue(tmp_path, patients=6, images_per_patient=5, seed=3, **TINY)
    names = sorted(relative_files(tmp_path))
    assert names == sorted(relative_files(classes.images.parent))
    same, other, failed = filecmp.cmpfiles(classes.images.parent, tmp_path, names, shallow=False)
    assert (len(same), other, failed) == (len(names), [], [])
    pd.testing.assert_frame_equal(again.truth, classes.truth)


def test_another_seed_draws_other_pictures(classes, tmp_path):
    other = pictures(write_tissue(tmp_path, patients=4, images_per_patient=2, seed=4, **TINY))
    mine = pictures(classes)
    assert not any(np.array_equal(image, mine.get(key)) for key, image in other.items())


def test_asking_for_more_patients_or_images_changes_no_picture(tmp_path):
    few = {"patients": 4, "images_per_patient": 2}
    many = {"patients": 7, "images_per_patient": 5}
    small = write_tissue(tmp_path / "few", plant=False, seed=8, **few, **TINY)
    large = write_tissue(tmp_path / "many", plant=False, seed=8, **many, **TINY)
    wanted, found = pictures(small), pictures(large)
    assert len(wanted) == 8
    for key, image in wanted.items():
        np.testing.assert_array_equal(found[key], image)
    assert set(small.truth.path) < set(large.truth.path)


def test_planting_changes_only_the_patient_in_two_classes(classes, tmp_path):
    clean = write_tissue(tmp_path, patients=6, images_per_patient=5, seed=3, plant=False, **TINY)
    planted = pictures(classes)
    changed = {key for key, image in pictures(clean).items() if (planted[key] != image).any()}
    mixed = classes.truth[classes.truth.planted == "patient in two classes"]
    benign = mixed[mixed.label == "benign"]
    assert changed == {(row.patient, Path(row.path).stem[-3:]) for row in benign.itertuples()}


@pytest.mark.parametrize("name", ["classes", "splits", "clean"])
def test_names_folders_and_truth_table_agree(name, request):
    tissue = request.getfixturevalue(name)
    truth = tissue.truth
    columns = "path label patient slide magnification split planted copy_of"
    assert list(truth.columns) == columns.split()
    assert relative_files(tissue.images) == set(truth.path)
    assert len(set(truth.path)) == len(truth)
    for row in truth.itertuples():
        *folders, file = row.path.split("/")
        assert folders == ([row.split, row.label] if row.split else [row.label])
        patient, slide, magnification, number = Path(file).stem.split("_")
        assert patient == f"patient-{row.patient}"
        assert slide == f"slide-{row.slide}"
        assert row.slide.rstrip("ab") == row.patient
        assert magnification == "mag-100"
        assert row.magnification == 100
        assert len(number) == 3
        assert int(number) >= 1
    read = pd.read_csv(tissue.images.parent / "truth.csv", keep_default_na=False)
    pd.testing.assert_frame_equal(read, truth, check_dtype=False)


@pytest.mark.parametrize("name", ["classes", "splits", "clean"])
def test_every_image_has_a_mask_of_its_size_that_fits_its_label(name, request):
    tissue = request.getfixturevalue(name)
    masks = {Path(path).with_suffix(".png").as_posix() for path in tissue.truth.path}
    assert relative_files(tissue.masks) == masks
    for row in tissue.truth.itertuples():
        image = decode(tissue.images / row.path)
        mask = np.asarray(Image.open((tissue.masks / row.path).with_suffix(".png")))
        assert mask.shape == image.shape[:2]
        assert set(np.unique(mask)) == ({0, 255} if row.label == "malignant" else {0})


@pytest.mark.parametrize("patients", [4, 5, 12, 25])
def test_half_of_the_patients_are_benign_and_a_third_has_two_slides(patients, tmp_path):
    tissue = write_tissue(
        tmp_path,
        patients=patients,
        images_per_patient=3,
        plant=False,
        width_px=48,
        height_px=48,
    )
    by_patient = tissue.truth.groupby("patient")
    assert by_patient.ngroups == patients
    assert (by_patient.label.nunique() == 1).all()
    assert abs((by_patient.label.first() == "benign").sum() - patients / 2) <= 0.5
    assert (by_patient.slide.nunique() == 2).sum() == (patients + 1) // 3


def test_exact_copy_is_the_same_file_under_another_name_of_the_same_patient(classes):
    (fact,) = [fact for fact in classes.planted if fact.kind == "exact copy"]
    original, copy = (classes.images / path for path in fact.paths)
    assert original != copy
    assert original.read_bytes() == copy.read_bytes()
    assert fact.patients[0] == fact.patients[1]


ALTERED = ["JPEG copy", "half-size copy", "flipped copy", "rotated copy"]


@pytest.mark.parametrize("name", ["classes", "splits"])
def test_altered_copies_show_the_same_photograph_under_another_patient(name, request):
    tissue = request.getfixturevalue(name)
    facts = {fact.kind: fact for fact in tissue.planted if fact.kind in ALTERED}
    assert sorted(facts) == sorted(ALTERED)
    seen = {
        kind: [decode(tissue.images / path) for path in fact.paths] for kind, fact in facts.items()
    }
    for fact in facts.values():
        assert fact.patients[0] != fact.patients[1]
        rows = tissue.truth.set_index("path").loc[list(fact.paths)]
        assert tuple(rows.patient) == fact.patients
        assert rows.label.nunique() == 1
        assert rows.copy_of.iloc[1] == fact.paths[0]
    original, copy = seen["flipped copy"]
    np.testing.assert_array_equal(copy, original[:, ::-1])
    original, copy = seen["rotated copy"]
    np.testing.assert_array_equal(copy, original.transpose(1, 0, 2)[::-1])
    original, copy = seen["half-size copy"]
    blocks = original.reshape(32, 2, 48, 2, 3).mean(axis=(1, 3))
    assert np.abs(copy - blocks).mean() < 6
    original, copy = seen["JPEG copy"]
    assert 0 < np.abs(copy.astype(float) - original).mean() < 12
    with Image.open(tissue.images / facts["JPEG copy"].paths[1]) as image:
        assert image.format == "JPEG"


def test_altered_copies_cross_from_train_to_validation(splits):
    split = splits.truth.set_index("path").split
    crossings = [tuple(split[list(f.paths)]) for f in splits.planted if f.kind in ALTERED]
    assert crossings == [("train", "validation")] * 4


def test_one_patient_only_has_images_in_two_classes(classes):
    labels = classes.truth.groupby("patient").label.nunique()
    (fact,) = [fact for fact in classes.planted if fact.kind == "patient in two classes"]
    assert tuple(labels[labels > 1].index) == fact.patients
    rows = classes.truth[classes.truth.patient == fact.patients[0]]
    assert tuple(rows.path) == fact.paths
    assert set(rows.planted) == {"patient in two classes"}


def test_one_patient_only_has_images_in_two_splits(splits):
    parts = splits.truth.groupby("patient").split.nunique()
    (fact,) = [fact for fact in splits.planted if fact.kind == "patient in two splits"]
    assert tuple(parts[parts > 1].index) == fact.patients
    assert tuple(splits.truth.path[splits.truth.patient == fact.patients[0]]) == fact.paths
    assert (splits.truth.groupby("patient").label.nunique() == 1).all()


def test_planted_facts_and_truth_table_agree(classes, splits):
    for tissue in (classes, splits):
        truth = tissue.truth
        assert len(tissue.planted) == 6
        for fact in tissue.planted:
            marked = tuple(truth.path[truth.planted == fact.kind])
            assert marked == (fact.paths if "two" in fact.kind else fact.paths[1:])
        assert (truth.copy_of != "").sum() == 5


def test_clean_set_has_no_mistake(clean):
    truth = clean.truth
    assert clean.planted == ()
    assert set(truth.planted) == set(truth.copy_of) == {""}
    assert (truth.groupby("patient")[["split", "label"]].nunique() == 1).all(axis=None)
    images = [(clean.images / path).read_bytes() for path in truth.path]
    assert len(set(images)) == len(images)


def test_about_30_percent_of_patients_are_in_validation_and_both_classes_in_both_parts(tmp_path):
    tissue = write_tissue(
        tmp_path,
        patients=20,
        images_per_patient=1,
        layout="splits",
        plant=False,
        width_px=48,
        height_px=48,
    )
    counts = tissue.truth.groupby(["split", "label"]).patient.nunique()
    assert counts.to_dict() == {
        ("train", "benign"): 7,
        ("train", "malignant"): 7,
        ("validation", "benign"): 3,
        ("validation", "malignant"): 3,
    }


def test_colour_differs_more_between_patients_than_within(clean):
    """One-way analysis of variance: F far above 1 is what a random split of images leaks."""
    colours = pd.DataFrame(
        [decode(clean.images / path).reshape(-1, 3).mean(axis=0) for path in clean.truth.path]
    )
    groups = colours.groupby(clean.truth.patient.to_numpy())
    n, k = len(colours), groups.ngroups
    within = groups.var().mean()
    between = groups.mean().var() * n / k
    assert (between / within > 5).all()


def test_progress_sees_every_image(tmp_path):
    seen: list[object] = []

    def progress(shots, *, total, task):
        assert (total, task) == (13, "drawing tissue")
        for shot in shots:
            seen.append(shot)
            yield shot

    write_tissue(tmp_path, patients=4, images_per_patient=2, progress=progress, **TINY)
    assert len(seen) == 13


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patients": 3}, "patients must be at least 4, got 3"),
        ({"images_per_patient": 1}, "images_per_patient must be at least 2, got 1"),
        (
            {"images_per_patient": 0, "plant": False},
            "images_per_patient must be at least 1, got 0",
        ),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"width_px": 47}, "width_px must lie in 48..4096, got 47"),
        ({"height_px": 5000}, "height_px must lie in 48..4096, got 5000"),
        ({"layout": "flat"}, "layout must be 'classes' or 'splits', got 'flat'"),
    ],
)
def test_arguments_out_of_range_are_refused_before_anything_is_written(options, message, tmp_path):
    with pytest.raises(UsageError) as caught:
        write_tissue(tmp_path / "set", **options)
    assert caught.value.what == message
    assert not (tmp_path / "set").exists()


def test_a_folder_that_holds_a_set_is_not_written_over(tmp_path):
    (tmp_path / "truth.csv").write_text("mine")
    with pytest.raises(OutputError, match=r"already holds truth\.csv"):
        write_tissue(tmp_path, **TINY)
    assert (tmp_path / "truth.csv").read_text() == "mine"


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write made-up tissue to .*file/set: Not a dir"):
        write_tissue(tmp_path / "file" / "set", **TINY)
