"""A tuned network: how its fits went, how it stands beside its frozen self, and what is not its."""

import base64
import io
import json
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from pages import browse, evaluation_of, figures, read, rows_of
from PIL import Image

from lobule.errors import DataError
from lobule.reporting.fits import Epoch, Fit, Training
from lobule.reporting.report import report
from lobule.reporting.saved import read_run
from lobule.reporting.training_figures import training_figure
from lobule.reporting.verdict import number, span

FOLDS = ["fold 1", "fold 2", "fold 3"]


@pytest.fixture(scope="module")
def page(tuned_run, tmp_path_factory):
    return read(report(tuned_run, out=tmp_path_factory.mktemp("page") / "report.html"))


@pytest.fixture
def own_run(tuned_run, tmp_path):
    """A tuned run that a test may spoil."""
    return Path(shutil.copytree(tuned_run, tmp_path / "run"))


def edit(file, change):
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))


# ---- the section


def test_the_section_is_there_only_where_a_network_was_tuned(page, run, tmp_path):
    assert page.one("section", id="training").one("h2").text == "Training"
    assert [a.text for a in page.one("nav").all("a")][-5:-3] == ["Training", "Model card"]
    other = read(report(run, out=tmp_path / "report.html"))
    assert not list(other.all(id="training"))
    assert "Training" not in other.one("nav").text
    assert "tuned" not in other.text.lower()


def test_every_fit_has_a_row_of_its_counts_and_of_the_epoch_it_kept(page):
    table = dict(rows_of(page.one(id="training").one("table")))
    assert list(table)[:4] == [*FOLDS, "final"]
    first, final = table["fold 1"], table["final"]
    counts = [cell.text for cell in first[:4]]
    assert counts == ["21 images6 patients", "8 images2 patients", "5", "1"]
    assert [cell.text for cell in final[2:4]] == ["6", "4"]
    # fit k keeps epoch k, with a loss of 0.3 + k / 100 and a ROC AUC of 0.9 - k / 100
    assert figures(first[4]) + figures(first[5]) == pytest.approx([0.31, 0.89])
    assert figures(final[4]) + figures(final[5]) == pytest.approx([0.34, 0.86])
    assert [table[name][6].text for name in (*FOLDS, "final")] == ["early"] * 3 + ["all epochs"]


def test_the_honest_figure_stands_beside_the_optimistic_ones(page, tuned_run):
    auc = evaluation_of(tuned_run).levels["image"].metrics["roc_auc"]
    section = page.one(id="training")
    row = dict(rows_of(section.one("table")))["beside these: the model on images out of fold"]
    assert figures(row[0]) == [auc.estimate, auc.low, auc.high]
    text = section.text
    assert "chosen by loss on validation patients only, taken from the training patients" in text
    assert "tend to be too good" in text
    assert f"the image ROC AUC of images out of fold: {span(auc)}." in text
    assert "Computed on cpu, precision bf16." in text


def test_of_a_held_out_part_the_figure_beside_is_that_of_the_part(make_run, tmp_path):
    run = make_run(tmp_path, tuned=True, held_out=True)
    section = read(report(run)).one(id="training")
    auc = evaluation_of(run).levels["image"].metrics["roc_auc"]
    assert f"the image ROC AUC of the held-out part: {span(auc)}." in section.text
    for caption in (*section.all("caption"), section.one(class_="plot").one("figcaption")):
        assert "24 images, 6 patients" in caption.text


def test_where_patients_are_unknown_the_fits_say_so(make_run, tmp_path):
    run = make_run(
        tmp_path, tuned=True, patients_known=False, allow=("patients-unknown",), findings=()
    )
    page = read(report(run))
    section = page.one(id="training")
    assert "validation images only, taken from the training images of that fit (patients" in (
        section.text
    )
    assert not re.search(r"\d patients", section.text)
    assert "21 imagespatients unknown" in section.one("table").text
    assert "on 3 validation images (patients unknown)" in page.one(id="card").text


def test_the_state_before_the_first_step_may_be_the_best(own_run):
    file = own_run / "training" / "training.json"
    edit(file, lambda record: record["fits"][0].update(selected_epoch=0))
    row = dict(rows_of(read(report(own_run)).one(id="training").one("table")))["fold 1"]
    assert row[3].text == "0the start"
    assert row[5].text == "undefined"


