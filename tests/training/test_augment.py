"""Augmentation: each change against its formula, and draws that depend on the image alone."""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from lobule.data.damage import HED
from lobule.data.images import Preprocessing
from lobule.training.augment import (
    Draws,
    augment,
    draw,
    drawn_view,
    lay,
    normalise,
    stain_matrix,
    to_light,
)
from lobule.training.tuning import Tuning

STRONG = Tuning(zoom=0.9, shift=0.5, stain=0.5, brightness=0.5, blur_px=5, dropout=0.4)

names = st.integers(0, 2**64 - 1).map(lambda i: hashlib.sha256(str(i).encode()).hexdigest())
seeds = st.integers(0, 2**32 - 1)


def noise(height: int, width: int, seed: int = 0, n: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def untouched(n: int, **changes: object) -> Draws:
    """Draws that change nothing, but for what is given."""
    plain = {
        "view": np.zeros(n, np.int64), "zoom": np.ones(n), "shift": np.zeros((n, 2)),
        "stain": np.ones((n, 3)), "offset": np.zeros((n, 3)), "brightness": np.ones(n),
        "blur_px": np.zeros(n), "keep": np.ones((n, 1)),
    }  # fmt: skip
    given = {k: np.broadcast_to(np.asarray(v), plain[k].shape) for k, v in changes.items()}
    made = {k: np.array(v, np.float32) for k, v in (plain | given).items() if k != "view"}
    return Draws(view=plain["view"], **made)


def change(images: np.ndarray, draws: Draws, **options: bool) -> np.ndarray:
    """Augment (n, h, w, 3) uint8 and return (n, h, w, 3) float64 in [0, 1]."""
    made = augment(torch.from_numpy(images), draws, **options)
    assert made.dtype == torch.float32
    return made.permute(0, 2, 3, 1).double().numpy()


# ---- views on a canvas


@pytest.mark.parametrize("view", range(8))
@pytest.mark.parametrize("size", [(20, 30), (30, 20), (25, 25)])
def test_a_view_on_a_canvas_of_its_own_size_is_exact(view, size):
    image = noise(*size)[0]
    wanted = np.rot90(image, view % 4)
    if view >= 4:
        wanted = np.fliplr(wanted)
    found = lay(image, view, wanted.shape[:2])
    assert np.array_equal(found, wanted)
    assert found.flags.c_contiguous


def test_of_a_view_larger_than_the_canvas_the_middle_is_taken():
    image = noise(21, 30)[0]
    assert np.array_equal(lay(image, 0, (11, 20)), image[5:16, 5:25])


def test_a_view_smaller_than_the_canvas_is_continued_by_mirroring_its_edges():
    image = noise(10, 16)[0]
    wanted = np.pad(image, ((2, 3), (4, 4), (0, 0)), mode="symmetric")
    assert np.array_equal(lay(image, 0, (15, 24)), wanted)


@given(*[st.integers(1, 12)] * 4, st.integers(0, 7))
def test_every_canvas_is_filled_with_pixels_of_the_image(height, width, high, wide, view):
    image = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)
    found = lay(image, view, (high, wide))
    assert found.shape == (high, wide, 3)
    there = {tuple(pixel) for pixel in image.reshape(-1, 3).tolist()}
    assert {tuple(pixel) for pixel in found.reshape(-1, 3).tolist()} <= there


# ---- nothing drawn, nothing changed


def test_where_nothing_is_drawn_the_image_is_untouched():
    images = noise(24, 36, n=3)
    assert np.abs(change(images, untouched(3)) - images / 255).max() < 1e-6


def test_where_nothing_is_drawn_for_one_image_of_a_batch_it_is_untouched():
    images = noise(24, 36, n=3).clip(1)
    draws = untouched(
        3, zoom=[1.5, 1, 0.7], shift=[[0.1, 0], [0, 0], [0, -0.2]], blur_px=[2, 0, 1],
        stain=[[0.9] * 3, [1] * 3, [1.1] * 3], brightness=[0.9, 1, 1.1],
    )  # fmt: skip
    assert np.abs(change(images, draws)[1] - images[1] / 255).max() < 2e-5


def test_settings_of_zero_draw_what_changes_nothing():
    off = Tuning(zoom=0, shift=0, stain=0, brightness=0, blur_px=0, dropout=0)
    sha256 = [hashlib.sha256(bytes([i])).hexdigest() for i in range(50)]
    draws = draw(sha256, off, seed=3, epoch=2, n_features=4)
    for name, value in vars(untouched(50)).items():
        if name not in ("view", "keep"):
            assert np.array_equal(getattr(draws, name), value), name
    assert (draws.keep == 1).all()


