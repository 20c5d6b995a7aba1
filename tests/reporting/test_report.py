"""The report is one page that says what the run's files say, to anyone, without a network."""

import base64
import io
import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pages import browse, evaluation_of, figures, read, rows_of
from PIL import Image

from lobule.data.findings import Finding
from lobule.data.images import decode
from lobule.data.manifest import read_manifest
from lobule.errors import DataError, OutputError
from lobule.evaluation.intervals import Interval
from lobule.evaluation.predictions import Predictions, read_predictions
from lobule.reporting.gallery import confident_rows, sample_rows
from lobule.reporting.report import report
from lobule.reporting.verdict import number, span

SECTIONS = [
    "verdict",
    "data",
    "audit",
    "leakage",
    "results",
    "curves",
    "confusion",
    "subgroups",
    "gallery",
    "card",
    "record",
    "reporting",
    "glossary",
]


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    return read(report(run, out=tmp_path_factory.mktemp("page") / "report.html"))


@pytest.fixture
def own_run(run, tmp_path):
    """A run that a test may spoil; its images are shared."""
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture(scope="module")
def three(make_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    return make_run(folder, classes=("benign", "in situ", "malignant"))


def test_every_section_stands_in_order_with_headings_that_step_by_one(page):
    assert [s.attributes["id"] for s in page.all("section")] == SECTIONS
    levels = [int(n.tag[1]) for n in page.all() if re.fullmatch("h[1-6]", n.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert page.one("html").attributes["lang"] == "en"
    assert "redrawn, with replacement, 200 times" in page.one(id="glossary").text
    targets = {n.attributes["id"] for n in page.all() if "id" in n.attributes}
    assert {a.attributes["href"].removeprefix("#") for a in page.all("a")} <= targets


def test_nothing_is_fetched_from_anywhere(page, run):
    assert not list(page.all("script"))
    assert not list(page.all("link"))
    for node in page.all():
        for name, value in node.attributes.items():
            assert not name.startswith("on")
            if name in ("src", "srcset", "href", "xlink:href", "action", "poster", "data"):
                assert value.startswith(("#", "data:image/jpeg;base64,")), (node.tag, name)
            assert "url(" not in (value or "").replace("url(#", "")
    style = "".join(node.text for node in page.all("style"))
    assert "url(" not in style
    assert "@import" not in style
    policy = next(m for m in page.all("meta") if "http-equiv" in m.attributes)
    assert policy.attributes["content"] == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    )


def test_every_figure_of_every_level_is_the_one_in_evaluation_json(page, run):
    evaluation = evaluation_of(run)
    table = page.one("table", class_="results")
    found = {}
    group = None
    for body in table.all("tbody"):
        for row in body.all("tr"):
            cells = list(row.all("td"))
            if not cells:
                group = row.one("th").text
            elif group is not None:
                found[group, row.one("th").text] = [figures(cell) for cell in cells]
    levels = list(evaluation.levels.values())

    def same(key, intervals):
        assert found[key] == [[i.estimate, i.low, i.high] for i in intervals], key

    same(
        ("Ranking and probabilities (no threshold)", "ROC AUC"),
        [level.metrics["roc_auc"] for level in levels],
    )
    for rule, heading in enumerate(("At probability 0.5", "At the locked operating point")):
        for name in ("sensitivity", "specificity", "accuracy", "F1"):
            same(
                (heading, name),
                [level.decisions[rule].metrics[name.lower()] for level in levels],
            )
    expected = sum(len(level.metrics) for level in levels[:1]) + sum(
        len(decision.metrics) for decision in levels[0].decisions
    )
    assert sum("threshold" not in name for _, name in found) == expected
    key = ("At the locked operating point", "threshold, chosen on other patients")
    assert found[key] == [[0.4, 0.44], [0.42], [0.44]]


def test_baselines_plain_view_and_gain_stand_beside_the_model(page, run):
    evaluation = evaluation_of(run)
    rows = dict(rows_of(next(page.one(id="results").all("table"))))
    image = evaluation.baselines["colour statistics"]["image"].metrics["roc_auc"]
    assert figures(rows["baseline: colour statistics"][0])[0] == image.estimate
    majority = evaluation.baselines["majority"]["patient"].metrics["roc_auc"]
    assert figures(rows["baseline: majority"][2]) == [
        majority.estimate,
        majority.low,
        majority.high,
    ]
    plain = evaluation.plain.metrics["roc_auc"]
    assert figures(rows["model, plain view only"][0]) == [plain.estimate, plain.low, plain.high]
    assert rows["model, plain view only"][2].text == "not measured"
    gain = evaluation.gain["colour statistics"]["slide"]
    shown = figures(rows["gain of the model over colour statistics"][1])
    assert shown == [gain.estimate, gain.low, gain.high]


def test_the_cards_show_the_headline_figures(page, run):
    evaluation = evaluation_of(run)
    image = evaluation.levels["image"]
    decision = image.decisions[-1]
    cards = list(page.all(class_="card"))
    wanted = [
        image.metrics["roc_auc"],
        evaluation.levels["patient"].metrics["roc_auc"],
        decision.metrics["sensitivity"],
        decision.metrics["specificity"],
    ]
    assert [figures(card) for card in cards] == [[i.estimate, i.low, i.high] for i in wanted]
    assert "24 malignant images" in cards[2].text
    assert "24 benign images" in cards[3].text
    assert "6 benign, 6 malignant patients" in cards[1].text


def test_the_verdict_is_built_from_the_figures(page, run):
    evaluation = evaluation_of(run)
    auc = evaluation.levels["image"].metrics["roc_auc"]
    text = page.one("p", class_="verdict").text
    assert text.startswith(
        "On 12 patients it had never seen (48 images, pooled out-of-fold predictions of 5 patient "
        "folds), the model ranks a malignant photograph above a benign one "
        f"{round(100 * round(auc.estimate, 2))}% of the time (ROC AUC {auc.estimate:.2f}, "
        f"95% interval {auc.low:.2f} to {auc.high:.2f})."
    )
    assert (
        "A random split of the same images would have claimed 0.98 (0.95 to 0.99), which is "
        "0.10 (0.02 to 0.20) too much." in text
    )
    assert span(evaluation.gain["colour statistics"]["image"], signed=True) in text


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.02, 0.3, "It beats colour statistics alone by +0.10 (0.02 to 0.30)."),
        (-0.3, 0.3, "is not shown at this number of patients: +0.10 (\u22120.30 to 0.30)."),
        (-0.3, -0.1, "It is worse than colour statistics alone"),
    ],
)
def test_a_gain_is_claimed_only_where_its_interval_leaves_out_zero(own_run, low, high, words):
    file = own_run / "evaluation.json"
    record = json.loads(file.read_text())
    record["gain"]["colour statistics"]["image"] |= {"estimate": 0.1, "low": low, "high": high}
    file.write_text(json.dumps(record))
    text = read(report(own_run)).one("p", class_="verdict").text
    assert words in text


