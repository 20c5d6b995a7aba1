"""Images of many requests through the network together, in a queue that has an end.

Places are taken before a body is read, so that a server that is full says so at once. Work whose
client has left, or whose time is over, is dropped while it waits.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from lobule.data.images import ImageArray
from lobule.serving.limits import Refused
from lobule.training.features import Extractor, ImageFeatures, colour_statistics

AT_ONCE = 8
"""Images that go through the network together at most."""

_Waiting = tuple[ImageArray, "asyncio.Future[ImageFeatures]"]


class Batches:
    """A bounded queue before one extractor; of one event loop."""

    def __init__(self, extractor: Extractor, *, places: int) -> None:
        """Prepare; `run` does the work."""
        self.extractor = extractor
        self.places = places
        self.taken = 0
        self.image_s = 1.0
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lobule-batches")

    @contextmanager
    def place(self, n: int = 1) -> Iterator[None]:
        """Hold places for `n` images; raises Refused (429) if there are not as many."""
        if self.taken + n > self.places:
            wait = max(1, math.ceil(self.taken * self.image_s))
            raise Refused(
                429, "busy", f"{self.taken} images are waiting, and there are {self.places} places",
                fix=f"try again in {wait} s", retry_s=wait,
            )  # fmt: skip
        self.taken += n
        try:
            yield
        finally:
            self.taken -= n

    async def features(self, image: ImageArray) -> ImageFeatures:
        """Return the features of an image (h, w, 3) uint8, when its turn has come."""
        future: asyncio.Future[ImageFeatures] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((image, future))
        return await future

    async def run(self) -> None:
        """Work until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            while len(batch) < AT_ONCE and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            # a future is cancelled when its client has left or its time is over
            batch = [(image, future) for image, future in batch if not future.cancelled()]
            if not batch:
                continue
            began = time.perf_counter()
            try:
                found = await loop.run_in_executor(self._thread, self._compute, batch)
            except Exception as error:  # noqa: BLE001  it belongs to those who wait for it
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            self.image_s = (time.perf_counter() - began) / len(batch)
            for (_, future), features in zip(batch, found, strict=True):
                if not future.done():
                    future.set_result(features)

    def _compute(self, batch: list[_Waiting]) -> list[ImageFeatures]:
        images = [image for image, _ in batch]
        views = self.extractor.of_many(images)
        return [(v, colour_statistics(i)) for v, i in zip(views, images, strict=True)]

    def close(self) -> None:
        """Wait for the batch in work, and end."""
        self._thread.shutdown()
