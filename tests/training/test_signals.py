"""Signals while training: noted once, obeyed at once the second time, given back after."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from lobule.training.signals import Stopped, noticing


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_is_noted_and_a_second_ends_at_once(number):
    with noticing() as asked:
        assert asked.signal == 0
        os.kill(os.getpid(), number)
        assert asked.signal == number
        with pytest.raises(Stopped, match=f"stopped by {number.name}") as caught:
            os.kill(os.getpid(), number)
    assert caught.value.signal == number
    assert isinstance(caught.value, KeyboardInterrupt)


def test_handlers_are_given_back_whatever_happens():
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with noticing():
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before

    def twice():
        with noticing():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Stopped):
        twice()
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_thread_that_gets_no_signals_changes_nothing():
    before, found = signal.getsignal(signal.SIGINT), []

    def work():
        with noticing() as asked:
            found.append((asked.signal, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(0, before)]