# ---- zoom and shift


@given(st.lists(names, min_size=1, max_size=8), seeds, st.floats(0, 1, exclude_max=True))
def test_zoom_is_one_factor_between_its_bound_and_the_inverse_and_never_zero(sha256, seed, zoom):
    draws = draw(sha256, replace(STRONG, zoom=zoom), seed=seed, epoch=1, n_features=1)
    assert draws.zoom.shape == (len(sha256),)  # one for both axes
    assert (draws.zoom >= np.float32(1 / (1 + zoom)) * (1 - 1e-6)).all()
    assert (draws.zoom <= np.float32(1 + zoom) * (1 + 1e-6)).all()
    assert (draws.zoom > 0.49).all()


def test_zoom_enlarges_as_often_as_it_reduces():
    sha256 = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(4000)]
    logs = np.log(draw(sha256, STRONG, seed=0, epoch=1, n_features=1).zoom) / np.log(1.9)
    assert abs(logs.mean()) < 0.03
    assert logs.std() == pytest.approx(1 / 3**0.5, rel=0.03)


def test_zoom_by_two_shows_the_middle_half_twice_as_large():
    block = noise(12, 20)[0]
    image = np.full((24, 40, 3), 7, np.uint8)
    image[6:18, 10:30] = block
    found = change(image[None], untouched(1, zoom=2))[0]
    # a pixel of twice the size has its centre between two of the output: average pairs of them
    pairs = found.reshape(12, 2, 20, 2, 3).mean(axis=(1, 3))
    # bilinear at the quarter points, which averages to (1, 6, 1) / 8 along each axis
    kernel = np.array([1, 6, 1]) / 8
    padded = image[5:19, 9:31].astype(float) / 255
    rows = sum(k * padded[i : i + 12] for i, k in enumerate(kernel))
    wanted = sum(k * rows[:, i : i + 20] for i, k in enumerate(kernel))
    assert np.abs(pairs - wanted).max() < 1e-4


def test_zoom_keeps_a_disc_round_on_a_canvas_that_is_not_square():
    y, x = np.mgrid[:60, :120]
    disc = np.hypot(y - 29.5, x - 59.5) < 10
    image = np.repeat((disc * 255).astype(np.uint8)[..., None], 3, axis=2)
    for zoom in (0.7, 1.8):
        found = change(image[None], untouched(1, zoom=zoom))[0, ..., 0] > 0.5
        rows, columns = found.any(1).sum(), found.any(0).sum()
        assert abs(rows - columns) <= 1
        assert found.sum() == pytest.approx(np.pi * (10 * zoom) ** 2, rel=0.06)


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, 4), (-5, 2), (10, -8)])
def test_a_shift_by_whole_pixels_moves_them_and_mirrors_the_edge(right, down):
    images = noise(16, 40, seed=2)
    found = change(images, untouched(1, shift=[[right / 40, down / 16]]))[0]
    padded = np.pad(images[0], ((16, 16), (40, 40), (0, 0)), mode="symmetric") / 255
    wanted = padded[16 - down : 32 - down, 40 - right : 80 - right]
    assert np.abs(found - wanted).max() < 1e-4


def test_every_image_of_a_batch_moves_by_what_was_drawn_for_it():
    images = noise(16, 32, n=3)
    draws = untouched(3, zoom=[2, 1, 0.5], shift=[[0.25, 0], [0, 0.5], [-0.1, 0.2]])
    together = change(images, draws)
    for i in range(3):
        alone = change(images[i : i + 1], draws.where(slice(i, i + 1)))
        assert np.abs(together[i] - alone[0]).max() < 1e-5


# ---- stain and light


def density_of(stain: int, amount: float) -> np.ndarray:
    """Optical density in R, G, B of so much of one stain, its vector being of length 1."""
    return amount * HED[stain] / np.linalg.norm(HED[stain])


