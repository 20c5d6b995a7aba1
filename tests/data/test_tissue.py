"""The drawing of one made-up photograph."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lobule.data.tissue import draw_field, draw_stain
from lobule.errors import UsageError


def field(seed: int, *, malignant: bool, width_px: int = 96, height_px: int = 64, **options):
    rng = np.random.default_rng(seed)
    stain = draw_stain(rng)
    return draw_field(
        rng,
        stain=stain,
        malignant=malignant,
        width_px=width_px,
        height_px=height_px,
        **options,
    )


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    malignant=st.booleans(),
    width_px=st.integers(48, 150),
    height_px=st.integers(48, 150),
    difficulty=st.floats(0, 1),
)
def test_lesion_covers_5_to_80_percent_of_a_malignant_field_and_nothing_of_a_benign_one(
    seed, malignant, width_px, height_px, difficulty
):
    image, lesion = field(
        seed,
        malignant=malignant,
        width_px=width_px,
        height_px=height_px,
        difficulty=difficulty,
    )
    assert image.shape == (height_px, width_px, 3)
    assert image.dtype == np.uint8
    assert lesion.shape == (height_px, width_px)
    assert lesion.dtype == np.bool_
    if malignant:
        assert 0.05 <= lesion.mean() <= 0.80
    else:
        assert not lesion.any()


@pytest.mark.parametrize("size", [(64, 48), (48, 200), (350, 230), (700, 460)])
def test_sizes_are_honoured(size):
    image, lesion = field(2, malignant=True, width_px=size[0], height_px=size[1])
    assert (image.shape, lesion.shape) == ((size[1], size[0], 3), (size[1], size[0]))


def test_lesion_is_bluer_than_the_stroma_around_it():
    """Nuclei take up hematoxylin, which absorbs red; the mask must lie where they are."""
    for seed in range(6):
        image, lesion = field(seed, malignant=True, width_px=350, height_px=230, difficulty=0.0)
        red = image[..., 0].astype(float)
        assert red[lesion].mean() < red[~lesion].mean() - 15


def test_empty_glass_has_the_white_of_the_stain():
    rng = np.random.default_rng(0)
    stain = draw_stain(rng)
    image, _ = draw_field(rng, stain=stain, malignant=False)
    brightest = np.percentile(image.reshape(-1, 3), 99.5, axis=0)
    np.testing.assert_allclose(brightest, 255 * np.array(stain.white), atol=12)


def test_stain_vectors_have_length_one_and_light_stays_within_0_and_1():
    for seed in range(200):
        stain = draw_stain(np.random.default_rng(seed))
        np.testing.assert_allclose(np.linalg.norm(stain.hematoxylin), 1)
        np.testing.assert_allclose(np.linalg.norm(stain.eosin), 1)
        assert min(*stain.hematoxylin, *stain.eosin) > 0
        assert 0.7 < min(stain.white) <= max(stain.white) <= 1


def test_harder_fields_of_the_two_classes_are_more_alike():
    """Absorbed red light, a stand-in for nuclear content, tells easy fields apart better."""

    def gap(difficulty: float) -> float:
        stain = draw_stain(np.random.default_rng(1))
        red = {
            malignant: [
                draw_field(
                    np.random.default_rng(seed),
                    stain=stain,
                    malignant=malignant,
                    width_px=160,
                    height_px=120,
                    difficulty=difficulty,
                )[0][..., 0].mean()
                for seed in range(12)
            ]
            for malignant in (False, True)
        }
        return float(np.mean(red[False]) - np.mean(red[True]))

    assert gap(0.0) > 2 * abs(gap(1.0))


def test_difficulty_outside_0_and_1_is_refused():
    with pytest.raises(UsageError, match=r"difficulty must lie in 0\.\.1, got 1\.5"):
        field(0, malignant=True, difficulty=1.5)
