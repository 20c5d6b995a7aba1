"""The recipe: what it accepts, and the automatic input size."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from lobule.data.manifest import Manifest, complete
from lobule.errors import UsageError
from lobule.models.backbones import load_backbone
from lobule.training.recipe import Recipe


def images(width: int, height: int) -> Manifest:
    rows = [{"path": f"{i}.png", "width": width, "height": height} for i in range(3)]
    return Manifest(Path(), complete(pd.DataFrame(rows)))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((50, 50), 224), ((350, 230), 350), ((230, 350), 350), ((700, 460), 560), ((2048, 1536), 560)],
)
def test_automatic_size_is_the_longer_side_within_224_and_560(size, expected):
    prep = Recipe().preprocessing(load_backbone(), images(*size))
    assert (prep.long_side_px, prep.aspect) == (expected, "keep")


def test_a_size_that_is_given_is_taken():
    assert (
        Recipe(long_side_px=96).preprocessing(load_backbone(), images(700, 460)).long_side_px == 96
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "magic"}, "no recipe is called 'magic'"),
        ({"folds": 1}, "--folds must be 2 or more, got 1"),
        ({"long_side_px": 8}, "--size must be 32 to 4096 pixels, got 8"),
        ({"sensitivity": 0.0}, "--sensitivity must be over 0 and at most 1, got 0"),
        ({"sensitivity": 1.5}, "--sensitivity must be over 0 and at most 1, got 1.5"),
    ],
)
def test_what_no_run_can_use_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Recipe(**options)