def test_an_inflation_that_may_be_zero_is_not_claimed(make_run, tmp_path):
    page = read(report(make_run(tmp_path, inflation=(0.02, -0.03, 0.07))))
    text = page.one("p", class_="verdict").text
    assert "too much" not in text
    assert "is not shown at this number of patients: +0.02 (\u22120.03 to 0.07)." in text


def test_confusion_matrices_hold_the_counts_and_shares_of_their_rows(page, run):
    image = evaluation_of(run).levels["image"]
    tables = list(page.all("table", class_="matrix"))
    assert len(tables) == 6
    for decision, table in ((image.decisions[0], tables[0]), (image.decisions[1], tables[3])):
        rows = list(rows_of(table))
        assert [label for label, _ in rows] == ["benign", "malignant"]
        assert [[int(c.one("b").text) for c in cells] for _, cells in rows] == decision.confusion
        for counts, (_, cells) in zip(decision.confusion, rows, strict=True):
            shares = [f"{100 * n / sum(counts):.0f}%" for n in counts]
            assert [cell.one("small").text for cell in cells] == shares
    assert "locked operating point: images, mean of 8 views" in tables[3].text


def test_subgroups_add_up_and_few_patients_are_said(page, run):
    evaluation = evaluation_of(run)
    for table in page.one(id="subgroups").all("table"):
        rows = dict(rows_of(table))
        total = int(rows.pop("all")[0].text)
        assert total == evaluation.n_images == sum(int(cells[0].text) for cells in rows.values())
    assert "too few patients (2 of 5)" in page.one(id="subgroups").text


def test_counts_are_those_of_the_manifest(page):
    rows = {label: [c.text for c in cells] for label, cells in rows_of(page.one("table"))}
    assert rows == {
        "benign": ["24", "12", "6"],
        "malignant": ["24", "12", "6"],
        "all": ["48", "24", "12"],
    }


