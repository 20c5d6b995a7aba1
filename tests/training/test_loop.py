"""The loop: what it keeps, when it stops, what it refuses to go on from."""

from __future__ import annotations

import json
import logging
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from small import make_job, make_network, write_images

from lobule.errors import TrainingError
from lobule.training.batches import Examples, plan_epoch
from lobule.training.checkpoint import LAST, PREVIOUS, read_checkpoint
from lobule.training.fit import begin
from lobule.training.loop import tune
from lobule.training.machine import Machine
from lobule.training.signals import Stopped
from lobule.training.validate import validate

pytestmark = pytest.mark.usefixtures("one_thread")


EVERY_STEP = Machine(checkpoint_s=0)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


def log_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def stopping(step):
    """A progress that asks the training to end after `step` steps."""

    def watch(items, *, total, task):
        for n, item in enumerate(items, start=1):
            yield item
            if n == step - 1:
                os.kill(os.getpid(), signal.SIGINT)

    return watch


def stop_at(job, step, network=None):
    with pytest.raises(Stopped) as caught:
        tune(job, network or make_network(), machine=EVERY_STEP, progress=stopping(step))
    return caught.value


def test_a_network_learns_what_can_be_learned(manifest, tmp_path):
    job = make_job(manifest, tmp_path, epochs=15, lr=3e-3, ema=0.0, select="roc_auc", stain=0.0)
    tune(job, make_network())
    rows = log_of(tmp_path)
    assert [row["epoch"] for row in rows] == list(range(1, 16))
    assert rows[-1]["train_loss"] < 0.5 * rows[0]["train_loss"]
    assert max(row["validation_roc_auc"] for row in rows) == 1.0


def test_the_kept_weights_are_those_of_the_epoch_that_was_best_on_validation(manifest, tmp_path):
    job = make_job(manifest, tmp_path, epochs=5, lr=1e-2, ema=0.5)
    tuned = tune(job, make_network())
    losses = {row["epoch"]: row["validation_loss"] for row in log_of(tmp_path)}
    assert tuned.state.best_epoch == min(losses, key=losses.get)
    again = validate(
        tuned.network, job.pixels, job.validation, job.prep, settled=tuned.settled, batch_size=6
    )
    assert again["loss"] == pytest.approx(losses[tuned.state.best_epoch], abs=1e-6)
    assert not tuned.network.training
    assert not any(p.requires_grad for p in tuned.network.parameters())


def test_training_stops_once_nothing_got_better_for_as_long_as_patience(manifest, tmp_path):
    job = make_job(manifest, tmp_path, epochs=40, patience=2, lr=1e-2, ema=0.0)
    tuned = tune(job, make_network())
    assert tuned.state.stopped == "early"
    assert tuned.state.epoch == tuned.state.best_epoch + 2 < 40


def test_the_frozen_start_is_a_candidate_of_its_own(manifest, tmp_path):
    job = make_job(manifest, tmp_path, head="probe", epochs=1, lr=10.0, clip_norm=0.0, ema=0.0)
    network = make_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    tuned = tune(job, network)
    rows = log_of(tmp_path)
    assert [row["epoch"] for row in rows] == [0, 1]
    assert rows[0]["train_loss"] is None
    # a rate of 10 can only have made it worse
    assert tuned.state.best_epoch == 0
    assert all(torch.equal(before[k], v) for k, v in tuned.network.state_dict().items())


def test_labels_of_validation_patients_choose_the_epoch_and_teach_nothing(manifest, tmp_path):
    honest = make_job(manifest, tmp_path / "a", schedule="cosine")
    lied = replace(
        honest,
        folder=tmp_path / "b",
        validation=replace(honest.validation, y=1 - honest.validation.y),
    )
    stop_at(honest, 9)
    stop_at(lied, 9)
    one, other = (read_checkpoint(job.folder) for job in (honest, lied))
    learned = [name for name in one.tensors if not name.startswith("best.")]
    assert len(learned) > 100
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in learned)
    assert one.record["state"]["best"] != other.record["state"]["best"]


def test_the_moving_average_is_that_of_the_weights(manifest, tmp_path):
    job = make_job(manifest, tmp_path, ema=0.9)
    network = make_network()
    expected = network.linear.weight.detach().clone()
    for step in (1, 2):
        if step == 1:
            with pytest.raises(Stopped):
                tune(job, network, machine=EVERY_STEP, progress=asking_at_once)
        else:
            with pytest.raises(Stopped):
                tune(job, make_network(), machine=EVERY_STEP, progress=asking_at_once)
        found = read_checkpoint(tmp_path)
        assert found.record["state"]["step"] == step
        expected = 0.9 * expected + 0.1 * found.tensors["network.linear.weight"]
        assert torch.allclose(found.tensors["average.linear.weight"], expected, atol=1e-7)


def asking_at_once(items, *, total, task):
    os.kill(os.getpid(), signal.SIGINT)
    return iter(items)


def test_gradients_are_clipped(manifest, tmp_path):
    job = make_job(manifest, tmp_path, clip_norm=1e-3, epochs=1, unfreeze_epochs=0)
    network = make_network()
    tune(job, network)
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    assert 0.9e-3 < float(norm) <= 1.0001e-3


