"""Rows on disk: what was put in comes out, in pieces of any size, and a full disk is said."""

from __future__ import annotations

import tempfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lobule.data.rows import Rows
from lobule.errors import OutputError


@given(
    blocks=st.lists(st.integers(0, 40), max_size=8),
    width=st.integers(1, 9),
    start=st.integers(0, 200),
    length=st.integers(0, 200),
)
def test_rows_come_out_as_they_were_put_in(blocks, width, start, length):
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(n, width)).astype(np.float32) for n in blocks]
    whole = np.concatenate([np.empty((0, width), np.float32), *parts])
    rows = Rows(width)
    for part in parts:
        # reading between two writings must not move where the next one goes
        assert np.array_equal(rows[:], whole[: len(rows)])
        rows.append(part)
    assert len(rows) == len(whole)
    assert np.array_equal(rows[start : start + length], whole[start : start + length])
    assert rows[:].dtype == np.float32


def test_one_row_is_added_as_it_is():
    rows = Rows(3)
    rows.append(np.array([1, 2, 3], dtype=np.float32))
    rows.append(np.arange(6, dtype=np.float64)[::-1].reshape(2, 3))
    assert rows[:].tolist() == [[1, 2, 3], [5, 4, 3], [2, 1, 0]]


@pytest.mark.parametrize("width", [3, 300_000])
def test_a_full_disk_is_said_and_what_was_put_in_before_stays(width, small_disk, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk(4)))
    rows = Rows(width)

    def fill() -> None:
        for i in range(10_000):
            rows.append(np.full(width, i, np.float32))

    with pytest.raises(OutputError, match="no space left on the device"):
        fill()
    assert len(rows) < 4096 // (4 * width) + 1
    assert np.array_equal(rows[:][:, 0], np.arange(len(rows)))
