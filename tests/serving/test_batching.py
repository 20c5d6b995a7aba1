"""Many images through the network together: the same numbers, an end to the queue, none lost."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from lobule.models.engines import make_engine
from lobule.serving.batching import AT_ONCE, Batches
from lobule.serving.limits import Refused
from lobule.training.features import Extractor


@pytest.fixture(scope="module")
def extractor(finished_run):
    model = finished_run.model
    return Extractor(make_engine(model.backbone.module), model.preprocessing, model.features_id)


class Held:
    """An engine that is held back until it is let go; notes the views of each batch."""

    def __init__(self, extractor, *, fails=0):
        self.go, self.came, self.views, self.fails = threading.Event(), threading.Event(), [], fails
        engine = extractor.engine

        def run(batch):
            self.views.append(len(batch))
            self.came.set()
            self.go.wait(30)
            if self.fails:
                self.fails -= 1
                raise MemoryError("too much")
            return engine.run(batch)

        self.extractor = replace(extractor, engine=replace(engine, run=run))


def images(n, seed=0):
    rng = np.random.default_rng(seed)
    sizes = [(60, 90), (90, 60), (64, 64), (60, 90)]
    return [rng.integers(0, 256, (*sizes[k % 4], 3), dtype=np.uint8) for k in range(n)]


def at_work(extractor, body, *, places=64):
    """Run `body(batches)` beside the work on its queue."""

    async def run():
        batches = Batches(extractor, places=places)
        working = asyncio.create_task(batches.run())
        try:
            return await asyncio.wait_for(body(batches), 60)
        finally:
            working.cancel()
            with suppress(asyncio.CancelledError):
                await working
            batches.close()

    return asyncio.run(run())


async def reached(event):
    while not event.is_set():
        await asyncio.sleep(0.002)


def test_together_images_of_many_sizes_get_what_each_gets_alone_to_the_bit(extractor):
    sent = images(11)

    async def ask(batches):
        return await asyncio.gather(*(batches.features(image) for image in sent))

    for image, (views, colour) in zip(sent, at_work(extractor, ask), strict=True):
        alone_views, alone_colour = extractor(image)
        assert np.array_equal(views, alone_views)
        assert np.array_equal(colour, alone_colour)


def test_what_waits_goes_through_together_but_never_more_than_a_few(extractor):
    held = Held(extractor)
    sent = images(1)[:1] * (AT_ONCE + 3)

    async def ask(batches):
        first = asyncio.ensure_future(batches.features(sent[0]))
        await reached(held.came)
        others = [asyncio.ensure_future(batches.features(image)) for image in sent[1:]]
        await asyncio.sleep(0.01)
        held.go.set()
        await asyncio.gather(first, *others)

    at_work(held.extractor, ask)
    # of each image four views lie like it and four across
    assert held.views == [4, 4, 4 * AT_ONCE, 4 * AT_ONCE, 8, 8]


def test_a_full_queue_says_no_and_when_to_come_again_and_frees_its_places(extractor):
    batches = Batches(extractor, places=4)
    batches.image_s = 0.6
    with batches.place(3):
        with batches.place():
            with pytest.raises(Refused) as caught, batches.place():
                pytest.fail("there were only four places")
            assert (caught.value.status, caught.value.code) == (429, "busy")
            # four images of 0.6 s
            assert caught.value.retry_s == 3
        with pytest.raises(Refused), batches.place(2):
            pytest.fail("there was one place left")
    assert batches.taken == 0
    with pytest.raises(RuntimeError), batches.place(4):
        raise RuntimeError
    assert batches.taken == 0
    batches.close()


def test_work_whose_client_has_left_never_reaches_the_network(extractor):
    held = Held(extractor)
    one, other = images(2)

    async def ask(batches):
        first = asyncio.ensure_future(batches.features(one))
        await reached(held.came)
        left = [asyncio.ensure_future(batches.features(other)) for _ in range(5)]
        stayed = asyncio.ensure_future(batches.features(one))
        await asyncio.sleep(0.01)
        for work in left:
            work.cancel()
        held.go.set()
        await asyncio.gather(first, stayed)
        return await asyncio.gather(*left, return_exceptions=True)

    left = at_work(held.extractor, ask)
    assert all(isinstance(one, asyncio.CancelledError) for one in left)
    assert held.views == [4, 4, 4, 4]


def test_a_client_that_leaves_while_its_image_is_in_work_harms_no_other(extractor):
    held = Held(extractor)
    one, other = images(2)

    async def ask(batches):
        first = asyncio.ensure_future(batches.features(one))
        await reached(held.came)
        first.cancel()
        second = asyncio.ensure_future(batches.features(other))
        await asyncio.sleep(0.01)
        held.go.set()
        return await second

    assert np.array_equal(at_work(held.extractor, ask)[0], extractor(other)[0])


def test_a_failure_belongs_to_those_who_wait_for_it_and_work_goes_on(extractor):
    held = Held(extractor, fails=1)
    held.go.set()
    one = images(1)[0]

    async def ask(batches):
        with pytest.raises(MemoryError):
            await batches.features(one)
        return await batches.features(one)

    assert np.array_equal(at_work(held.extractor, ask)[0], extractor(one)[0])


def test_the_loop_answers_others_while_the_network_works(extractor):
    held = Held(extractor)

    async def ask(batches):
        working = asyncio.ensure_future(batches.features(images(1)[0]))
        await reached(held.came)
        began, longest = time.perf_counter(), 0.0
        while time.perf_counter() - began < 0.3:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            longest = max(longest, time.perf_counter() - before)
        held.go.set()
        await working
        return longest

    # held for 0.3 s: had it been the loop that was held, this would be the longest pause
    assert at_work(held.extractor, ask) < 0.2
