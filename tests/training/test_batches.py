"""Batches: every example once an epoch, in an order that is drawn, whoever loads how much of it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lobule.data.cache import PixelCache
from lobule.data.images import dihedral_view
from lobule.training.augment import Draws, draw
from lobule.training.batches import (
    Batch,
    EpochShare,
    Examples,
    Size,
    canvas_of,
    load,
    plan_epoch,
    validation_batches,
)
from lobule.training.tuning import Tuning

STACK = [(8, 12)] * 12 + [(12, 8)] * 6 + [(10, 10)] * 2 + [(6, 12)] * 3
"""Sizes (height, width) of the images that are loaded."""


def unread(sizes: Sequence[Size]) -> PixelCache:
    """A pixel cache of which only sizes and names are asked for."""
    names = tuple(hashlib.sha256(str(i).encode()).hexdigest() for i in range(len(sizes)))
    return PixelCache(names, (Path(),) * len(sizes), tuple(sizes), (0,) * len(sizes))


def examples_of(n: int, *, seed: int = 0, of: int | None = None) -> Examples:
    """Return n rows of a cache of `of` images, with classes and unlike weights."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(of or n, n, replace=False)
    return Examples(rows, rng.integers(0, 2, n), rng.uniform(0.1, 3, n))


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in STACK]


@pytest.fixture(scope="module")
def pixels(images, keep_pixels) -> PixelCache:
    return keep_pixels(images)


@pytest.fixture(scope="module")
def share(pixels) -> Callable[..., EpochShare]:
    """Return a share of an epoch of all the images: share(batch_size=5, rank=1, size=2)."""

    def of(*, batch_size: int = 5, epoch: int = 1, rank: int = 0, size: int = 1) -> EpochShare:
        examples, tuning = examples_of(len(pixels)), Tuning(batch_size=batch_size)
        plan = plan_epoch(pixels, examples, tuning, seed=3, epoch=epoch)
        return EpochShare(pixels, examples, tuning, plan, 3, epoch, 4, rank, size)

    return of


sizes = st.lists(
    st.sampled_from([(8, 12), (12, 8), (10, 10), (6, 12), (9, 9)]), min_size=1, max_size=70
)
batch_sizes = st.integers(2, 20)
epochs = st.integers(1, 1000)


# ---- the plan of an epoch


@settings(deadline=None)
@given(sizes, batch_sizes, epochs, st.data())
def test_every_example_is_in_exactly_one_batch_of_an_epoch(stack, batch_size, epoch, data):
    examples = examples_of(data.draw(st.integers(1, len(stack))), of=len(stack))
    tuning = Tuning(batch_size=batch_size)
    plan = plan_epoch(unread(stack), examples, tuning, seed=0, epoch=epoch)
    dealt = np.concatenate([planned.members for planned in plan])
    assert sorted(dealt.tolist()) == list(range(len(examples)))


@settings(deadline=None)
@given(sizes, batch_sizes, epochs)
def test_no_batch_is_too_large_or_empty_and_those_of_a_canvas_are_alike(stack, batch_size, epoch):
    tuning = Tuning(batch_size=batch_size)
    plan = plan_epoch(unread(stack), examples_of(len(stack)), tuning, seed=0, epoch=epoch)
    by_canvas: dict[Size, list[int]] = {}
    for planned in plan:
        by_canvas.setdefault(planned.canvas, []).append(len(planned.members))
    for counts in by_canvas.values():
        assert 1 <= min(counts) <= max(counts) <= batch_size
        assert max(counts) - min(counts) <= 1
        # as few batches as there can be
        assert len(counts) == -(-sum(counts) // batch_size)


@settings(deadline=None)
@given(sizes, batch_sizes, epochs)
def test_every_image_is_in_a_batch_of_the_canvas_that_its_view_lies_on(stack, batch_size, epoch):
    pixels, examples = unread(stack), examples_of(len(stack))
    tuning = Tuning(batch_size=batch_size)
    low, high = canvas_of(stack)
    drawn = draw(pixels.sha256, tuning, seed=7, epoch=epoch, n_features=1)
    for planned in plan_epoch(pixels, examples, tuning, seed=7, epoch=epoch):
        assert planned.canvas in ((low, high), (high, low))
        for row in examples.rows[planned.members]:
            height, width = dihedral_view(np.zeros(stack[row]), int(drawn.view[row])).shape
            # a square image lies as well as it stands
            if height != width and low != high:
                assert (planned.canvas[0] > planned.canvas[1]) == (height > width)


def test_the_canvas_is_the_commonest_size_laid_down():
    assert canvas_of([(8, 12)]) == (8, 12)
    assert canvas_of([(12, 8), (8, 12), (10, 10), (10, 10)]) == (10, 10)
    assert canvas_of([(12, 8), (8, 12), (10, 10)]) == (8, 12)
    # of two that are as common, the larger
    assert canvas_of([(8, 12), (9, 12)]) == canvas_of([(9, 12), (8, 12)]) == (9, 12)


def test_photographs_of_one_size_are_never_padded_or_cut():
    stack = [(23, 35)] * 60
    drawn_sizes = set()
    pixels, examples = unread(stack), examples_of(60)
    drawn = draw(pixels.sha256, Tuning(), seed=0, epoch=5, n_features=1)
    for planned in plan_epoch(pixels, examples, Tuning(), seed=0, epoch=5):
        for row in examples.rows[planned.members]:
            shape = dihedral_view(np.zeros((23, 35)), int(drawn.view[row])).shape
            assert shape == planned.canvas
            drawn_sizes.add(shape)
    assert drawn_sizes == {(23, 35), (35, 23)}


def dealt(pixels: PixelCache, *, seed: int, epoch: int) -> list[list[int]]:
    plan = plan_epoch(pixels, examples_of(40), Tuning(batch_size=8), seed=seed, epoch=epoch)
    return [planned.members.tolist() for planned in plan]


def test_the_order_is_another_in_every_epoch_and_under_every_seed_and_the_same_again():
    pixels = unread([(8, 12)] * 40)
    orders = [dealt(pixels, seed=s, epoch=e) for s, e in ((0, 1), (0, 2), (0, 3), (1, 1), (2, 1))]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    assert dealt(pixels, seed=0, epoch=2) == orders[1]


def test_upright_and_lying_batches_come_mixed():
    pixels = unread([(8, 12)] * 400)
    plan = plan_epoch(pixels, examples_of(400), Tuning(batch_size=8), seed=0, epoch=1)
    upright = [planned.canvas == (12, 8) for planned in plan]
    turns = sum(a != b for a, b in pairwise(upright))
    # of 50 batches, half of either kind, about 25 turns; sorted there would be one
    assert 12 < turns < 38


# ---- a process's share


def test_a_batch_holds_the_views_of_its_images_their_classes_and_draws(images, share):
    whole = share()
    examples = whole.examples
    for number in range(len(whole)):
        batch, planned = whole[number], whole.plan[number]
        assert batch.images.dtype == torch.uint8
        assert tuple(batch.images.shape[1:]) == (*planned.canvas, 3)
        for i, row in enumerate(batch.rows):
            position = int(np.flatnonzero(examples.rows == row)[0])
            assert batch.y[i] == examples.y[position]
            view = dihedral_view(images[row], int(batch.draws.view[i]))
            if view.shape[:2] == planned.canvas:
                assert np.array_equal(batch.images[i].numpy(), view)
        wanted = draw(
            [whole.pixels.sha256[row] for row in batch.rows], whole.tuning,
            seed=3, epoch=1, n_features=4,
        )  # fmt: skip
        assert same_draws(batch.draws, wanted)


def same_draws(one: Draws, other: Draws) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(
        vars(one).values(), vars(other).values(), strict=True))  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), batch_sizes, st.integers(1, 50))
