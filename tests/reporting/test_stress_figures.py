"""The stress drawing: a panel for each damage, in words and on paper, the same every time."""

import re
import xml.etree.ElementTree as ET

import pytest

from lobule.evaluation.intervals import Interval
from lobule.inference.stress import Harm, Stress
from lobule.reporting.stress_figures import stress_figure

NAN = float("nan")


def about(value):
    return Interval(value, value - 0.1, min(1, value + 0.05), 10, 0)


def harms(damage, unit, values, moderate):
    return [
        Harm(damage, unit, severity, severity == moderate, level, figure, value, about(0))
        for severity, value in values.items()
        for level in ("image", "patient")
        for figure in ("roc_auc", "accuracy")
    ]


def made(*rows):
    figures = {"roc_auc": about(0.9), "accuracy": about(0.8)}
    undamaged = {"image": figures, "patient": figures}
    return Stress(("benign", "malignant"), "m", 60, 12, True, undamaged, rows)


BLUR = harms("blur", "px", {1: about(0.85), 4: about(0.6)}, 1)
NOISE = harms("noise", "grey levels", {2: about(0.88), 5: about(0.8), 20: about(0.7)}, 5)
BOTH = made(*BLUR, *NOISE)


def texts(svg):
    return ["".join(element.itertext()).strip() for element in ET.fromstring(svg).iter("text")]


def curves(svg):
    """Return the points of each thick line."""
    paths = re.findall(r'<path d="([^"]+)"[^>]*stroke-width: 1.8', svg)
    return [[tuple(map(float, p)) for p in re.findall(r"([\d.]+) ([\d.]+)", d)] for d in paths]


def test_equal_input_gives_equal_bytes():
    assert stress_figure(BOTH) == stress_figure(BOTH)


def test_it_is_one_element_without_script_style_or_address():
    svg = stress_figure(BOTH)
    tags = {element.tag for element in ET.fromstring(svg).iter()}
    assert tags <= {"svg", "g", "defs", "path", "text", "use", "clipPath", "rect"}
    assert "http" not in svg


def test_colours_are_left_to_the_page():
    colours = re.findall(r"(?:fill|stroke): ([^;\"]+)", stress_figure(BOTH))
    assert colours
    assert {c for c in colours if not re.fullmatch(r"var\(--\w+\)|none", c)} == set()


def test_every_damage_has_a_panel_with_its_unit():
    shown = texts(stress_figure(BOTH))
    assert {"blur", "px", "noise", "grey levels", "image ROC AUC"} <= set(shown)


def test_words_tell_the_undamaged_the_moderate_and_the_worst():
    label = ET.fromstring(stress_figure(BOTH)).attrib["aria-label"]
    assert label == (
        "image ROC AUC by severity of damage; undamaged 0.900 (0.800 to 0.950). "
        "blur: 0.850 (0.750 to 0.900) at 1 px, 0.600 (0.500 to 0.650) at 4 px; "
        "noise: 0.800 (0.700 to 0.850) at 5 grey levels, 0.700 (0.600 to 0.750) at 20 grey levels."
    )


def test_curves_begin_undamaged_and_share_one_scale():
    blur, noise = curves(stress_figure(BOTH))
    assert (len(blur), len(noise)) == (3, 4)
    # both begin at the same height, and height is in proportion to what was lost
    assert blur[0][1] == noise[0][1]
    lost_by_blur, lost_by_noise = (points[-1][1] - points[0][1] for points in (blur, noise))
    assert lost_by_blur / lost_by_noise == pytest.approx(0.3 / 0.2, abs=0.01)


def test_the_level_is_chosen_and_named():
    shown = texts(stress_figure(BOTH, "patient"))
    assert "patient ROC AUC" in shown
    assert "image ROC AUC" not in shown


def test_two_drawings_on_a_page_share_no_identifier():
    first, second = (
        set(re.findall(r' id="([^"]+)"', stress_figure(BOTH, level)))
        for level in ("image", "patient")
    )
    assert first
    assert not first & second


def test_an_undefined_figure_leaves_a_gap_and_a_reason():
    undefined = Interval(NAN, NAN, NAN, 10, 10, "undefined on these rows")
    svg = stress_figure(made(*harms("blur", "px", {1: about(0.8), 4: undefined}, 1)))
    assert "undefined: undefined on these rows at 4 px" in svg
    assert len(curves(svg)[0]) == 2


def test_a_name_is_only_ever_text():
    svg = stress_figure(made(*harms("$x$ <b>", "a\nb", {1: about(0.8)}, 1)))
    assert {"$x$ <b>", "a\\nb"} <= set(texts(svg))
