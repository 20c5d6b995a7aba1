"""The rules of near-duplicate search, on made-up texture and on real fields."""

from __future__ import annotations

import io
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from lobule.data.duplicates import (
    MIN_TEXTURE,
    NearDuplicate,
    find_near_duplicates,
    fingerprint,
)
from lobule.data.images import N_VIEWS, decode, dihedral_view
from lobule.errors import UsageError

seeds = st.integers(0, 2**32 - 1)
sides = st.integers(6, 90)
views = st.integers(0, N_VIEWS - 1)


def texture(seed, height=46, width=70, contrast=40.0):
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    smooth = gaussian_filter(noise, (1.5, 1.5, 0), mode="nearest")
    return np.clip(150 + contrast * smooth / smooth.std(), 0, 255).astype(np.uint8)


def jpeg(image, quality):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return decode(buffer.getvalue())


def half_size(image):
    height, width = image.shape[:2]
    return np.asarray(Image.fromarray(image).resize((width // 2, height // 2)))


def brighter(image):
    return np.clip(np.rint(image * 1.05), 0, 255).astype(np.uint8)


def inverse(view):
    """The view that undoes `view`, found by trying all eight on an array without symmetry."""
    square = np.arange(9).reshape(3, 3)
    moved = dihedral_view(square, view)
    return next(w for w in range(N_VIEWS) if np.array_equal(dihedral_view(moved, w), square))


def indices(pairs):
    return [(pair.first, pair.second) for pair in pairs]


# The fingerprint


@given(seed=seeds, height=sides, width=sides)
@settings(max_examples=25, deadline=None)
def test_fingerprint_is_the_weighted_cosine_transform(seed, height, width):
    image = texture(seed, height, width)
    grey = np.asarray(Image.fromarray(image).convert("L"), dtype=float)
    y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    expected = [
        np.cos(np.pi * u * y)
        @ grey
        @ np.cos(np.pi * v * x)
        * (1 if u else 0.5**0.5)
        * (1 if v else 0.5**0.5)
        * np.hypot(u, v) ** 0.5
        * (u < height and v < width)
        for u in range(16)
        for v in range(16)
        if 2.5 <= np.hypot(u, v) <= 16
    ]
    expected /= np.linalg.norm(expected)
    actual = fingerprint(image)
    assert actual.shape == (206,)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_fingerprint_does_not_depend_on_size():
    image = np.asarray(Image.fromarray(texture(0, 23, 35)).resize((700, 460), Image.BICUBIC))
    large = np.asarray(Image.fromarray(image).resize((2100, 1380), Image.BICUBIC))
    assert fingerprint(image) @ fingerprint(large) > 0.999
    assert fingerprint(image) @ fingerprint(half_size(image)) > 0.999


@pytest.mark.parametrize("level", [0, 128, 255])
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (46, 70), (1200, 1100)])
def test_flat_images_have_the_zero_fingerprint(level, size):
    assert not fingerprint(np.full((*size, 3), level, np.uint8)).any()


def test_noise_and_shading_on_blank_glass_are_no_texture():
    y, x = np.mgrid[-1:1:460j, -1:1:700j]
    shading = 245 - 10 * (x**2 + y**2)
    noise = np.random.default_rng(1).normal(0, 3, (460, 700))
    image = np.repeat((shading + noise).clip(0, 255)[..., None], 3, axis=2).astype(np.uint8)
    assert not fingerprint(image).any()


@pytest.mark.parametrize(("amplitude", "kept"), [(MIN_TEXTURE * 0.9, 0), (MIN_TEXTURE * 1.1, 1)])
def test_min_texture_is_the_root_mean_square_in_grey_levels(amplitude, kept):
    # dithered, since a wave of so few grey levels would be lost in rounding
    wave = np.cos(np.pi * 8 * (np.arange(4000) + 0.5) / 4000) * np.sqrt(2) * amplitude
    threshold = (np.arange(100)[:, None] * 0.618034) % 1
    dithered = np.floor(100 + wave + threshold)
    image = np.repeat(dithered[..., None], 3, axis=2).astype(np.uint8)
    assert np.linalg.norm(fingerprint(image)) == pytest.approx(kept, abs=1e-5)


# The search


@given(seed=seeds, height=sides, width=sides, view=views)
@settings(max_examples=60, deadline=None)
def test_every_view_of_an_image_is_found_and_named(seed, height, width, view):
    image = texture(seed, height, width)
    second = dihedral_view(image, view)
    (pair,) = find_near_duplicates([fingerprint(image), fingerprint(second)])
    assert (pair.first, pair.second) == (0, 1)
    assert pair.correlation == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(dihedral_view(second, pair.view), image)


@given(seed=seeds, min_correlation=st.sampled_from([0.1, 0.2, 0.3, 0.6]))
@settings(max_examples=15, deadline=None)
def test_search_finds_exactly_the_pairs_of_a_brute_force_search(seed, min_correlation):
    rng = np.random.default_rng(seed)
    sources = [texture(int(rng.integers(2**32)), 32, 40) for _ in range(8)]
    mixtures = [
        dihedral_view((a * w + b * (1 - w)).astype(np.uint8), int(rng.integers(N_VIEWS)))
        for a, b, w in zip(sources, sources[1:], rng.uniform(0, 1, 7), strict=False)
    ]
    images = sources + mixtures
    prints = [
        [fingerprint(dihedral_view(image, view)) for view in range(N_VIEWS)] for image in images
    ]
    expected = {}
    for i, j in combinations(range(len(images)), 2):
        scores = [float(prints[i][0] @ view) for view in prints[j]]
        assume(abs(max(scores) - min_correlation) > 1e-4)
        if max(scores) >= min_correlation:
            expected[i, j] = (int(np.argmax(scores)), max(scores))
    found = find_near_duplicates([plain for plain, *_ in prints], min_correlation=min_correlation)
    assert indices(found) == sorted(expected)
    for pair in found:
        view, correlation = expected[pair.first, pair.second]
        assert pair.correlation == pytest.approx(correlation, abs=1e-4)
        assert pair.view == view


@given(seed=seeds, order=st.permutations(range(12)))
@settings(max_examples=25, deadline=None)
def test_order_of_the_images_does_not_matter(seed, order):
    rng = np.random.default_rng(seed)
    images = [texture(int(rng.integers(2**32))) for _ in range(7)]
    images += [jpeg(dihedral_view(images[k], int(rng.integers(N_VIEWS))), 80) for k in range(5)]
    prints = [fingerprint(image) for image in images]
    plain = find_near_duplicates(prints)
    renamed = set()
    for pair in find_near_duplicates([prints[k] for k in order]):
        first, second, view = order[pair.first], order[pair.second], pair.view
        if first > second:
            first, second, view = second, first, inverse(view)
        renamed.add((first, second, view, round(pair.correlation, 6)))
    assert {(p.first, p.second, p.view, round(p.correlation, 6)) for p in plain} == renamed
    assert indices(plain) == [(k, k + 7) for k in range(5)]


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_images_have_no_pairs(n):
    assert find_near_duplicates([fingerprint(texture(0))] * n) == []


def test_exact_copies_are_found_even_at_correlation_one():
    prints = [fingerprint(texture(seed)) for seed in (1, 2, 1)]
    assert find_near_duplicates(prints, min_correlation=1) == [NearDuplicate(0, 2, 0, 1.0)]


def test_every_pair_of_many_copies_is_listed():
    found = find_near_duplicates([fingerprint(texture(6))] * 200)
    assert indices(found) == list(combinations(range(200), 2))


def test_image_with_symmetry_names_the_lowest_view():
    corner = texture(3, 40, 40).astype(int)
    image = ((corner + corner.transpose(1, 0, 2)) // 2).astype(np.uint8)
    image[3, 30] += 1  # too little to tell the two views apart
    prints = [fingerprint(image), fingerprint(image.transpose(1, 0, 2))]
    assert find_near_duplicates(prints) == [NearDuplicate(0, 1, 0, 1.0)]


def test_flat_images_match_nothing():
    images = [np.full((46, 70, 3), level, np.uint8) for level in (255, 255, 254, 0)]
    prints = [fingerprint(image) for image in [*images, texture(4)]]
    assert np.isfinite(prints).all()
    assert find_near_duplicates(prints, min_correlation=0.01) == []


@pytest.mark.parametrize("value", [0, -0.5, 1.01, float("nan")])
def test_min_correlation_outside_its_range_is_refused(value):
    with pytest.raises(UsageError, match="min_correlation"):
        find_near_duplicates([], min_correlation=value)


def test_planted_pairs_among_thousands_are_found_across_tiles():
    rng = np.random.default_rng(5)
    prints = rng.normal(size=(9_000, 206)).astype(np.float32)
    planted = [(0, 8_999), (1, 2), (4_095, 4_096), (100, 5_000), (8_200, 8_300)]
    for first, second in planted:
        prints[second] = prints[first] + 0.2 * prints[second]
    prints /= np.linalg.norm(prints, axis=1, keepdims=True)
    assert indices(find_near_duplicates(prints)) == sorted(planted)


# Real fields

COPIES = {
    "exact": lambda image: image,
    "JPEG 75": lambda image: jpeg(image, 75),
    "half size": half_size,
    "mirrored": lambda image: image[:, ::-1],
    "upside down": lambda image: image[::-1],
    "turned 90": lambda image: np.rot90(image),
    "turned 180": lambda image: np.rot90(image, 2),
    "turned 270": lambda image: np.rot90(image, 3),
    "mirrored, half size, JPEG 60": lambda image: jpeg(half_size(image[:, ::-1]), 60),
    "brighter by 5%": brighter,
    "cropped by 2%": lambda image: image[5:-5, 7:-7],
}

PHOTOGRAPHED_TWICE = {
    ("SOB_B_TA-14-3411F-100-002", "SOB_B_TA-14-3411F-100-011"),
    ("SOB_M_PC-14-15704-100-024", "SOB_M_PC-14-15704-100-026"),
}
"""Seen by eye: the same field, moved by a few pixels and exposed differently."""


@pytest.fixture
def fields(real_data: Path):
    return sorted((real_data / "breakhis-100x").glob("*/*.jpg"))


@pytest.mark.slow
def test_copies_of_real_fields_are_found(fields, tmp_path):
    originals = fields[:: len(fields) // 200][:200]
    images = [decode(path) for path in originals]
    prints = [fingerprint(image) for image in images]
    recall = {}
    for kind, change in COPIES.items():
        copies = []
        for path, image in zip(originals, images, strict=True):
            planted = tmp_path / f"{path.stem}.bmp"
            Image.fromarray(np.ascontiguousarray(change(image))).save(planted)
            copies.append(fingerprint(decode(planted)))
        pairs = indices(find_near_duplicates(prints + copies))
        recall[kind] = sum((k, k + 200) in pairs for k in range(200)) / 200
        between_different = {(i % 200, j % 200) for i, j in pairs if i % 200 != j % 200}
        assert len(between_different) <= len(PHOTOGRAPHED_TWICE), kind
    assert recall.pop("exact") == 1
    assert min(recall.values()) >= 0.98, recall


@pytest.mark.slow
def test_different_real_fields_are_not_paired(fields):
    prints = [fingerprint(decode(path)) for path in fields]
    assert len(prints) == 422

    def named(pairs):
        return {(fields[pair.first].stem, fields[pair.second].stem) for pair in pairs}

    assert named(find_near_duplicates(prints)) == PHOTOGRAPHED_TWICE
    # the threshold stands clear of all other pairs
    assert named(find_near_duplicates(prints, min_correlation=0.53)) == PHOTOGRAPHED_TWICE


@pytest.mark.slow
def test_original_png_is_a_copy_of_the_jpeg_of_its_name(fields, real_data):
    originals = sorted((real_data / "breakhis-originals").glob("*/*-100-*.png"))
    assert originals
    prints = [fingerprint(decode(path)) for path in fields + originals]
    found = {
        (fields[pair.first].stem, originals[pair.second - len(fields)].stem, pair.view)
        for pair in find_near_duplicates(prints)
        if pair.first < len(fields) <= pair.second
    }
    assert found == {(path.stem, path.stem, 0) for path in originals}
