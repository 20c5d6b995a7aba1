"""Ctrl-C and SIGTERM during long work: the step under way is finished and saved, then it ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """Work was asked to stop and has kept what was finished.

    signal: the signal's number. Derives from KeyboardInterrupt, as what Ctrl-C raises elsewhere.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


class Stopped(Interrupted):
    """Training was stopped, in all processes that train together, and has saved where it is."""


class Asked:
    """The signal that arrived, or 0."""

    signal = 0


@contextmanager
def noticing() -> Iterator[Asked]:
    """Note SIGINT and SIGTERM instead of being ended by them; a second one ends at once.

    What a handler raises is lost where Python ignores exceptions, as in a finalizer; a note is not.
    In another thread than the main one Python delivers no signals, and nothing is changed.
    """
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: FrameType | None) -> None:
        if asked.signal:
            raise Stopped(number)
        asked.signal = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
