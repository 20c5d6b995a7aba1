"""Work on many items in threads: results in order, and never far ahead of what is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from lobule.measured import cores

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int | None = None
) -> Iterator[Result]:
    """Yield `function` of each item in order, some of them worked out ahead in other threads.

    threads: unless told one a core, but two at least, so that one can read while another computes.
    However many items there are, only a few wait at a time. An exception of `function` is raised
    when its turn comes; whoever stops asking waits for what is under way only.
    """
    workers = threads or max(2, cores())
    pool = ThreadPoolExecutor(workers, thread_name_prefix="lobule-ahead")
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def in_parts(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` items, the last of what is left."""
    left = iter(items)
    while part := list(islice(left, size)):
        yield part
