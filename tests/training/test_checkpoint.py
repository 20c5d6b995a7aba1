"""Checkpoints: every bit as it was, or not believed; and the one before where the last is lost."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from lobule.errors import OutputError, TrainingError
from lobule.training.checkpoint import (
    LAST,
    PREVIOUS,
    Checkpoint,
    clear_leftovers,
    drop_checkpoints,
    pack,
    read_checkpoint,
    unpack,
    write_checkpoint,
    write_only,
)


def checkpoint(step: int = 0, *, size: int = 20) -> Checkpoint:
    """A checkpoint of every kind of tensor that training has, and some more."""
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(size, 3, generator=generator)
    return Checkpoint(
        {
            "float32": weight,
            "bfloat16": weight.bfloat16(),
            "float64": weight.double() / 3,
            "odd": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
            "int64": torch.tensor([step, -(2**62)]),
            "step": torch.tensor(float(step)),
            "bool": torch.tensor([True, False]),
            "empty": torch.zeros(0, 4),
            "channels last": torch.randn(2, 3, 4, 5, generator=generator).contiguous(
                memory_format=torch.channels_last
            ),
            "turned": weight.T,
            "of the network": torch.nn.Parameter(weight.clone()),
        },
        {
            "state": {"step": step, "best": 0.1 + 0.2, "none": None, "Ünïcode\n": "\n{}"},
            "metrics": [{"epoch": 1, "accuracy": 1e-300}],
        },
    )


def same(one: Checkpoint | None, other: Checkpoint) -> bool:
    assert one is not None
    assert one.record == other.record
    assert set(one.tensors) == set(other.tensors)
    for name, value in one.tensors.items():
        wanted = other.tensors[name].detach().contiguous()
        assert (value.dtype, value.shape) == (wanted.dtype, wanted.shape), name
        if value.numel():
            # as bytes: a NaN and a negative zero are bits too
            assert torch.equal(
                value.reshape(-1).view(torch.uint8), wanted.reshape(-1).view(torch.uint8)
            ), name
    return True


def folder_with_two(folder: Path) -> tuple[bytes, bytes]:
    """Write checkpoints 1 and 2; return the bytes of the last and of the one before."""
    write_checkpoint(folder, checkpoint(1))
    write_checkpoint(folder, checkpoint(2))
    return (folder / LAST).read_bytes(), (folder / PREVIOUS).read_bytes()


# ---- there and back


def test_every_bit_of_tensors_and_record_comes_back(tmp_path):
    write_checkpoint(tmp_path, checkpoint(7))
    assert same(read_checkpoint(tmp_path), checkpoint(7))


def test_a_checkpoint_without_tensors_or_record_comes_back(tmp_path):
    write_checkpoint(tmp_path, Checkpoint({}, {}))
    assert read_checkpoint(tmp_path) == Checkpoint({}, {})


def test_the_record_keeps_the_order_of_its_keys(tmp_path):
    # the rows of metrics.jsonl are among them
    record = {"b": 1, "a": {"z": 2, "y": 3}}
    write_checkpoint(tmp_path, Checkpoint({}, record))
    found = read_checkpoint(tmp_path).record
    assert (list(found), list(found["a"])) == (["b", "a"], ["z", "y"])


def test_equal_content_gives_equal_bytes_in_whatever_order_and_layout_the_tensors_lie():
    made = checkpoint(3)
    turned = Checkpoint(
        {name: made.tensors[name].detach().contiguous().clone() for name in reversed(made.tensors)},
        made.record,
    )
    assert pack(made) == pack(turned)
    assert pack(made) != pack(checkpoint(4))


def test_a_number_that_json_does_not_have_is_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        pack(Checkpoint({}, {"loss": float("nan")}))


def test_what_was_read_is_not_what_is_kept(tmp_path):
    write_checkpoint(tmp_path, checkpoint(1))
    read_checkpoint(tmp_path).tensors["float32"].zero_()
    assert same(read_checkpoint(tmp_path), checkpoint(1))


def test_where_there_never_was_one_there_is_none(tmp_path):
    assert read_checkpoint(tmp_path) is None
    assert read_checkpoint(tmp_path / "not even a folder") is None


# ---- the last and the one before


def test_the_last_is_read_and_the_one_before_is_kept(tmp_path):
    for step in range(4):
        write_checkpoint(tmp_path / "new", checkpoint(step))
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [LAST, PREVIOUS]
    assert same(read_checkpoint(tmp_path / "new"), checkpoint(3))
    previous = tmp_path / "new" / PREVIOUS
    assert same(unpack(previous.read_bytes(), previous), checkpoint(2))


def test_a_finished_training_keeps_one_file(tmp_path):
    folder_with_two(tmp_path)
    write_only(tmp_path, checkpoint(3))
    assert [path.name for path in tmp_path.iterdir()] == [LAST]
    assert same(read_checkpoint(tmp_path), checkpoint(3))


def test_a_kill_between_the_two_renamings_leaves_the_one_before(tmp_path, caplog):
    folder_with_two(tmp_path)
    (tmp_path / LAST).replace(tmp_path / PREVIOUS)
    assert same(read_checkpoint(tmp_path), checkpoint(2))
    assert caplog.text == ""
    write_checkpoint(tmp_path, checkpoint(3))
    assert same(read_checkpoint(tmp_path), checkpoint(3))


def test_checkpoints_of_all_trainings_can_be_dropped_and_nothing_else(tmp_path):
    for part in ("fold-1", "fold-2"):
        folder_with_two(tmp_path / part)
        (tmp_path / part / "metrics.jsonl").write_text("kept")
    drop_checkpoints(tmp_path)
    drop_checkpoints(tmp_path / "no such folder")
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*"))
    assert left == ["fold-1/metrics.jsonl", "fold-2/metrics.jsonl"]


# ---- damage


def damages(data: bytes, n: int) -> list[bytes]:
    """Files with one bit flipped, or cut off, anywhere; n of each half, from a seed."""
    rng = np.random.default_rng(0)
    found = []
    for bit in rng.choice(8 * len(data), n // 2, replace=False):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << int(bit) % 8
        found.append(bytes(flipped))
    found += [data[:end] for end in rng.integers(0, len(data), n // 2)]
    return found


def test_no_flipped_bit_and_no_cut_is_believed_and_the_one_before_is_taken(tmp_path, caplog):
    last, previous = folder_with_two(tmp_path)
    file = tmp_path / LAST
    header = len("lobule.checkpoint/1\n") + 64 + 1
    damaged = damages(last, 200)
    # the same of the header alone, which is a small part of the file
    damaged += [part + last[header:] for part in damages(last[:header], 100)]
    for data in damaged:
        file.write_bytes(data)
        caplog.clear()
        assert same(read_checkpoint(tmp_path), checkpoint(1))
        assert [(r.levelno, r.getMessage()) for r in caplog.records] == [(
            logging.WARNING,
            f"{file} is damaged: {len(data):,} bytes, not those written; going on from the one "
            f"before, {tmp_path}/{PREVIOUS}",
        )]  # fmt: skip
    assert (tmp_path / PREVIOUS).read_bytes() == previous


@pytest.mark.parametrize("end", [b"\0", b"\n", b"more"])
def test_bytes_that_were_added_are_not_believed(tmp_path, end):
    last, _ = folder_with_two(tmp_path)
    with pytest.raises(TrainingError, match="is damaged"):
        unpack(last + end, tmp_path / LAST)


def test_where_both_are_damaged_both_are_named(tmp_path):
    last, _previous = folder_with_two(tmp_path)
    (tmp_path / LAST).write_bytes(last[:-1])
    (tmp_path / PREVIOUS).write_bytes(b"")
    with pytest.raises(TrainingError) as caught:
        read_checkpoint(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/{LAST} is damaged: {len(last) - 1:,} bytes, not those written; "
        f"{tmp_path}/{PREVIOUS} is damaged: 0 bytes, not those written\n"
        f"  delete {tmp_path} to train this part anew"
    )
    assert caught.value.exit_code == 1


def test_a_damaged_one_without_one_before_is_an_error_and_not_a_fresh_start(tmp_path):
    write_checkpoint(tmp_path, checkpoint(1))
    (tmp_path / LAST).write_bytes(b"lobule")
    with pytest.raises(TrainingError, match=f"{LAST} is damaged: 6 bytes"):
        read_checkpoint(tmp_path)


def test_a_pickle_is_never_read(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / LAST)
    with pytest.raises(TrainingError, match="is damaged"):
        read_checkpoint(tmp_path)


# ---- where it cannot be written


@pytest.mark.parametrize("before", [1, 2])
def test_a_full_disk_leaves_what_was_there_and_is_said(small_disk, before):
    disk = small_disk(256)
    for step in range(before):
        write_checkpoint(disk, checkpoint(step))
    left = {path.name: path.read_bytes() for path in disk.iterdir()}
    assert len(left) == before
    with pytest.raises(OutputError) as caught:
        write_checkpoint(disk, checkpoint(9, size=30_000))
    assert str(caught.value) == (
        f"cannot write {disk}/{LAST}: no space left on the device\n"
        "  free some space, or write to another place"
    )
    assert {path.name: path.read_bytes() for path in disk.iterdir()} == left
    assert same(read_checkpoint(disk), checkpoint(before - 1))
    # and once there is room again it goes on
    write_checkpoint(disk, checkpoint(9))
    assert same(read_checkpoint(disk), checkpoint(9))


def test_a_folder_that_may_not_be_written_keeps_what_it_has(tmp_path, as_ordinary_user):
    folder = tmp_path / "locked"
    kept = folder_with_two(folder)
    folder.chmod(0o555)
    code = (
        "import sys; from pathlib import Path\n"
        "from lobule.errors import OutputError\n"
        "from lobule.training.checkpoint import Checkpoint, write_checkpoint\n"
        "try: write_checkpoint(Path(sys.argv[1]), Checkpoint({}, {}))\n"
        "except OutputError as error: print(error)"
    )
    done = as_ordinary_user(code, folder)
    assert done.stdout == (
        f"cannot write {folder}/{LAST}: permission denied\n  choose a place you may write to\n"
    ), done.stderr
    assert ((folder / LAST).read_bytes(), (folder / PREVIOUS).read_bytes()) == kept


# ---- a writer that is killed

WRITER = """
import sys, torch
from pathlib import Path
from lobule.training.checkpoint import Checkpoint, write_checkpoint
step = 0
while True:
    step += 1
    made = Checkpoint({"w": torch.full((300_000,), float(step))}, {"step": step})
    write_checkpoint(Path(sys.argv[1]), made)
    if step == 1: print("begun", flush=True)
"""


def test_a_writer_that_is_killed_leaves_a_whole_checkpoint_and_its_leftovers_are_cleared(
    tmp_path, caplog
):
    rng = np.random.default_rng(1)
    folder = tmp_path / "a"
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begun\n"
    time.sleep(rng.uniform(0, 0.3))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    found = read_checkpoint(folder)
    assert (found.tensors["w"] == found.record["step"]).all()
    assert caplog.text == ""
    # what a writer that was killed at another moment would leave, and what it would not
    leftover = folder / f".{LAST}.0123abcd.tmp"
    leftover.write_bytes(b"half of")
    (folder / "metrics.jsonl").write_text("kept")
    clear_leftovers(folder)
    left = {path.name for path in folder.iterdir()}
    # the moment may have been the one between two names, when the previous one is all there is
    assert left & {LAST, PREVIOUS}
    assert left - {LAST, PREVIOUS} == {"metrics.jsonl"}
    assert read_checkpoint(folder).record == found.record
