"""Reporting guidelines: the numbers are theirs, the answers are the run's, the rest stays open."""

import json
import re
import tomllib
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pandas as pd
import pytest
from pages import Tree, browse

from lobule.data.findings import Finding
from lobule.reporting.checklists import Known, answers, checklists, reporting_record
from lobule.reporting.report import environment
from lobule.reporting.saved import read_run

PAGE = """{% from "macros.html.j2" import scroll, value with context %}
{% include "head.html.j2" %}
<title>Reporting</title><style>{% include "report.css" %}</style></head>
<body><main>{% include "checklists.html.j2" %}</main></body></html>
"""

NUMBERS = {
    "TRIPOD+AI": "1 2 3a 3b 3c 4 5a 5b 6a 6b 6c 7 8a 8b 8c 9a 9b 9c 10 11 12a 12b 12c 12d 12e 12f "
    "12g 13 14 15 16 17 18a 18b 18c 18d 18e 18f 19 20a 20b 20c 21 22 23a 23b 24 25 26 27a 27b 27c",
    "CLAIM 2024": " ".join(str(n) for n in range(1, 45)),
    "STARD-AI": "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15a 15b 15c 15d 16a 16b 16c 17a 17b 18 19 20 21 "
    "22 23 24 25 26a 26b 27 28 29 30 31 32 33 34 35 36 37 38 39 40a 40b",
}

OPEN = {
    # context, population, dates, setting, outcome, ethics, funding, sharing, involvement, use
    "TRIPOD+AI": "1 2 3a 3b 3c 4 5a 5b 6a 6b 6c 8a 8b 8c 9c 10 12d 14 16 17 18a 18b 18c 18d 18e "
    "18f 19 23b 25 27a 27b 27c",
    "CLAIM 2024": "1 2 3 4 5 6 7 8 11 14 15 16 17 18 21 31 33 34 41 42 43 44",
    "STARD-AI": "1 2 3 4 5 6 7 8 9 10 11 12 15d 16a 16b 16c 17b 22 26a 27 28 29 32 34 35 36 37 38 "
    "39 40a",
}


def known_of(run):
    saved = read_run(run)
    return Known(
        saved.manifest, saved.findings, saved.evaluation, saved.leakage, saved.model, saved.allow
    )


@pytest.fixture(scope="module")
def known(run):
    return known_of(run)


@pytest.fixture(scope="module")
def tuned(tuned_run):
    return known_of(tuned_run)


@pytest.fixture(scope="module")
def html(known):
    return environment().from_string(PAGE).render(checklists=checklists(known)).lstrip()


def with_manifest(known, **columns):
    return replace(known, manifest=known.manifest.with_columns(**columns))


def with_image_level(known, **fields):
    evaluation = known.evaluation
    image = replace(evaluation.levels["image"], **fields)
    levels = evaluation.levels | {"image": image}
    return replace(known, evaluation=replace(evaluation, levels=levels))


def with_tuning(known, **settings):
    training = known.model["training"]
    changed = training | {"tuning": training["tuning"] | settings}
    return replace(known, model=known.model | {"training": changed})


def test_every_item_has_the_number_that_its_guideline_prints(known):
    found = {one.guideline: [item.number for item in one.items] for one in checklists(known)}
    assert found == {name: numbers.split() for name, numbers in NUMBERS.items()}
    for one in checklists(known):
        assert all(0 < len(item.asks.split()) <= 12 for item in one.items)


@pytest.mark.parametrize("is_tuned", [False, True])
def test_what_a_run_cannot_know_is_open_and_all_else_is_answered(known, tuned, is_tuned):
    for one in checklists(with_tuning(tuned, balance="patient") if is_tuned else known):
        left_open = [item.number for item in one.items if item.answer is None]
        assert left_open == OPEN[one.guideline].split(), one.guideline
        assert one.n_answered == len(one.items) - len(left_open)
        in_part = [item for item in one.items if item.answer is not None and item.left]
        assert one.n_in_part == len(in_part) > 0


def test_every_answer_belongs_to_an_item_and_has_an_anchor(known):
    text = files("lobule.reporting").joinpath("checklists.toml").read_text(encoding="utf-8")
    table = tomllib.loads(text)
    asked = {
        item["answer"] for one in table["guideline"] for item in one["items"] if "answer" in item
    }
    assert set(answers(known)) == asked == set(table["anchors"])


