"""The rules of error messages: exit codes, and one line for every name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lobule import errors
from lobule.errors import (
    DataError,
    ImageError,
    LeakageError,
    LobuleError,
    ModelError,
    OutputError,
    UsageError,
    name_some,
    show,
)


@pytest.mark.parametrize(
    ("kind", "exit_code"),
    [
        (LobuleError, 1),
        (UsageError, 2),
        (OutputError, 2),
        (DataError, 3),
        (ImageError, 3),
        (LeakageError, 3),
        (ModelError, 4),
    ],
)
def test_every_error_has_the_exit_code_of_its_kind(kind, exit_code):
    assert kind.exit_code == exit_code
    assert issubclass(kind, LobuleError)


def test_the_table_of_exit_codes_names_every_error():
    kinds = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, LobuleError)
    }
    for name in kinds:
        assert f"{name} " in errors.__doc__


def test_message_says_what_and_below_it_what_to_do():
    error = DataError("the folder is empty", fix="fill it")
    assert str(error) == "the folder is empty\n  fill it"
    assert (error.what, error.fix) == ("the folder is empty", "fill it")


def test_message_without_a_fix_is_one_line():
    error = ModelError("no such model")
    assert str(error) == "no such model"
    assert error.fix is None


def test_data_error_is_caught_as_a_value_error():
    with pytest.raises(ValueError, match="one patient"):
        raise LeakageError("one patient on both sides")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain.png", "plain.png"),
        ("gewebe-ä-組織.png", "gewebe-ä-組織.png"),
        ("a\nerror: forged.png", r"a\nerror: forged.png"),
        ("a\r\tb", r"a\r\tb"),
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("bad\udcff.png", r"bad\udcff.png"),
        ("right\u202eleft", r"right\u202eleft"),
    ],
)
def test_show_escapes_what_would_not_print(name, shown):
    assert show(name) == shown
    assert show(Path(name)) == shown


@given(st.text(st.characters(codec=None), max_size=30))
def test_show_is_always_one_printable_line(name):
    shown = show(name)
    assert shown.isprintable()
    shown.encode("utf-8")


def test_name_some_names_all_up_to_the_limit():
    assert name_some([]) == ""
    assert name_some(["a", "b"], limit=2) == "a, b"


def test_name_some_counts_what_it_leaves_out():
    assert name_some([f"{i}" for i in range(1_234)]) == "0, 1, 2, 3, 4 and 1,229 more"
    assert name_some(["a\nb", "c", "d"], limit=1) == r"a\nb and 2 more"
