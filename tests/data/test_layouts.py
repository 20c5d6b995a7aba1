"""The rules of reading file names: what each grammar takes from a name, and what it does not."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lobule.data.layouts import (
    BACH_CLASSES,
    BREAKHIS_SUBTYPES,
    GRAMMARS,
    MEASURED,
    Name,
    parse_magnification,
    read_name,
    user_grammar,
)
from lobule.data.manifest import SCHEMA
from lobule.errors import DataError, UsageError

letters = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ", max_size=3)


@pytest.mark.parametrize("grammar", GRAMMARS, ids=lambda grammar: grammar.name)
def test_every_grammar_reads_its_own_examples_and_no_other_reads_them_first(grammar):
    assert grammar.examples
    for stem in grammar.examples:
        match = grammar.pattern.fullmatch(stem)
        assert match is not None
        assert read_name(stem) == grammar.read(match)


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        (
            "SOB_B_A-14-22549AB-100-001",
            Name("benign", "14-22549", "14-22549AB", 100.0, "adenosis"),
        ),
        (
            "SOB_M_PC-15-190EF-40-005",
            Name("malignant", "15-190", "15-190EF", 40.0, "papillary_carcinoma"),
        ),
        (
            "SOB_M_DC-14-16184CD-400-012",
            Name("malignant", "14-16184", "14-16184CD", 400.0, "ductal_carcinoma"),
        ),
        (
            "SOB_B_PT-14-21998AB-200-033",
            Name("benign", "14-21998", "14-21998AB", 200.0, "phyllodes_tumor"),
        ),
        ("SOB_M_LC-14-13412-100-004",
         Name("malignant", "14-13412", "14-13412", 100.0, "lobular_carcinoma")),
        (
            "8863_idx5_x451_y1451_class0",
            Name("0", "8863", "8863", 40.0, extra={"x_px": "451", "y_px": "1451"}),
        ),
        ("iv100", Name("invasive", magnification=200.0)),
        ("IS042", Name("insitu", magnification=200.0)),
        ("n007", Name("normal", magnification=200.0)),
        ("b001", Name("benign", magnification=200.0)),
        ("patient-P07_slide-P07a_mag-100_003", Name(None, "P07", "P07a", 100.0)),
        ("patient-12_0001", Name(None, "12")),
        ("patient-9_two\nlines", Name(None, "9")),
        ("patient-ä-7_mag-2.5", Name(None, "ä-7", None, 2.5)),
        ("label-benign_patient-4_slide-9", Name("benign", "4", "9")),
    ],
)  # fmt: skip
def test_a_name_tells(stem, name):
    assert read_name(stem) == name


@pytest.mark.parametrize(
    "stem",
    [
        "",
        "image_001",
        "SOB_B_A-14-22549AB-100",
        "SOB_X_A-14-22549AB-100-001",
        "SOB_B_XX-14-22549AB-100-001",
        "SOB_B_A-14-22549ab-100-001",
        "copy of SOB_B_A-14-22549AB-100-001",
        "SOB_B_A-14-22549AB-100-001 (2)",
        "8863_idx5_x451_y1451_class2",
        "b01",
        "b0001",
        "x001",
        "patient",
        "patient-",
        "my_patient-4",
    ],
)
def test_a_name_that_no_grammar_matches_tells_nothing(stem):
    assert read_name(stem) is None


@given(
    st.sampled_from("BM"),
    st.sampled_from(sorted(BREAKHIS_SUBTYPES)),
    st.integers(1, 99),
    st.integers(1, 99_999),
    letters,
    letters,
    st.sampled_from([40, 100, 200, 400]),
)
def test_blocks_of_one_breakhis_case_are_slides_of_one_patient(
    kind, subtype, year, number, block, other, magnification
):
    stem = f"SOB_{kind}_{subtype}-{year}-{number}%s-{magnification}-001"
    one, two = read_name(stem % block), read_name(stem % other)
    assert one.patient == two.patient == f"{year}-{number}"
    assert one.slide == f"{year}-{number}{block}"
    assert (one.slide == two.slide) == (block == other)


def test_every_bach_class_is_read():
    assert {read_name(f"{code}001").label for code in BACH_CLASSES} == set(BACH_CLASSES.values())


# ---- --pattern


def read_with(pattern, path):
    grammar = user_grammar(pattern)
    match = grammar.pattern.search(path)
    return None if match is None else grammar.read(match)


def test_named_groups_fill_columns_and_others_become_the_users_own():
    told = read_with(
        r"(?P<label>[a-z]+)/(?P<patient>\d+)_(?P<slide>\d+)_(?P<magnification>\w+)_(?P<stain>\w+)\.",
        "benign/007_2_40X_HE.png",
    )
    assert told == Name("benign", "007", "2", 40.0, None, {"stain": "HE"})


def test_a_group_that_matched_nothing_tells_nothing():
    told = read_with(r"(?P<patient>\d+)(?:_(?P<slide>\d+))?(?P<stain>[A-Z]*)_", "x/12_a.png")
    assert told == Name(patient="12", extra={})


def test_a_pattern_that_is_no_regular_expression_is_refused():
    with pytest.raises(UsageError) as caught:
        user_grammar(r"(?P<patient>\d+")
    assert str(caught.value) == (
        r"--pattern '(?P<patient>\\d+' is not a regular expression: missing ), unterminated "
        "subpattern at position 0\n"
        r"  example: --pattern '(?P<patient>\d+)_(?P<slide>\d+)_.*'"
    )


@pytest.mark.parametrize("pattern", ["", r"(\d+)_.*"])
def test_a_pattern_that_names_no_group_is_refused(pattern):
    with pytest.raises(UsageError) as caught:
        user_grammar(pattern)
    assert str(caught.value) == (
        f"--pattern {pattern!r} names no group, so it fills no column\n"
        r"  name at least one, as in '(?P<patient>\d+)_.*'"
    )


@pytest.mark.parametrize("column", MEASURED)
def test_a_pattern_cannot_say_what_a_scan_measures(column):
    assert column in SCHEMA
    with pytest.raises(UsageError, match=f"names a group '{column}', which a scan measures itself"):
        user_grammar(rf"(?P<{column}>\d+)")


def test_a_magnification_in_a_pattern_that_is_no_number_is_refused():
    with pytest.raises(DataError, match="magnification 'high' is not a number"):
        read_with(r"(?P<magnification>\w+)\.png", "benign/high.png")


# ---- magnification


@pytest.mark.parametrize(
    ("text", "value"),
    [("40", 40.0), ("100X", 100.0), ("100 x", 100.0), ("2.5x", 2.5), (" 20 ", 20.0)],
)
def test_a_magnification_is_read_with_or_without_x(text, value):
    assert parse_magnification(text) == value


@pytest.mark.parametrize("text", ["", "x", "high", "-4", "1e3", "40XX", "4 0", "nan", "40/0.65"])
def test_a_magnification_that_is_no_number_is_named(text):
    with pytest.raises(DataError) as caught:
        parse_magnification(text)
    assert str(caught.value) == (
        f"magnification {text!r} is not a number\n  write it as 40, 100X or 2.5x"
    )


def test_patterns_take_the_whole_name_or_nothing():
    for grammar in GRAMMARS:
        for stem in grammar.examples:
            assert grammar.pattern.fullmatch("\n" + stem) is None
            assert re.fullmatch(grammar.pattern, stem)
