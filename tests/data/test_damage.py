"""Damages: nothing at severity 0, known values on small images, and worse the more severe."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from lobule.data import damage
from lobule.data.damage import DAMAGES
from lobule.data.tissue import draw_field, draw_stain
from lobule.errors import UsageError
from lobule.training import augment

sizes = array_shapes(min_dims=2, max_dims=2, max_side=24)
images = arrays(np.uint8, sizes.map(lambda size: (*size, 3)))
each = pytest.mark.parametrize("name", DAMAGES)


@pytest.fixture(scope="module")
def field():
    rng = np.random.default_rng(4)
    return draw_field(rng, stain=draw_stain(rng), malignant=True, width_px=140, height_px=92)[0]


def grey(*rows):
    return np.repeat(np.array(rows, dtype=np.uint8)[..., None], 3, axis=2)


# The laws


@each
@given(image=images)
@settings(max_examples=40, deadline=None)
def test_severity_0_is_the_image_to_the_bit(name, image):
    np.testing.assert_array_equal(DAMAGES[name].apply(image, 0), image)


@each
@given(image=images, share=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_shape_and_type_are_kept_and_the_image_is_not_written_to(name, image, share):
    before = image.copy()
    damaged = DAMAGES[name].apply(image, share * DAMAGES[name].levels[-1])
    assert (damaged.shape, damaged.dtype) == (image.shape, np.uint8)
    np.testing.assert_array_equal(image, before)


@each
def test_the_same_image_is_always_damaged_in_the_same_way(name, field):
    level = DAMAGES[name].moderate
    first, again = (DAMAGES[name].apply(image, level) for image in (field, field.copy()))
    np.testing.assert_array_equal(first, again)


@each
def test_the_more_severe_the_further_from_the_original(name, field):
    away = [
        np.abs(DAMAGES[name].apply(field, level).astype(int) - field).mean()
        for level in (0, *DAMAGES[name].levels)
    ]
    # of what is turned or made smaller only the middle stays where it was, so soon all is moved
    rising = away[:3] if name in ("rotation", "scale") else away
    assert (np.diff(rising) > 0).all()
    assert min(away[1:]) > 0.1


@each
def test_a_table_entry_has_rising_levels_one_of_them_moderate(name):
    entry = DAMAGES[name]
    assert entry.name == name
    assert entry.unit
    assert list(entry.levels) == sorted(set(entry.levels))
    assert entry.levels[0] > 0
    assert entry.moderate in entry.levels


@each
@pytest.mark.parametrize("level", [-0.1, 1000, float("nan")])
def test_a_severity_out_of_range_is_refused(name, level, field):
    with pytest.raises(UsageError, match=rf"'{name}' cannot have severity"):
        DAMAGES[name].apply(field, level)


# Known values


@given(image=images, level=st.floats(0, 0.5))
@settings(max_examples=40, deadline=None)
def test_stain_is_the_matrix_of_augmentation(image, level):
    factor = np.array([[1 + level, 1, 1 - level]], np.float32)
    matrix, _ = augment.stain_matrix(factor, np.zeros((1, 3), np.float32))
    density = -np.log10((image.astype(float) + 1) / 256)
    expected = 256 * 10 ** -(density @ matrix[0].astype(float)) - 1
    found = damage.stain(image, level)
    assert np.abs(found - np.clip(expected, 0, 255)).max() <= 0.51


@pytest.mark.parametrize(("dye", "factor"), [(0, 1.3), (1, 1.0), (2, 0.7)])
def test_pure_haematoxylin_gets_denser_and_pure_eosin_paler(dye, factor):
    vector = damage.HED[dye] / np.linalg.norm(damage.HED[dye])
    light = np.rint(256 * 10.0 ** -(0.5 * vector) - 1).astype(np.uint8).reshape(1, 1, 3)
    expected = 256 * 10.0 ** -(0.5 * factor * vector) - 1
    assert damage.stain(light, 0.3)[0, 0] == pytest.approx(expected, abs=1.5)


def test_brightness_takes_away_a_share_of_the_light():
    np.testing.assert_array_equal(
        damage.brightness(grey([0, 10, 101, 255]), 0.2), grey([0, 8, 81, 204])
    )
    assert not damage.brightness(grey([0, 10, 255]), 1).any()


def test_blur_of_a_point_is_a_gaussian():
    image = np.zeros((41, 41, 3), np.uint8)
    image[20, 20] = [255, 0, 100]
    y, x = np.mgrid[-20:21, -20:21]
    bell = np.exp(-(x**2 + y**2) / (2 * 1.5**2))
    expected = (bell / bell.sum())[..., None] * [255, 0, 100]
    assert np.abs(damage.blur(image, 1.5) - expected).max() <= 0.51


def test_blur_mirrors_the_edge_and_keeps_a_flat_image():
    flat = np.full((5, 7, 3), 93, np.uint8)
    np.testing.assert_array_equal(damage.blur(flat, 3), flat)


def test_jpeg_is_what_pillow_makes_of_that_quality(field):
    encoded = io.BytesIO()
    Image.fromarray(field).save(encoded, "JPEG", quality=30)
    with Image.open(encoded) as decoded:
        np.testing.assert_array_equal(damage.jpeg(field, 70), np.asarray(decoded))


def test_jpeg_of_the_least_quality_can_be_made(field):
    assert damage.jpeg(field, 99).shape == field.shape


def test_what_is_made_smaller_is_continued_by_mirroring():
    ramp = np.repeat(np.arange(0, 240, 15, dtype=np.uint8)[:, None], 3, axis=1)
    found = damage.scale(np.stack([ramp] * 16), 0.5)[8, :, 0].astype(int)
    # eight columns are left in the middle; a ramp of 15 a column has become one of 30
    np.testing.assert_allclose(np.diff(found[4:12]), 30, atol=6)
    np.testing.assert_array_equal(found[:4], found[4:8][::-1])
    np.testing.assert_array_equal(found[12:], found[8:12][::-1])


def test_what_is_made_larger_keeps_the_middle():
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:30, 15:45] = 255
    assert (damage.scale(image, -1)[1:-1, 1:-1] > 240).all()


@given(
    have=st.integers(1, 12), want=st.integers(1, 60), seed=st.integers(0, 2**32 - 1)
)  # fmt: skip
def test_a_canvas_is_the_middle_of_the_mirrored_image(have, want, seed):
    image = np.random.default_rng(seed).integers(0, 256, (have, 2, 3), dtype=np.uint8)
    around = np.pad(image, ((60, 60), (0, 0), (0, 0)), "symmetric")
    start = 60 - (want - have) // 2
    np.testing.assert_array_equal(
        damage._on_canvas(image, want, 2), around[start : start + want]
    )  # fmt: skip


def test_half_a_turn_is_exact(field):
    np.testing.assert_array_equal(damage.rotation(field, 180), field[::-1, ::-1])


def test_a_quarter_turn_of_a_square_is_exact_and_anticlockwise(field):
    square = np.ascontiguousarray(field[:64, :64])
    np.testing.assert_array_equal(damage.rotation(square, 90), np.rot90(square))


@given(angle=st.floats(0, 360), height=st.integers(1, 40), width=st.integers(1, 40))
@settings(deadline=None)
def test_no_corner_is_left_empty_by_turning(angle, height, width):
    flat = np.full((height, width, 3), 93, np.uint8)
    np.testing.assert_array_equal(damage.rotation(flat, angle), flat)


def test_turning_follows_the_angle():
    y, x = np.mgrid[-30:31, -50:51].astype(float)
    found = damage.rotation(np.repeat((128 + 2 * x)[..., None], 3, 2).astype(np.uint8), 30)
    # a point seen at (x, y) comes from x cos 30 - y sin 30, y downwards
    comes_from = x * np.cos(np.pi / 6) - y * np.sin(np.pi / 6)
    inside = np.abs(comes_from) < 45
    assert np.abs(found[..., 0] - (128 + 2 * comes_from))[inside].max() < 1.1


def test_noise_has_the_standard_deviation_asked_for():
    added = damage.noise(np.full((200, 300, 3), 128, np.uint8), 8).astype(float) - 128
    assert added.std() == pytest.approx(8, rel=0.02)
    assert added.mean() == pytest.approx(0, abs=0.1)
    assert abs(np.corrcoef(added[..., 0].ravel(), added[..., 1].ravel())[0, 1]) < 0.02


def test_noise_of_two_images_differs(field):
    other = field.copy()
    other[0, 0, 0] ^= 1
    first, second = (damage.noise(image, 8).astype(int) - image for image in (field, other))
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.1
