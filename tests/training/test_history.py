"""The log of a training: a line of JSON an epoch, the same in TensorBoard, each of them once."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import time
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small import make_job, make_network, write_images
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lobule.errors import OutputError
from lobule.training.batches import Examples, plan_epoch
from lobule.training.checkpoint import read_checkpoint
from lobule.training.distributed import World
from lobule.training.history import METRICS, History, line
from lobule.training.loop import tune
from lobule.training.machine import Machine
from lobule.training.signals import Stopped

pytestmark = pytest.mark.usefixtures("one_thread")


PLOTS = {
    "lr": "lr",
    "loss/train": "train_loss",
    "accuracy/train": "train_accuracy",
    "loss/validation": "validation_loss",
    "accuracy/validation": "validation_accuracy",
    "balanced_accuracy/validation": "validation_balanced_accuracy",
    "roc_auc/validation": "validation_roc_auc",
    "average_precision/validation": "validation_average_precision",
}
"""What TensorBoard calls the figures of a row."""


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


def strict(text: str) -> list[dict[str, Any]]:
    """Parse lines as JSON proper, which has no NaN."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    assert text == "" or text.endswith("\n")
    return [json.loads(one, parse_constant=refuse) for one in text.splitlines()]


def log_of(folder: Path) -> list[dict[str, Any]]:
    return strict((folder / METRICS).read_text(encoding="utf-8"))