def test_a_held_out_part_is_counted_apart_and_named_in_every_caption(make_run, tmp_path):
    page = read(report(make_run(tmp_path, held_out=True)))
    rows = [[c.text for c in [*row.all("td")]] for row in page.one("table").one("tbody").all("tr")]
    parts = {(cells[0], cells[1]) for cells in rows}
    assert parts == {("train", "12"), ("train", "24"), ("test", "12"), ("test", "24"),
                     ("all", "24"), ("all", "48")}  # fmt: skip
    assert "On 6 patients it had never seen (24 images, held-out test part)" in page.text
    assert "A random split of the 24 training images would have claimed" in page.text
    assert "model, out of fold on the training part (24 images, 6 patients)" in page.text
    for node in [*page.one(id="results").all("caption"), *page.one(id="curves").all("figcaption")]:
        assert "Held-out test part; 24 images, 6 patients" in node.text


def test_every_caption_of_figures_says_images_and_patients(page):
    for section in ("leakage", "results", "curves", "confusion", "subgroups"):
        captions = [
            *page.one(id=section).all("caption"),
            *page.one(id=section).all("figcaption"),
        ]
        assert captions
        assert all("48 images, 12 patients" in caption.text for caption in captions)


def test_drawings_have_words_and_tables_have_scoped_headers(page):
    drawings = list(page.all("svg", class_="drawing"))
    # leakage; of images ROC, precision, reliability, net benefit, errors; ROC of patients
    assert len(drawings) == 7
    assert all(len(d.attributes["aria-label"]) > 60 for d in drawings)
    assert all(image.attributes["alt"] for image in page.all("img"))
    assert all(th.attributes.get("scope") for th in page.all("th"))
    ids = [node.attributes["id"] for node in page.all() if "id" in node.attributes]
    assert len(ids) == len(set(ids))


def test_where_patients_are_unknown_every_caption_says_so(make_run, tmp_path):
    page = read(
        report(make_run(tmp_path, patients_known=False, allow=("patients-unknown",), findings=()))
    )
    guidelines = list(page.one(id="reporting").all("caption"))
    captions = [c for c in page.all("caption") if c not in guidelines]
    captions += page.one(id="curves").all("figcaption")
    assert all("patients unknown" in caption.text for caption in captions)
    verdict = page.one("p", class_="verdict").text
    assert "never seen" not in verdict
    assert "patients unknown" in verdict
    assert "12 patients" not in page.text
    assert "on other patients" not in page.text
    cards = [card.text for card in page.all(class_="card")]
    assert cards[1].startswith("Patient ROC AUC patients unknown")
    headers = [th.text for th in page.one("table", class_="results").one("thead").all("th")]
    assert headers == ["figure", "per image"]
    limits = page.one(class_="limits").text
    assert "Patients unknown" in limits
    assert "--allow patients-unknown" in limits
    assert "Nothing found." in page.one(id="audit").text


def test_a_patient_on_both_sides_takes_the_claim_of_unseen_patients_away(make_run, tmp_path):
    run = make_run(tmp_path, held_out=True, allow=("patient-in-two-splits",))
    text = read(report(run)).one("p", class_="verdict").text
    assert "never seen" not in text
    assert "On 6 patients, some of whom it may have seen" in text


def test_three_classes_have_a_curve_each_and_no_operating_point(three):
    page = read(report(three))
    evaluation = evaluation_of(three)
    title = "How well are benign, in situ and malignant photographs told apart?"
    assert page.one("h1").text == title
    roc = page.one(id="curves").one("svg").attributes["aria-label"]
    assert re.findall(r"(\w[\w ]*): sensitivity", roc) == ["benign", "in situ", "malignant"]
    headings = [row.text for row in page.one("table", class_="results").all(class_="heading")]
    assert headings == [
        "Ranking and probabilities (no threshold)",
        "Calibration",
        "Sets of classes",
        "Most probable class",
    ]
    card = list(page.all(class_="card"))[3]
    balanced = evaluation.levels["image"].decisions[0].metrics["balanced_accuracy"]
    assert figures(card) == [balanced.estimate, balanced.low, balanced.high]
    matrix = next(page.all("table", class_="matrix"))
    counts = [[int(c.one("b").text) for c in cells] for _, cells in rows_of(matrix)]
    assert counts == evaluation.levels["image"].decisions[0].confusion
    assert "none: the most probable class is taken" in page.one(id="card").text


def test_an_undefined_figure_is_called_undefined_with_its_reason(own_run):
    file = own_run / "evaluation.json"
    record = json.loads(file.read_text())
    nothing = {"estimate": None, "low": None, "high": None, "reason": "no benign image"}
    record["levels"]["image"]["metrics"]["roc_auc"] |= nothing
    file.write_text(json.dumps(record))
    page = read(report(own_run))
    assert "ranks photographs is undefined: no benign image" in page.one(class_="verdict").text
    row = dict(rows_of(page.one("table", class_="results")))["ROC AUC"]
    assert row[0].text == "undefined: no benign image"
    assert not re.search(r"\bnan\b", page.text)


