"""The faults of the tutorial that Lobule grew from, each shown to be absent."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from typer.testing import CliRunner

from lobule.cli.app import app
from lobule.data.audit import audit
from lobule.data.cache import open_pixels
from lobule.data.images import decode
from lobule.data.manifest import Manifest, complete, measure, read_manifest
from lobule.data.scan import scan
from lobule.data.splits import assign_folds
from lobule.errors import DataError, UsageError
from lobule.evaluation.predictions import read_predictions
from lobule.inference.predictor import predict
from lobule.models.backbones import load_backbone
from lobule.models.bundle import load_model
from lobule.models.classifier import Features
from lobule.training.augment import augment, draw
from lobule.training.batches import Examples
from lobule.training.crossfit import out_of_fold
from lobule.training.finetune import Bench, set_aside, tune_model
from lobule.training.loop import tune
from lobule.training.machine import Machine
from lobule.training.optimise import layers_of
from lobule.training.recipe import RECIPES, Recipe
from lobule.training.settings import make_recipe
from lobule.training.tuning import Tuning
from lobule.workflow import prepare, split, train
from training.small import PREP, make_job, make_network, write_images

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Thirty small photographs of fifteen patients."""
    return write_images(tmp_path_factory.mktemp("images"))


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def patients_in_two(table: pd.DataFrame, part: pd.Series | np.ndarray) -> set[str]:
    parts = pd.Series(np.asarray(part)).groupby(table["patient"].to_numpy()).nunique()
    return set(parts.index[parts > 1])


# ---- the split


def test_d01_no_patient_is_ever_on_both_sides_of_a_split(tissue, finished_run, tmp_path):
    found = scan(tissue.images)
    at_random = np.random.default_rng(11).permutation(len(found)) % 5
    assert len(patients_in_two(found.table, at_random)) > 6  # what the tutorial did
    for seed in range(10):
        made = split(found, shares={"train": 0.8, "validation": 0.2}, seed=seed)
        assert set(made.table["split"]) == {"train", "validation"}
        assert not patients_in_two(made.table, made.table["split"])
    used = read_manifest(finished_run.folder / "manifest.parquet").table
    assert used["fold"].nunique() == 3
    assert not patients_in_two(used, used["fold"])
    # where patients are unknown nothing is split without being told to
    for i, path in enumerate(found.table["path"]):
        copied = tmp_path / Path(path).parent / f"{i}.png"
        copied.parent.mkdir(exist_ok=True)
        shutil.copy(found.file(path), copied)
    with pytest.raises(DataError, match="patients-unknown"):
        prepare(scan(tmp_path))


def test_d02_the_epoch_is_chosen_by_loss_on_patients_of_the_training_part(
    tissue, manifest, tmp_path
):
    found = scan(tissue.images)
    groups, labels = found.groups.tolist(), found.table["label"].tolist()
    patient = found.table["patient"].to_numpy()
    for seed in range(5):
        recipe = make_recipe("finetune", {"seed": seed, "folds": 3})
        fold = assign_folds(labels, groups, folds=3, seed=seed)
        for k in range(3):
            aside = set_aside(found, groups, fold != k, recipe)
            chosen_on, learned = set(patient[aside]), set(patient[(fold != k) & ~aside])
            judged = set(patient[fold == k])
            assert chosen_on
            assert not chosen_on & judged
            assert not chosen_on & learned
            assert chosen_on | learned | judged == set(patient)
    assert [r.tuning.select for r in RECIPES.values() if r.tuning is not None] == ["loss", "loss"]
    kept = {}
    for select in ("loss", "accuracy"):
        job = make_job(manifest, tmp_path / select, epochs=6, lr=1e-2, ema=0.0, select=select)
        kept[select] = tune(job, make_network()).state.best_epoch
    rows = {row["epoch"]: row for row in log_of(tmp_path / "loss")}
    lowest = min(row["validation_loss"] for row in rows.values())
    assert rows[kept["loss"]]["validation_loss"] == pytest.approx(lowest, abs=1e-4)
    assert kept["accuracy"] == max(rows, key=lambda epoch: rows[epoch]["validation_accuracy"])
    # of so few images the accuracy is soon as high as it gets, while the loss still falls
    assert kept["accuracy"] < kept["loss"]


