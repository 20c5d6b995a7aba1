"""A training that is killed at any moment ends as if it had not been, to the bit."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
from small import make_job, run, write_images

from lobule.training.checkpoint import LAST, read_checkpoint
from lobule.training.machine import Machine

KILLS = int(os.environ.get("LOBULE_KILLS", "20"))
"""How many trainings are killed; half of them just as a checkpoint is written."""

UNTIL = 21
"""The step at which two trainings are compared: in the sixth epoch, in the middle of it."""

SETTINGS = {"schedule": "plateau", "plateau_patience": 1, "dropout": 0.3, "clip_norm": 1.0,
            "norm_statistics": "updated", "unfreeze_epochs": 2}  # fmt: skip


@pytest.fixture(scope="module")
def processes():
    """Processes begin as copies of one that has imported torch and computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["small"])
    with pytest.MonkeyPatch.context() as patch:
        # Python before 3.13 gives the copied process no path to import from
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        forkserver.ensure_running()
    return context


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    made = write_images(tmp_path_factory.mktemp("images"))
    make_job(made, made.root)  # decodes
    return made


def start(processes, manifest, folder, *, until=UNTIL, checkpoint_s=0.0, workers=0):
    job = make_job(manifest, folder, **SETTINGS)
    machine = Machine(checkpoint_s=checkpoint_s, workers=workers)
    process = processes.Process(
        target=run, args=(job,),
        kwargs={"until": until, "machine": machine, "network": "test_efficientnet"},
    )  # fmt: skip
    process.start()
    return process


def finish(processes, manifest, folder, **options):
    process = start(processes, manifest, folder, **options)
    process.join(120)
    assert process.exitcode == 0


def left(folder: Path) -> tuple[bytes, bytes]:
    """Return checkpoint (weights, average, optimiser, schedule, counters) and metric log."""
    return (folder / LAST).read_bytes(), (folder / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def reference(processes, manifest, tmp_path_factory):
    """What an uninterrupted training leaves at UNTIL, and how long it took after its start."""
    folder = tmp_path_factory.mktemp("reference")
    process = start(processes, manifest, folder)
    wait_for_a_checkpoint(process, folder)
    began = time.monotonic()
    process.join(120)
    assert process.exitcode == 0
    return left(folder), time.monotonic() - began


def wait_for_a_checkpoint(process, folder):
    while process.is_alive() and not (folder / LAST).exists():
        time.sleep(0.002)


def wait_for_a_write(process, folder, number):
    """Return as soon as the `number`-th temporary file of a checkpoint is seen."""
    seen = set()
    while process.is_alive():
        try:
            names = {e.name for e in os.scandir(folder) if e.name.endswith(".tmp")}
        except FileNotFoundError:
            names = set()
        seen |= {name for name in names if LAST in name}
        if len(seen) >= number:
            return


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(KILLS))
def test_a_killed_training_goes_on_to_the_same_bits(
    trial, processes, manifest, reference, tmp_path
):
    expected, took = reference
    rng = np.random.default_rng(trial)
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        process = start(processes, manifest, folder, checkpoint_s=(0.0, 0.05)[trial % 4 == 3])
        if trial % 2 == 0:
            wait_for_a_write(process, folder, int(rng.integers(1, UNTIL - 2)))
            time.sleep(rng.uniform(0, 0.01))
        else:
            wait_for_a_checkpoint(process, folder)
            # shorter every time: the reference may have been slowed by what else ran then
            time.sleep(rng.uniform(0, took / (1 + attempt)))
        process.kill()
        process.join()
        # on a machine that has become faster it may have ended by then, and was not killed
        if process.exitcode == -signal.SIGKILL:
            break
    else:
        pytest.fail("no attempt was killed")
    finish(processes, manifest, folder)
    assert left(folder) == expected


@pytest.mark.slow
def test_a_training_killed_again_and_again_comes_to_the_same_end(
    processes, manifest, reference, tmp_path
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(processes, manifest, whole, until=None)
    for kill in range(3):
        process = start(processes, manifest, killed, until=None)
        done = 0 if kill == 0 else read_checkpoint(killed).record["state"]["step"]
        while process.is_alive():
            found = read_checkpoint(killed)
            if found is not None and found.record["state"]["step"] >= done + 4:
                break
        process.kill()
        process.join()
    finish(processes, manifest, killed, until=None)
    assert left(killed) == left(whole)
    assert read_checkpoint(killed).record["state"]["finished"] is True
    # only what is kept is left of a finished training
    assert {p.name for p in killed.iterdir() if "events" not in p.name} == {
        "last.ckpt", "metrics.jsonl",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_loading_in_other_threads_changes_no_bit(workers, processes, manifest, reference, tmp_path):
    finish(processes, manifest, tmp_path, workers=workers)
    assert left(tmp_path) == reference[0]
