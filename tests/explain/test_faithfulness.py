"""Insertion, deletion, lesion overlap and shuffled weights, held against values known by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from lobule.data.images import decode
from lobule.explain.faithfulness import (
    Curve,
    blurred,
    correlation,
    judge,
    lesion_auc,
    middle,
    ranks,
    shuffled,
)
from lobule.explain.maps import Map, explain


def red_in_the_left_half():
    """A grey photograph with red stripes in its left half, and a score that counts them."""
    image = np.full((40, 60, 3), 90, np.uint8)
    # blurred, no pixel of them is red enough
    image[:, :30:2] = (255, 0, 0)
    return image, lambda shown: float((shown[..., 0] > 200).mean() / 0.25)


def test_a_map_of_what_the_score_counts_beats_random_and_the_middle():
    image, score = red_in_the_left_half()
    left = Map(np.array([[1, 1, 0, 0]] * 4, np.float32), "cam", 1, 0.0)
    judged = judge(left, image, score)
    assert judged.beats_both
    assert judged.deletion < min(judged.deletion_random, judged.deletion_centre)
    right = judge(Map(-left.evidence, "cam", 1, 0.0), image, score)
    assert not right.beats_both
    assert right.insertion < right.insertion_random


def test_a_score_that_never_changes_is_told_by_no_map():
    image, _ = red_in_the_left_half()
    judged = judge(Map(np.eye(4, dtype=np.float32), "cam", 1, 0.0), image, lambda shown: 1.0)
    assert judged.insertion == judged.insertion_random == judged.insertion_centre == 1.0
    assert not judged.beats_both


def test_the_area_of_a_curve_is_that_of_its_trapezia():
    assert Curve((0.0, 1.0)).area == 0.5
    assert Curve((0.0, 0.0, 1.0)).area == 0.25


def test_ranks_count_from_the_most_evidence():
    assert ranks(np.array([[1, 5], [3, 2]], np.float32)).tolist() == [[3, 0], [1, 2]]


def test_the_middle_is_highest_in_the_middle():
    grid = middle((3, 5))
    assert np.unravel_index(grid.argmax(), grid.shape) == (1, 2)
    assert grid[0, 0] == grid[2, 4] == grid.min()


def test_a_blurred_photograph_keeps_its_colour_and_loses_its_detail():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (100, 150, 3)).astype(np.uint8)
    soft = blurred(image)
    assert np.allclose(soft.mean(axis=(0, 1)), image.mean(axis=(0, 1)), atol=4)
    assert soft.std() < image.std() / 5


@given(seed=st.integers(0, 10_000), levels=st.integers(2, 6))
def test_lesion_auc_is_that_of_scikit_learn(seed, levels):
    rng = np.random.default_rng(seed)
    evidence = rng.integers(0, levels, (4, 5)).astype(np.float32)
    lesion = rng.random((4, 5)) < 0.4
    found = lesion_auc(evidence, lesion)
    if lesion.all() or not lesion.any():
        assert np.isnan(found)
    else:
        assert found == pytest.approx(roc_auc_score(lesion.ravel(), evidence.ravel()))


def test_a_shuffled_model_has_the_same_numbers_in_other_places(finished_run):
    model = finished_run.model
    other = shuffled(model)
    for (name, one), two in zip(
        model.backbone.network.state_dict().items(),
        other.backbone.network.state_dict().values(),
        strict=True,
    ):
        assert one.flatten().sort().values.equal(two.flatten().sort().values), name
    assert np.array_equal(np.sort(model.heads.tissue.weight, axis=None),
                          np.sort(other.heads.tissue.weight, axis=None))  # fmt: skip
    assert not np.array_equal(model.heads.tissue.weight, other.heads.tissue.weight)
    again = shuffled(model)
    assert np.array_equal(again.heads.tissue.weight, other.heads.tissue.weight)


def test_a_shuffled_model_gives_another_map(finished_run, tissue):
    image = decode(sorted(tissue.images.rglob("*.png"))[0])
    own = explain(finished_run.model, image, target=1)
    other = explain(shuffled(finished_run.model), image, target=1)
    assert correlation(own, own) == pytest.approx(1)
    assert abs(correlation(own, other)) < 0.95
    flat = Map(np.ones_like(own.evidence), "cam", 1, 0.0)
    assert np.isnan(correlation(own, flat))
