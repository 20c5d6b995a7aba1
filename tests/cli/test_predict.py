"""`lobule predict`: what may be named, what is written, who says so, and how it ends."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime

import pandas as pd
import pytest
from typer.testing import CliRunner

import lobule
from lobule.audit_log import verify
from lobule.cli.app import app
from lobule.data.scan import scan
from lobule.evaluation.predictions import read_predictions

NOTICE = "Research use only. Not for diagnosis."


@pytest.fixture
def folder(tissue, tmp_path):
    """Four photographs, two of a kind, and in `mixed` two of them with a text called .png."""
    files = sorted(tissue.images.rglob("*.png"))
    for name, file in zip("abcd", (*files[:2], *files[-2:]), strict=True):
        for part in ("new", "mixed") if name in "ad" else ("new",):
            (tmp_path / part).mkdir(exist_ok=True)
            shutil.copy(file, tmp_path / part / f"{name}.png")
    (tmp_path / "mixed" / "bad.png").write_text("text")
    return tmp_path


@pytest.fixture
def call(finished_run):
    def call(*words, stdin=None):
        model = str(finished_run.folder / "model")
        return CliRunner().invoke(app, ["predict", model, *map(str, words)], input=stdin)

    return call


def answers(shown):
    return {row["path"]: row for row in json.loads(shown.stdout)["predictions"]}


# ---- what may be named


@pytest.mark.slow
def test_folder_files_pattern_and_list_give_the_same_answers(call, folder):
    by_folder = answers(call(folder / "new", "--json"))
    files = sorted((folder / "new").iterdir())
    listed = "".join(f"{file}\0" for file in files).encode()
    for words, stdin in (
        (files, None),
        ([folder / "**" / "[abc].png", folder / "new/d.png", folder / "new"], None),
        (["-"], listed),
        (["-"], listed.replace(b"\0", b"\n")),
    ):
        if words[0] == folder / "**" / "[abc].png":
            shutil.rmtree(folder / "mixed")
        shown = call(*words, "--json", stdin=stdin)
        assert shown.exit_code == 0, shown.stderr
        found = {path.rsplit("/", 1)[-1]: row for path, row in answers(shown).items()}
        assert list(found) == list(by_folder)
        for name, row in found.items():
            assert abs(row["prob_malignant"] - by_folder[name]["prob_malignant"]) < 1e-6


@pytest.mark.slow
def test_the_output_of_find_can_be_piped_in(finished_run, folder):
    find = subprocess.run(
        ["find", folder / "new", "-name", "[ab].png", "-print0"], capture_output=True, check=True
    )
    done = subprocess.run(
        [sys.executable, "-m", "lobule", "predict", finished_run.folder / "model", "-", "--json"],
        input=find.stdout, capture_output=True, check=True,
    )  # fmt: skip
    assert len(json.loads(done.stdout)["predictions"]) == 2


@pytest.mark.slow
def test_a_process_without_standard_input_can_predict(finished_run, folder):
    command = f"{sys.executable} -m lobule predict {finished_run.folder / 'model'}"
    for words, code in ((f"{folder / 'new'} --json", 0), ("-", 3)):
        done = subprocess.run(
            ["sh", "-c", f"{command} {words} <&-"], capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr


@pytest.mark.parametrize(
    ("words", "stdin", "message"),
    [
        (["{folder}/**/*.bmp"], None, "error: no image matches {folder}/**/*.bmp"),
        (["-"], b"", "error: there are no paths on standard input"),
        (["-"], b"{folder}/gone.png\n", "error: no such file or folder: "),
        (["-"], b"\xff.png", "error: no such file or folder: \\udcff.png"),
    ],
)
def test_what_cannot_be_found_ends_with_3_and_is_named(call, folder, words, stdin, message):
    shown = call(*(word.format(folder=folder) for word in words), stdin=stdin)
    assert (shown.exit_code, shown.stdout) == (3, "")
    assert message.format(folder=folder) in shown.stderr


# ---- the table for people


def test_people_get_a_line_an_image_with_probability_decision_set_and_path(call, folder):
    shown = call(folder / "new")
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    assert re.fullmatch(r"prob\. malignant +decision +set +image", lines[0])
    record = answers(call(folder / "new", "--json"))
    for line, row in zip(lines[1:5], record.values(), strict=True):
        probability, decision, *members, path = re.split(r" {2,}", line)
        assert path == row["path"]
        assert float(probability) == pytest.approx(row["prob_malignant"], abs=5e-5)
        inside = [c for c in ("benign", "malignant") if row[f"set_{c}"]]
        if not row["accepted"]:
            assert (decision, members) == ("refused", ["unlike the training images"])
        elif len(inside) == 1:
            assert (decision, members) == (row["decision"], inside)
        else:
            assert decision == row["decision"]
            assert members == [f"uncertain: {' or '.join(inside) or 'no class fits'}"]
    assert re.match(r"4 image\(s\): \d", lines[6])
    assert lines[-1] == NOTICE


def test_many_images_are_cut_short_and_it_is_said(call, tissue, folder):
    files = sorted(tissue.images.rglob("*.png"))
    for i in range(60):
        shutil.copy(files[0], folder / "new" / f"{i:02}.png")
    lines = call(folder / "new").stdout.splitlines()
    assert lines[51] == "and 14 more: -o FILE.csv or --json has them all"
    assert lines[50].endswith(" 49.png")
    assert lines[53].startswith("64 image(s): ")


def test_a_name_cannot_forge_a_line_of_the_table(call, folder):
    (folder / "new" / "a.png").rename(folder / "new" / "a\n0.0001  benign  benign  x.png")
    lines = call(folder / "new").stdout.splitlines()
    assert lines[1].endswith("  a\\n0.0001  benign  benign  x.png")


# ---- what is written


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_every_format_holds_the_same_table(call, folder, ending):
    out = folder / f"p.{ending}"
    shown = call(folder / "new", "-o", out)
    assert shown.exit_code == 0, shown.stderr
    assert f"predictions: {out}" in shown.stdout
    known = scan_with_labels(folder)
    found = read_predictions(out, manifest=known)
    expected = answers(call(folder / "new", "--json"))
    assert found.table["path"].tolist() == list(expected)
    for name in ("prob_malignant", "set_benign", "ood_score", "accepted", "decision"):
        assert found.table[name].tolist() == [row[name] for row in expected.values()], name


def scan_with_labels(folder):
    return scan(folder / "new").with_columns(label=["benign", "benign", "malignant", "malignant"])


def test_a_format_that_is_none_ends_with_2_before_any_work(call, folder):
    shown = call(folder / "nowhere", "-o", folder / "p.xlsx")
    assert shown.exit_code == 2
    assert "p.xlsx is neither .csv nor .parquet nor .jsonl" in shown.stderr


def test_every_row_and_the_record_say_who_what_when_and_for_what(call, folder, finished_run):
    before = datetime.now(UTC).replace(microsecond=0)
    call(folder / "new", "-o", folder / "p.csv")
    table = pd.read_csv(folder / "p.csv")
    model = finished_run.model
    expected = {
        "model": model.id,
        "weights": model.weights_sha256,
        "preprocessing": model.preprocessing.id,
        "source": "prediction",
        "training_data": model.info.training["data_hash"],
        "tool": f"lobule {lobule.__version__}",
        "notice": NOTICE,
    }
    record = json.loads(call(folder / "new", "--json").stdout)
    for key, value in expected.items():
        assert set(table[key]) == {value}
        assert record[key] == value
    (time,) = set(table["time"])
    for said in (time, record["time"]):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", said)
        assert before <= datetime.fromisoformat(said) <= datetime.now(UTC)


# ---- what cannot be read


def test_fail_stops_at_the_first_and_writes_nothing(call, folder):
    shown = call(folder / "mixed", "-o", folder / "p.csv")
    assert shown.exit_code == 3
    assert "bad.png: not a PNG" in shown.stderr
    assert not (folder / "p.csv").exists()


def test_skip_leaves_out_and_names(call, folder):
    shown = call(folder / "mixed", "--on-error", "skip", "-o", folder / "p.csv", "--json")
    assert shown.exit_code == 5
    table = pd.read_csv(folder / "p.csv")
    assert table["path"].tolist() == ["a.png", "d.png"]
    assert "error" not in table
    assert list(json.loads(shown.stdout)["failed"]) == ["bad.png"]
    assert "skipped: cannot read bad.png" in shown.stderr


def test_report_keeps_a_row_that_is_not_scored_and_is_counted(call, folder):
    out = folder / "p.csv"
    files = [*sorted((folder / "mixed").iterdir()), folder / "gone.png"]
    shown = call(*files, "--on-error", "report", "-o", out)
    assert shown.exit_code == 5
    assert "4 image(s): " in shown.stdout
    assert ", 2 unreadable" in shown.stdout
    table = pd.read_csv(out)
    assert [path.rsplit("/", 1)[-1] for path in table["path"]] == [
        "gone.png", "a.png", "bad.png", "d.png",
    ]  # fmt: skip
    assert table["error"].notna().tolist() == [True, False, True, False]
    assert "no such file" in table["error"][0]
    assert "not a PNG" in table["error"][2]
    for column in ("prob_malignant", "decision", "accepted", "set_benign"):
        assert table[column].isna().tolist() == [True, False, True, False]
    assert table["model"].notna().all()

    labels = pd.DataFrame({"path": table["path"], "label": ["benign", "benign", "x", "malignant"]})
    merged = table.drop(columns="label").merge(labels)
    merged.to_csv(out, index=False)
    judged = CliRunner().invoke(app, ["evaluate", str(out), "--json"])
    assert judged.exit_code == 0, judged.stderr
    record = json.loads(judged.stdout)
    assert (record["n_images"], record["n_failed"]) == (2, 2)
    told = CliRunner().invoke(app, ["evaluate", str(out)]).stdout
    assert "2 image(s) could not be read and are in no figure" in told


def test_people_see_what_could_not_be_read_in_its_place(call, folder):
    lines = call(folder / "mixed", "--on-error", "report").stdout.splitlines()
    assert re.fullmatch(r" +unreadable +bad\.png", lines[2])


@pytest.mark.parametrize("on_error", ["fail", "skip", "report"])
def test_if_nothing_can_be_read_it_ends_with_3(call, folder, on_error):
    shown = call(folder / "mixed/bad.png", "--on-error", on_error, "-o", folder / "p.csv")
    assert shown.exit_code == 3
    shown = call(folder / "gone.png", "--on-error", on_error, "-o", folder / "p.csv")
    assert shown.exit_code == 3
    assert "no such file or folder" in shown.stderr
    assert not (folder / "p.csv").exists()


# ---- the audit log


def test_a_call_adds_one_record_with_hashes_and_without_names(call, folder, finished_run):
    log = folder / "log.jsonl"
    for _ in range(2):
        shown = call(
            *sorted((folder / "mixed").iterdir()), folder / "gone.png",
            "--on-error", "skip", "--audit-log", log, "--json",
        )  # fmt: skip
        assert shown.exit_code == 5
    assert verify(log).records == 2
    text = log.read_text()
    assert ".png" not in text
    assert str(folder) not in text
    record = json.loads(text.splitlines()[1])
    manifest = scan(folder / "mixed").table.set_index("path")["sha256"]
    assert [image["sha256"] for image in record["images"]] == [manifest["a.png"], manifest["d.png"]]
    for image, row in zip(record["images"], answers(shown).values(), strict=True):
        assert image["probabilities"]["malignant"] == row["prob_malignant"]
        assert image["decision"] == (row["decision"] if row["accepted"] else None)
    assert record["unreadable"] == [manifest["bad.png"]]
    assert record["unreadable_without_hash"] == 1
    assert record["event"] == "predict"
    assert record["identity"] == {
        "model": finished_run.model.id,
        "weights_sha256": finished_run.model.weights_sha256,
        "preprocessing": finished_run.model.preprocessing.id,
        "training_data": finished_run.model.info.training["data_hash"],
        "tool": f"lobule {lobule.__version__}",
    }


def test_a_log_that_is_broken_stops_before_any_work(call, folder):
    log = folder / "log.jsonl"
    log.write_text('{"half of a li')
    shown = call(folder / "nowhere", "-o", folder / "p.csv", "--audit-log", log)
    assert shown.exit_code == 3
    assert "log.jsonl ends within a line" in shown.stderr
    assert log.read_text() == '{"half of a li'
