"""The page of a trial at another site: its figures, what is not known, and its drawings."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from pages import browse, figures, read, rows_of
from scipy.special import expit

from lobule.evaluation.drift import score_drift
from lobule.evaluation.evaluate import evaluate
from lobule.evaluation.intervals import Interval
from lobule.evaluation.local import LocalGain, local_gains
from lobule.evaluation.predictions import Predictions
from lobule.inference.external import External, Photographs
from lobule.reporting.external import external_report
from lobule.reporting.external_figures import drift_figure, gains_figure
from lobule.reporting.external_words import verdict

AT = np.linspace(0, 1, 101)
SECTIONS = ["verdict", "unknown", "results", "scores", "local", "photographs"]


def trial(*, patients=True, labels=True, strength=2.0, offset=0.0, classes=("benign", "malignant")):
    """A trial of 24 patients, 3 images each, put together without a model."""
    rng = np.random.default_rng(1)
    y = np.repeat(np.arange(24) % 2, 3)
    p = expit(strength * (y - 0.5) + rng.normal(0, 1, 72) + offset)
    text = pd.array([pd.NA] * 72, dtype="string")
    table = pd.DataFrame({
        "path": [f"{i:02d}.tif" for i in range(72)],
        "label": pd.array(np.array(classes)[y] if labels else text, dtype="string"),
        "patient": pd.array(np.repeat([f"P{i:02d}" for i in range(24)], 3), dtype="string")
        if patients else text,
        "slide": text, "magnification": pd.array([pd.NA] * 72, dtype="Float64"), "subtype": text,
        f"prob_{classes[0]}": 1 - p, f"prob_{classes[1]}": p,
        "threshold": 0.4, "threshold_patient": 0.45, "source": "external images", "model": "m-1",
    })  # fmt: skip
    predictions = Predictions(table, classes)
    target = ("sensitivity", 0.95)
    drift = score_drift(p, predictions.groups.tolist(), AT, threshold=0.4, source="pooled scores",
                        draws=100, seed=0)  # fmt: skip
    evaluation = evaluate(predictions, draws=100) if labels else None
    if evaluation is not None and not patients:
        evaluation = replace(evaluation, levels={"image": evaluation.levels["image"]})
    return External(
        classes=classes,
        model="m-1",
        data_hash="ab" * 32,
        n_images=72,
        n_labelled=72 if labels else 0,
        n_patients=24 if patients else 72,
        patients_known=patients,
        photographs=Photographs((100, 200), (80, 160), (".jpg", ".tif"), (), 350),
        failed={},
        seen=0,
        recorded="0.900 (0.800 to 0.950), pooled out-of-fold predictions",
        evaluation=evaluation,
        drift=drift,
        refused=None,
        target=target,
        gains=local_gains(predictions, target=target, choices=8) if labels else (),
        predictions=predictions,
    )


@pytest.fixture(scope="module")
def found():
    return trial()


def page_of(found, folder):
    external_report(found, folder / "report.html")
    return read(folder / "report.html")


@pytest.fixture(scope="module")
def page(found, tmp_path_factory):
    return page_of(found, tmp_path_factory.mktemp("page"))


def texts(svg):
    return ["".join(element.itertext()).strip() for element in ET.fromstring(svg).iter("text")]


# ---- the page


def test_sections_stand_in_order(page):
    assert [s.attributes["id"] for s in page.all("section")] == SECTIONS
    assert [h.text for h in page.all("h1")] == ["Does the model hold at another site?"]


def test_what_cannot_be_known_stands_before_the_figures_in_full(page, found):
    assert [li.text for li in page.one(id="unknown").all("li")] == found.cannot_know


def test_every_figure_is_the_one_in_the_record(page, found):
    table = page.one("table", class_="results")
    shown = {name: [figures(cell) for cell in cells] for name, cells in rows_of(table) if cells}
    image, patient = (found.evaluation.levels[level] for level in ("image", "patient"))
    for name, metric in (("ROC AUC", "roc_auc"), ("Brier score (lower is better)", "brier")):
        values = [level.metrics[metric] for level in (image, patient)]
        assert shown[name] == [[v.estimate, v.low, v.high] for v in values]
    wanted = [level.decisions[-1].metrics["sensitivity"] for level in (image, patient)]
    assert shown["sensitivity"] == [[v.estimate, v.low, v.high] for v in wanted]


def test_every_gain_stands_in_a_table(page, found):
    data = {cell.attributes["value"] for cell in page.one(id="local").all("data")}
    for gain in found.gains:
        value = gain.difference
        assert {str(v) for v in (value.estimate, value.low, value.high)} <= data
    assert "better in" in page.one(id="local").text
    assert "As often as 8 times" in page.one(id="local").text
    assert "labelled patients" in page.one(id="local").text


def test_scores_here_and_there_stand_side_by_side(page, found):
    rows = dict(rows_of(page.one(id="scores").one("table")))
    assert rows["mean"][0].text == f"{found.drift.mean_there:.3f}"
    mean = found.drift.mean_here
    assert figures(rows["mean"][1]) == [mean.estimate, mean.low, mean.high]
    assert "pooled scores" in page.one(id="scores").text


def test_where_patients_are_unknown_the_page_has_images_only(tmp_path):
    page = page_of(trial(patients=False), tmp_path)
    heads = [th.text for th in page.one("table", class_="results").one("thead").all("th")]
    assert heads == ["figure", "per image"]
    assert "No figures per patient: patients unknown." in page.one(id="results").text
    assert "labelled images" in page.one(id="local").text
    assert "Who the patients are" in page.one(id="unknown").text


def test_without_labels_only_scores_are_shown(tmp_path):
    page = page_of(trial(labels=False), tmp_path)
    assert [s.attributes["id"] for s in page.all("section")] == [
        "verdict", "unknown", "scores", "photographs",
    ]  # fmt: skip
    assert "cannot be known" in page.one(id="verdict").text
    assert len(list(page.all("svg"))) == 1


def test_a_model_without_scores_and_a_gate_and_files_left_out_are_told(found, tmp_path):
    odd = replace(
        found, drift=None, refused=Interval(0.25, 0.1, 0.4, 100, 0), gains=(),
        failed={"a\nb.tif": "cannot read it"}, seen=None,
    )  # fmt: skip
    page = page_of(odd, tmp_path)
    assert "keeps no scores to compare with" in page.one(id="scores").text
    assert "Turned away by the model's own gate: 0.250" in page.one(id="scores").text
    assert "Too few labelled cases" in page.one(id="local").text
    assert "a\\nb.tif: cannot read it" in page.one(id="photographs").text


def test_hostile_names_are_text(tmp_path):
    page = page_of(trial(classes=("benign", "<script>alert(1)</script>")), tmp_path)
    assert not list(page.all("script"))
    assert "<script>alert(1)</script>" in page.text


def test_the_same_trial_gives_the_same_bytes(found, tmp_path):
    for name in ("a.html", "b.html"):
        external_report(found, tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


@pytest.mark.slow
def test_a_browser_shows_it_without_error_request_or_overflow(found, tmp_path):
    path = tmp_path / "report.html"
    external_report(found, path)
    errors, requests, width, shown = browse(path)
    assert errors == []
    assert requests == [path.as_uri()]
    assert width <= 320
    assert shown


# ---- what it says


def said(found):
    return " ".join(verdict(found))


def test_a_model_that_holds_is_said_to_and_one_that_does_not_is_not():
    # of a model that ranks, held to what it reaches with room to spare
    good, bad = (
        said(replace(trial(strength=1), target=("sensitivity", 0.5))),
        said(trial(strength=0)),
    )
    assert "that holds here" in good
    assert "better than chance is not shown" not in good
    assert "better than chance is not shown" in bad
    assert "that is missed here" in bad
    assert "The model's own record says 0.900" in bad


def test_where_none_was_wrong_nothing_is_promised():
    assert "none was wrong here, which does not say" in said(trial(strength=20))


def test_probabilities_that_are_too_low_are_said_to_be():
    assert "Malignant is more frequent than they say" in said(trial(offset=-3))
    assert "Malignant is less frequent than they say" in said(trial(offset=3))


def test_images_that_were_trained_on_are_told_first(found):
    assert next(verdict(replace(found, seen=7))).startswith("7 of these images the model was")


def gain(k, better, *, update="line", figure="brier"):
    return LocalGain(k, update, figure, 0.3, 0.2, Interval(-0.1, -0.2, 0.05, 8, 0), better)


@pytest.mark.parametrize(
    ("better", "told"),
    [
        ((0.96, 0.99, 1.0), "in 95% or more at any number tried"),
        ((0.99, 0.9, 0.95), "in 95% or more from 20 on"),
        ((0.7, 0.96, 0.99), "in 95% or more from 10 on"),
        ((1.0, 1.0, 0.9), "at no number tried was it better in 95% of them"),
    ],
)
def test_an_update_helps_from_the_number_on_after_which_it_always_does(found, better, told):
    gains = tuple(gain(k, b) for k, b in zip((5, 10, 20), better, strict=True))
    text = said(replace(found, gains=gains))
    assert told in text
    assert "Brier score from 0.30 to 0.20 with 20 patients" in text
    assert f"better in {better[-1]:.0%} of the choices" in text


# ---- the drawings


def test_the_histogram_of_scores_has_words_and_no_colour_of_its_own(found):
    score = found.predictions.probabilities()[:, 1]
    svg = drift_figure(found.drift, score, meaning="malignant")
    assert svg == drift_figure(found.drift, score, meaning="malignant")
    label = ET.fromstring(svg).attrib["aria-label"]
    assert f"mean {found.drift.mean_there:.3f}, median {found.drift.there[50]:.3f}" in label
    assert {"here", "threshold", "probability of malignant"} <= set(texts(svg))
    colours = re.findall(r"(?:fill|stroke): ([^;\"]+)", svg)
    assert {c for c in colours if not re.fullmatch(r"var\(--\w+\)|none", c)} == set()


def test_the_gain_has_a_panel_a_figure_and_names_its_updates(found):
    rows = [g for g in found.gains if g.lower_is_better]
    svg = gains_figure(rows, name="gain")
    assert {"temperature", "slope and intercept", "class shares alone"} <= set(texts(svg))
    shown = " ".join(texts(svg))
    for name in ("log loss", "Brier score", "calibration error", "lower is better"):
        assert name in shown
    label = ET.fromstring(svg).attrib["aria-label"]
    last = next(g for g in rows if (g.k, g.update, g.figure) == (10, "line", "brier"))
    assert f"slope and intercept, Brier score: {last.difference.told()}" in label


def test_two_drawings_on_a_page_share_no_identifier(page):
    named = [n.attributes["id"] for n in page.all() if "id" in n.attributes]
    assert len(named) == len(set(named))