def test_a_loss_that_is_no_number_stops_at_that_step_and_names_the_files(manifest, tmp_path):
    job = make_job(manifest, tmp_path)
    network = make_network()
    calls = 0

    def poison(module, arguments, output):
        nonlocal calls
        calls += module.training
        return output * float("nan") if calls == 4 and module.training else output

    network.register_forward_hook(poison)
    with pytest.raises(TrainingError) as caught:
        tune(job, network, machine=EVERY_STEP)
    plan = plan_epoch(job.pixels, job.train, job.tuning, seed=0, epoch=1)
    files = [job.paths[job.train.rows[i]] for i in plan[3].members]
    assert caught.value.exit_code == 1
    assert caught.value.what == (
        "fold 1: the loss is nan at step 4 (epoch 1), which was not taken; the batch: "
        + ", ".join(files)
    )
    assert "the last good checkpoint is kept" in caught.value.fix
    kept = read_checkpoint(tmp_path)
    assert kept.record["state"]["step"] == 3
    assert all(torch.isfinite(value).all() for value in kept.tensors.values())
    # once the cause is gone, the same command goes on
    assert tune(job, make_network(), machine=EVERY_STEP).state.finished


def test_a_gradient_that_is_no_number_stops_before_it_spoils_the_weights(manifest, tmp_path):
    network = make_network()
    calls = 0

    def poison(gradient):
        nonlocal calls
        calls += 1
        return gradient * float("inf") if calls == 4 else gradient

    network.linear.weight.register_hook(poison)
    with pytest.raises(
        TrainingError, match=r"the gradient's norm is (nan|inf) at step 4"
    ) as caught:
        tune(make_job(manifest, tmp_path, clip_norm=0.0), network, machine=EVERY_STEP)
    assert "the last good checkpoint is kept" in caught.value.fix
    assert all(torch.isfinite(value).all() for value in network.state_dict().values())
    assert read_checkpoint(tmp_path).record["state"]["step"] == 3


def test_a_signal_ends_the_training_within_one_step_with_all_of_it_saved(manifest, tmp_path):
    job = make_job(manifest, tmp_path)
    stopped = stop_at(job, 6)
    assert stopped.signal == signal.SIGINT
    assert read_checkpoint(tmp_path).record["state"]["step"] == 6


def test_what_adam_remembers_lies_in_memory_as_its_weights_do_after_a_resume(manifest, tmp_path):
    # Adam in one pass looks at no strides: it would take the moments of other weights
    job = make_job(manifest, tmp_path, unfreeze_epochs=0)
    stop_at(job, 3)
    fit, goes_on = begin(job, make_network(), Machine())
    assert goes_on
    learning = dict(fit.optimizer.state)
    assert any(p.ndim == 4 and not p.is_contiguous() for p in learning), "none is channels last"
    for parameter, remembered in learning.items():
        assert remembered["exp_avg"].stride() == parameter.stride()
        assert remembered["exp_avg_sq"].stride() == parameter.stride()


def test_a_damaged_checkpoint_is_replaced_by_the_one_before_and_the_end_is_the_same(
    manifest, tmp_path, caplog
):
    whole = tune(make_job(manifest, tmp_path / "whole"), make_network())
    job = make_job(manifest, tmp_path / "damaged")
    stop_at(job, 8)
    data = bytearray((job.folder / LAST).read_bytes())
    data[len(data) // 2] ^= 4
    (job.folder / LAST).write_bytes(data)
    with caplog.at_level(logging.WARNING):
        tuned = tune(job, make_network())
    assert f"{job.folder / LAST} is damaged" in caplog.text
    assert f"going on from the one before, {job.folder / PREVIOUS}" in caplog.text
    expected = whole.network.state_dict()
    assert all(torch.equal(expected[k], v) for k, v in tuned.network.state_dict().items())


@pytest.mark.parametrize("key", ["data", "recipe"])
def test_checkpoints_of_other_data_or_another_recipe_are_refused(key, manifest, tmp_path):
    job = make_job(manifest, tmp_path)
    stop_at(job, 3)
    other = replace(job, identity={**job.identity, key: "another"})
    before = (tmp_path / LAST).read_bytes()
    with pytest.raises(TrainingError, match=f"are of other {key}\n  choose another -o"):
        tune(other, make_network())
    assert (tmp_path / LAST).read_bytes() == before


def test_going_on_with_other_threads_or_versions_is_said_not_to_be_bit_exact(
    manifest, tmp_path, caplog
):
    job = make_job(manifest, tmp_path)
    stop_at(job, 3)
    torch.set_num_threads(2)
    with caplog.at_level(logging.WARNING):
        tune(job, make_network())
    assert "fold 1 goes on, but not bit-exact: threads was 1, is 2" in caplog.text


def test_the_same_job_gives_the_same_bits_and_another_seed_others(manifest, tmp_path):
    found = [
        tune(make_job(manifest, tmp_path / name, seed=seed, epochs=2), make_network())
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    one, same, other = (tuned.network.linear.weight for tuned in found)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_global_random_state_is_neither_used_nor_changed(manifest, tmp_path):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  the very state that must not matter
    state = torch.get_rng_state()
    one = tune(make_job(manifest, tmp_path / "a", epochs=1), make_network()).network
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    other = tune(make_job(manifest, tmp_path / "b", epochs=1), make_network()).network
    assert torch.equal(one.linear.weight, other.linear.weight)


def test_no_image_of_a_validation_patient_is_learned_from(manifest, tmp_path):
    job = make_job(manifest, tmp_path, epochs=1)
    only_train = Examples(job.train.rows, job.train.y, job.train.weight)
    seen = {int(only_train.rows[i]) for e in range(1, 4)
            for p in plan_epoch(job.pixels, job.train, job.tuning, seed=0, epoch=e)
            for i in p.members}  # fmt: skip
    assert seen == set(job.train.rows)
    assert not seen & set(job.validation.rows)
