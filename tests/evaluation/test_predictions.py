"""The predictions table: made, written, read, and combined by slide and patient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

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


@pytest.mark.parametrize("ending", ["csv", "parquet"])
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
    for ending in ("csv", "parquet"):
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
