"""Facts about real data: 422 photographs of BreakHis, its 7,909 names, and planted copies."""

from __future__ import annotations

import shutil
from itertools import combinations
from pathlib import PurePosixPath

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lobule.data.audit import audit
from lobule.data.layouts import read_name
from lobule.data.scan import scan
from lobule.data.splits import assign_folds, check_disjoint
from lobule.errors import LeakageError


@pytest.fixture(scope="module")
def pack(real_data):
    """The scan of the 422 photographs; do not write into it."""
    return scan(real_data / "breakhis-100x")


@pytest.fixture(scope="module")
def names(real_data):
    """One row a name of the whole set: what the parser reads, and its role in each fold."""
    table = pd.read_csv(real_data / "breakhis-names.csv.gz", dtype="string")
    told = [read_name(PurePosixPath(name).stem) for name in table["name"]]
    assert None not in told
    fields = ("label", "subtype", "slide", "patient")
    read = {field: [getattr(one, field) for one in told] for field in fields}
    return table.assign(**read, read_magnification=[one.magnification for one in told])


# ---- the pack of 422


def test_a_scan_reproduces_the_independent_list(pack, real_data):
    expected = pd.read_csv(real_data / "breakhis-100x" / "expected.csv", dtype=str)
    expected = expected.rename(
        columns={"file": "path", "slide_id": "slide", "case_id": "patient"}
    ).set_index("path")
    found = pack.table.astype(str).set_index("path")
    found["magnification"] = pack.table["magnification"].map("{:g}".format).tolist()
    assert len(expected) == 422
    assert set(found.index) == set(expected.index)
    columns = [
        "label", "subtype", "slide", "patient", "magnification", "width", "height", "sha256",
    ]  # fmt: skip
    equal = (found.loc[expected.index, columns] == expected[columns]).all(axis=1)
    assert int(equal.sum()) == 422
    assert [one.path for one in pack.skipped] == ["expected.csv"]


def test_the_pack_has_the_slides_and_cases_that_are_known(pack):
    by_class = pack.table.groupby("label")
    assert by_class.size().to_dict() == {"benign": 210, "malignant": 212}
    assert by_class["slide"].nunique().to_dict() == {"benign": 11, "malignant": 16}
    assert by_class["patient"].nunique().to_dict() == {"benign": 7, "malignant": 16}
    assert pack.table["subtype"].nunique() == 8
    assert pack.patients_known


def test_the_untouched_pngs_are_read_at_every_magnification(real_data):
    table = scan(real_data / "breakhis-originals").table
    assert len(table) == 15
    assert set(table["magnification"]) == {40, 100, 200, 400}
    assert table[["width", "height", "label", "patient", "slide", "subtype"]].notna().all(axis=None)


# ---- the names of the whole set


def test_every_name_of_the_whole_set_is_read(names):
    assert len(names) == 7909
    assert names.groupby(["label", "subtype", "slide"]).ngroups == 82
    assert names["patient"].nunique() == 70
    assert names.groupby("label")["patient"].nunique().to_dict() == {"benign": 16, "malignant": 54}
    assert (names.groupby("patient")["subtype"].nunique() > 1).sum() == 3
    assert (names["read_magnification"] == names["magnification"].astype(float)).all()


@pytest.mark.parametrize(
    ("stem", "patient", "slide"),
    [
        ("SOB_M_PC-15-190EF-40-005", "15-190", "15-190EF"),
        ("SOB_B_TA-14-16184CD-100-001", "14-16184", "14-16184CD"),
    ],
)
def test_slides_with_letters_belong_to_the_case_of_their_number(names, stem, patient, slide):
    row = names[names["name"] == f"{stem}.png"]
    assert row[["patient", "slide"]].to_numpy().tolist() == [[patient, slide]]


@pytest.mark.parametrize(("fold", "percent"), [(1, 39), (2, 28), (3, 27), (4, 31), (5, 32)])
def test_every_published_fold_is_refused_and_its_cases_named(names, fold, percent):
    table = names.assign(split=names[f"fold{fold}"])
    train = set(table["patient"][table["split"] == "train"])
    test = table[table["split"] == "test"]
    siblings = test["patient"].isin(train)
    assert round(100 * siblings.mean()) == percent

    shared = sorted(set(test["patient"][siblings]))
    in_shared = int(table["patient"].isin(shared).sum())
    with pytest.raises(LeakageError) as caught:
        check_disjoint(table)
    what = caught.value.what
    assert what.startswith(
        f"{len(shared)} patient(s) lie on both sides of the split ({in_shared} images): "
    )
    for case in shared[:5]:
        n_test = int((test["patient"] == case).sum())
        n_train = int((table["patient"] == case).sum()) - n_test
        assert f"{case}: {n_test} in test, {n_train} in train" in what


