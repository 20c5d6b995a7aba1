"""The rules of a scan: where class, patient and split are read; nothing is lost in silence."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lobule.data import scan as scanning
from lobule.data.images import decode
from lobule.data.manifest import Skipped
from lobule.data.scan import scan, scan_files
from lobule.errors import DataError, ImageError, UsageError

BREAKHIS = (
    "BreaKHis_v1/histology_slides/breast/benign/SOB/adenosis/SOB_B_A_14-22549AB/100X/"
    "SOB_B_A-14-22549AB-100-001.png",
    "BreaKHis_v1/histology_slides/breast/malignant/SOB/papillary_carcinoma/SOB_M_PC_15-190EF/40X/"
    "SOB_M_PC-15-190EF-40-005.png",
)


def fill(folder, *names):
    """Write small pictures, each of its own colour."""
    for shade, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7), (shade, 0, 99)).save(path)
    return folder


def column(manifest, name):
    """Return {path: value} with None where unknown."""
    table = manifest.table
    return {
        path: value if known else None
        for path, value, known in zip(table["path"], table[name], table[name].notna(), strict=True)
    }


def refusal(folder, **options):
    with pytest.raises(DataError) as caught:
        scan(folder, **options)
    return str(caught.value)


# ---- folders


def test_the_first_folder_is_the_class(tmp_path):
    fill(tmp_path, "benign/1.png", "malignant/deep/er/2.png")
    assert column(scan(tmp_path), "label") == {
        "benign/1.png": "benign",
        "malignant/deep/er/2.png": "malignant",
    }


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("val", "validation"),
        ("valid", "validation"),
        ("VALIDATION", "validation"),
        ("test", "test"),
        ("testing", "test"),
    ],
)
def test_split_folders_stand_above_the_classes(tmp_path, folder, split):
    fill(tmp_path, f"{folder}/benign/1.png", "other/2.png")
    manifest = scan(tmp_path)
    assert column(manifest, "split") == {f"{folder}/benign/1.png": split, "other/2.png": None}
    assert column(manifest, "label") == {f"{folder}/benign/1.png": "benign", "other/2.png": "other"}


def test_an_image_in_a_split_folder_without_a_class_folder_has_no_class(tmp_path):
    fill(tmp_path, "train/1.png")
    assert column(scan(tmp_path), "label") == {"train/1.png": None}


def test_the_tree_of_breakhis_is_read_as_it_is_published(tmp_path):
    manifest = scan(fill(tmp_path, *BREAKHIS))
    table = manifest.table
    assert table["path"].tolist() == list(BREAKHIS)
    assert table["label"].tolist() == ["benign", "malignant"]
    assert table["patient"].tolist() == ["14-22549", "15-190"]
    assert table["slide"].tolist() == ["14-22549AB", "15-190EF"]
    assert table["magnification"].tolist() == [100, 40]
    assert table["subtype"].tolist() == ["adenosis", "papillary_carcinoma"]
    assert table["split"].isna().all()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_breakhis_may_be_scanned_from_any_of_its_upper_folders(tmp_path, depth):
    fill(tmp_path, *BREAKHIS)
    folder = tmp_path.joinpath(*Path(BREAKHIS[0]).parts[:depth])
    assert scan(folder).table["label"].tolist() == ["benign", "malignant"]


def test_a_class_named_as_a_folder_of_breakhis_stays_a_class(tmp_path):
    manifest = scan(fill(tmp_path, "breast/1.png", "lung/2.png"))
    assert column(manifest, "label") == {"breast/1.png": "breast", "lung/2.png": "lung"}


def test_idc_patches_lie_in_a_folder_a_patient(tmp_path):
    names = ["8863/0/8863_idx5_x1_y2_class0.png", "8863/1/8863_idx5_x3_y4_class1.png"]
    table = scan(fill(tmp_path, *names)).table
    assert table["label"].tolist() == ["0", "1"]
    assert table["patient"].tolist() == ["8863", "8863"]
    assert table["x_px"].tolist() == ["1", "3"]


def test_the_folder_outranks_the_name(tmp_path):
    fill(tmp_path, "malignant/SOB_B_A-14-22549AB-100-001.png")
    assert scan(tmp_path).table["label"].tolist() == ["malignant"]


def test_the_name_tells_the_class_where_there_is_no_folder(tmp_path):
    fill(tmp_path, "SOB_B_A-14-22549AB-100-001.png", "b001.png", "what.png")
    assert column(scan(tmp_path), "label") == {
        "SOB_B_A-14-22549AB-100-001.png": "benign",
        "b001.png": "benign",
        "what.png": None,
    }


# ---- files


@pytest.mark.parametrize(
    "ending",
    ["png", "PNG", "jpg", "JPG", "jpeg", "Jpeg", "tif", "TIFF", "bmp", "BMP", "webp", "WebP"],
)
def test_every_ending_is_read_in_any_case(tmp_path, ending):
    manifest = scan(fill(tmp_path, f"a/1.{ending}"))
    row = manifest.table.iloc[0]
    data = (tmp_path / "a" / f"1.{ending}").read_bytes()
    assert (row["path"], row["width"], row["height"]) == (f"a/1.{ending}", 9, 7)
    assert (row["bytes"], row["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_every_file_is_listed_or_skipped_with_a_reason(tmp_path):
    fill(tmp_path, "a/1.png", "a/.hidden.png", "a/.ipynb_checkpoints/1-checkpoint.png", ".x/2.png")
    (tmp_path / "README.txt").write_text("hello")
    (tmp_path / "a" / "slide.svs").write_text("x")
    (tmp_path / "a" / "noending").write_text("x")
    outside = fill(tmp_path.parent / f"{tmp_path.name}-outside", "3.png")
    (tmp_path / "b").symlink_to(outside, target_is_directory=True)
    (tmp_path / "a" / "linked.png").symlink_to(outside / "3.png")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    manifest = scan(tmp_path)
    assert manifest.table["path"].tolist() == ["a/1.png", "a/linked.png"]
    assert manifest.skipped == (
        Skipped(".x/2.png", "hidden file"),
        Skipped("README.txt", "not an image by its ending"),
        Skipped("a/.hidden.png", "hidden file"),
        Skipped("a/.ipynb_checkpoints/1-checkpoint.png", "hidden file"),
        Skipped("a/noending", "not an image by its ending"),
        Skipped("a/pipe.png", "a pipe or device, not a file"),
        Skipped("a/slide.svs", "not an image by its ending"),
        Skipped("b", "link to a folder, not followed"),
    )


def test_a_name_that_is_not_utf8_is_skipped_with_a_reason(tmp_path):
    fill(tmp_path, "a/1.png")
    bad = os.fsencode(tmp_path) + b"/a/\xff.png"
    shutil.copy(tmp_path / "a" / "1.png", os.fsdecode(bad))
    manifest = scan(tmp_path)
    assert manifest.table["path"].tolist() == ["a/1.png"]
    assert manifest.skipped == (Skipped("a/\udcff.png", "the name is not valid UTF-8; rename it"),)


def reasons(manifest):
    """Why images cannot be decoded, by path."""
    found = {}
    for path in manifest.table["path"]:
        try:
            decode(manifest.file(path), path)
        except ImageError as error:
            found[path] = error.what
    return found


@pytest.mark.parametrize("name", ["ä組🔬.png", "two\nlines.png", "a, 'b' \"c\".png", " .png.png"])
def test_names_that_are_hard_to_write_are_read(tmp_path, name):
    manifest = scan(fill(tmp_path, f"a/{name}"))
    assert manifest.table["path"].tolist() == [f"a/{name}"]
    assert manifest.file(manifest.table["path"].iat[0]).is_file()
    assert reasons(manifest) == {}


def test_a_file_that_is_no_image_stays_in_the_table_without_a_size(tmp_path):
    fill(tmp_path, "a/1.png")
    (tmp_path / "a" / "2.png").write_text("text")
    (tmp_path / "a" / "3.png").write_bytes(b"")
    manifest = scan(tmp_path)
    assert manifest.table["width"].isna().tolist() == [False, True, True]
    assert manifest.table["sha256"].notna().all()
    found = reasons(manifest)
    assert set(found) == {"a/2.png", "a/3.png"}
    assert found["a/3.png"] == "cannot read a/3.png: the file is empty (0 bytes)"


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "bmp", "webp"])
def test_a_truncated_image_stops_no_scan(tmp_path, ending):
    rng = np.random.default_rng(0)
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / f"1.{ending}"
    Image.fromarray(rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-1500])
    manifest = scan(tmp_path)
    assert list(reasons(manifest)) == [f"a/1.{ending}"]


# ---- what is refused


def test_an_empty_folder_is_refused(tmp_path):
    assert refusal(tmp_path) == (
        f"no images in {tmp_path}: looked for .bmp, .jpeg, .jpg, .png, .tif, .tiff, .webp "
        "in it and below, found 0 other file(s)\n"
        "  put them as DIR/benign/*.png and DIR/malignant/*.png, one folder a class"
    )


def test_a_folder_of_other_files_says_how_many(tmp_path):
    for name in ("a.svs", "b.txt"):
        (tmp_path / name).write_text("x")
    assert "found 2 other file(s)" in refusal(tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    assert refusal(tmp_path / "no") == (
        f"cannot scan {tmp_path}/no: no such folder (or no permission to look there)\n"
        "  name a folder of images"
    )


def test_a_file_is_no_folder(tmp_path):
    fill(tmp_path, "a.png")
    assert refusal(tmp_path / "a.png") == (
        f"cannot scan {tmp_path}/a.png: it is a file\n  name a folder of images"
    )


def test_a_link_to_nowhere_is_named(tmp_path):
    fill(tmp_path, "a/1.png")
    (tmp_path / "a" / "2.png").symlink_to(tmp_path / "gone.png")
    assert refusal(tmp_path) == (
        f"cannot read {tmp_path}/a/2.png: no such file or directory\n"
        "  make the file readable (chmod +r), or remove it from the folder"
    )


@pytest.mark.parametrize(
    ("locked", "mode", "says"),
    [
        ("a/1.png", 0o000, "read {}/a/1.png"),
        ("a", 0o000, "list {}/a"),
        ("a", 0o444, "read {}/a/1.png"),
        (".", 0o000, "list {}"),
        (".", 0o444, "list {}/a"),
    ],
)
def test_what_may_not_be_read_is_named(tmp_path, locked, mode, says):
    fix = {
        "read": "make the file readable (chmod +r), or remove it from the folder",
        "list": "make the folder readable (chmod +rx)",
    }[says.split()[0]]
    folder = fill(tmp_path / "images", "a/1.png")
    (folder / locked).chmod(mode)
    code = (
        "import sys; from pathlib import Path; from lobule.data.scan import scan\n"
        "from lobule.errors import DataError\n"
        "try: print(len(scan(Path(sys.argv[1]))))\n"
        "except DataError as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(folder)]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root ignores file permissions, and there is no setpriv to drop that right")
        rights = "-dac_override,-dac_read_search"
        command = ["setpriv", f"--bounding-set={rights}", "--inh-caps=-all", "--", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    (folder / locked).chmod(0o755)
    expected = f"cannot {says.format(folder)}: permission denied\n  {fix}\n"
    assert done.stdout == expected, done.stderr


# ---- --pattern


def test_a_pattern_is_searched_in_the_path_and_outranks_folder_and_name(tmp_path):
    fill(tmp_path, "x/SOB_B_A-14-22549AB-100-001.png", "x/p7/plain.png")
    manifest = scan(tmp_path, pattern=r"-(?P<patient>\d+)AB-(?P<magnification>\d+)|/(?P<label>p7)/")
    assert column(manifest, "patient") == {
        "x/SOB_B_A-14-22549AB-100-001.png": "22549",
        "x/p7/plain.png": None,
    }
    assert column(manifest, "label") == {
        "x/SOB_B_A-14-22549AB-100-001.png": "x",
        "x/p7/plain.png": "p7",
    }
    assert column(manifest, "slide")["x/SOB_B_A-14-22549AB-100-001.png"] == "14-22549AB"


def test_a_pattern_adds_columns_of_the_users_own_and_a_split(tmp_path):
    fill(tmp_path, "a/007_HE_test_1.png", "a/008_HE_train_1.png")
    pattern = r"/(?P<patient>\d+)_(?P<stain>[A-Z]+)_(?P<split>train|test)_"
    table = scan(tmp_path, pattern=pattern).table
    assert table["patient"].tolist() == ["007", "008"]
    assert table["stain"].tolist() == ["HE", "HE"]
    assert table["split"].tolist() == ["test", "train"]


def test_a_pattern_that_cannot_be_used_is_refused_before_anything_is_read(tmp_path):
    fill(tmp_path, "a/1.png")
    with pytest.raises(UsageError, match="names no group"):
        scan(tmp_path, pattern=r"\d+")


# ---- --metadata


def join(folder, text, name="meta.csv"):
    path = folder.parent / f"{folder.name}-{name}"
    path.write_text(text, encoding="utf-8")
    return scan(folder, metadata=path)


def test_metadata_are_joined_by_path_and_keep_their_own_columns(tmp_path):
    fill(tmp_path, "a/1.png", "b/1.png")
    manifest = join(tmp_path, "path,patient,ward,magnification\na/1.png,007,3,40X\nb/1.png,NA,,\n")
    assert column(manifest, "patient") == {"a/1.png": "007", "b/1.png": "NA"}
    assert column(manifest, "ward") == {"a/1.png": "3", "b/1.png": None}
    assert column(manifest, "magnification") == {"a/1.png": 40.0, "b/1.png": None}
    assert column(manifest, "label") == {"a/1.png": "a", "b/1.png": "b"}


@pytest.mark.parametrize("key", ["path", "file", "filename"])
def test_metadata_are_joined_by_bare_file_name(tmp_path, key):
    fill(tmp_path, "a/1.png", "b/2.png")
    manifest = join(tmp_path, f"{key},patient_id,slide_id\n2.png,P2,S2\n1.png,P1,S1\n")
    assert column(manifest, "patient") == {"a/1.png": "P1", "b/2.png": "P2"}
    assert column(manifest, "slide") == {"a/1.png": "S1", "b/2.png": "S2"}


def test_metadata_outrank_folder_and_name_and_pattern_and_leave_the_rest(tmp_path):
    name = "x/SOB_B_A-14-22549AB-100-001.png"
    fill(tmp_path, name, "x/SOB_B_A-14-22549CD-100-002.png")
    meta = tmp_path.parent / f"{tmp_path.name}.csv"
    meta.write_text(f"path,label,patient\n{name},benign,one\n")
    manifest = scan(tmp_path, pattern=r"(?P<patient>22549)", metadata=meta)
    assert manifest.table["label"].tolist() == ["benign", "x"]
    assert manifest.table["patient"].tolist() == ["one", "22549"]
    assert manifest.table["slide"].tolist() == ["14-22549AB", "14-22549CD"]


def test_metadata_cannot_say_what_a_scan_measures(tmp_path):
    fill(tmp_path, "a/1.png")
    table = join(tmp_path, "path,width,sha256\na/1.png,5000,abc\n").table
    assert table["width"].tolist() == [9]
    assert len(table["sha256"].iat[0]) == 64


def test_metadata_on_images_that_are_not_there_are_told(tmp_path):
    fill(tmp_path, "a/1.png")
    manifest = join(tmp_path, "path,patient\na/1.png,P1\na/9.png,P9\n,\n")
    assert column(manifest, "patient") == {"a/1.png": "P1"}
    assert manifest.skipped == (Skipped("a/9.png", "named in --metadata, but not in the folder"),)


def test_metadata_that_name_no_image_are_refused(tmp_path):
    fill(tmp_path, "a/1.png", "b/2.png")
    with pytest.raises(DataError) as caught:
        join(tmp_path, "path,patient\nc/7.png,P1\nc/8.png,P9\n")
    assert str(caught.value) == (
        f"--metadata {tmp_path}-meta.csv names no image of the folder; "
        "it has c/7.png, c/8.png, the folder a/1.png, b/2.png\n"
        "  write the paths as they stand below the folder scanned"
    )


def test_bare_names_that_stand_in_two_folders_are_refused(tmp_path):
    fill(tmp_path, "a/1.png", "b/1.png")
    with pytest.raises(DataError, match="names no image of the folder"):
        join(tmp_path, "path,patient\n1.png,P1\n")


def test_metadata_that_name_an_image_twice_are_refused(tmp_path):
    fill(tmp_path, "a/1.png")
    with pytest.raises(DataError) as caught:
        join(tmp_path, "path,patient\na/1.png,P1\na/1.png,P2\n")
    assert str(caught.value) == f"--metadata {tmp_path}-meta.csv names images twice: a/1.png"


def test_metadata_without_a_column_of_names_are_refused(tmp_path):
    fill(tmp_path, "a/1.png")
    with pytest.raises(DataError) as caught:
        join(tmp_path, "image;patient\na/1.png;P1\n")
    assert str(caught.value) == (
        f"--metadata {tmp_path}-meta.csv has no column 'path' or 'file' "
        "(its columns: image;patient)\n"
        "  add one that names each image below the folder scanned"
    )


def test_metadata_that_cannot_be_read_are_named(tmp_path):
    fill(tmp_path, "a/1.png")
    with pytest.raises(DataError, match=f"cannot read --metadata {tmp_path}-meta.csv: "):
        join(tmp_path, "")
    with pytest.raises(DataError, match=f"cannot read --metadata {tmp_path}/no.csv: "):
        scan(tmp_path, metadata=tmp_path / "no.csv")


# ---- files to be predicted


def test_files_stand_as_given_and_folders_above_them_mean_nothing(tmp_path):
    fill(tmp_path, "a/1.png", "b/SOB_M_DC-14-16184CD-400-012.png", "b/note.txt.png")
    (tmp_path / "b" / "note.txt").write_text("x")
    manifest = scan_files([tmp_path / "a" / "1.png", tmp_path / "b", tmp_path / "a" / "1.png"])
    first, second, third = (
        f"{tmp_path}/{name}"
        for name in ("a/1.png", "b/SOB_M_DC-14-16184CD-400-012.png", "b/note.txt.png")
    )
    assert column(manifest, "label") == {first: None, second: "malignant", third: None}
    assert column(manifest, "patient") == {first: None, second: "14-16184", third: None}
    assert all(manifest.file(path).is_file() for path in manifest.table["path"])
    assert manifest.skipped == (Skipped(f"{tmp_path}/b/note.txt", "not an image by its ending"),)


def test_one_folder_is_listed_as_a_scan_does(tmp_path):
    fill(tmp_path, "a/1.png", "b/2.png")
    one, other = scan_files([tmp_path]), scan(tmp_path)
    assert one.root == other.root
    assert one.table.equals(other.table)


def test_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(DataError) as caught:
        scan_files([tmp_path / "no.png"])
    assert str(caught.value) == f"no such file or folder: {tmp_path}/no.png"


def test_folders_without_an_image_are_named(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with pytest.raises(DataError) as caught:
        scan_files([tmp_path / "a", tmp_path / "b"])
    assert caught.value.what == f"no images in {tmp_path}/a, {tmp_path}/b"


def test_progress_sees_every_file_once(tmp_path):
    fill(tmp_path, "a/1.png", "a/2.png", "b/3.png")
    seen = Counter()

    def count(items, *, total, task):
        for item in items:
            seen[task, total] += 1
            yield item

    scan(tmp_path, progress=count)
    assert seen == {("scanning", 3): 3}


def test_a_scan_in_several_parts_is_the_scan_in_one(tmp_path, monkeypatch):
    fill(tmp_path, *(f"{label}/{i}.png" for label in "ab" for i in range(9)))
    (tmp_path / "a" / "x.png").write_text("no image")
    whole = scan(tmp_path).table
    monkeypatch.setattr(scanning, "_TASK", 2)
    monkeypatch.setattr(scanning, "_PART", 5)
    parts = scan(tmp_path).table
    pd.testing.assert_frame_equal(parts, whole)


# ---- what cannot be read, where it is to be noted and not raised


def test_files_that_are_not_there_are_noted_and_the_others_listed(tmp_path):
    fill(tmp_path, "a.png", "b.png")
    failed: dict[str, str] = {}
    paths = [tmp_path / name for name in ("a.png", "gone.png", "b.png")]
    table = scan_files(paths, failed=failed).table
    assert [Path(path).name for path in table["path"]] == ["a.png", "b.png"]
    gone = (tmp_path / "gone.png").as_posix()
    assert failed == {gone: f"no such file or folder: {gone}"}


@pytest.mark.parametrize("one_folder", [True, False])
def test_files_that_may_not_be_opened_are_noted(tmp_path, as_ordinary_user, one_folder):
    fill(tmp_path, "benign/a.png", "benign/b.png")
    (tmp_path / "benign" / "a.png").chmod(0)
    code = (
        "import sys; from pathlib import Path; from lobule.data.scan import scan_files\n"
        "failed = {}\n"
        "found = scan_files([Path(p) for p in sys.argv[1:]], failed=failed)\n"
        "print(found.table['path'].tolist(), failed)"
    )
    paths = [tmp_path] if one_folder else sorted((tmp_path / "benign").iterdir())
    done = as_ordinary_user(code, *paths)
    assert "benign/b.png'] {'" in done.stdout, done.stderr
    assert "a.png: permission denied" in done.stdout


def test_if_no_file_can_be_read_the_first_reason_is_said(tmp_path):
    with pytest.raises(DataError, match=r"none of the files can be read; no such file .*x\.png"):
        scan_files([tmp_path / "x.png", tmp_path / "y.png"], failed={})


def test_what_is_named_twice_is_listed_once(tmp_path):
    fill(tmp_path, "a.png", "b.png")
    table = scan_files([tmp_path / "b.png", tmp_path, tmp_path / "b.png"]).table
    assert [Path(path).name for path in table["path"]] == ["a.png", "b.png"]


def test_a_file_whose_name_is_not_utf8_is_refused_with_a_reason(tmp_path):
    odd = tmp_path / os.fsdecode(b"\xff.png")
    fill(tmp_path, "a.png")
    shutil.copy(tmp_path / "a.png", odd)
    with pytest.raises(DataError, match=r"\\udcff\.png is not valid UTF-8; rename it"):
        scan_files([odd])