# ---- what is made of an image


def test_d05_zoom_never_mirrors_or_empties_an_image():
    """The tutorial's zoom_range=2 drew factors between -1 and 3, for each axis its own."""
    for zoom in (1.0, 2.0, -0.5):
        with pytest.raises(UsageError, match="zoom must be at least 0 and below 1"):
            Tuning(zoom=zoom)
    strongest = Tuning(zoom=0.999, shift=0, stain=0, brightness=0, blur_px=0)
    names = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(1000)]
    draws = draw(names, strongest, seed=0, epoch=1, n_features=1)
    assert draws.zoom.shape == (1000,)  # one factor for both axes
    # red grows to the right, green downwards
    y, x = np.mgrid[:20, :30]
    ramp = np.stack([x * 8, y * 12, np.zeros_like(x)], axis=2).astype(np.uint8)
    images = torch.from_numpy(np.repeat(ramp[None], 1000, axis=0))

    def slopes(zoom: np.ndarray) -> np.ndarray:
        """Return per image how much redder the right half is, and how much greener the lower."""
        red, green, _ = augment(images, replace(draws, zoom=zoom)).unbind(1)
        right = red[:, :, 15:].mean((1, 2)) - red[:, :, :15].mean((1, 2))
        lower = green[:, 10:].mean((1, 2)) - green[:, :10].mean((1, 2))
        return torch.stack([right, lower]).numpy()

    plain = slopes(np.ones(1000, np.float32))[:, :1]
    # at half the size the border mirrors what there is, and half of the slope is left
    assert (slopes(draws.zoom) > 0.45 * plain).all()
    assert (slopes(-draws.zoom) < 0).all()  # what mirrored looks like


def test_d06_a_network_sees_what_its_weights_were_trained_on_and_the_model_says_so(
    finished_run, manifest, tmp_path
):
    backbone = load_backbone("densenet201", weights="none")
    assert backbone.mean == timm.get_pretrained_cfg("densenet201").mean == (0.485, 0.456, 0.406)
    prep = backbone.preprocessing(48)
    image = decode(manifest.file("00.png"))
    by_hand = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.abs(prep(image) - by_hand.transpose(2, 0, 1)).max() < 1e-5
    # in training and in validation alike
    job = make_job(manifest, tmp_path, epochs=1, ema=0.0)
    job = replace(job, prep=prep)
    network, seen = make_network(), []
    network.register_forward_pre_hook(
        lambda module, arguments: seen.append((module.training, arguments[0]))
    )
    tune(job, network)
    lowest = (0 - np.array(prep.mean)) / prep.std
    highest = (1 - np.array(prep.mean)) / prep.std
    assert {training for training, _ in seen} == {True, False}
    for _, images in seen:
        channels = images.transpose(0, 1).flatten(1).numpy()
        assert (channels.min(1) >= lowest - 1e-5).all()
        assert (channels.max(1) <= highest + 1e-5).all()
        assert (channels.max(1) - channels.min(1) > 1).all()
    exact = [prep(decode(manifest.file(job.paths[row]))) for row in job.validation.rows]
    validated = np.concatenate([images.numpy() for training, images in seen if not training])
    for wanted in exact:
        assert np.abs(validated - wanted).max((1, 2, 3)).min() < 1e-5
    # and whoever takes the model over
    stored = json.loads((finished_run.folder / "model" / "model.json").read_text())
    config = timm.get_pretrained_cfg(stored["backbone"]["name"])
    assert tuple(stored["preprocessing"]["mean"]) == config.mean
    assert tuple(stored["preprocessing"]["std"]) == config.std
    assert load_model(finished_run.folder / "model").preprocessing.mean == config.mean