def test_the_sheet_of_augmented_views_is_inside_the_page(page, tuned_run):
    image = page.one("figure", class_="sheet").one("img")
    kind, _, data = image.attributes["src"].partition(",")
    assert kind == "data:image/jpeg;base64"
    shown = Image.open(io.BytesIO(base64.b64decode(data)))
    given = Image.open(tuned_run / "training" / "augmented.jpg")
    assert shown.size == given.size == (350, 138)
    assert image.attributes["width"] == "350"
    difference = np.asarray(shown).astype(int) - np.asarray(given).astype(int)
    assert np.abs(difference).mean() < 3
    assert "augmented views" in image.attributes["alt"]


def test_a_sheet_that_is_too_large_is_made_smaller(own_run):
    Image.new("RGB", (2800, 700)).save(own_run / "training" / "augmented.jpg")
    assert read_run(own_run).training.preview[1:] == (1400, 350)


# ---- the drawings


def line(epoch, **changes):
    figures = {"train_loss": 0.5, "train_accuracy": 0.75, "validation_loss": 0.6,
               "validation_accuracy": 0.7, "validation_roc_auc": 0.8}  # fmt: skip
    return Epoch(epoch, **(figures | changes))


def fit(name, kept, history):
    return Fit(name, name, 9, 3, 4, 2, kept, len(history), "early", tuple(history))


FITS = (
    fit("fold 1", 1, [line(0, train_loss=None, train_accuracy=None), line(1, train_loss=0.4)]),
    fit("final", 2, [line(1), line(2, train_loss=0.25, validation_loss=0.35)]),
)


@pytest.mark.parametrize("quantity", ["loss", "accuracy"])
def test_a_drawing_is_one_element_in_the_colours_of_the_page(quantity):
    svg = training_figure(FITS, quantity)
    assert training_figure(FITS, quantity) == svg
    texts = {"".join(e.itertext()).strip() for e in ET.fromstring(svg).iter("text")}
    assert {"training", "validation", "epoch kept", "epoch", quantity} <= texts
    colours = re.findall(r"(?:fill|stroke): ([^;\"]+)", svg)
    assert {c for c in colours if not re.fullmatch(r"var\(--\w+\)|none", c)} == set()
    ids = re.findall(r' id="([^"]+)"', svg)
    assert ids
    assert all(name.startswith(f"training-{quantity}-") for name in ids)


def test_a_drawing_tells_where_each_line_begins_and_ends_and_what_was_kept():
    label = ET.fromstring(training_figure(FITS, "loss")).attrib["aria-label"]
    assert label == (
        "Loss by epoch in training and validation. fold 1: training from 0.40 to 0.40, "
        "validation from 0.60 to 0.60, epoch 1 kept with 0.60 in validation; final: training "
        "from 0.50 to 0.25, validation from 0.60 to 0.35, epoch 2 kept with 0.35 in validation."
    )


def test_the_final_fit_is_bold_and_training_is_dashed():
    svg = training_figure(FITS, "loss")
    drawn = re.findall(r'<path [^>]*style="fill: none;([^"]*)"', svg)
    lines = [style for style in drawn if "--c0" in style or "--c1" in style]
    widths = [float(re.search(r"stroke-width: ([\d.]+)", style)[1]) for style in lines[:4]]
    assert widths == [0.9, 0.9, 2.2, 2.2]
    assert ["stroke-dasharray" in style for style in lines[:4]] == [True, False, True, False]
    assert ["--c0" in style for style in lines[:4]] == [True, False, True, False]


def test_the_page_has_a_drawing_of_loss_and_one_of_accuracy(page):
    section = page.one(id="training")
    drawings = [svg.attributes["aria-label"] for svg in section.all("svg", class_="drawing")]
    assert [label.split()[0] for label in drawings] == ["Loss", "Accuracy"]
    assert all(label.count("kept with") == 4 for label in drawings)
    captions = [node.text for node in section.all("figcaption")]
    assert sum("48 images, 12 patients" in text for text in captions) == 2
    every_id = [n.attributes["id"] for n in page.all() if "id" in n.attributes]
    assert len(every_id) == len(set(every_id))


# ---- beside its frozen self