def test_pictures_and_captions_are_of_one_row(page, run):
    manifest = read_manifest(run / "manifest.parquet")
    rows = manifest.table.set_index("path")
    table = read_predictions(run / "predictions.parquet").table.set_index("path")
    pictures = list(page.all("figure", class_="picture"))
    wrong = int((table["decision"] != table["label"]).sum())
    assert len(pictures) == 12 + min(wrong, 8) + 8
    for picture in pictures:
        path = picture.one(class_="path").text
        data = picture.one("img").attributes["src"].partition(",")[2]
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).mean(axis=(0, 1))
        assert shown == pytest.approx(decode(manifest.file(path)).mean(axis=(0, 1)), abs=4)
        assert f"patient {rows.loc[path, 'patient']}" in picture.text
        assert rows.loc[path, "label"] in picture.one("strong").text
        probability = [float(d.attributes["value"]) for d in picture.all("data")]
        assert probability in ([], [table.loc[path, "prob_malignant"]])


def test_the_surest_errors_come_first(page, run):
    table = read_predictions(run / "predictions.parquet").table.set_index("path")
    sure = table[["prob_benign", "prob_malignant"]].to_numpy()
    decided = np.where(table["decision"] == "malignant", sure[:, 1], sure[:, 0])
    table = table.assign(sure=decided).sort_values("sure", ascending=False)
    for name, right in (("wrong", False), ("right", True)):
        of_kind = table[(table["decision"] == table["label"]) == right]
        shown = [figure.text for figure in page.one(id=name).all("span", class_="path")]
        assert shown == of_kind.index[:8].tolist()
        mark = "✓" if right else "✗"
        assert all(s.text.startswith(mark) for s in page.one(id=name).all("strong"))


def test_equally_sure_decisions_are_ordered_by_path():
    table = pd.DataFrame(
        {
            "path": ["b", "a", "c"],
            "label": "y",
            "decision": ["x", "x", "y"],
            "prob_x": [0.7, 0.7, 0.1],
            "prob_y": [0.3, 0.3, 0.9],
        }
    )
    predictions = Predictions(table, ("x", "y"))
    assert confident_rows(predictions, right=False) == [1, 0]
    assert confident_rows(predictions, right=True) == [2]


def test_samples_take_as_many_of_each_class_and_no_patient_twice_before_all_once():
    table = pd.DataFrame(
        {
            "path": [f"{i:02d}" for i in range(20)],
            "label": ["a"] * 14 + ["b"] * 6,
            "patient": [f"p{i // 2}" for i in range(14)] + ["q0"] * 5 + ["q1"],
        }
    )
    rows = sample_rows(table, limit=8)
    chosen = table.iloc[rows]
    assert chosen["label"].tolist() == ["a"] * 4 + ["b"] * 4
    assert chosen["patient"][:4].nunique() == 4
    assert {"p0", "p6"} <= set(chosen["patient"])
    assert chosen["patient"][4:].tolist() == ["q0", "q1", "q0", "q0"]
    assert len(set(rows)) == 8


def test_an_image_that_is_gone_is_named_in_its_place(make_run, tmp_path):
    run = make_run(tmp_path)
    shutil.rmtree(tmp_path / "images" / "benign")
    page = read(report(run))
    gone = [node.text for node in page.all(class_="gone")]
    assert any(
        re.search(r"cannot read .*benign/p00-000\.png: no such file or directory", text)
        for text in gone
    )
    assert f"{len(gone)} pictures below cannot be shown" in page.one(id="data").text
    assert list(page.all("img"))


def test_hostile_names_are_text(make_run, tmp_path):
    name = "<script>alert(1)<script>.png"
    evil = '<img src=x onerror="alert(2)">\x1b[2J'
    run = make_run(
        tmp_path,
        classes=("benign", "<b>malignant</b>"),
        names={0: name},
        findings=(Finding("few-patients", "warning", evil, (name, "a\u202eb.png")),),
    )
    path = report(run)
    page = read(path)
    assert not list(page.all("script"))
    assert all(not key.startswith("on") for node in page.all() for key in node.attributes)
    assert name in page.one(id="data").text
    assert name in page.one(id="audit").text
    assert '<img src=x onerror="alert(2)">\\x1b[2J' in page.one(id="audit").text
    assert "a\\u202eb.png" in page.one(id="audit").text
    assert "<b>malignant</b>" in page.one("h1").text
    assert "\x1b" not in path.read_text()