def test_shares_of_a_batch_weigh_one_together_and_hold_each_image_once(
    share, size, batch_size, epoch
):
    shares = [share(batch_size=batch_size, epoch=epoch, rank=r, size=size) for r in range(size)]
    whole = shares[0]
    for number, planned in enumerate(whole.plan):
        batches = [one[number] for one in shares]
        counts = {len(batch.y) for batch in batches}
        # as many for every process, and two at least, for batch norm
        assert counts == {max(2, -(-len(planned.members) // size))}
        weight = torch.cat([batch.weight for batch in batches]).double().numpy()
        rows = np.concatenate([batch.rows for batch in batches])
        assert weight.sum() == pytest.approx(1, abs=1e-6)
        # what fills up weighs nothing; the rest is each member once, by its weight in the batch
        wanted = whole.examples.weight[planned.members] / whole.examples.weight[
            planned.members].sum()  # fmt: skip
        found = dict(zip(rows[weight > 0].tolist(), weight[weight > 0], strict=True))
        assert len(found) == int((weight > 0).sum()) == len(planned.members)
        for row, expected in zip(whole.examples.rows[planned.members], wanted, strict=True):
            assert found[row] == pytest.approx(expected, rel=1e-6)
        # and is an image of the same batch
        assert set(rows) == set(whole.examples.rows[planned.members])


def test_what_is_drawn_for_an_image_is_the_same_whoever_loads_it(share):
    def by_row(shares: Sequence[EpochShare]) -> dict[int, bytes]:
        found = {}
        for one in shares:
            for number in range(len(one)):
                batch = one[number]
                for i, row in enumerate(batch.rows):
                    found[int(row)] = batch.images[i].numpy().tobytes() + bytes(
                        batch.draws.keep[i].tobytes())  # fmt: skip
        return found

    assert by_row([share()]) == by_row([share(rank=r, size=3) for r in range(3)])


# ---- loading


def same_batch(one: Batch, other: Batch) -> bool:
    return (
        torch.equal(one.images, other.images)
        and torch.equal(one.y, other.y)
        and torch.equal(one.weight, other.weight)
        and np.array_equal(one.rows, other.rows)
        and same_draws(one.draws, other.draws)
    )


def test_no_and_one_and_two_loading_threads_give_the_same_batches(share):
    whole = share()
    wanted = [whole[number] for number in range(len(whole))]
    assert len(wanted) > 4
    for workers in (0, 1, 2):
        found = list(load(whole, start=0, workers=workers))
        assert len(found) == len(wanted)
        assert all(map(same_batch, found, wanted))


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_goes_on_from_any_batch(share, workers):
    whole = share()
    for start in (1, len(whole) - 1, len(whole)):
        found = list(load(whole, start=start, workers=workers))
        assert len(found) == len(whole) - start
        assert all(map(same_batch, found, [whole[i] for i in range(start, len(whole))]))


def test_loading_draws_nothing_from_the_global_generator(share):
    before = torch.get_rng_state()
    for workers in (0, 1):
        list(load(share(), start=0, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


# ---- validation


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_validation_shows_each_image_once_over_the_processes_unaltered(
    images, pixels, size, batch_size
):
    examples = examples_of(19, of=len(images))
    seen: Counter[int] = Counter()
    for rank in range(size):
        for members, batch in validation_batches(
            pixels, examples, batch_size=batch_size, rank=rank, size=size
        ):
            assert batch.dtype == torch.uint8
            assert 1 <= len(members) == len(batch) <= batch_size
            seen.update(members.tolist())
            for i, image in zip(members, batch, strict=True):
                assert np.array_equal(image.numpy(), images[examples.rows[i]])
    assert seen == dict.fromkeys(range(19), 1)