def test_frozen_features_and_the_gain_over_them_stand_beside_the_model(page, tuned_run):
    evaluation = evaluation_of(tuned_run)
    rows = dict(rows_of(page.one(id="results").one("table")))
    frozen = evaluation.baselines["frozen features"]
    gain = evaluation.gain["frozen features"]
    for i, level in enumerate(("image", "slide", "patient")):
        auc = frozen[level].metrics["roc_auc"]
        cell = rows["baseline: frozen features"][i]
        assert figures(cell) == [auc.estimate, auc.low, auc.high]
        shown = figures(rows["gain of the model over frozen features"][i])
        assert shown == [gain[level].estimate, gain[level].low, gain[level].high]
    assert "gain of the model over colour statistics" in rows
    caption = page.one(id="results").one("caption").text
    assert '"frozen features" is a linear head' in caption
    roc = page.one(id="curves").one("svg").attributes["aria-label"]
    curves = re.findall(r"(\w[\w ]*): sensitivity", roc.partition("Operating")[0])
    assert curves == ["model", "colour statistics", "frozen features"]


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.02, 0.3, "Tuning the network gains +0.10 (0.02 to 0.30) over the same network frozen."),
        (
            -0.3,
            0.3,
            "That tuning the network helps is not shown at this number of patients: +0.10 "
            "(\u22120.30 to 0.30).",
        ),
        (
            -0.3,
            -0.1,
            "Tuning made it worse than the same network frozen: +0.10 (\u22120.30 to \u22120.10).",
        ),
        (None, None, "Against the same network frozen its gain is +0.10 (no interval: few)."),
    ],
)
def test_tuning_is_praised_only_where_the_interval_of_its_gain_leaves_out_zero(
    own_run, low, high, words
):
    told = {"estimate": 0.1, "low": low, "high": high, "reason": "few" if low is None else None}
    edit(
        own_run / "evaluation.json",
        lambda record: record["gain"]["frozen features"]["image"].update(told),
    )
    text = read(report(own_run)).one("p", class_="verdict").text
    assert text.endswith(words)
    assert "colour statistics alone" in text


def test_leakage_of_the_frozen_backbone_is_not_called_that_of_the_model(page, tuned_run):
    frozen = evaluation_of(tuned_run).baselines["frozen features"]["image"].metrics["roc_auc"]
    assert (
        "With the same backbone, frozen, a random split of the same images would have claimed "
        f"0.98 (0.95 to 0.99), where patient folds give {span(frozen)}, which is"
    ) in page.one("p", class_="verdict").text
    section = page.one(id="leakage")
    assert "The same model" not in section.text
    assert "The same backbone, frozen, with a linear head fitted and scored 5 folds" in section.text
    assert "these are not figures of the model" in section.text
    for caption in (section.one("caption"), section.one("figcaption")):
        assert "of the same backbone, frozen" in caption.text


def test_leakage_of_the_model_itself_is_still_said_to_be(run, tmp_path):
    page = read(report(run, out=tmp_path / "report.html"))
    assert "The same model, trained and scored 5 folds" in page.one(id="leakage").text
    assert "frozen" not in page.one(id="leakage").text + page.one("p", class_="verdict").text


def test_the_card_and_the_record_are_those_of_a_tuned_network(page):
    card = {row.one("dt").text: row.one("dd").text for row in page.one(id="card").all("div")}
    assert card["Network"].startswith(
        "tf_efficientnet_lite0, tuned from somewhere (licence Apache-2.0); epoch 4 of 6 chosen by "
        "loss on 3 validation patients"
    )
    assert card["Head"] == "batch norm and linear layer, trained with the network"
    assert "Features" not in card
    record = {row.one("dt").text: row.one("dd").text for row in page.one(id="record").all("div")}
    assert record["Tuning: epochs"] == "6"
    assert record["Tuning: layer decay"] == "0.8"
    assert "Recipe: tuning" not in record


def test_three_classes_can_be_tuned_too(make_run, tmp_path):
    run = make_run(tmp_path, classes=("benign", "in situ", "malignant"), tuned=True)
    page = read(report(run))
    gain = evaluation_of(run).gain["frozen features"]["image"]
    assert number(gain.estimate, signed=True) in page.one("p", class_="verdict").text
    assert len(list(page.one(id="training").all("svg", class_="drawing"))) == 2


# ---- files that were altered