@pytest.mark.parametrize("stain", [0, 1, 2])
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_factor_of_a_stain_scales_the_density_of_its_pure_colour(stain, factor):
    light = 10 ** -density_of(stain, 0.5)
    pixel = np.round(light * 255).astype(np.uint8)
    density = -np.log10(pixel / 255)
    factors = np.ones(3)
    factors[stain] = factor
    found = change(np.tile(pixel, (1, 4, 4, 1)), untouched(1, stain=[factors]))[0, 0, 0]
    # the colour is pure up to its rounding to 256 levels
    assert np.abs(-np.log10(found) - factor * density).max() < 0.02
    matrix, shift = stain_matrix(factors[None].astype(np.float32), np.zeros((1, 3), np.float32))
    pure = density_of(stain, 0.5)
    assert np.abs(pure @ matrix[0] + shift[0] - factor * pure).max() < 1e-6


def test_twice_the_haematoxylin_is_twice_its_density_by_hand():
    # Ruifrok's vector (0.65, 0.70, 0.29) of length 0.998 at density 0.4, and at 0.8
    matrix, _ = stain_matrix(np.array([[2, 1, 1]], np.float32), np.zeros((1, 3), np.float32))
    half = np.array([0.65, 0.70, 0.29]) / 0.99830 * 0.4
    assert half @ matrix[0] == pytest.approx([0.52089, 0.56096, 0.23240], abs=1e-4)


def test_the_other_stains_stay_as_they_are():
    matrix, _ = stain_matrix(np.array([[1.7, 1, 1]], np.float32), np.zeros((1, 3), np.float32))
    for other in (1, 2):
        assert np.abs(density_of(other, 0.5) @ matrix[0] - density_of(other, 0.5)).max() < 1e-6


def test_an_offset_adds_that_density_of_the_stain():
    image = np.full((1, 4, 4, 3), 200, np.uint8)
    found = change(image, untouched(1, offset=[[0.1, 0, 0.2]]))[0, 0, 0]
    wanted = -np.log10(200 / 255) + density_of(0, 0.1) + density_of(2, 0.2)
    assert np.abs(-np.log10(found) - wanted).max() < 1e-5


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.3])
def test_brightness_multiplies_the_light(factor):
    images = noise(8, 8).clip(1)
    found = change(images, untouched(1, brightness=factor))
    assert np.abs(found - (images / 255 * factor).clip(0, 1)).max() < 1e-5


def test_a_black_pixel_has_the_density_of_the_darkest_level_above_it():
    found = change(np.zeros((1, 4, 4, 3), np.uint8), untouched(1, brightness=0.5))
    assert np.abs(found - 0.5 / 255).max() < 1e-6


@settings(deadline=None, max_examples=25)
@given(seeds, st.integers(0, 1000))
def test_light_stays_in_its_range_under_the_strongest_settings(seed, epoch):
    images = noise(9, 13, seed=seed, n=2)
    sha256 = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    found = change(images, draw(sha256, STRONG, seed=seed, epoch=epoch, n_features=1))
    assert np.isfinite(found).all()
    assert found.min() >= 0
    assert found.max() <= 1


# ---- blur


@pytest.mark.parametrize("sigma", [0.3, 0.7, 1.5, 5.0])
def test_blur_is_a_gaussian_of_radius_three(sigma):
    images = noise(17, 23)
    found = change(images, untouched(1, blur_px=sigma))[0]
    for channel in range(3):
        wanted = gaussian_filter(images[0, ..., channel] / 255, sigma, mode="mirror", radius=3)
        assert np.abs(found[..., channel] - wanted).max() < 1e-5


def test_every_image_of_a_batch_has_a_blur_of_its_own():
    images = noise(12, 12, n=3)
    found = change(images, untouched(3, blur_px=[0, 1, 3]))
    for i, sigma in enumerate((0, 1, 3)):
        wanted = gaussian_filter(images[i] / 255, (sigma, sigma, 0), mode="mirror", radius=3)
        assert np.abs(found[i] - wanted).max() < 1e-5


def test_blur_can_be_left_out():
    images = noise(12, 12)
    assert np.abs(change(images, untouched(1, blur_px=3), blur=False) - images / 255).max() < 1e-6


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3)])
def test_an_image_smaller_than_the_blur_is_blurred(size):
    images = np.full((1, *size, 3), 90, np.uint8)
    assert np.abs(change(images, untouched(1, blur_px=2)) - 90 / 255).max() < 1e-6


# ---- what is drawn


def row(draws: Draws, i: int) -> list[bytes]:
    return [np.ascontiguousarray(getattr(draws, f.name)[i]).tobytes() for f in fields(Draws)]