@pytest.mark.parametrize("fold", range(1, 6))
def test_the_published_folds_keep_slide_folders_apart(names, fold):
    folders = names["subtype"] + "/" + names["slide"]
    check_disjoint(names.assign(patient=folders, split=names[f"fold{fold}"]))


@pytest.mark.parametrize("seed", range(3))
def test_our_folds_of_the_whole_set_share_no_case_and_each_has_benign_cases(names, seed):
    fold = assign_folds(names["label"].tolist(), names["patient"].tolist(), folds=5, seed=seed)
    table = names.assign(fold=fold)
    check_disjoint(table, column="fold")
    parts = [set(rows["patient"]) for _, rows in table.groupby("fold")]
    assert len(parts) == 5
    assert all(not one & other for one, other in combinations(parts, 2))
    cases = table.groupby(["label", "fold"])["patient"].nunique()
    assert sorted(cases["benign"]) == [3, 3, 3, 3, 4]
    assert sorted(cases["malignant"]) == [10, 11, 11, 11, 11]


# ---- copies


def links_to(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        (folder / file.name).symlink_to(file)


def pairs_by_name(found, manifest):
    paths = manifest.table["path"]
    return {frozenset((paths[i], paths[j])) for i, j in found.duplicates}


@pytest.fixture(scope="module")
def beside_originals(real_data, tmp_path_factory):
    """The 422 JPEGs and, beside them, the 15 PNGs: pairs that the audit takes for copies."""
    folder = tmp_path_factory.mktemp("beside")
    for label in ("benign", "malignant"):
        for source, ending in (("breakhis-100x", "jpg"), ("breakhis-originals", "png")):
            links_to(folder / label, (real_data / source / label).glob(f"*.{ending}"))
    manifest = scan(folder)
    assert len(manifest) == 437
    return pairs_by_name(audit(manifest), manifest)


@pytest.mark.slow
def test_png_originals_are_found_beside_their_jpegs(beside_originals, real_data):
    jpegs = {file.stem for file in (real_data / "breakhis-100x").glob("*/*.jpg")}
    pngs = (real_data / "breakhis-originals").glob("*/*.png")
    copied = {f"{png.parent.name}/{png.stem}" for png in pngs if png.stem in jpegs}
    assert copied
    found = {pair for pair in beside_originals if any(name.endswith(".png") for name in pair)}
    assert found == {frozenset((f"{name}.jpg", f"{name}.png")) for name in copied}


@pytest.mark.slow
def test_few_different_photographs_are_taken_for_copies(beside_originals):
    among_jpegs = [p for p in beside_originals if all(name.endswith(".jpg") for name in p)]
    assert len(among_jpegs) <= 8  # of 422 * 421 / 2 = 88,831 pairs


def half_size(image):
    return image.resize((image.width // 2, image.height // 2))


PLANTED = {
    "jpeg75": (lambda image: image, 75),
    "half": (half_size, 90),
    "flipped": (lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 90),
    "turned": (lambda image: image.transpose(Image.Transpose.ROTATE_90), 90),
}


@pytest.mark.slow
def test_planted_copies_are_found(pack, tmp_path):
    """200 photographs, each with an exact copy and four altered ones."""
    chosen = pack.table["path"].iloc[np.linspace(0, 421, 200).round().astype(int)].tolist()
    assert len(set(chosen)) == 200
    for path in chosen:
        file = tmp_path / path
        file.parent.mkdir(exist_ok=True)
        file.symlink_to(pack.file(path).resolve())
        shutil.copy(pack.file(path), file.with_name(f"exact {file.name}"))
        with Image.open(pack.file(path)) as image:
            for kind, (alter, quality) in PLANTED.items():
                alter(image).save(file.with_name(f"{kind} {file.name}"), quality=quality)
    manifest = scan(tmp_path)
    assert len(manifest) == 1200
    found = pairs_by_name(audit(manifest), manifest)

    def share_found(kind):
        copies = [str(PurePosixPath(p).parent / f"{kind} {PurePosixPath(p).name}") for p in chosen]
        return np.mean([frozenset(pair) in found for pair in zip(chosen, copies, strict=True)])

    assert share_found("exact") == 1
    assert {kind: share_found(kind) >= 0.98 for kind in PLANTED} == dict.fromkeys(PLANTED, True)
