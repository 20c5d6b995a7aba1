"""The predictions table: made, written, read, and combined by slide and patient."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lobule.data.manifest import Manifest, complete
from lobule.errors import DataError, UsageError
from lobule.evaluation.predictions import (
    at_level,
    decide,
    make_predictions,
    read_predictions,
    write_predictions,
)


def predictions(**changes):
    """Six images: patient A with slides 1 and 2, patient B with slide 1, and one unknown."""
    rows = {
        "path": ["a1.png", "a2.png", "a3.png", "b1.png", "b2.png", "u.png"],
        "label": ["benign", "benign", "malignant", "malignant", "malignant", "benign"],
        "patient": ["A", "A", "A", "B", "B", None],
        "slide": ["1", "1", "2", "1", "1", None],
    }
    manifest = Manifest(Path(), complete(pd.DataFrame(rows | changes)))
    p = np.array([0.1, 0.3, 0.8, 0.9, 0.5, 0.2])
    return make_predictions(
        manifest,
        ("benign", "malignant"),
        {"prob": np.stack([1 - p, p], axis=1)},
        {"threshold": np.full(6, 0.4), "threshold_slide": 0.3, "threshold_patient": 0.2},
        model="m",
        source="here",
    )


def test_patients_are_means_of_their_images_and_malignant_if_any_image_is():
    units = at_level(predictions(), "patient")
    found = units.table.set_index("patient")
    assert found.loc["A", "prob_malignant"] == pytest.approx((0.1 + 0.3 + 0.8) / 3)
    assert found.loc["B", "prob_malignant"] == pytest.approx(0.7)
    assert dict(zip(units.table["patient"], units.y, strict=True)) == {
        "A": 1, "B": 1, "image:u.png": 0,
    }  # fmt: skip


def test_slides_of_one_name_under_two_patients_stay_apart():
    units = at_level(predictions(), "slide")
    assert len(units) == 4
    by = dict(zip(units.table["path"], units.table["prob_malignant"], strict=True))
    assert by == pytest.approx({"A/1": 0.2, "A/2": 0.8, "B/1": 0.7, "image:u.png/image:u.png": 0.2})


@pytest.mark.parametrize(("level", "threshold"), [("image", 0.4), ("slide", 0.3), ("patient", 0.2)])
def test_each_level_decides_at_its_own_threshold(level, threshold):
    assert (at_level(predictions(), level).table["threshold"] == threshold).all()


def test_a_level_without_its_own_threshold_has_none():
    found = predictions()
    table = found.table.drop(columns="threshold_patient")
    assert "threshold" not in at_level(type(found)(table, found.classes), "patient").table


def test_decision_reaches_the_threshold_or_not():
    prob = np.array([[0.6, 0.4], [0.61, 0.39]])
    assert decide(prob, 0.4).tolist() == [1, 0]
    assert decide(prob, None).tolist() == [0, 0]


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_table_survives_its_file_to_the_last_digit(tmp_path, ending):
    first = predictions(path=[f'{i}, "ü"\n.png' for i in range(6)])
    p = first.table["prob_malignant"] / 3
    first = type(first)(first.table.assign(prob_malignant=p, prob_benign=1 - p), first.classes)
    file = tmp_path / f"p.{ending}"
    write_predictions(first, file)
    back = read_predictions(file)
    assert back.classes == first.classes
    assert np.array_equal(back.probabilities(), first.probabilities())
    assert back.table["path"].tolist() == first.table["path"].tolist()
    assert back.table["patient"].isna().tolist() == [False] * 5 + [True]


def test_labels_and_patients_come_from_the_manifest(tmp_path):
    first = predictions()
    bare = first.table.drop(columns=["label", "patient", "slide"])
    file = tmp_path / "bare.csv"
    write_predictions(type(first)(bare, first.classes), file)
    rows = first.table[["path", "label", "patient", "slide"]]
    manifest = Manifest(Path(), complete(rows))
    assert read_predictions(file, manifest=manifest).y.tolist() == first.y.tolist()
    with pytest.raises(DataError, match=r"6 image\(s\) of .* have no label: a1\.png"):
        read_predictions(file)


def test_images_that_the_manifest_lacks_are_named(tmp_path):
    first = predictions()
    file = tmp_path / "p.csv"
    write_predictions(first, file)
    some = Manifest(Path(), complete(first.table[["path", "label"]].iloc[1:]))
    with pytest.raises(DataError, match=r"1 image\(s\) of .* are not in the manifest: a1\.png"):
        read_predictions(file, manifest=some)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prob_malignant": 0.7, "prob_benign": 0.7}, "hold no probabilities"),
        ({"prob_malignant": 1.5, "prob_benign": -0.5}, "hold no probabilities"),
        ({"prob_malignant": float("nan")}, "hold no probabilities"),
        ({"label": "weird"}, r"has label\(s\) that the model does not know: weird"),
    ],
)
def test_rows_that_make_no_sense_are_refused(tmp_path, change, message):
    first = predictions()
    write_predictions(type(first)(first.table.assign(**change), first.classes), tmp_path / "p.csv")
    with pytest.raises(DataError, match=message):
        read_predictions(tmp_path / "p.csv")


def test_a_table_without_probabilities_is_no_predictions_table(tmp_path):
    (tmp_path / "x.csv").write_text("path,score\na.png,1\n")
    with pytest.raises(DataError, match=r"is not a predictions table: .*path, score"):
        read_predictions(tmp_path / "x.csv")


def test_another_ending_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(UsageError, match=r"p\.xlsx is neither \.csv nor \.parquet"):
        write_predictions(predictions(), tmp_path / "p.xlsx")
    assert list(tmp_path.iterdir()) == []


def other_tool(tmp_path, text: str):
    (tmp_path / "p.csv").write_text(text)
    return tmp_path / "p.csv"


def test_columns_of_another_tool_may_stand_in_any_order(tmp_path):
    file = other_tool(
        tmp_path,
        "path,label,patient,prob_malignant,prob_benign,prior_treatment\n"
        "a,malignant,1,0.9,0.1,none\nb,benign,2,0.3333,0.6667,yes\n",
    )
    found = read_predictions(file)
    assert found.classes == ("benign", "malignant")
    assert found.y.tolist() == [1, 0]
    assert at_level(found, "patient").table["prob_malignant"].tolist() == [0.9, 0.3333]


def test_numbers_and_the_word_na_can_be_labels_and_patients(tmp_path):
    first = predictions(label=["0", "NA", "NA", "0", "0", "NA"], patient=["007"] * 6)
    table = first.table.rename(columns={"prob_benign": "prob_0", "prob_malignant": "prob_NA"})
    for ending in ("csv", "parquet", "jsonl"):
        file = tmp_path / f"p.{ending}"
        write_predictions(type(first)(table, ("0", "NA")), file)
        back = read_predictions(file)
        assert back.table["label"].tolist() == table["label"].tolist()
        assert set(back.table["patient"]) == {"007"}


def test_an_image_named_twice_is_refused(tmp_path):
    file = other_tool(tmp_path, "path,label,prob_a,prob_b\nx,a,1,0\nx,a,1,0\n")
    with pytest.raises(DataError, match=r"names 1 image\(s\) twice: x"):
        read_predictions(file)


def test_a_probability_that_is_no_number_is_refused(tmp_path):
    file = other_tool(tmp_path, "path,label,prob_a,prob_b\nx,a,n/x,0\n")
    with pytest.raises(DataError, match="a probability is no number"):
        read_predictions(file)


def test_the_table_keeps_a_patient_that_the_manifest_does_not_know(tmp_path):
    first = predictions()
    write_predictions(first, tmp_path / "p.csv")
    manifest = Manifest(Path(), complete(first.table[["path", "label"]]))
    back = read_predictions(tmp_path / "p.csv", manifest=manifest)
    assert back.table["patient"].tolist()[:5] == ["A", "A", "A", "B", "B"]


def test_names_with_a_slash_do_not_merge_slides():
    found = predictions(patient=["P", "P/x", "P", "P", "P", "P"], slide=["x/1", "1"] + ["2"] * 4)
    assert len(at_level(found, "slide")) == 3


def test_of_three_classes_a_patient_has_the_commonest():
    rows = {
        "path": ["1", "2", "3"], "label": ["invasive", "invasive", "normal"], "patient": ["A"] * 3,
    }  # fmt: skip
    manifest = Manifest(Path(), complete(pd.DataFrame(rows)))
    found = make_predictions(
        manifest, ("benign", "invasive", "normal"), {"prob": np.full((3, 3), 1 / 3)}, {}
    )
    assert at_level(found, "patient").table["label"].tolist() == ["invasive"]


# ---- texts that a spreadsheet would execute

texts = st.one_of(
    st.text(st.sampled_from("'\"=+-@\t\r\n |%a,0"), min_size=1, max_size=6),
    st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8
    ),
)


@given(
    paths=st.lists(texts, min_size=6, max_size=6, unique=True),
    names=st.lists(texts, min_size=2, max_size=2, unique=True),
    patient=texts,
)
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_any_text_is_read_as_it_was_written(tmp_path_factory, ending, paths, names, patient):
    first = predictions()
    table = first.table.rename(
        columns={"prob_benign": f"prob_{names[0]}", "prob_malignant": f"prob_{names[1]}"}
    )
    own = dict(zip(("benign", "malignant"), names, strict=True))
    table = table.assign(
        path=paths, patient=patient, label=table["label"].map(own),
        decision=table["decision"].map(own), source=patient,
    )  # fmt: skip
    file = tmp_path_factory.mktemp("p") / f"p.{ending}"
    write_predictions(type(first)(table, tuple(names)), file)
    back = read_predictions(file)
    assert back.classes == tuple(names)
    for column in ("path", "patient", "label", "decision", "source"):
        assert back.table[column].tolist() == table[column].tolist()
    assert np.array_equal(back.probabilities(), type(first)(table, tuple(names)).probabilities())


def test_a_spreadsheet_has_nothing_to_execute(tmp_path):
    write_predictions(predictions(path=[f"{c}1" for c in "=+-@\t'"]), tmp_path / "p.csv")
    lines = (tmp_path / "p.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert {line.split(",")[0] for line in lines} == {"'=1", "'+1", "'-1", "'@1", "'\t1", "'1"}


def test_a_name_of_another_tool_that_begins_with_an_apostrophe_stays(tmp_path):
    file = other_tool(tmp_path, "path,label,prob_a,prob_b\n'x,a,1,0\n''y,b,0,1\n")
    assert read_predictions(file).table["path"].tolist() == ["'x", "''y"]


# ---- images that could not be read


def with_failed():
    first = predictions()
    members = {
        "set_benign": [True, False] * 3,
        "set_malignant": True,
        "accepted": [True] * 5 + [False],
    }
    table = first.table.assign(**members, fold=range(6))
    return replace(first, table=table, failed={"a15.png": "cannot read it", "z": "no such file"})


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_images_that_could_not_be_read_have_a_row_and_are_read_back_as_failed(tmp_path, ending):
    first, file = with_failed(), tmp_path / f"p.{ending}"
    write_predictions(first, file, failures=True)
    back = read_predictions(file)
    assert back.failed == first.failed
    assert back.table["path"].tolist() == first.table["path"].tolist()
    assert np.array_equal(back.probabilities(), first.probabilities())
    assert np.array_equal(back.sets, first.sets)
    assert np.array_equal(back.accepted, first.accepted)
    assert back.y.tolist() == first.y.tolist()
    assert "error" not in back.table


def test_such_a_row_holds_path_identity_and_reason_alone_in_the_order_of_paths(tmp_path):
    write_predictions(with_failed(), tmp_path / "p.jsonl", failures=True)
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == [
        "a1.png", "a15.png", "a2.png", "a3.png", "b1.png", "b2.png", "u.png", "z",
    ]  # fmt: skip
    assert {key: value for key, value in rows[1].items() if value is not None} == {
        "schema": "lobule.prediction/1", "path": "a15.png", "model": "m", "source": "here",
        "error": "cannot read it",
    }  # fmt: skip
    assert rows[0]["error"] is None
    assert rows[0]["fold"] == 0
    assert rows[0]["accepted"] is True


def test_unless_it_is_asked_for_no_such_row_is_written(tmp_path):
    write_predictions(with_failed(), tmp_path / "p.parquet")
    assert "error" not in pd.read_parquet(tmp_path / "p.parquet")
    assert len(read_predictions(tmp_path / "p.parquet")) == 6


def test_the_column_of_reasons_is_there_even_if_all_could_be_read(tmp_path):
    write_predictions(predictions(), tmp_path / "p.csv", failures=True)
    assert pd.read_csv(tmp_path / "p.csv")["error"].isna().all()


def test_a_row_with_probabilities_is_scored_whatever_another_tool_calls_error(tmp_path):
    file = other_tool(tmp_path, "path,label,prob_a,prob_b,error\nx,a,1,0,0.3\ny,b,0,1,\n")
    found = read_predictions(file)
    assert len(found) == 2
    assert found.failed == {}


def test_a_row_without_probabilities_and_without_a_reason_is_refused(tmp_path):
    file = other_tool(tmp_path, "path,label,prob_a,prob_b,error\nx,a,1,0,\ny,b,,,\n")
    with pytest.raises(DataError, match=r"1 row\(s\) of .* hold no probabilities .* for y"):
        read_predictions(file)


def test_failed_images_need_not_be_in_the_manifest_that_knows_the_labels(tmp_path):
    first = with_failed()
    write_predictions(first, tmp_path / "p.csv", failures=True)
    manifest = Manifest(Path(), complete(first.table[["path", "label"]]))
    assert read_predictions(tmp_path / "p.csv", manifest=manifest).failed == first.failed


def test_lines_that_are_no_json_are_refused(tmp_path):
    for text in ("{", "[1]\n", '{"path": "x", "label": "a"}\n'):
        (tmp_path / "p.jsonl").write_text(text)
        with pytest.raises(DataError, match=r"p\.jsonl"):
            read_predictions(tmp_path / "p.jsonl")
