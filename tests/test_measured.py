"""What is remembered of a machine: by what it was of, and never in place of a measurement."""

from __future__ import annotations

import pytest

from lobule import measured
from lobule.measured import keep, machine, recall


def test_what_was_kept_is_remembered(tmp_path):
    keep(tmp_path, "speed of a", {"fp32": 1.5})
    assert recall(tmp_path, "speed of a") == {"fp32": 1.5}
    assert recall(tmp_path, "speed of b") is None
    assert recall(tmp_path / "elsewhere", "speed of a") is None


def test_what_was_kept_can_be_forgotten(tmp_path):
    measured.forget(tmp_path)
    keep(tmp_path, "speed of a", 1)
    measured.forget(tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_a_folder_nothing_is_kept():
    keep(None, "speed of a", 1)
    assert recall(None, "speed of a") is None


def test_another_machine_remembers_nothing(tmp_path, monkeypatch):
    keep(tmp_path, "speed of a", 1)
    monkeypatch.setattr(measured, "machine", lambda: "another processor, 2 cores")
    assert recall(tmp_path, "speed of a") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"what": "speed of a"}', "\x00"])
def test_a_damaged_record_is_measured_again(tmp_path, text):
    keep(tmp_path, "speed of a", 1)
    (file,) = tmp_path.rglob("*.json")
    file.write_text(text)
    assert recall(tmp_path, "speed of a") is None


def test_the_machine_is_named_with_its_cores():
    assert f"{measured.cores()} cores" in machine()