def test_every_anchor_is_a_section_of_the_report(known, tuned):
    templates = files("lobule.reporting").joinpath("templates")
    sections = {
        name
        for page in ("report.html.j2", "training.html.j2")
        for name in re.findall(r'<section id="(\w+)"', templates.joinpath(page).read_text())
    }
    for one, has_training in ((known, False), (tuned, True)):
        items = [item for each in checklists(one) for item in each.items]
        anchors = {item.anchor for item in items} - {None}
        assert anchors <= sections
        assert ("training" in anchors) == has_training
        assert all((item.anchor is None) == (item.answer is None) for item in items)


def test_counts_are_those_of_the_manifest(known):
    assert answers(known)["flow"] == (
        "benign (24 images, 6 patients); malignant (24 images, 6 patients); "
        "in all (48 images, 12 patients); no image left out as unreadable"
    )
    kept = known.manifest.table["patient"] != "P00"
    fewer = replace(known, manifest=known.manifest.where(kept))
    assert "benign (20 images, 5 patients)" in answers(fewer)["flow"]
    left_out = Finding("unreadable", "blocking", "2 images cannot be read", ("a.png", "b.png"))
    spoiled = replace(known, findings=[left_out])
    assert answers(spoiled)["flow"].endswith("2 unreadable images left out")
    assert "1 blocking finding (unreadable)" in answers(spoiled)["preparation"]


def test_missing_values_are_counted(known):
    assert "no patient, slide" in answers(known)["missing"]
    subtype = known.manifest.table["subtype"].where(np.arange(48) >= 5, pd.NA)
    assert (
        "unknown: subtype of 5 images;" in answers(with_manifest(known, subtype=subtype))["missing"]
    )


def test_alternative_diagnoses_are_the_subtypes_of_the_negative_class(known, make_run, tmp_path):
    said = answers(known)["alternatives"]
    assert said.startswith("benign, by subtype: benign kind 0 (8 images, 2 patients);")
    assert "malignant" not in said
    assert "alternatives" not in answers(with_manifest(known, subtype=pd.NA))
    three = make_run(tmp_path, classes=("benign", "in situ", "malignant"))
    lists = {one.guideline: one for one in checklists(known_of(three))}
    item = next(item for item in lists["STARD-AI"].items if item.number == "26b")
    assert (item.answer, item.anchor) == (None, None)


def test_figures_are_those_of_the_evaluation(known):
    said = answers(known)
    image = known.evaluation.levels["image"]
    auc = replace(image.metrics["roc_auc"], estimate=0.5123, low=0.25, high=0.75)
    last = replace(image.decisions[-1], confusion=[[20, 4], [1, 23]])
    changed = answers(
        with_image_level(
            known,
            metrics=image.metrics | {"roc_auc": auc},
            decisions=[*image.decisions[:-1], last],
        )
    )
    for name in ("performance", "internal"):
        assert "per image 0.51 (0.25 to 0.75)" in changed[name]
        assert "per image 0.51 (0.25 to 0.75)" not in said[name]
    assert changed["errors"].startswith("5 of 48 images decided wrongly (4 benign, 1 malignant)")
    assert changed["crossed"].endswith(
        "truly benign: 20 benign, 4 malignant; of malignant: 1 benign, 23 malignant"
    )
    undecided = with_image_level(known, decisions=[replace(last, confusion=[[20, 3], [1, 23]])])
    assert "indeterminate" not in answers(undecided)
    assert "indeterminate" in said


def test_measures_are_those_that_were_computed(known):
    image = known.evaluation.levels["image"]
    few = {name: image.metrics[name] for name in ("roc_auc", "brier")}
    said = answers(with_image_level(known, metrics=few))["measures"]
    assert said.startswith("ROC AUC; Brier score; accuracy;")
    assert said.endswith("Baselines: colour statistics, majority")


def test_partitions_are_called_disjoint_only_if_no_patient_lies_in_two(make_run, known, tmp_path):
    held_out = known_of(make_run(tmp_path, held_out=True))
    assert answers(held_out)["disjoint"].startswith("the patient: none")
    assert "test benign (12 images, 3 patients)" in answers(held_out)["compared"]
    assert "same images serve both" in answers(known)["compared"]
    part = held_out.manifest.table["split"].copy()
    part[(held_out.manifest.table["patient"] == "P00").to_numpy().nonzero()[0][0]] = "train"
    shared = with_manifest(held_out, split=part)
    assert answers(shared)["disjoint"].startswith("not disjoint: 1 patient with images in two")
    in_folds = with_manifest(known, fold=np.arange(48) % 2)
    assert answers(in_folds)["disjoint"].startswith("not disjoint: 12 patients")
    copies = replace(held_out, allow=["duplicate-in-two-splits"])
    assert "copies" in answers(copies)["disjoint"]


