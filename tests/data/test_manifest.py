"""The rules of the manifest: what is written is read again, and what cannot be is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lobule.data.manifest import (
    SCHEMA,
    Manifest,
    class_indices,
    complete,
    measure,
    order_classes,
    read_manifest,
    write_manifest,
)
from lobule.errors import DataError, UsageError

ENDINGS = [".csv", ".parquet"]
words = st.text(
    st.characters(codec="utf-8", exclude_characters="\x00/"), min_size=1, max_size=12
)  # fmt: skip
cells = st.one_of(st.none(), words)


def table(**columns):
    return complete(pd.DataFrame(columns))


def same(a, b):
    pd.testing.assert_frame_equal(a, b, check_dtype=True)
    return True


@pytest.fixture
def folder(tmp_path):
    """Four images of two classes, with names that are hard to write down."""
    names = [
        "benign/007_a.png",
        'benign/a "b", c.png',
        "malignant/line\nbreak.png",
        "malignant/ä組.png",
    ]
    for shade, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8 + shade, 6), (shade, 0, 0)).save(tmp_path / name)
    return tmp_path


def manifest_of(folder):
    files = sorted(file.relative_to(folder).as_posix() for file in folder.glob("*/*.png"))
    rows = [
        {
            "path": file,
            "label": file.split("/")[0],
            "patient": ["007", "1e3", "NA", None][i],
            "magnification": [100.0, 2.5, None, 40.0][i],
            "stain": ["H&E", None, "nan", "a,b"][i],
            **measure(folder / file),
        }
        for i, file in enumerate(files)
    ]
    return Manifest(folder, complete(pd.DataFrame(rows)))


# ---- writing and reading


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_manifest_is_read_as_it_was_written(folder, ending):
    written = manifest_of(folder)
    write_manifest(written, folder / f"m{ending}")
    read = read_manifest(folder / f"m{ending}")
    assert same(read.table, written.table.astype({"stain": read.table["stain"].dtype}))
    assert read.root == folder
    assert read.data_hash == written.data_hash
    assert read.table["patient"].tolist()[:3] == ["007", "1e3", "NA"]
    assert [read.file(path).stat().st_size for path in read.table["path"]] == (
        read.table["bytes"].tolist()
    )


@pytest.mark.parametrize("ending", ENDINGS)
@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(st.tuples(words, cells, cells, cells), unique_by=lambda row: row[0], max_size=6)
)
def test_any_text_survives_in_names_and_in_columns(tmp_path, ending, rows):
    # hashes are given, so that no image has to be there for the names to be tried
    (tmp_path / "m").mkdir(exist_ok=True)
    columns = dict(zip(["path", "label", "patient", "own"], zip(*rows, strict=True), strict=False))
    if not rows:
        columns = {"path": [], "label": [], "patient": [], "own": []}
    written = table(
        **{name: list(values) for name, values in columns.items()}, sha256="0" * 64, bytes=1
    )
    written = written.astype({"own": "string"})
    path = tmp_path / "m" / f"m{ending}"
    for name in written["path"]:
        if name not in (".", ".."):
            (tmp_path / "m" / name).touch()
    write_manifest(Manifest(tmp_path / "m", written), path)
    read = read_manifest(path).table
    assert same(read.astype({"own": "string"}), written)


def test_csv_writes_round_magnifications_without_a_point(folder):
    write_manifest(manifest_of(folder), folder / "m.csv")
    assert pd.read_csv(folder / "m.csv", dtype=str)["magnification"].tolist()[:2] == ["100", "2.5"]


def test_parquet_remembers_where_the_images_are(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_manifest(manifest_of(folder), elsewhere / "m.parquet")
    assert read_manifest(elsewhere / "m.parquet").root == folder


def test_a_relative_root_is_remembered_as_the_place_it_was(folder, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(folder)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_manifest(Manifest(Path(), manifest_of(folder).table), elsewhere / "m.parquet")
    monkeypatch.chdir(elsewhere)
    assert read_manifest(Path("m.parquet")).root == folder


def test_a_parquet_manifest_that_moved_with_its_images_finds_them(folder, tmp_path_factory):
    write_manifest(manifest_of(folder), folder / "m.parquet")
    moved = folder.rename(tmp_path_factory.mktemp("elsewhere") / "moved")
    assert read_manifest(moved / "m.parquet").root == moved


def test_of_a_csv_elsewhere_the_root_must_be_told(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("elsewhere") / "m.csv"
    write_manifest(manifest_of(folder), path)
    assert read_manifest(path, root=folder).root == folder
    with pytest.raises(DataError) as caught:
        read_manifest(path)
    assert str(caught.value) == (
        f"the images of {path} are not below {path.parent}: no benign/007_a.png there\n"
        "  name the folder that the paths start from with --root DIR"
    )


def test_a_wrong_root_is_named(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_manifest(manifest_of(folder), elsewhere / "m.parquet")
    with pytest.raises(DataError, match=f"are not below {elsewhere}/no: no benign/007_a.png there"):
        read_manifest(elsewhere / "m.parquet", root=elsewhere / "no")


def test_a_manifest_made_by_hand_needs_paths_only_and_gets_the_rest_from_the_images(folder):
    (folder / "m.csv").write_text(
        "path,label,patient,magnification,ward\n"
        "malignant/ä組.png,malignant,02,100X,7\n"
        "benign/007_a.png,benign,01,,07\n"
    )
    read = read_manifest(folder / "m.csv").table
    assert list(read) == [*SCHEMA, "ward"]
    assert read["path"].tolist() == ["benign/007_a.png", "malignant/ä組.png"]
    assert read["patient"].tolist() == ["01", "02"]
    assert read["ward"].tolist() == ["07", "7"]
    assert read["magnification"].isna().tolist() == [True, False]
    assert read["magnification"].iat[1] == 100
    full = manifest_of(folder).table.set_index("path")
    for column in ("width", "height", "bytes", "sha256"):
        assert read[column].tolist() == full.loc[read["path"], column].tolist()


def test_measures_given_for_some_images_are_kept_and_the_others_measured(folder):
    (folder / "m.csv").write_text(
        f"path,sha256,width\nbenign/007_a.png,{'a' * 64},1\nmalignant/ä組.png,,1\n"
    )
    read = read_manifest(folder / "m.csv").table
    assert read["sha256"].tolist() == [
        "a" * 64,
        hashlib.sha256((folder / "malignant/ä組.png").read_bytes()).hexdigest(),
    ]
    assert read["width"].tolist() == [1, 11]


def test_an_image_named_in_the_manifest_that_is_not_there_is_named(folder):
    (folder / "m.csv").write_text("path\nbenign/007_a.png\nbenign/zzz.png\n")
    with pytest.raises(DataError) as caught:
        read_manifest(folder / "m.csv")
    assert caught.value.what == f"cannot read {folder}/benign/zzz.png: no such file or directory"


def test_a_csv_from_a_spreadsheet_may_begin_with_a_byte_order_mark(folder):
    (folder / "m.csv").write_text("path,label\r\nbenign/007_a.png,benign\r\n", encoding="utf-8-sig")
    assert read_manifest(folder / "m.csv").table["label"].tolist() == ["benign"]


# ---- what is refused


def refusal(path, text=None, **options):
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as caught:
        read_manifest(path, **options)
    return str(caught.value)


def test_a_table_without_paths_is_no_manifest(tmp_path):
    assert refusal(tmp_path / "m.csv", "file,label\na.png,benign\n") == (
        f"{tmp_path}/m.csv is not a manifest: it has no column 'path' (its columns: file, label)\n"
        "  make one with `lobule scan DIR -o manifest.csv`"
    )


def test_a_row_without_a_path_is_refused(folder):
    assert refusal(folder / "m.csv", "path,label\nbenign/007_a.png,benign\n,benign\n") == (
        f"{folder}/m.csv has 1 row(s) without a path\n  keep one row an image"
    )


def test_an_image_named_twice_is_refused(folder):
    rows = "path\nbenign/007_a.png\nbenign/007_a.png\n"
    assert refusal(folder / "m.csv", rows) == (
        f"{folder}/m.csv names 1 image(s) twice: benign/007_a.png\n  keep one row an image"
    )


def test_a_number_that_is_none_names_its_column(folder):
    message = refusal(folder / "m.csv", "path,width\nbenign/007_a.png,wide\n")
    assert message.startswith("manifest column 'width' does not hold what it should (Int64): ")
    message = refusal(folder / "m.csv", "path,magnification\nbenign/007_a.png,high\n")
    assert message.startswith("magnification 'high' is not a number")


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_a_manifest_that_is_not_there_or_is_something_else_is_named(tmp_path, name):
    assert refusal(tmp_path / name).startswith(f"cannot read the manifest {tmp_path}/{name}: ")
    for text in (b"", b"\xff\xfe\x00 no table \x00", b'path\n"open quote'):
        message = refusal(tmp_path / name, text)
        assert message.startswith((f"cannot read the manifest {tmp_path}/{name}: ", f"{tmp_path}"))


@pytest.mark.parametrize(
    "use", [read_manifest, lambda path: write_manifest(Manifest(Path(), table(path=["a"])), path)]
)
def test_the_ending_must_say_the_format(tmp_path, use):
    path = tmp_path / "m.xlsx"
    with pytest.raises(UsageError) as caught:
        use(path)
    assert str(caught.value) == (
        f"{path} is neither .csv nor .parquet\n  the ending of the file chooses the format"
    )
    assert list(tmp_path.iterdir()) == []


# ---- the table


def test_a_table_is_completed_typed_and_sorted():
    made = complete(pd.DataFrame({"own": [1, 2], "path": ["b.png", "a.png"], "width": ["7", None]}))
    assert list(made) == [*SCHEMA, "own"]
    assert {name: str(made[name].dtype) for name in SCHEMA} == SCHEMA
    assert made["path"].tolist() == ["a.png", "b.png"]
    assert made["own"].tolist() == [2, 1]
    assert made["width"].isna().tolist() == [True, False]


def test_completing_leaves_the_given_table_alone():
    given_table = pd.DataFrame({"path": ["b.png", "a.png"]})
    complete(given_table)
    assert list(given_table) == ["path"]
    assert given_table["path"].tolist() == ["b.png", "a.png"]


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        (["malignant", "benign"], ("benign", "malignant")),
        (["Malignant", "normal", "x"], ("normal", "x", "Malignant")),
        (["tumor", "stroma", "zz"], ("stroma", "zz", "tumor")),
        (["1", "0", "0"], ("0", "1")),
        (["cancer", "healthy"], ("healthy", "cancer")),
        (["positive", "negative"], ("negative", "positive")),
        (["b", "a", "c"], ("a", "b", "c")),
        ([], ()),
    ],
)
def test_the_positive_class_comes_last(labels, order):
    assert order_classes(labels) == order


def test_classes_are_those_of_the_labelled_images():
    manifest = Manifest(
        Path(), table(path=["a", "b", "c"], label=["malignant", None, "benign"])
    )  # fmt: skip
    assert manifest.classes == ("benign", "malignant")


def test_class_indices_follow_the_order_of_the_classes():
    labels = pd.Series(["malignant", "benign", "malignant"], dtype="string")
    indices = class_indices(labels, ("benign", "malignant"))
    assert indices.tolist() == [1, 0, 1]
    assert indices.dtype == np.int64


def test_an_image_of_unknown_patient_is_a_group_of_its_own():
    manifest = Manifest(Path(), table(path=["a", "b", "c", "d"], patient=["1", None, "1", None]))
    assert manifest.groups.tolist() == ["1", "image:b", "1", "image:d"]
    assert not manifest.patients_known
    assert manifest.where(manifest.table["patient"].notna()).patients_known


def test_rows_can_be_left_out_and_columns_added():
    manifest = Manifest(Path("r"), table(path=["a", "b", "c"]))
    some = manifest.where(np.array([True, False, True]))
    assert (len(some), some.root, some.table["path"].tolist()) == (2, Path("r"), ["a", "c"])
    assert some.table.index.tolist() == [0, 1]
    assert some.with_columns(fold=[3, 4]).table["fold"].tolist() == [3, 4]
    assert "fold" not in some.table


def test_the_data_hash_names_contents_and_labels_and_not_the_folder():
    base = table(path=["a", "b"], label=["x", "y"], sha256=["1", "2"])
    moved = table(path=["q/b", "z"], label=["y", "x"], sha256=["2", "1"])
    swapped = base.assign(label=["y", "x"])
    other = base.assign(sha256=["1", "3"])
    known = Manifest(Path("r"), base).data_hash
    assert known == hashlib.sha256(b"1 x\n2 y").hexdigest()
    assert Manifest(Path("s"), moved).data_hash == known
    assert Manifest(Path("r"), swapped).data_hash != known
    assert Manifest(Path("r"), other).data_hash != known


def test_measures_are_of_the_file(tmp_path):
    Image.new("RGB", (9, 5)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    assert measure(tmp_path / "a.png") == {
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "width": 9,
        "height": 5,
    }
    (tmp_path / "b.png").write_text("text")
    assert measure(tmp_path / "b.png") == {
        "bytes": 4,
        "sha256": hashlib.sha256(b"text").hexdigest(),
        "width": None,
        "height": None,
    }


@pytest.mark.parametrize(
    ("labels", "positive"),
    [
        (["benign", "malignant"], "malignant"),
        (["0", "1"], "1"),
        (["IDC", "non-IDC"], "IDC"),
        (["carcinoma", "normal"], "carcinoma"),
        (["cancerous", "healthy"], "cancerous"),
        (["Negative", "Positive"], "Positive"),
        (["no_tumor", "tumor"], "tumor"),
        (["a", "b"], "b"),
    ],
)
def test_the_class_that_means_disease_is_positive(labels, positive):
    assert order_classes(labels)[-1] == positive
    assert order_classes(reversed(labels))[-1] == positive


def test_a_split_written_by_hand_is_understood_or_refused():
    assert table(path=["a", "b", "c"], split=["Train", " val", "TEST"])["split"].tolist() == [
        "train", "validation", "test",
    ]  # fmt: skip
    with pytest.raises(DataError, match="column 'split' holds holdout, which is no part"):
        table(path=["a"], split=["holdout"])


def test_blanks_around_a_name_make_no_second_patient():
    assert table(path=["a", "b"], patient=["P1", "P1 "])["patient"].nunique() == 1


def test_a_hash_that_would_leave_the_cache_folder_is_refused(folder):
    (folder / "m.csv").write_text("path,sha256\nbenign/007_a.png,../../evil\n")
    with pytest.raises(DataError, match=r"holds \.\./\.\./evil, which is no SHA-256"):
        read_manifest(folder / "m.csv")
