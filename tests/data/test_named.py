"""What may be named: files, folders, patterns, and lists on standard input."""

from __future__ import annotations

import os

import pytest

from lobule.data.named import expand
from lobule.errors import DataError


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    for name in (
        "p/a.jpg", "p/deep/er/b.JPG", "p/deep/c.png", "p/notes.txt", "p/.hidden/d.jpg",
        "p/.e.jpg", "p/[x].jpg", "p/x.jpg",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def nothing():
    raise AssertionError("standard input was asked for")


def named(*names, listed=nothing):
    return [str(path) for path in expand(names, listed)]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("p/*.jpg", ["p/[x].jpg", "p/a.jpg", "p/x.jpg"]),
        ("p/**/*.jpg", ["p/[x].jpg", "p/a.jpg", "p/x.jpg"]),
        ("p/**/*.[jJ][pP][gG]", ["p/[x].jpg", "p/a.jpg", "p/deep/er/b.JPG", "p/x.jpg"]),
        ("**/?.png", ["p/deep/c.png"]),
        ("p/d*", ["p/deep"]),
        ("./p/../p/a.j*", ["p/../p/a.jpg"]),
        ("p/.*/*", ["p/.hidden/d.jpg"]),
    ],
)
def test_a_pattern_names_images_and_folders_sorted_and_nothing_hidden(
    photographs, pattern, expected
):
    assert named(pattern) == expected
    absolute = named(str(photographs / pattern))
    assert [os.path.relpath(a, photographs) for a in absolute] == [
        os.path.normpath(e) for e in expected
    ]


def test_a_path_that_exists_wins_over_the_pattern_that_it_would_be(photographs):
    assert named("p/[x].jpg") == ["p/[x].jpg"]
    (photographs / "p/[x].jpg").unlink()
    assert named("p/[x].jpg") == ["p/x.jpg"]


def test_a_pattern_that_matches_nothing_is_named(photographs):
    for pattern in ("p/*.bmp", "nowhere/**/*.png", "p/n*.txt"):
        with pytest.raises(DataError) as caught:
            named("p/a.jpg", pattern)
        assert (
            caught.value.what == f"no image matches {pattern}, and no file or folder is called so"
        )


def test_what_is_no_pattern_is_an_error_and_not_a_crash(photographs):
    with pytest.raises(DataError, match=r"p/\*\*\*\.jpg is no pattern|no image matches"):
        named("p/***.jpg")


def test_links_that_lead_round_in_circles_end(photographs):
    for name in ("one", "two"):
        (photographs / "p" / "deep" / name).symlink_to(photographs / "p")
    assert named("p/**/*.png") == ["p/deep/c.png"]


def test_names_without_magic_stand_as_they_are_in_their_order(photographs):
    assert named("p/x.jpg", "nowhere.png", "p", "p/x.jpg") == ["p/x.jpg", "nowhere.png", "p"]


# ---- standard input


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (b"p/a.jpg\np/x.jpg\n", ["p/a.jpg", "p/x.jpg"]),
        (b"p/a.jpg\r\np/x.jpg", ["p/a.jpg", "p/x.jpg"]),
        (b"\xef\xbb\xbfp/a.jpg\n\n  \n", ["p/a.jpg"]),
        (b"p/a.jpg\0b\nc.jpg\0", ["p/a.jpg", "b\nc.jpg"]),
        (b"p/*.jpg\n-\n", ["p/*.jpg", "-"]),
        ("ü\n".encode(), ["ü"]),
        (b"\xff.png\n", [os.fsdecode(b"\xff.png")]),
    ],
)
def test_paths_on_standard_input_are_taken_as_they_are(photographs, listed, expected):
    assert named("-", listed=lambda: listed) == expected


def test_a_file_whose_name_ends_with_a_carriage_return_can_be_listed(photographs):
    (photographs / "odd\r").touch()
    assert named("-", listed=lambda: b"odd\r\np/a.jpg\r\n") == ["odd\r", "p/a.jpg"]


def test_standard_input_stands_among_other_names_and_is_read_once(photographs):
    answers = iter([b"p/x.jpg\n"])
    assert named("p/a.jpg", "-", "./-", "-", listed=lambda: next(answers)) == [
        "p/a.jpg", "p/x.jpg", "-",
    ]  # fmt: skip


@pytest.mark.parametrize("listed", [b"", b"\n\n", b"\0\0"])
def test_an_empty_list_is_an_error(listed):
    with pytest.raises(DataError, match="there are no paths on standard input"):
        named("-", listed=lambda: listed)