def test_events_are_those_of_the_part_that_was_judged(make_run, known, tmp_path):
    held_out = known_of(make_run(tmp_path, n_patients=14, held_out=True))
    said = answers(held_out)
    assert said["events"] == (
        "fitted on benign: 12 images, 3 patients; malignant: 12 images, 3 patients. Evaluated on "
        "images by label: benign (16 images, 4 patients); malignant (16 images, 4 patients)"
    )
    assert said["limits"].startswith("4 patients of the smallest class, benign;")
    # a patient with images of both classes counts in both, as in the table of the report
    label = known.manifest.table["label"].copy()
    label[0] = "malignant"
    mixed = answers(with_manifest(known, label=label))
    assert mixed["events"].endswith("malignant (25 images, 7 patients)")
    assert mixed["limits"].startswith("6 patients of the smallest class, benign;")


def test_unknown_patients_are_never_counted(make_run, tmp_path):
    run = make_run(tmp_path, patients_known=False, allow=("patients-unknown",))
    said = answers(known_of(run))
    assert said["disjoint"].startswith("the image: patients are unknown")
    assert "patient of 48 images" in said["missing"]
    assert "redraws of images (patients unknown)" in said["uncertainty"]
    assert said["limits"].startswith("patients are unknown")
    for name in ("flow", "characteristics", "partition", "events", "internal", "photographs"):
        assert "48 patients" not in said[name]
        assert "patients unknown" in said[name]


def test_training_is_told_as_it_was(known, tuned):
    assert answers(known)["selection"] == "C = 0.001, chosen inside the training patients"
    said = answers(tuned)
    assert said["selection"] == "epoch 4 of 6, chosen by loss on 3 validation patients"
    assert said["robustness"].startswith("ROC AUC per image of frozen features in folds of images")
    for balance, begins in (("class", "every class weighs"), ("none", "none is used")):
        assert answers(with_tuning(tuned, balance=balance))["balance"].startswith(begins)


def test_record_is_plain_and_says_the_same(known):
    lists = checklists(known)
    record = json.loads(json.dumps(reporting_record(lists), allow_nan=False))
    assert [one["guideline"] for one in record] == list(NUMBERS)
    for one, written in zip(lists, record, strict=True):
        assert written["n_items"] == len(written["items"]) == len(one.items)
        assert written["n_answered"] == sum(i["answer"] is not None for i in written["items"])
        assert written["n_in_part"] == one.n_in_part
        for item, plain in zip(one.items, written["items"], strict=True):
            assert plain == {
                "item": item.number, "asks": item.asks, "answer": item.answer, "left": item.left
            }  # fmt: skip


def test_section_has_a_table_a_guideline_with_captions_and_scopes(html, known):
    page = Tree(html).root
    section = page.one("section")
    assert section.attributes["aria-labelledby"] == section.one("h2").attributes["id"]
    lists = checklists(known)
    tables = list(section.all("table"))
    assert len(tables) == len(lists) == len(list(section.all("details")))
    for table, one in zip(tables, lists, strict=True):
        assert one.guideline in table.one("caption").text
        assert all("scope" in th.attributes for th in table.all("th"))
        rows = list(table.one("tbody").all("tr"))
        assert len(rows) == len(one.items)
        for row, item in zip(rows, one.items, strict=True):
            assert row.one("th").text == f"{item.number} {item.asks}"
            links = [a.attributes["href"] for a in row.all("a")]
            if item.answer is None:
                assert row.one("td").text.startswith("open: for the author to state")
                assert links == []
            else:
                assert item.answer in row.one("td").text
                assert links == [f"#{item.anchor}"]
            assert item.left in row.one("td").text
    said = section.one("p").text
    for one in lists:
        assert f"{one.n_answered} of {len(one.items)} items of {one.guideline}" in said


@pytest.mark.slow
def test_section_fits_a_narrow_screen_when_all_is_unfolded(html, tmp_path):
    path = tmp_path / "reporting.html"
    path.write_text(html.replace("<details>", "<details open>"), encoding="utf-8")
    errors, requests, width, _ = browse(path)
    assert errors == []
    assert requests == [path.as_uri()]
    assert width <= 320
