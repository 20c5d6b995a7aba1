"""Results that the page shows, kept in memory until newer ones need the room."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field

from lobule.explain.faithfulness import Faithfulness
from lobule.explain.maps import Method
from lobule.explain.neighbours import Similar
from lobule.serving.limits import Refused
from lobule.serving.service import Answered, Explained
from lobule.serving.uploads import Upload

KEPT = 256

KEPT_BYTES = 512 * 2**20
"""Of decoded photographs; those of 700 x 460 pixels take 1 MB each."""


@dataclass(eq=False)
class Entry:
    """One photograph and what was found out about it so far.

    mpp: micrometres a pixel, if told. similar: None before it was asked, or without cases.
    maps, worth: by method; futures, so that two who ask at once wait for one computation.
    """

    id: str
    answered: Answered
    mpp: float | None
    similar: Similar | None = None
    maps: dict[Method, asyncio.Future[Explained]] = field(default_factory=dict)
    worth: dict[Method, asyncio.Future[Faithfulness]] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """What came of one request: entries, and what was refused."""

    id: str
    entries: tuple[Entry, ...]
    refused: tuple[tuple[Upload, Refused], ...]


class Store:
    """Entries and batches by ids that cannot be guessed; the oldest go first."""

    def __init__(self) -> None:
        """Begin empty."""
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._batches: OrderedDict[str, Batch] = OrderedDict()

    def add(
        self, found: list[Answered | tuple[Upload, Refused]], *, mpp: float | None = None
    ) -> Batch:
        """Keep the results of a request."""
        entries = [Entry(_new(), one, mpp) for one in found if isinstance(one, Answered)]
        for entry in entries:
            self._entries[entry.id] = entry
        # the files of what was refused are of no more use
        refused = [
            (Upload(b"", one[0].name, one[0].patient), one[1])
            for one in found
            if not isinstance(one, Answered)
        ]
        batch = Batch(_new(), tuple(entries), tuple(refused))
        self._batches[batch.id] = batch
        while len(self._entries) > KEPT or self._bytes() > KEPT_BYTES:
            self._entries.popitem(last=False)
        gone = [b for b, kept in self._batches.items() if kept.entries and not self._any(kept)]
        for name in gone:
            del self._batches[name]
        while len(self._batches) > KEPT:
            self._batches.popitem(last=False)
        return batch

    def entry(self, name: str) -> Entry:
        """Return an entry; raises Refused (404) if it is not there any more."""
        if name not in self._entries:
            raise _gone()
        return self._entries[name]

    def batch(self, name: str) -> Batch:
        """Return a batch; raises Refused (404) if none of it is there any more."""
        if name not in self._batches:
            raise _gone()
        return self._batches[name]

    def _any(self, batch: Batch) -> bool:
        return any(entry.id in self._entries for entry in batch.entries)

    def _bytes(self) -> int:
        return sum(entry.answered.image.nbytes for entry in self._entries.values())


def _new() -> str:
    return secrets.token_urlsafe(16)


def _gone() -> Refused:
    return Refused(
        404, "gone", "this result is not kept any more, or never was",
        fix="send the photograph again: results are kept until newer ones need the room, and "
        "until the server stops",
    )  # fmt: skip
