"""Drawings say in words what they show, share no name, and come out the same every time."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import precision_recall_curve, roc_curve

from lobule.evaluation.decision_curve import decision_curve
from lobule.evaluation.intervals import Interval, patient_weights
from lobule.evaluation.predictions import Predictions
from lobule.reporting.figures import (
    BAND_DRAWS,
    Curve,
    decision_curve_figure,
    leakage_figure,
    precision_recall_figure,
    reliability_figure,
    risk_coverage_figure,
    roc_band,
    roc_figure,
)

RNG = np.random.default_rng(3)
Y = RNG.integers(0, 2, size=60)
SCORE = np.clip(0.5 + 0.3 * (Y - 0.5) + 0.2 * RNG.normal(size=60), 0, 1)
PATIENT = [f"p{i // 5}" for i in range(60)]
MODEL = Curve("model", Y, SCORE)
COLOUR = Curve("colour", Y, 1 - SCORE, baseline=True)
AUC = {
    "image": Interval(0.98, 0.95, 0.99, 10, 0),
    "slide": Interval(0.9, 0.8, 0.95, 10, 0),
    "patient": Interval(0.7, 0.45, 0.9, 10, 0),
}
LABELS = {"image": "random images", "slide": "slides", "patient": "patients"}

CURVE = decision_curve(Y, SCORE, PATIENT, draws=40, seed=0)
UNITS = Predictions(
    pd.DataFrame({
        "path": [f"{i}.png" for i in range(60)], "label": np.array(["a", "b"])[Y],
        "patient": PATIENT, "prob_a": 1 - SCORE, "prob_b": SCORE,
    }),
    ("a", "b"),
)  # fmt: skip

DRAWINGS = {
    "leakage": lambda: leakage_figure(AUC, LABELS),
    "roc": lambda: roc_figure(
        [MODEL, COLOUR], name="roc", band=roc_band(Y, SCORE, PATIENT), point=(0.25, 0.8125)
    ),
    "pr": lambda: precision_recall_figure([MODEL, COLOUR], name="pr", point=(0.8, 0.7)),
    "reliability": lambda: reliability_figure([MODEL], name="reliability", unit="image"),
    "benefit": lambda: decision_curve_figure(CURVE, name="benefit"),
    "risk": lambda: risk_coverage_figure(UNITS, name="risk"),
}


def texts(svg):
    return ["".join(element.itertext()).strip() for element in ET.fromstring(svg).iter("text")]


@pytest.mark.parametrize("name", DRAWINGS)
def test_equal_input_gives_equal_bytes(name):
    assert DRAWINGS[name]() == DRAWINGS[name]()


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_is_one_element_without_script_style_or_address(name):
    svg = DRAWINGS[name]()
    tags = {element.tag for element in ET.fromstring(svg).iter()}
    assert tags <= {"svg", "g", "defs", "path", "text", "use", "clipPath", "rect"}
    assert "http" not in svg
    assert "DejaVu" not in svg


@pytest.mark.parametrize("name", DRAWINGS)
def test_colours_are_left_to_the_page(name):
    colours = re.findall(r"(?:fill|stroke): ([^;\"]+)", DRAWINGS[name]())
    assert colours
    assert {c for c in colours if not re.fullmatch(r"var\(--\w+\)|none", c)} == set()


def test_identifiers_of_drawings_do_not_meet_and_all_references_lead_somewhere():
    seen = set()
    for draw in DRAWINGS.values():
        svg = draw()
        ids = re.findall(r' id="([^"]+)"', svg)
        assert len(ids) == len(set(ids))
        assert not seen & set(ids)
        seen |= set(ids)
        assert set(re.findall(r'(?:url\(|href=")#([\w-]+)', svg)) == set(ids)


def test_the_leakage_drawing_names_every_estimate_and_bound_in_words_and_on_paper():
    svg = DRAWINGS["leakage"]()
    wanted = [
        "random images: 0.980 (0.950 to 0.990)",
        "slides: 0.900 (0.800 to 0.950)",
        "patients: 0.700 (0.450 to 0.900)",
    ]
    assert [text for text in texts(svg) if ":" in text] == wanted
    label = ET.fromstring(svg).attrib["aria-label"]
    for text in wanted:
        assert text.replace(":", "") in label


def test_an_undefined_row_is_left_out_and_a_missing_interval_is_no_line():
    nan = float("nan")
    auc = {"image": Interval(0.9, nan, nan, 0, 0, "one"), "patient": Interval(nan, nan, nan, 0, 0)}
    shown = [text for text in texts(leakage_figure(auc, LABELS)) if ":" in text]
    assert shown == ["random images: 0.900"]


def test_the_roc_drawing_tells_the_sensitivities_of_scikit_learn():
    x, sensitivity, _ = roc_curve(Y, SCORE, drop_intermediate=False)
    at = [f"{sensitivity[x <= rate].max():.2f} at {rate}" for rate in (0.1, 0.2, 0.5)]
    label = ET.fromstring(DRAWINGS["roc"]()).attrib["aria-label"]
    assert f"model: sensitivity {', '.join(at)}" in label
    assert "Operating point: sensitivity 0.81 at 0.25" in label
    assert {"model", "colour", "95% band", "operating point"} <= set(texts(DRAWINGS["roc"]()))


def test_the_operating_point_is_drawn_only_where_there_is_one():
    assert "operating point" not in texts(roc_figure([MODEL], name="r"))
    undefined = precision_recall_figure([MODEL], name="p", point=(0.8, float("nan")))
    assert "operating point" not in texts(undefined)


def test_the_precision_drawing_tells_prevalence():
    precision, recall, _ = precision_recall_curve(Y, SCORE)
    label = ET.fromstring(DRAWINGS["pr"]()).attrib["aria-label"]
    assert f"prevalence {Y.mean():.2f}" in label
    assert f"best precision {precision[recall >= 0.5].max():.2f}" in label


def test_the_reliability_drawing_tells_its_outer_bins():
    y, p = np.array([0, 0, 1, 1]), np.array([0.1, 0.1, 0.7, 0.7])
    svg = reliability_figure([Curve("model", y, p)], name="r", unit="patient")
    label = ET.fromstring(svg).attrib["aria-label"]
    assert "lowest bin said 0.10, was 0.00; highest bin said 0.70, was 1.00" in label
    assert "patients" in texts(svg)


def test_the_decision_curve_tells_model_and_acting_on_all():
    alt = ET.fromstring(DRAWINGS["benefit"]()).attrib["aria-label"]
    at = next(b for b in CURVE if b.threshold == 0.2)
    assert f"{at.model.estimate:.2f} at 0.2 (all: {at.all.estimate:.2f})" in alt
    assert {"act on all", "act on none"} <= set(texts(DRAWINGS["benefit"]()))


def test_the_risk_drawing_ends_at_the_error_rate_of_all():
    wrong = ((SCORE > 0.5) != Y).mean()
    alt = ET.fromstring(DRAWINGS["risk"]()).attrib["aria-label"]
    assert alt.endswith(f"{wrong:.2f} of 1.")


def test_the_band_is_the_quantile_of_the_curves_of_redrawn_patients():
    curves = []
    for weights in patient_weights(PATIENT, draws=BAND_DRAWS, seed=4):
        for weight in weights.astype(int):
            rows = np.repeat(np.arange(len(Y)), weight)
            if len(set(Y[rows])) == 2:
                x, sensitivity, _ = roc_curve(Y[rows], SCORE[rows])
                curves.append(np.interp(np.linspace(0, 1, 101), x, sensitivity))
    band = roc_band(Y, SCORE, PATIENT, seed=4)
    assert band == pytest.approx(np.quantile(curves, [0.025, 0.975], axis=0), abs=1e-9)


def test_no_two_of_six_classes_share_colour_and_dash():
    curves = [Curve(f"class {i}", np.roll(Y, i), SCORE) for i in range(6)]
    svg = roc_figure(curves, name="six")
    styles = re.findall(r"stroke(?:-dasharray: ([\d., ]+);[^\"]*stroke)?: var\((--c\d)\)", svg)
    lines = {colour for _, colour in styles}
    assert lines == {f"--c{i}" for i in range(6)}
    dashes = set(re.findall(r"stroke-dasharray: ([\d., ]+)", svg))
    assert len(dashes) >= 5


def test_two_baselines_differ_by_dash():
    frozen = Curve("frozen", Y, np.roll(SCORE, 3), baseline=True)
    svg = roc_figure([MODEL, COLOUR, frozen], name="two")
    grey = re.findall(
        r"stroke-dasharray: ([\d., ]+);[^\"]*stroke: var\(--muted\); stroke-width: 1.1", svg
    )
    assert len(set(grey)) == 2


@pytest.mark.parametrize(
    "label",
    [
        '</text><script>alert("1")</script>',
        "$\\frac{1}{2}$",
        "癌",
        "a\nb\x1b[31m",
        ' id="x" fill: #000010 url(#x)',
    ],
)
def test_a_class_name_is_only_ever_text(label):
    svg = roc_figure([Curve(label, Y, SCORE)], name="r")
    shown = label.encode("unicode_escape").decode() if "\n" in label else label
    assert shown.strip() in texts(svg)
    assert not list(ET.fromstring(svg).iter("script"))