def plotted(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return step and value of every point of every figure, as TensorBoard reads them."""
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {
        tag: [(point.step, point.value) for point in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
        if tag != "images per second"  # of trainings that take long
    }


def assert_plotted(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Each defined figure of each row stands in TensorBoard's files once, and nothing else."""
    wanted = {
        tag: [(row["step"], row[key]) for row in rows if row[key] is not None]
        for tag, key in PLOTS.items()
    }
    found = plotted(folder)
    assert set(found) == {tag for tag, points in wanted.items() if points}
    for tag, points in found.items():
        assert [step for step, _ in points] == [step for step, _ in wanted[tag]], tag
        # TensorBoard keeps float32
        assert [v for _, v in points] == pytest.approx([v for _, v in wanted[tag]], rel=1e-6), tag


def row_of(epoch: int, **changes: float | None) -> dict[str, Any]:
    figures = dict.fromkeys(PLOTS.values(), 0.5 + epoch / 64)
    return {"epoch": epoch, "step": 4 * epoch, **figures, **changes}


def fill(file: Path) -> None:
    """Write until the disk is full."""
    with suppress(OSError), file.open("wb", buffering=0) as rest:
        while True:
            rest.write(bytes(1024))


def wait_for_the_next_second() -> None:
    """TensorBoard reads files in the order of their names, which tell the second."""
    began = int(time.time())
    while int(time.time()) == began:
        time.sleep(0.05)


# ---- the log of a real training


def test_every_epoch_is_a_line_of_json_with_what_was_learned_and_no_time(manifest, tmp_path):
    tuned = tune(make_job(manifest, tmp_path, epochs=3), make_network())
    rows = log_of(tmp_path)
    assert rows == tuned.state.metrics
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert set(row) == {"epoch", "step", *PLOTS.values()}
        assert all(isinstance(row[key], float) for key in PLOTS.values())
    assert_plotted(tmp_path, rows)


def test_the_log_is_whole_whenever_it_is_read(manifest, tmp_path):
    job = make_job(manifest, tmp_path, epochs=3)
    ends = list(accumulate(
        len(plan_epoch(job.pixels, job.train, job.tuning, seed=job.seed, epoch=epoch))
        for epoch in (1, 2, 3)
    ))  # fmt: skip
    told = []

    def watch(items, *, total, task):
        for step, item in enumerate(items, start=1):
            told.append((step, log_of(tmp_path)))
            assert not list(tmp_path.glob(".*.tmp"))
            yield item

    tune(job, make_network(), progress=watch)
    for step, rows in told:
        assert [row["step"] for row in rows] == [end for end in ends if end <= step]
    assert told[-1][0] == ends[-1]


def test_the_frozen_start_is_the_first_line_and_has_no_figures_of_training(manifest, tmp_path):
    tune(make_job(manifest, tmp_path, epochs=1, head="probe"), make_network())
    rows = log_of(tmp_path)
    assert [row["epoch"] for row in rows] == [0, 1]
    undefined = {key for key, value in rows[0].items() if value is None}
    assert undefined == {"lr", "train_loss", "train_accuracy"}
    assert rows[0]["step"] == 0
    assert None not in rows[1].values()
    assert_plotted(tmp_path, rows)


def test_a_figure_that_is_not_defined_is_null_in_the_log_and_no_point_in_a_plot(
    manifest, tmp_path, caplog
):
    job = make_job(manifest, tmp_path, epochs=2)
    positive = job.validation.y == 1
    of_one_class = Examples(
        job.validation.rows[positive], job.validation.y[positive], job.validation.weight[positive]
    )
    with caplog.at_level(logging.INFO, logger="lobule.training.loop"):
        tune(replace(job, validation=of_one_class), make_network())
    rows = log_of(tmp_path)
    assert [row["validation_roc_auc"] for row in rows] == [None, None]
    assert all(row["validation_loss"] > 0 for row in rows)
    assert_plotted(tmp_path, rows)
    assert "roc_auc/validation" not in plotted(tmp_path)
    assert "validation loss" in caplog.text
    assert "ROC AUC" not in caplog.text


def test_every_epoch_is_told_in_one_line(manifest, tmp_path, caplog):
    job = make_job(manifest, tmp_path, epochs=2)
    with caplog.at_level(logging.INFO, logger="lobule.training.loop"):
        tune(job, make_network())
    rows = log_of(tmp_path)
    assert caplog.messages == [f"fold 1: {line(row, 2)}" for row in rows]


def test_a_process_that_does_not_lead_trains_and_writes_nothing(manifest, tmp_path):
    job = make_job(manifest, tmp_path / "second", epochs=2)
    tuned = tune(job, make_network(), machine=Machine(checkpoint_s=0, world=World(rank=1)))
    assert tuned.state.finished
    assert not (tmp_path / "second").exists()


class PowerCutError(Exception):
    """What ends a training without a word."""


def test_after_a_resume_every_epoch_stands_once_in_the_log_and_in_every_plot(manifest, tmp_path):
    whole = make_job(manifest, tmp_path / "whole", epochs=5)
    tune(whole, make_network())
    job = make_job(manifest, tmp_path / "broken", epochs=5)

    def stop_in_epoch_3(items, *, total, task):
        for item in items:
            yield item
            if len(log_of(job.folder)) == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    def cut_in_epoch_5(items, *, total, task):
        for item in items:
            yield item
            if len(log_of(job.folder)) == 4:
                raise PowerCutError

    def look(items, *, total, task):
        # nothing is trained yet
        assert log_of(job.folder) == read_checkpoint(job.folder).record["state"]["metrics"]
        assert len(log_of(job.folder)) == 2
        return iter(items)

    with pytest.raises(Stopped):
        tune(job, make_network(), progress=stop_in_epoch_3)
    wait_for_the_next_second()
    with pytest.raises(PowerCutError):
        tune(job, make_network(), machine=Machine(checkpoint_s=1e9), progress=cut_in_epoch_5)
    # two epochs were logged that no checkpoint knows of
    assert len(log_of(job.folder)) == 4
    assert len(read_checkpoint(job.folder).record["state"]["metrics"]) == 2
    wait_for_the_next_second()
    tune(job, make_network(), progress=look)
    assert (job.folder / METRICS).read_bytes() == (whole.folder / METRICS).read_bytes()
    assert len(log_of(job.folder)) == 5
    assert len(list(job.folder.glob("events.out.tfevents.*"))) == 3
    assert_plotted(job.folder, log_of(job.folder))


def test_a_finished_training_that_is_opened_again_keeps_its_log_and_its_plots(manifest, tmp_path):
    job = make_job(manifest, tmp_path, epochs=2)
    tune(job, make_network())
    before = (tmp_path / METRICS).read_bytes()
    wait_for_the_next_second()
    tune(job, make_network())
    assert (tmp_path / METRICS).read_bytes() == before
    assert_plotted(tmp_path, log_of(tmp_path))


# ---- the log alone


def test_a_reader_who_opened_the_log_before_an_epoch_ended_has_it_as_it_was(tmp_path):
    with History(tmp_path, writes=True) as history:
        history.start([])
        history.add(row_of(1))
        with (tmp_path / METRICS).open(encoding="utf-8") as reader:
            history.add(row_of(2))
            assert strict(reader.read()) == [row_of(1)]
    assert log_of(tmp_path) == [row_of(1), row_of(2)]


def test_what_an_earlier_process_wrote_after_the_rows_goes(tmp_path):
    with History(tmp_path, writes=True) as history:
        history.start([])
        for epoch in (1, 2, 3):
            history.add(row_of(epoch, validation_loss=7.0))
    wait_for_the_next_second()
    with History(tmp_path, writes=True) as history:
        history.start([row_of(1, validation_loss=7.0)])
        assert log_of(tmp_path) == [row_of(1, validation_loss=7.0)]
        history.add(row_of(2))
    rows = [row_of(1, validation_loss=7.0), row_of(2)]
    assert log_of(tmp_path) == rows
    assert_plotted(tmp_path, rows)


def test_a_training_that_begins_anew_drops_all_that_was_there(tmp_path):
    with History(tmp_path, writes=True) as history:
        history.start([])
        history.add(row_of(1))
    wait_for_the_next_second()
    with History(tmp_path, writes=True) as history:
        history.start([])
        assert (tmp_path / METRICS).read_bytes() == b""
        history.add(row_of(1, train_loss=3.0))
    assert_plotted(tmp_path, [row_of(1, train_loss=3.0)])


def test_an_epoch_can_be_looked_at_in_tensorboard_while_the_training_goes_on(tmp_path):
    with History(tmp_path, writes=True) as history:
        history.start([])
        for epoch in (1, 2):
            history.add(row_of(epoch))
            assert_plotted(tmp_path, [row_of(k) for k in range(1, epoch + 1)])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_no_number_is_refused_and_the_log_stays_as_it_was(tmp_path, value):
    with History(tmp_path, writes=True) as history:
        history.start([row_of(1)])
        before = (tmp_path / METRICS).read_bytes()
        with pytest.raises(ValueError, match="not JSON compliant"):
            history.add(row_of(2, train_loss=value))
    assert (tmp_path / METRICS).read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_where_it_does_not_write_nothing_is_made(tmp_path):
    with History(tmp_path / "fold-1", writes=False) as history:
        history.start([row_of(1)])
        history.add(row_of(2))
        history.speed(8, 16)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_and_the_log_stays_as_it_was(small_disk):
    disk = small_disk(64)
    with History(disk, writes=True) as history:
        history.start([row_of(1)])
        before = (disk / METRICS).read_bytes()
        fill(disk / "rest")
        with pytest.raises(OutputError, match="no space left on the device"):
            history.add(row_of(2))
        assert (disk / METRICS).read_bytes() == before
        (disk / "rest").unlink()


def test_the_speed_is_noted_every_five_seconds_over_the_images_since(tmp_path, monkeypatch):
    clock = iter([100.0, 102.0, 106.0, 107.0, 109.0, 113.0, 117.0])
    monkeypatch.setattr(
        "lobule.training.history.time", SimpleNamespace(monotonic=lambda: next(clock))
    )
    with History(tmp_path, writes=True) as history:
        history.start([])
        history.speed(1, 6)  # at 102 s
        history.speed(2, 9)  # at 106 s: 15 images in 6 s; from 107 s on it counts anew
        history.speed(3, 8)  # at 109 s
        history.speed(4, 4)  # at 113 s: 12 images in 6 s
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    points = [(point.step, point.value) for point in found.Scalars("images per second")]
    assert points == [(2, 2.5), (4, 2.0)]


# ---- an epoch in words


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {},
            "epoch 3 of 12; train loss 0.1235, accuracy 0.875; "
            "validation loss 1.5000, accuracy 0.500, ROC AUC 0.667",
        ),
        (
            {"validation_roc_auc": None},
            "epoch 3 of 12; train loss 0.1235, accuracy 0.875; "
            "validation loss 1.5000, accuracy 0.500",
        ),
    ],
)
def test_an_epoch_in_one_line_says_loss_accuracy_and_auc_where_there_is_one(changes, told):
    row = {
        "epoch": 3, "step": 30, "lr": 1e-4, "train_loss": 0.12345678, "train_accuracy": 0.875,
        "validation_loss": 1.5, "validation_accuracy": 0.5, "validation_balanced_accuracy": 0.5,
        "validation_roc_auc": 2 / 3, "validation_average_precision": 0.4, **changes,
    }  # fmt: skip
    assert line(row, 12) == told
