"""How long work tells how far it is, without knowing who watches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Wraps an iterable; `total` items of the work named `task` will pass."""

    def __call__(self, items: Iterable[T], *, total: int, task: str) -> Iterator[T]:
        """Yield every item of `items`."""


def no_progress(items: Iterable[T], *, total: int, task: str) -> Iterator[T]:
    """Pass the items on and show nothing: the default of the library."""
    return iter(items)