@settings(deadline=None)
@given(st.data(), seeds, st.integers(0, 10_000))
def test_draws_of_an_image_do_not_depend_on_its_place_or_company(data, seed, epoch):
    sha256 = data.draw(st.lists(names, min_size=1, max_size=6, unique=True))
    order = data.draw(st.permutations(range(len(sha256))))
    together = draw(sha256, STRONG, seed=seed, epoch=epoch, n_features=5)
    mixed = draw([sha256[i] for i in order], STRONG, seed=seed, epoch=epoch, n_features=5)
    for place, i in enumerate(order):
        alone = draw([sha256[i]], STRONG, seed=seed, epoch=epoch, n_features=5)
        assert row(mixed, place) == row(together, i) == row(alone, 0)


@given(names, names, seeds, seeds, st.integers(0, 999), st.integers(0, 999))
def test_another_seed_epoch_or_image_draws_otherwise(one, other, seed, reseeded, epoch, later):
    plain = row(draw([one], STRONG, seed=seed, epoch=epoch, n_features=5), 0)
    for name, new_seed, new_epoch in (
        (other, seed, epoch), (one, reseeded, epoch), (one, seed, later), (one, epoch, seed),
    ):  # fmt: skip
        changed = (name, new_seed, new_epoch) != (one, seed, epoch)
        found = row(draw([name], STRONG, seed=new_seed, epoch=new_epoch, n_features=5), 0)
        assert (found != plain) == changed


def test_the_global_generators_are_left_alone():
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    draws = draw(["ab" * 32] * 2, STRONG, seed=0, epoch=0, n_features=5)
    augment(torch.from_numpy(noise(9, 9, n=2)), draws)
    assert np.array_equal(before[0], np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(before[1], torch.get_rng_state())


@given(names, seeds, st.integers(0, 10_000))
def test_the_view_alone_is_the_view_of_the_whole_draw(sha256, seed, epoch):
    whole = draw([sha256], STRONG, seed=seed, epoch=epoch, n_features=3)
    assert drawn_view(sha256, seed=seed, epoch=epoch) == whole.view[0]


def test_all_views_are_drawn_alike():
    sha256 = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(4000)]
    counts = np.bincount([drawn_view(name, seed=0, epoch=1) for name in sha256], minlength=8)
    assert len(counts) == 8
    assert np.abs(counts - 500).max() < 5 * (4000 / 8 * 7 / 8) ** 0.5


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 0.9])
def test_dropout_leaves_its_share_and_scales_it_so_that_the_mean_stays(rate):
    draws = draw(["cd" * 32], Tuning(dropout=rate), seed=1, epoch=1, n_features=20_000)
    scale = np.float32(1 / (1 - rate))
    assert np.isin(draws.keep, [0, scale]).all()
    assert (draws.keep > 0).mean() == pytest.approx(1 - rate, abs=0.015)
    assert draws.keep.mean() == pytest.approx(1, abs=0.015 / (1 - rate))


@given(st.lists(names, min_size=1, max_size=4), seeds)
def test_draws_stay_within_what_the_settings_say(sha256, seed):
    tuning = Tuning(shift=0.1, stain=0.2, brightness=0.3, blur_px=0.5)
    draws = draw(sha256, tuning, seed=seed, epoch=4, n_features=1)
    rounding = 1e-6
    assert np.abs(draws.shift).max() <= 0.1 + rounding
    assert np.abs(draws.stain - 1).max() <= 0.2 + rounding
    assert np.abs(draws.offset).max() <= 0.2 + rounding
    assert np.abs(draws.brightness - 1).max() <= 0.3 + rounding
    assert draws.blur_px.min() >= 0
    assert draws.blur_px.max() <= 0.5 + rounding


def test_draws_of_some_of_the_images_can_be_taken():
    sha256 = [hashlib.sha256(bytes([i])).hexdigest() for i in range(5)]
    draws = draw(sha256, STRONG, seed=0, epoch=0, n_features=2)
    some = draws.where(np.array([3, 1]))
    assert [row(some, 0), row(some, 1)] == [row(draws, 3), row(draws, 1)]


# ---- the input of the network


def test_normalising_a_batch_is_the_preprocessing_of_each_image():
    prep = Preprocessing(30, "keep", "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    images = noise(20, 30, n=4)
    found = normalise(to_light(torch.from_numpy(images)), prep)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    for i in range(4):
        assert np.abs(found[i].numpy() - prep.normalise(images[i])).max() < 1e-5