def test_overrides_and_warnings_are_told_at_the_top(make_run, tmp_path):
    findings = (
        Finding("duplicate-in-two-classes", "blocking", "1 pair", ("a.png", "b.png")),
        Finding("unbalanced", "warning", "9 to 1"),
    )
    page = read(report(make_run(tmp_path, allow=("duplicate-in-two-classes",), findings=findings)))
    limits = page.one(class_="limits").text
    assert "Accepted for this run (--allow duplicate-in-two-classes): keep the same" in limits
    assert "1 blocking finding: duplicate-in-two-classes" in limits
    assert "1 warning: unbalanced" in limits
    assert "the smallest class, benign, has 6" in limits
    rows = [row.text for row in page.one("table", class_="findings").one("tbody").all("tr")]
    assert rows[0].startswith("■ blocking accepted duplicate-in-two-classes 1 pair 2 files")


def test_the_record_names_versions_recipe_data_and_times(page, run):
    record = json.loads((run / "model" / "model.json").read_text())
    text = page.one(id="record").text
    for wanted in (
        record["training"]["data_hash"],
        "2026-01-02T03:04:05Z",
        "torch",
        "Recipe: folds",
    ):
        assert wanted in text
    assert record["weights_sha256"] in page.one(id="card").text
    assert page.text.count("Research use only. Not for diagnosis.") == 3


def test_the_same_run_gives_the_same_bytes(run, tmp_path):
    first = report(run, out=tmp_path / "a.html").read_bytes()
    assert report(run, out=tmp_path / "b.html").read_bytes() == first


def test_the_report_lies_in_the_run_folder_and_replaces_an_earlier_one(own_run):
    (own_run / "report.html").write_text("old")
    assert report(own_run) == own_run / "report.html"
    assert (own_run / "report.html").read_text().startswith("<!doctype html>")
    assert not list(own_run.glob(".*"))


@pytest.mark.parametrize(
    "name",
    [
        "run.json",
        "manifest.parquet",
        "audit.json",
        "predictions.parquet",
        "evaluation.json",
        "leakage.json",
        "model/model.json",
    ],
)
@pytest.mark.parametrize("damage", ["missing", "noise", "empty record"])
def test_a_file_that_is_missing_or_damaged_is_named(own_run, name, damage):
    file = own_run / name
    if damage == "missing":
        file.unlink()
    elif damage == "noise":
        file.write_bytes(b"\xff\x00 nothing of use")
    elif file.suffix == ".json":
        file.write_text("{}")
    else:
        pd.DataFrame({"x": [1]}).to_parquet(file)
    with pytest.raises(DataError) as caught:
        report(own_run)
    assert str(file) in caught.value.what
    assert not (own_run / "report.html").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="is not a run folder"):
        report(tmp_path / "none")


def test_a_place_that_cannot_be_written_is_an_output_error(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        report(run, out=tmp_path / "file" / "report.html")


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (0.125, True, "+0.12"),
        (-0.5, True, "\u22120.50"),
        (-0.001, False, "0.00"),
        (-0.001, True, "+0.00"),
        (1.0, False, "1.00"),
    ],
)
def test_numbers_have_a_true_minus_and_no_negative_zero(value, signed, text):
    assert number(value, signed=signed) == text


def test_an_interval_without_bounds_says_why():
    nan = float("nan")
    assert span(Interval(0.5, nan, nan, 0, 0, "one patient")) == "0.50 (no interval: one patient)"
    assert span(Interval(nan, nan, nan, 0, 0, "no image")) == "undefined (no image)"


@pytest.mark.slow
def test_the_run_made_by_hand_has_the_shape_of_a_real_one(run, finished_run):
    real = finished_run.folder
    for name in ("audit.json", "evaluation.json", "leakage.json", "model/model.json"):
        by_hand, by_train = (json.loads((folder / name).read_text()) for folder in (run, real))
        assert by_hand.keys() == by_train.keys(), name
    for part in ("training", "backbone", "preprocessing", "operating_points"):
        ours, theirs = (
            json.loads((folder / "model/model.json").read_text())[part] for folder in (run, real)
        )
        assert ours.keys() == theirs.keys(), part
    tables = [read_predictions(folder / "predictions.parquet").table for folder in (run, real)]
    assert set(tables[0]) <= set(tables[1])
    assert read(real / "report.html").one("p", class_="verdict").text.startswith("On 12 patients")


@pytest.mark.slow
def test_a_browser_shows_it_without_error_request_or_overflow(run, tmp_path):
    path = report(run, out=tmp_path / "report.html")
    errors, requests, width, shown = browse(path)
    assert errors == []
    assert requests == [path.as_uri()]
    assert width <= 320
    assert shown
