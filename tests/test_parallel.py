"""Work ahead of its use: in order, no further than needed, and stopped when nobody asks."""

from __future__ import annotations

import threading
import time

import pytest

from lobule.parallel import ahead, in_parts


def test_results_come_in_order_however_long_each_takes():
    def slow_first(i: int) -> int:
        time.sleep(0.02 * (i % 3 == 0))
        return i

    assert list(ahead(slow_first, range(20))) == list(range(20))


def test_no_more_is_begun_than_a_few_beyond_what_was_asked_for():
    begun = []
    results = ahead(lambda i: begun.append(i), range(1000), threads=2)
    for _ in range(3):
        next(results)
    time.sleep(0.1)
    assert len(begun) <= 3 + 2 * 2 + 1
    results.close()


@pytest.mark.parametrize("cores", [1, 3])
def test_unless_told_one_thread_a_core_works_and_two_at_least(cores, monkeypatch):
    monkeypatch.setattr("lobule.parallel.cores", lambda: cores)
    together = threading.Barrier(max(2, cores), timeout=10)
    assert len(list(ahead(lambda _: together.wait(), range(together.parties)))) == together.parties


def test_as_many_threads_work_as_were_told():
    names = set(ahead(lambda _: threading.current_thread().name, range(50), threads=1))
    assert len(names) == 1
    assert names != {threading.current_thread().name}
    together = threading.Barrier(5, timeout=10)
    assert len(list(ahead(lambda _: together.wait(), range(5), threads=5))) == 5


def test_an_exception_is_raised_when_its_turn_comes():
    def fail_at_3(i: int) -> int:
        if i == 3:
            raise ValueError("three")
        return i

    results = ahead(fail_at_3, range(10))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


def test_nothing_gives_nothing():
    assert list(ahead(str, [])) == []


def test_parts_hold_every_item_once_and_in_order():
    assert list(in_parts(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(in_parts([], 3)) == []