def test_d07_an_image_keeps_its_shape_and_edges_and_is_not_aliased(tmp_path):
    prep = RECIPES["densenet201"].preprocessing(
        load_backbone("test_efficientnet", weights="none"), Manifest(tmp_path, pd.DataFrame())
    )
    y, x = np.mgrid[:460, :700]
    disc = np.where(np.hypot(x - 349.5, y - 229.5) < 150, 255, 0)
    frame = np.where((x < 10) | (x >= 690) | (y < 10) | (y >= 450), 255, 0)
    checks = (x + y) % 2 * 255
    rows = []
    for name, plane in (("checks", checks), ("disc", disc), ("frame", frame)):
        path = tmp_path / f"{name}.png"
        Image.fromarray(np.repeat(plane[..., None], 3, axis=2).astype(np.uint8)).save(path)
        rows.append({"path": path.name, **measure(path)})
    pixels = open_pixels(Manifest(tmp_path, complete(pd.DataFrame(rows))), prep, tmp_path)
    grey, small, framed = (pixels[i][..., 0].astype(int) for i in range(3))
    assert small.shape == (147, 224)  # 460 / 700 of 224; the tutorial's was square
    high, wide = (np.ptp(np.flatnonzero((small > 127).any(axis=axis))) + 1 for axis in (1, 0))
    assert high == pytest.approx(96, abs=1)
    assert wide == pytest.approx(96, abs=1)
    for edge in (framed[0], framed[-1], framed[:, 0], framed[:, -1]):
        assert edge.min() > 200
    assert framed[20:-20, 20:-20].max() < 20
    # squares of one pixel are too fine for the smaller image: what is left is their mean
    assert np.abs(grey - 127.5).max() < 16
    plain = torch.nn.functional.interpolate(
        torch.from_numpy(checks)[None, None].float(), (147, 224), mode="bilinear"
    )
    assert np.abs(plain.numpy() - 127.5).max() > 100


# ---- the mean over the views


def test_d08_the_mean_is_over_the_eight_exact_views_and_the_same_for_each(
    finished_run, tissue, tmp_path
):
    model = finished_run.model
    image = decode(tissue.images / tissue.truth["path"][0])
    views = [turned for k in range(4)
             for turned in (np.rot90(image, k), np.fliplr(np.rot90(image, k)))]  # fmt: skip
    for i, view in enumerate(views):
        for name in ("once", "again"):
            Image.fromarray(np.ascontiguousarray(view)).save(tmp_path / f"{name} {i}.png")
    table = predict(model, tmp_path).table.set_index("path")
    found, again = (table.loc[[f"{name} {i}.png" for i in range(8)]] for name in ("once", "again"))
    network = copy.deepcopy(model.backbone.network).cpu().eval()
    by_view = []
    for view in views:
        light = (view / 255 - model.backbone.mean) / model.backbone.std
        with torch.inference_mode():
            features = network(torch.from_numpy(light.transpose(2, 0, 1)[None]).float())
        logits = features[0].double().numpy() @ model.heads.tissue.weight.T
        by_view.append(torch.from_numpy(logits + model.heads.tissue.bias).softmax(0)[1].item())
    assert np.ptp(by_view) > 1e-4  # the views are not the same to the network
    assert found["plain_malignant"].to_numpy() == pytest.approx(by_view, abs=1e-5)
    assert found["prob_malignant"].to_numpy() == pytest.approx(np.mean(by_view), abs=1e-5)
    assert again["prob_malignant"].tolist() == found["prob_malignant"].tolist()


# ---- the record


