"""The command line: results on stdout, messages on stderr, exit codes, and bad input."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import lobule
from lobule.cli.app import app
from lobule.training.checkpoint import read_checkpoint


def call(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def python_m_lobule(*words: object, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "lobule", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


VERBS = (
    "scan",
    "audit",
    "split",
    "train",
    "summary",
    "predict",
    "evaluate",
    "compare",
    "stress",
    "external",
    "study",
    "leakage",
    "report",
    "demo",
    "doctor",
)


def test_help_lists_every_verb_with_an_example_each():
    shown = call("--help")
    assert shown.exit_code == 0
    for verb in VERBS:
        assert verb in shown.stdout
        assert f"Example: lobule {verb}" in call(verb, "--help").stdout


def test_version_is_printed():
    assert call("--version").stdout == f"lobule {lobule.__version__}\n"


def test_scan_writes_the_manifest_and_counts(tissue, tmp_path):
    shown = call("scan", tissue.images, "-o", tmp_path / "m.csv", "--json")
    record = json.loads(shown.stdout)
    assert (record["schema"], record["n_images"], record["n_patients"]) == ("lobule.scan/1", 48, 12)
    assert len(pd.read_csv(tmp_path / "m.csv")) == 48


def test_scan_names_what_it_passed_over_on_stderr(tissue, tmp_path):
    shutil.copytree(tissue.images, tmp_path / "d")
    (tmp_path / "d" / "notes\n.txt").write_text("x")
    shown = call("scan", tmp_path / "d")
    assert "passed over notes\\n.txt: not an image by its ending" in shown.stderr
    assert "48 images" in shown.stdout


def test_audit_ends_with_3_only_if_something_blocks(tissue, tmp_path):
    assert call("audit", tissue.images).exit_code == 0
    shutil.copytree(tissue.images, tmp_path / "d")
    (tmp_path / "d" / "benign" / "patient-1_x.png").write_text("text")
    shown = call("audit", tmp_path / "d", "--json")
    assert shown.exit_code == 3
    record = json.loads(shown.stdout)
    assert record["blocked"] is True
    assert record["findings"][0]["files"] == ["benign/patient-1_x.png"]
    assert call("audit", tmp_path / "d", "--allow", "unreadable").exit_code == 0


def test_split_prints_parts_and_writes_them(tissue, tmp_path):
    shown = call("split", tissue.images, "-o", tmp_path / "m.csv", "--json")
    parts = json.loads(shown.stdout)["parts"]
    assert {part["part"] for part in parts} == {"train", "validation", "test"}
    assert sum(part["n_images"] for part in parts) == 48
    folds = call("split", tissue.images, "-o", tmp_path / "f.parquet", "--folds", 3, "--json")
    assert json.loads(folds.stdout)["column"] == "fold"


def test_train_then_predict_then_evaluate_then_report(tissue, tmp_path):
    run = tmp_path / "run"
    trained = call("train", tissue.images, "-o", run, "--folds", 3, "--size", 96, "--json")
    assert trained.exit_code == 0, trained.stderr
    record = json.loads(trained.stdout)
    assert record["schema"] == "lobule.train/1"
    assert record["evaluation"]["n_patients"] == 12

    predictions, manifest = tmp_path / "p.csv", tmp_path / "m.csv"
    assert call("predict", run / "model", tissue.images, "-o", predictions).exit_code == 0
    columns = list(pd.read_csv(predictions).columns)
    assert {"path", "prob_benign", "prob_malignant", "decision", "model"} <= set(columns)
    call("scan", tissue.images, "-o", manifest)
    judged = call("evaluate", predictions, "--manifest", manifest, "--root", tissue.images,
                  "-o", tmp_path / "e.json", "--json")  # fmt: skip
    assert judged.exit_code == 0, judged.stderr
    assert json.loads(judged.stdout)["levels"]["patient"]["n_units"] == 12
    assert json.loads((tmp_path / "e.json").read_text()) == json.loads(judged.stdout)

    (run / "report.html").unlink()
    assert call("report", run).exit_code == 0
    assert (run / "report.html").exists()


def test_leakage_prints_three_aucs_and_the_difference(tissue):
    record = json.loads(call("leakage", tissue.images, "--folds", 3, "--size", 96, "--json").stdout)
    assert set(record["auc"]) == {"image", "slide", "patient"}
    difference = record["auc"]["image"]["estimate"] - record["auc"]["patient"]["estimate"]
    assert record["inflation"]["estimate"] == pytest.approx(difference)


def test_predict_skips_unreadable_images_with_exit_code_5(finished_run, tissue, tmp_path):
    shutil.copy(sorted(tissue.images.rglob("*.png"))[0], tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("text")
    model = finished_run.folder / "model"
    failed = call("predict", model, tmp_path)
    assert failed.exit_code == 3
    assert "bad.png: not a PNG, JPEG, TIFF, BMP or WEBP image" in failed.stderr
    skipped = call("predict", model, tmp_path, "--on-error", "skip", "--json")
    assert skipped.exit_code == 5
    record = json.loads(skipped.stdout)
    assert [row["path"] for row in record["predictions"]] == ["good.png"]
    assert list(record["failed"]) == ["bad.png"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["scan", "{tmp}/nowhere"], 3, "error: cannot scan {tmp}/nowhere: no such folder"),
        (["scan", "{tmp}"], 3, "error: no images in {tmp}: looked for"),
        (["audit", "{images}", "--allow", "magic"], 2, "--allow 'magic' is not a finding"),
        (["train", "{images}", "-o", "{tmp}/r", "--folds", "1"], 2, "--folds must be 2 or more"),
        (["train", "{images}", "-o", "{tmp}/r", "--backbone", "resnet51"], 4, "no backbone"),
        (["train", "{images}", "-o", "{tmp}/r", "--weights", "{tmp}/w"], 4, "there is no file"),
        (["train", "{images}"], 2, "Missing option '-o'"),
        (["predict", "{tmp}", "{images}"], 4, "is not a model folder: cannot read model.json"),
        (["evaluate", "{tmp}/p.csv"], 3, "error: cannot read the predictions {tmp}/p.csv"),
        (["report", "{tmp}"], 3, "run.json"),
        (["split", "{images}", "-o", "{tmp}/m.txt"], 2, "is neither .csv nor .parquet"),
        (["scan", "{images}", "--pattern", "("], 2, "is not a regular expression"),
        (["frobnicate"], 2, "No such command 'frobnicate'"),
    ],
)  # fmt: skip
def test_a_wrong_call_ends_with_its_code_and_says_why(words, code, message, tissue, tmp_path):
    fill = {"tmp": tmp_path, "images": tissue.images}
    ended = call(*(word.format(**fill) for word in words))
    assert ended.exit_code == code, ended.stderr
    assert message.format(**fill) in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_one_class_is_refused(tissue, tmp_path):
    shutil.copytree(tissue.images / "benign", tmp_path / "d" / "benign")
    ended = call("train", tmp_path / "d", "-o", tmp_path / "r")
    assert ended.exit_code == 3
    assert (
        "a classifier needs images of two classes, found only 'benign' (24 images)" in ended.stderr
    )
    assert not (tmp_path / "r").exists()


def test_one_patient_in_a_class_is_refused(tissue, tmp_path):
    shutil.copytree(tissue.images / "benign", tmp_path / "d" / "benign")
    (tmp_path / "d" / "malignant").mkdir()
    for file in sorted((tissue.images / "malignant").iterdir())[:4]:
        shutil.copy(file, tmp_path / "d" / "malignant")
    ended = call("train", tmp_path / "d", "-o", tmp_path / "r")
    assert ended.exit_code == 3
    assert "class 'malignant' has one patient (P" in ended.stderr


def test_names_of_any_kind_go_through_to_the_report(tissue, tmp_path):
    folder = tmp_path / "bilder ü\n"
    shutil.copytree(tissue.images, folder)
    for i, file in enumerate(sorted(folder.rglob("*.png"))[:6]):
        odd = ("ü", "a\nb", "a\rb", 'say "x", y', "<script>alert(1)<", "=1+1")[i]
        file.rename(file.with_name(f"{file.stem}_{odd}.png"))
    run = tmp_path / "run"
    trained = call("train", folder, "-o", run, "--folds", 3, "--size", 96)
    assert trained.exit_code == 0, trained.stderr
    assert "<script>alert" not in (run / "report.html").read_text(encoding="utf-8")
    predicted = tmp_path / "p.csv"
    assert call("predict", run / "model", folder, "-o", predicted).exit_code == 0
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))
    with predicted.open(newline="", encoding="utf-8") as rows:
        assert sorted(row["path"] for row in csv.DictReader(rows)) == files


def test_an_output_folder_in_use_is_refused_and_left_alone(tissue, tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "thesis.txt").write_text("mine")
    ended = call("train", tissue.images, "-o", tmp_path / "r")
    assert ended.exit_code == 2
    assert f"error: the output folder {tmp_path}/r is not empty and holds no run of Lobule" in (
        ended.stderr
    )
    assert [p.name for p in (tmp_path / "r").iterdir()] == ["thesis.txt"]


def test_a_hub_that_cannot_be_reached_ends_with_4_and_the_way_out(tissue, tmp_path):
    process = python_m_lobule(
        "train", tissue.images, "-o", tmp_path / "r", "--backbone", "resnet10t",
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
    )  # fmt: skip
    _, err = process.communicate(timeout=300)
    assert process.returncode == 4, err
    assert "error: cannot fetch timm/resnet10t" in err
    assert "HF_HUB_OFFLINE is set" in err
    assert "--weights FILE.safetensors" in err
    assert "Traceback" not in err


def test_a_full_disk_ends_with_2_names_the_file_and_keeps_earlier_files(tissue, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", small], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        (small / "earlier.txt").write_text("kept")
        ended = call("train", tissue.images, "-o", small / "run", "--folds", 3, "--size", 96)
        assert ended.exit_code == 2, ended.stderr
        assert f"error: cannot write {small}/run/" in ended.stderr
        assert "no space left on the device" in ended.stderr
        assert "Traceback" not in ended.stderr
        assert (small / "earlier.txt").read_text() == "kept"
        assert not list(small.rglob("*.tmp"))
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_among_the_features_ends_with_its_code_and_the_same_command_goes_on(
    tissue, tmp_path, number, code
):
    cache = tmp_path / "cache"
    # large enough that there is work left when the signal arrives
    words = ("train", tissue.images, "-o", tmp_path / "r", "--folds", 3, "--size", 160)
    env = {**os.environ, "LOBULE_CACHE": str(cache)}
    process = python_m_lobule(*words, env=env)
    deadline = time.monotonic() + 120
    while not list(cache.rglob("*.npz")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "interrupted; what was finished is kept" in err
    assert "Traceback" not in err
    done = len(list(cache.rglob("*.npz")))
    assert done < 48
    assert not list(tmp_path.rglob("*.tmp"))

    again = python_m_lobule(*words, env=env)
    _, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert len(list(cache.rglob("*.npz"))) == 48


TUNING = (
    "--recipe", "finetune", "--backbone", "test_efficientnet", "--weights", "none", "--folds", 2,
    "--size", 64, "--epochs", 3, "--set", "batch_size=4", "--set", "validation=0.25",
    "--set", "patience=0",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_tuning_ends_with_its_code_and_a_checkpoint_that_is_gone_on_from(
    tissue, tmp_path, number, code
):
    # one thread each, so that the weights can be compared
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = ("train", tissue.images, "-o", tmp_path / "r", *TUNING)
    process = python_m_lobule(*words, env=env)
    log = tmp_path / "r" / "training" / "fold-2" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (log.exists() and len(log.read_text().splitlines()) > 1):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "interrupted; what was finished is kept" in err
    assert "Traceback" not in err
    kept = read_checkpoint(log.parent)
    assert kept.record["state"]["epoch"] < 3
    assert not kept.record["state"]["finished"]
    assert not list(tmp_path.rglob("*.tmp"))

    again = python_m_lobule(*words, env=env)
    _, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    # each fold is told epoch by epoch: the first was not trained again
    assert "fold 1: epoch" not in err
    whole = python_m_lobule("train", tissue.images, "-o", tmp_path / "whole", *TUNING, env=env)
    _, err = whole.communicate(timeout=300)
    assert whole.returncode == 0, err
    one, other = (json.loads((tmp_path / run / "model" / "model.json").read_text())
                  for run in ("r", "whole"))  # fmt: skip
    assert one["weights_sha256"] == other["weights_sha256"]
    logs = [(tmp_path / run / "training" / "fold-2" / "metrics.jsonl").read_text()
            for run in ("r", "whole")]  # fmt: skip
    assert logs[0] == logs[1]


@pytest.mark.parametrize(
    ("words", "message", "fix"),
    [
        (["--recipe", "finetun"], "no recipe is called 'finetun'", "did you mean finetune?"),
        (["--recipe", "finetune", "--set", "lrr=1"], "is called 'lrr'", "did you mean lr?"),
        (["--recipe", "finetune", "--set", "lr=fast"], "lr takes a number, got 'fast'", ""),
        (["--recipe", "finetune", "--set", "select=val_acc"], "select takes one of loss", ""),
        (["--set", "lr=1e-3"], "no setting of recipe 'features' is called 'lr'", "finetune"),
        (["--recipe", "no-such.toml"], "cannot read the recipe no-such.toml", ""),
        (["--recipe", "finetune", "--device", "cuda"], "torch finds no CUDA device", "doctor"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_written(
    words, message, fix, tissue, tmp_path
):
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    ended = call("train", tissue.images, "-o", tmp_path / "run", *words)
    assert ended.exit_code == 2, ended.stderr
    assert message in ended.stderr
    assert fix in ended.stderr
    assert not (tmp_path / "run").exists()


def test_settings_of_a_toml_file_and_of_the_command_line_are_in_the_run(tissue, tmp_path):
    (tmp_path / "mine.toml").write_text('recipe = "features"\nfolds = 3\nsensitivity = 0.9\n')
    words = ("--recipe", tmp_path / "mine.toml", "--set", "long_side_px=64", "--sensitivity", 0.8)
    ended = call("train", tissue.images, "-o", tmp_path / "run", *words)
    assert ended.exit_code == 0, ended.stderr
    recipe = json.loads((tmp_path / "run" / "run.json").read_text())["request"]["recipe"]
    assert (recipe["folds"], recipe["long_side_px"], recipe["sensitivity"]) == (3, 64, 0.8)


def test_summary_ends_with_the_counts_that_the_tutorial_printed():
    shown = call("summary", "densenet201", "--input", 224)
    assert shown.exit_code == 0, shown.stderr
    last = shown.stdout.splitlines()[-2:]
    assert last == ["total with running statistics: 18,333,506", "trainable: 18,100,610"]
    record = json.loads(call("summary", "densenet201", "--json").stdout)
    assert (record["schema"], record["trainable"]) == ("lobule.summary/1", 18_100_610)
