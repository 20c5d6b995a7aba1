"""Heat maps as pictures: colours, legend, lines and what is written into them."""

from __future__ import annotations

import io

import matplotlib as mpl
import numpy as np
from PIL import Image

from lobule.explain.maps import Map
from lobule.explain.overlay import coloured, contours, legend, limits, overlay, sheet, to_png, unit

RAMP = Map(np.linspace(-2, 3, 24, dtype=np.float32).reshape(4, 6), "cam", 1, 0.5)


def viridis(share):
    return np.array(mpl.colormaps["viridis"](share, bytes=True)[:3])


def test_the_ends_of_the_map_have_the_ends_of_viridis():
    picture = coloured(RAMP, 60, 40)
    assert picture.shape == (40, 60, 3)
    assert np.array_equal(picture[0, 0], viridis(0.0))
    assert np.array_equal(picture[-1, -1], viridis(1.0))
    bar = legend(RAMP, 100)
    assert np.array_equal(bar[0, 0], viridis(0.0))
    assert np.array_equal(bar[0, -1], viridis(1.0))
    assert limits(RAMP) == (-2.0, 3.0)


def test_a_flat_map_is_one_colour_and_has_no_lines():
    flat = Map(np.full((3, 3), 7, np.float32), "gradcam", 0, 0.0)
    assert len(np.unique(coloured(flat, 9, 9).reshape(-1, 3), axis=0)) == 1
    assert contours(flat, 9, 9)[..., 3].max() == 0


def test_opacity_0_shows_the_photograph_and_1_the_map():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    assert np.array_equal(overlay(image, RAMP, opacity=0), image)
    assert np.array_equal(overlay(image, RAMP, opacity=1), coloured(RAMP, 60, 40))


def test_lines_lie_where_the_evidence_has_their_level():
    lines = contours(RAMP, 240, 160)
    drawn = lines[..., 3] > 0
    over = RAMP.over(240, 160)
    levels = np.quantile(over, (0.8, 0.9, 0.95))
    assert drawn.any()
    nearest = np.abs(over[drawn][:, None] - levels).min(axis=1)
    # a line is some pixels wide, and the evidence rises by 5 over the height
    assert nearest.max() < 0.35


def test_a_sheet_holds_the_photograph_a_legend_and_the_notice():
    image = np.full((60, 400, 3), 200, np.uint8)
    page = sheet(image, RAMP, said="evidence for malignant " * 20, notice="Research use only.")
    assert page.shape[1] == 400
    assert page.shape[0] > 60
    assert np.array_equal(page[:60], overlay(image, RAMP))
    assert (page[62:].min(axis=2) < 100).any()


def test_what_is_said_travels_in_the_file():
    data = to_png(coloured(RAMP, 20, 10), {"model": "näme", "notice": "Research use only."})
    with Image.open(io.BytesIO(data)) as image:
        assert image.text == {"model": "näme", "notice": "Research use only."}


def test_only_cam_has_a_unit():
    assert unit(RAMP) == "log-odds"
    assert "no unit" in unit(Map(RAMP.evidence, "gradcam", 1, 0.0))