def test_d09_a_seed_gives_the_same_bits_and_what_made_them_is_recorded(
    manifest, finished_run, tissue, tmp_path
):
    one, same, other = (
        tune(make_job(manifest, tmp_path / name, seed=seed, epochs=2), make_network())
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    weights, again = one.network.state_dict(), same.network.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
    assert not torch.equal(one.network.linear.weight, other.network.linear.weight)
    assert one.state == same.state
    assert one.state.metrics != other.state.metrics
    record = json.loads((finished_run.folder / "run.json").read_text())
    model = json.loads((finished_run.folder / "model" / "model.json").read_text())
    for name in ("torch", "timm", "numpy", "scikit-learn", "pillow", "pandas"):
        assert record["versions"][name] == model["versions"][name] == version(name)
    assert record["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert record["request"]["recipe"]["seed"] == 0
    used = read_manifest(finished_run.folder / "manifest.parquet").table
    for path, sha256 in zip(used["path"], used["sha256"], strict=True):
        assert hashlib.sha256((tissue.images / path).read_bytes()).hexdigest() == sha256


def test_d10_images_of_every_ending_are_read_and_what_is_not_is_told_with_the_reason(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    endings = ("png", "PNG", "jpg", "JPG", "jpeg", "JPEG", "tif", "TIF", "tiff", "bmp", "webp")
    (tmp_path / "benign").mkdir()
    for ending in endings:
        Image.fromarray(pixels).save(tmp_path / "benign" / f"{ending}.{ending}")
    for name in ("notes.txt", "movie.gif", "slide.svs", ".hidden.png", "none"):
        (tmp_path / "benign" / name).write_text("no image")
    (tmp_path / "benign" / "broken.JPG").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    found = scan(tmp_path)
    read = {f"benign/{ending}.{ending}" for ending in endings}
    assert set(found.table["path"]) == read | {"benign/broken.JPG"}
    for path in read:
        assert decode(found.file(path)).shape == (16, 24, 3)
    assert {skipped.path: skipped.reason for skipped in found.skipped} == {
        "benign/.hidden.png": "hidden file",
        **dict.fromkeys(
            ("benign/notes.txt", "benign/movie.gif", "benign/slide.svs", "benign/none"),
            "not an image by its ending",
        ),
    }
    (told,) = [f for f in audit(found).findings if f.code == "unreadable"]
    assert told.files == ("benign/broken.JPG",)
    assert "the first: cannot read benign/broken.JPG: " in told.message


_EPOCHS = """
import pickle, sys
from lobule.training.batches import EpochShare, load, plan_epoch
from lobule.training.tuning import Tuning

def held():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024

with open(sys.argv[1], "rb") as file:
    pixels, examples = pickle.load(file)
tuning, amounts, images = Tuning(batch_size=2), [], 0
for epoch in (1, 2):
    plan = plan_epoch(pixels, examples, tuning, seed=0, epoch=epoch)
    for batch in load(EpochShare(pixels, examples, tuning, plan, 0, epoch, 4), start=0, workers=0):
        images += len(batch.rows)
        amounts.append(held())
print(images, max(amounts) - amounts[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
def test_d12_training_reads_from_the_disk_and_holds_no_more_than_a_batch(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(40):
        path = tmp_path / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)).save(path)
        rows.append({"path": path.name, **measure(path)})
    found = Manifest(tmp_path, complete(pd.DataFrame(rows)))
    pixels = open_pixels(found, replace(PREP, long_side_px=960), tmp_path / "cache")
    total_mib = sum(3 * height * width for height, width in pixels.sizes) / 2**20
    assert total_mib > 70
    job = tmp_path / "job"
    job.write_bytes(pickle.dumps((pixels, Examples(np.arange(40), np.arange(40) % 2, np.ones(40)))))
    done = subprocess.run(
        [sys.executable, "-c", _EPOCHS, str(job)],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    images, growth_mib = done.stdout.split()
    assert int(images) == 80
    # a batch is 3.5 MiB as it is read and again as it is laid
    assert float(growth_mib) < total_mib / 4


def test_d15_the_history_is_json_and_no_text_within_json(manifest, finished_run, tmp_path):
    tuned = tune(make_job(manifest, tmp_path, epochs=2), make_network())
    rows = log_of(tmp_path)
    assert rows == tuned.state.metrics
    for row in rows:
        assert isinstance(row, dict)
        for part in ("train", "validation"):
            assert isinstance(row[f"{part}_loss"], float)
            assert isinstance(row[f"{part}_accuracy"], float)
    documents = sorted(finished_run.folder.rglob("*.json"))
    assert len(documents) >= 5
    for path in documents:
        assert isinstance(json.loads(path.read_text()), dict), path


# ---- decisions


def made_up(n_patients: int = 24, per_patient: int = 4) -> tuple[Manifest, Features]:
    """Features that tell the class of a patient, if not surely."""
    rng = np.random.default_rng(2)
    patient = np.repeat(np.arange(n_patients), per_patient)
    y = patient % 2
    views = rng.normal(0, 1.5, (len(y), 8, 3)) + y[:, None, None]
    rows = pd.DataFrame({
        "path": [f"{i}.png" for i in range(len(y))],
        "label": np.array(["benign", "malignant"])[y],
        "patient": [f"P{p}" for p in patient],
    })  # fmt: skip
    colour = rng.normal(0, 1, (len(y), 12))
    return Manifest(Path(), complete(rows)), Features(views.astype("f4"), colour.astype("f4"))


def test_d17_the_threshold_reaches_a_sensitivity_on_scores_of_others_and_is_then_locked(
    finished_run, tissue
):
    # in cross-validation: labels of a fold have no part in the threshold of that fold
    data, features = made_up()
    groups = data.groups.tolist()
    fold = assign_folds(data.table["label"].tolist(), groups, folds=2)
    other = data.table["label"].map({"benign": "malignant", "malignant": "benign"})
    honest = out_of_fold(data, features, fold, groups, Recipe(folds=2), source="x").table
    for k in range(2):
        lied = data.with_columns(label=data.table["label"].where(fold != k, other))
        table = out_of_fold(lied, features, fold, groups, Recipe(folds=2), source="x").table
        assert table["threshold"][fold == k].tolist() == honest["threshold"][fold == k].tolist()
        assert (table["threshold"][fold != k] != honest["threshold"][fold != k]).all()
    # in the model that is kept: the highest cut of the out-of-fold scores that reaches 95 %
    oof = read_predictions(finished_run.folder / "predictions.parquet").table
    score, malignant = oof["prob_malignant"], oof["label"] == "malignant"
    reaching = [cut for cut in score if (score[malignant] >= cut).mean() >= 0.95]
    point = finished_run.model.info.operating_points["image"]
    assert ((score >= point["threshold"]) == (score >= max(reaching))).all()
    assert (point["target"], point["value"]) == ("sensitivity", 0.95)
    assert point["threshold"] != 0.5
    # whatever it is used on
    model = load_model(finished_run.folder / "model")
    table = predict(model, [tissue.images / file for file in tissue.truth["path"][:3]]).table
    assert set(table["threshold"]) == {point["threshold"]}


def test_d18_rare_classes_count_and_training_stops_early(tissue, manifest, tmp_path):
    found = scan(tissue.images)
    # all images of the benign patients, one of each malignant one: 24 and 6
    few = (found.table["label"] == "benign") | ~found.table.duplicated("patient")
    rare = found.where(few)
    unused = Features(np.zeros((30, 8, 1), np.float32), np.zeros((30, 12), np.float32))
    mean = {}
    for balance in ("none", "class", "patient"):
        # of a network that sees nothing, only how common the classes are can be learned
        recipe = make_recipe("finetune", {
            "backbone": "test_efficientnet", "weights": "none", "long_side_px": 32, "epochs": 12,
            "batch_size": 8, "lr": 0.05, "head": "random", "unfreeze_share": 0.0, "ema": 0.0,
            "dropout": 0.0, "patience": 0, "schedule": "plateau", "balance": balance,
            "validation": 0.35,
        })  # fmt: skip
        backbone = load_backbone(recipe.backbone, weights="none")
        prep = recipe.preprocessing(backbone, rare)
        bench = Bench(
            rare, tuple(rare.groups), unused, backbone, prep, recipe,
            folder=tmp_path / balance, cache=tmp_path, machine=Machine(),
        )  # fmt: skip
        model = tune_model(bench, np.ones(30, dtype=bool), name="final")
        inputs = np.stack([prep(decode(rare.file(path))) for path in rare.table["path"]])
        with torch.inference_mode():
            seen = model.backbone.network(torch.from_numpy(inputs)).numpy()
        mean[balance] = model.head.probabilities(seen)[:, 1].mean()
    assert mean["none"] < 0.3
    assert mean["class"] == pytest.approx(0.5, abs=0.08)
    assert mean["patient"] == pytest.approx(0.5, abs=0.08)
    assert RECIPES["finetune"].tuning.balance == "patient"
    # early stopping
    patience = RECIPES["finetune"].tuning.patience
    assert patience > 0
    job = make_job(manifest, tmp_path / "early", epochs=60, patience=patience, lr=1e-2, ema=0.0)
    state = tune(job, make_network()).state
    assert state.stopped == "early"
    assert state.epoch == state.best_epoch + patience < 60


def test_d19_an_unknown_metric_is_refused_at_the_start_with_the_nearest(tmp_path):
    for setting in ("select", "plateau_metric"):
        with pytest.raises(UsageError, match=r"did you mean accuracy\?") as caught:
            make_recipe("finetune", {setting: "val_accuracy"})
        assert setting in caught.value.what
        shown = CliRunner().invoke(
            app,
            ["train", str(tmp_path / "not looked at"), "-o", str(tmp_path / "run"),
             "--recipe", "finetune", "--set", f"{setting}=val_acc"],
        )  # fmt: skip
        assert shown.exit_code == 2
        assert setting in shown.stderr
        assert "roc_auc" in shown.stderr
    assert not (tmp_path / "run").exists()


# ---- the network and how it learns


def test_d20_dropout_does_not_change_what_batch_norm_gathers(manifest, tmp_path):
    gathered = []
    for dropout in (0.0, 0.8):
        # a rate at which no weight moves, so that nothing but dropout differs
        job = make_job(
            manifest, tmp_path / str(dropout), dropout=dropout, norm_statistics="updated",
            lr=1e-12, weight_decay=0.0, ema=0.0, epochs=3,
        )  # fmt: skip
        network = make_network()
        seen = []
        network.linear.register_forward_pre_hook(
            lambda module, inputs, seen=seen: seen.append(float((inputs[0] == 0).float().mean()))
        )
        tuned = tune(job, network)
        assert max(seen) == pytest.approx(dropout, abs=0.03)  # it did act, after the norm
        gathered.append(tuned.network.norm)
    without, with_dropout = gathered
    assert not torch.equal(without.running_mean, torch.zeros_like(without.running_mean))
    assert torch.allclose(without.running_mean, with_dropout.running_mean, rtol=1e-4)
    assert torch.allclose(without.running_var, with_dropout.running_var, rtol=1e-4)


def test_d21_the_head_learns_first_then_layer_after_layer_the_earlier_the_slower(
    manifest, tmp_path
):
    recipe = vars(RECIPES["finetune"].tuning)
    assert recipe["head"] == "probe"  # fitted on frozen features before anything is tuned
    network = make_network()
    layer = layers_of(network)
    head = max(layer.values())
    start = {name: value.clone() for name, value in network.state_dict().items()}

    def moved() -> set[int]:
        return {layer[name] for name, value in network.named_parameters()
                if not torch.equal(value, start[name])}  # fmt: skip

    job = make_job(manifest, tmp_path / "a", **recipe | {"epochs": 5, "batch_size": 6})
    by_epoch: dict[int, set[int]] = {}

    def watch(items, *, total, task):
        for item in items:
            by_epoch[len(log_of(tmp_path / "a"))] = moved()
            for name, value in network.named_buffers():
                assert torch.equal(value, start[name]), name
            yield item

    tune(job, network, progress=watch)
    stages = [by_epoch[n] for n in (1, 2, 3, 4)]
    assert stages[0] == {head, head - 1}
    assert stages[0] < stages[1] < stages[2]
    assert stages[2] == stages[3] == set(range(head - head // 2, head + 1))


def test_d21_earlier_layers_learn_at_smaller_rates(manifest, tmp_path):
    recipe = vars(RECIPES["finetune"].tuning)
    changes = {"epochs": 1, "batch_size": 6, "head": "random", "unfreeze_share": 1.0,
               "unfreeze_epochs": 0, "lr": 1e-2}  # fmt: skip
    network = make_network()
    layer = layers_of(network)
    start = {name: value.detach().clone() for name, value in network.named_parameters()}
    steps: dict[int, float] = {}

    def watch(items, *, total, task):
        for item in items:
            if not steps:
                for name, value in network.named_parameters():
                    # Adam's first step is the rate itself; biases and norms are not decayed
                    if value.ndim == 1:
                        step = float((value.detach() - start[name]).abs().max())
                        steps[layer[name]] = max(step, steps.get(layer[name], 0))
            yield item

    tune(make_job(manifest, tmp_path, **recipe | changes), network, progress=watch)
    head = max(steps)
    assert len(steps) == head + 1 > 5
    for number, step in steps.items():
        assert step / steps[head] == pytest.approx(0.8 ** (head - number), rel=0.01), number


@pytest.mark.slow
def test_d23_what_a_run_was_asked_and_what_it_did_is_written_by_the_tool_from_the_data(
    tissue, tmp_path
):
    recipe = make_recipe("finetune", {
        "backbone": "test_efficientnet", "weights": "none", "epochs": 9, "folds": 2,
        "batch_size": 8, "long_side_px": 48, "lr": 1e-2, "validation": 0.25, "patience": 1,
    })  # fmt: skip
    run = train(tissue.images, tmp_path / "run", recipe=recipe)
    truth = tissue.truth
    request = json.loads((run.folder / "run.json").read_text())["request"]
    assert request["recipe"] == json.loads(json.dumps(recipe.to_json()))
    images = sorted(
        f"{hashlib.sha256((tissue.images / row.path).read_bytes()).hexdigest()} {row.label}"
        for row in truth.itertuples()
    )
    assert request["data_hash"] == hashlib.sha256("\n".join(images).encode()).hexdigest()
    told = json.loads((run.folder / "model" / "model.json").read_text())["training"]
    assert (told["n_images"], told["n_patients"]) == (len(truth), truth["patient"].nunique())
    assert told["classes"] == {
        label: {"images": len(rows), "patients": rows["patient"].nunique()}
        for label, rows in truth.groupby("label")
    }
    # what was done, which is less than the nine epochs that were asked for
    fits = json.loads((run.folder / "training" / "training.json").read_text())["fits"]
    assert len(fits) == 3
    for fit in fits:
        rows = log_of(run.folder / "training" / fit["folder"])
        assert (fit["epochs"], fit["steps"]) == (rows[-1]["epoch"], rows[-1]["step"])
        (kept,) = [row for row in rows if row["epoch"] == fit["selected_epoch"]]
        lowest = min(row["validation_loss"] for row in rows)
        assert kept["validation_loss"] == pytest.approx(lowest, abs=1e-4)
        assert (fit["stopped"] == "early") == (fit["epochs"] < 9)
        assert fit["n_validation_images"] == 4 * fit["n_validation_patients"] > 0
    assert min(fit["epochs"] for fit in fits) < 9
    assert told["tuning"]["epochs"] == fits[-1]["epochs"]
    card = (run.folder / "model" / "README.md").read_text()
    assert f"{len(truth)} images" in card