@pytest.mark.parametrize("name", ["training.json", "fold-2/metrics.jsonl", "augmented.jpg"])
@pytest.mark.parametrize("damage", ["missing", "noise"])
def test_a_file_that_is_missing_or_damaged_is_named(own_run, name, damage):
    file = own_run / "training" / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(b"\xff\x00 nothing of use")
    if (name, damage) == ("training.json", "missing"):
        # then it is not known that anything was tuned
        assert read_run(own_run).training is None
        return
    with pytest.raises(DataError) as caught:
        report(own_run)
    assert str(file) in caught.value.what
    assert not (own_run / "report.html").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema": "lobule.training/9"}, "not a training record: schema 'lobule.training/9'"),
        ({"fits": []}, "its fits are called []"),
        ({"select": None}, "'select' is None, not text"),
        ({"device": ["cpu"]}, "'device' is ['cpu'], not text"),
    ],
)
def test_a_training_record_of_no_use_is_refused(own_run, change, told):
    file = own_run / "training" / "training.json"
    edit(file, lambda record: record.update(change))
    with pytest.raises(DataError) as caught:
        read_run(own_run)
    assert str(file) in caught.value.what
    assert told in caught.value.what


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"folder": "../../other"}, "not the name of a folder beside it"),
        ({"folder": ".."}, "not the name of a folder beside it"),
        ({"folder": ""}, "not the name of a folder beside it"),
        ({"stopped": "<b>late</b>"}, "not one of early, all epochs"),
        ({"n_train_images": -1}, "not a whole number"),
        ({"epochs": True}, "not a whole number"),
        ({"n_validation_patients": 2.5}, "not a whole number"),
        ({"epochs": 10**30}, "not a whole number"),
        ({"name": "final"}, "one or more of different names"),
    ],
)
def test_a_fit_that_makes_no_sense_is_refused(own_run, change, told):
    edit(
        own_run / "training" / "training.json",
        lambda record: record["fits"][0].update(change),
    )
    with pytest.raises(DataError, match=r"training\.json") as caught:
        read_run(own_run)
    assert told in caught.value.what


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[1]", "line 3: it is a list, not a record"),
        ('{"epoch": 3}', "line 3: 'train_loss'"),
        ("{nothing", "line 3: "),
        ({"epoch": 2}, "its epochs do not rise"),
        ({"epoch": 3, "validation_loss": float("nan")}, "line 3: NaN is no number of JSON"),
        ({"epoch": 3, "train_loss": float("inf")}, "line 3: Infinity is no number of JSON"),
        ({"epoch": 3, "train_loss": -0.1}, "line 3: 'train_loss' is -0.1, out of its range"),
        ({"epoch": 3, "train_loss": 10**400}, "out of its range"),
        ({"epoch": 3, "validation_roc_auc": 1.01}, "'validation_roc_auc' is 1.01, out of its"),
        ({"epoch": 3, "validation_accuracy": "0.5"}, "'validation_accuracy' is '0.5', out of"),
        ({"epoch": -1}, "line 3: 'epoch' is -1, not a whole number"),
        ({"epoch": 3}, "it has no line of epoch 7, which was selected"),
    ],
)
def test_a_line_of_metrics_that_makes_no_sense_is_refused(text, told):
    good = vars(line(1))
    lines = [json.dumps(good), json.dumps(good | {"epoch": 2})]
    lines.append(text if isinstance(text, str) else json.dumps(good | text))
    with pytest.raises(DataError) as caught:
        fit("fold 1", 7, []).with_history("\n".join(lines))
    assert told in caught.value.what


def test_names_in_the_files_of_training_are_only_ever_text(own_run):
    evil = '<img src=x onerror="alert(1)">\x1b[2J'
    file = own_run / "training" / "training.json"

    def spoil(record):
        record["fits"][0]["name"] = evil
        record["device"] = evil
        record["select"] = evil

    edit(file, spoil)
    path = report(own_run)
    page = read(path)
    assert all(not key.startswith("on") for node in page.all() for key in node.attributes)
    assert page.one(id="training").text.count('<img src=x onerror="alert(1)">\\x1b[2J') == 3
    assert "\x1b" not in path.read_text()


def test_further_fields_are_passed_over():
    record = {
        "schema": "lobule.training/1", "select": "roc_auc", "device": "cuda", "precision": "fp32",
        "seconds": 3,
        "fits": [{"name": "final", "folder": "final", "n_train_images": 1, "n_train_patients": 1,
                  "n_validation_images": 1, "n_validation_patients": 1, "selected_epoch": 1,
                  "epochs": 1, "stopped": "early", "steps": 5, "device": "cuda"}],
    }  # fmt: skip
    training = Training.from_json(record)
    assert training.fits[0].final
    text = json.dumps(vars(line(1)) | {"step": 5, "lr": None, "other": "x"})
    assert training.fits[0].with_history(text).selected == line(1)


# ---- in a browser


@pytest.mark.slow
def test_a_browser_shows_it_without_error_request_or_overflow(tuned_run, tmp_path):
    path = report(tuned_run, out=tmp_path / "report.html")
    errors, requests, width, shown = browse(path)
    assert errors == []
    assert requests == [path.as_uri()]
    assert width <= 320
    assert shown
