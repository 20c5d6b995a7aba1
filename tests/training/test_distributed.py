"""Several processes: alone nothing is exchanged, together they train what one alone would."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small import write_images

from lobule.data.manifest import write_manifest
from lobule.errors import TrainingError
from lobule.evaluation.predictions import read_predictions
from lobule.training.distributed import ALONE, World, joined, launched, leading
from lobule.training.signals import Stopped


def test_alone_every_exchange_gives_back_the_very_thing_it_got():
    values = torch.tensor([1.5, -2.0])
    assert ALONE.total(values) is values
    assert values.tolist() == [1.5, -2.0]
    for value in (None, {"a": [1]}, object()):
        assert ALONE.share(value) is value


def test_the_first_process_leads():
    assert ALONE.leads
    assert World(0, 4, 0).leads
    assert not World(1, 4, 1).leads


@pytest.mark.parametrize(
    ("size", "several"), [(None, False), ("1", False), ("2", True), ("16", True)]
)
def test_torchrun_is_known_by_the_number_of_processes(monkeypatch, size, several):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
    assert launched() == several


def test_one_that_torchrun_did_not_start_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as world:
        assert world is ALONE
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("error", [TrainingError("x"), Stopped(15), KeyboardInterrupt()])
def test_an_error_of_the_leader_is_passed_on(error):
    with pytest.raises(type(error)) as caught, leading(ALONE):
        raise error
    assert caught.value is error


EXCHANGE = """
import json, sys, torch
from lobule.training.distributed import joined, leading
with joined() as world:
    told = [world.rank, world.size, world.local_rank, world.leads]
    told.append(world.total(torch.tensor([world.rank + 1.0, 10.0 * world.rank])).tolist())
    told.append(world.share({"from": world.rank}))
    if world.leads:
        try:
            with leading(world):
                if sys.argv[1] == "fails":
                    raise RuntimeError("the leader's own")
        except RuntimeError as error:
            told.append(str(error))
    else:
        told.append(world.share("what the leader sent last"))
print(json.dumps(told))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("how", "end"), [("works", None), ("fails", "the leader's own")])
def test_two_processes_sum_and_share_and_the_leader_sends_the_other_home(how, end):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = [
        subprocess.Popen(
            [sys.executable, "-c", EXCHANGE, how],
            env=os.environ | {
                "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    out = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], out
    leader, other = (json.loads(said) for said, _ in out)
    assert leader[:6] == [0, 2, 0, True, [3.0, 10.0], {"from": 0}]
    assert leader[6:] == ([] if end is None else [end])
    assert other == [1, 2, 1, False, [3.0, 10.0], {"from": 0}, None]


CURVE = """
import json, sys
from pathlib import Path
import torch
from small import make_job, make_network
from lobule.data.manifest import read_manifest
from lobule.training.checkpoint import read_checkpoint
from lobule.training.distributed import joined
from lobule.training.loop import tune
from lobule.training.machine import Machine

torch.set_num_threads(1)
table, folder, name, settings = sys.argv[1:]
curve = []
with joined() as world:
    job = make_job(read_manifest(Path(table)), Path(folder), **json.loads(settings))
    def watch(items, *, total, task):
        for item in items:
            if world.leads:
                state = read_checkpoint(job.folder).record["state"]
                sums = (state["loss"], state["images"])
                mean = sums[0] / sums[1] if sums[1] else state["metrics"][-1]["train_loss"]
                curve.append(mean)
            yield item
    machine = Machine(device="cpu", precision="fp32", checkpoint_s=0, world=world)
    tuned = tune(job, make_network(name), machine=machine, progress=watch)
    kept = {key: value.double().sum().item() for key, value in tuned.network.state_dict().items()}
    Path(folder, f"told-{world.rank}.json").write_text(json.dumps({"curve": curve, "kept": kept}))
"""


def torchrun(processes: int, *words: object) -> str:
    """Run Python in several processes on this machine; return what they said on stderr."""
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [sys.executable, *command, *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def curves(tmp_path: Path, network: str, **settings: object) -> dict[str, dict]:
    """Train with one process and with two; return what each process tells."""
    table = tmp_path / "manifest.csv"
    write_manifest(write_images(tmp_path), table)
    script = tmp_path / "curve.py"
    script.write_text(CURVE)
    told = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        torchrun(processes, script, table, folder, network, json.dumps(settings))
        for rank in range(processes):
            told[f"{rank} of {processes}"] = json.loads((folder / f"told-{rank}.json").read_text())
    return told


@pytest.mark.slow
@pytest.mark.parametrize("network", ["test_convnext", "test_efficientnet"])
def test_two_processes_learn_as_one_does_with_the_same_batches(tmp_path, network):
    # layer norm, and batch norm that keeps its statistics; batches that do not divide by two
    told = curves(tmp_path, network, epochs=6, batch_size=5, lr=1e-3, dropout=0.2)
    one, two = (np.array(told[name]["curve"]) for name in ("0 of 1", "0 of 2"))
    assert len(one) == len(two) >= 20
    assert np.abs(one - two).max() < 1e-5
    # a curve that does not move would agree with any
    assert np.ptp(one) > 1e-3
    assert told["0 of 2"]["kept"] == told["1 of 2"]["kept"]


@pytest.mark.slow
def test_with_batch_norm_each_process_takes_statistics_of_its_share_and_the_leaders_are_kept(
    tmp_path,
):
    told = curves(
        tmp_path, "test_resnet", epochs=6, batch_size=6, lr=1e-3, norm_statistics="updated"
    )
    one, two = (np.array(told[name]["curve"]) for name in ("0 of 1", "0 of 2"))
    assert len(one) == len(two) >= 20
    # halves of a batch have other means than the batch
    assert np.abs(one - two).max() > 1e-3
    assert two[-4:].mean() < two[:4].mean()
    assert told["0 of 2"]["kept"] == told["1 of 2"]["kept"]


@pytest.mark.slow
def test_torchrun_trains_with_the_same_command_to_the_same_files(tissue, tmp_path):
    words = (
        "-m", "lobule", "train", tissue.images, "--recipe", "finetune", "--backbone",
        "test_convnext", "--weights", "none", "--folds", "2", "--size", "64", "--epochs", "2",
        "--set", "batch_size=8", "--set", "validation=0.25", "--precision", "fp32",
    )  # fmt: skip
    tables, files = [], []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        said = torchrun(processes, *words, "-o", out)
        # one process speaks for all
        assert said.count("fold 1: epoch 1 of 2") == 1
        tables.append(read_predictions(out / "predictions.parquet").table)
        files.append({
            path.relative_to(out).as_posix() for path in out.rglob("*")
            if path.is_file() and "tfevents" not in path.name
        })  # fmt: skip
    assert files[0] == files[1]
    assert "report.html" in files[0]
    one, two = (table.filter(like="malignant").to_numpy() for table in tables)
    assert one == pytest.approx(two, abs=1e-4)
