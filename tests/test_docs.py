"""What the documents say runs, exists and agrees: code, commands, options, links, versions."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import lobule
from lobule.cli.app import app

REPOSITORY = Path(__file__).resolve().parents[1]

INSTALL_AND_RUN = "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/lobule demo"
INSTALL_AND_TEST = 'python3 -m venv .venv && .venv/bin/pip install -e ".[dev]" && .venv/bin/pytest'

DOCUMENTS = sorted(
    [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")],
    key=lambda path: path.relative_to(REPOSITORY).as_posix(),
)

FOREIGN_OPTIONS = {"--only", "--opt_out", "--nnodes", "--rdzv-endpoint"}
"""Options that the documents name and that are not Lobule's."""


def name_of(path):
    return path.relative_to(REPOSITORY).as_posix()


def read(name):
    return (REPOSITORY / name).read_text(encoding="utf-8")


def prose(document):
    """Return the text of a document without its code blocks."""
    text = document.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def blocks(text, *languages):
    """Return the code blocks of these languages, in order."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [code for language, code in found if language in languages]


def commands(text):
    """Return the words of every `lobule ...` call in the shell blocks."""
    calls = []
    for code in blocks(text, "bash", "console"):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if "lobule" in line else []
            for i, word in enumerate(words):
                if Path(word).name == "lobule":
                    end = [j for j in range(i, len(words)) if words[j] in ("|", "||", "&&", ">")]
                    calls.append(words[i + 1 : end[0] if end else None])
    return calls


def environment(folder):
    """Return the environment of a process that uses this checkout and none of the user's cache."""
    source = str(Path(lobule.__file__).parents[1])
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    # small matrices: on a busy machine the threads of BLAS slow them down many times
    return os.environ | {
        "PYTHONPATH": path, "LOBULE_CACHE": str(folder / "cache"), "OPENBLAS_NUM_THREADS": "1",
    }  # fmt: skip


def run(arguments, folder):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


# ---- what runs


@pytest.mark.slow
def test_the_python_of_the_quickstart_runs_as_it_stands(tmp_path):
    code = "\n".join(blocks(read("docs/quickstart.md"), "python"))
    (tmp_path / "quickstart.py").write_text(code, encoding="utf-8")
    done = run(["quickstart.py"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "53 ('benign', 'malignant') True" in done.stdout
    assert "already holds a finished run" in done.stdout
    assert (tmp_path / "again.html").stat().st_size == (
        tmp_path / "run" / "report.html"
    ).stat().st_size


@pytest.mark.slow
def test_the_commands_of_the_quickstart_run_as_they_stand(tmp_path):
    from lobule.data.cohort import write_tissue

    for folder, seed, patients in (("photographs", 0, 12), ("new-photographs", 1, 4)):
        tissue = write_tissue(
            tmp_path / folder, seed=seed, patients=patients, images_per_patient=4,
            width_px=96, height_px=64, plant=False,
        )  # fmt: skip
        # as a user has it: the classes stand at the top
        for label in ("benign", "malignant"):
            (tissue.images / label).rename(tmp_path / folder / label)
        for left in (tissue.images, tissue.masks):
            left.rename(tmp_path / f"{folder}-{left.name}")
    calls = [call for call in commands(read("docs/quickstart.md")) if call[0] != "demo"]
    assert [call[0] for call in calls] == [
        "scan", "audit", "train", "predict", "scan", "evaluate", "leakage", "split", "train",
    ]  # fmt: skip
    for call in calls:
        done = run(["-m", "lobule", *call], tmp_path)
        assert done.returncode == 0, f"lobule {shlex.join(call)}\n{done.stderr}"
        assert "Warning" not in done.stderr
    for made in (
        "manifest.csv", "run/report.html", "run/model/model.json", "predictions.csv",
        "evaluation.json", "split.parquet", "run-held-out/out_of_fold.parquet",
    ):  # fmt: skip
        assert (tmp_path / made).is_file(), made


def test_the_readme_has_the_two_commands_that_do_all_the_set_up():
    shell = [code.strip() for code in blocks(read("README.md"), "bash")]
    assert shell[:2] == [INSTALL_AND_RUN, INSTALL_AND_TEST]


def test_continuous_integration_runs_the_readmes_second_command_word_for_word():
    assert INSTALL_AND_TEST in read(".ci/run").splitlines()


# ---- what exists


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_command_in_the_documents_is_one_that_lobule_takes(document):
    verbs = typer.main.get_command(app).commands
    for call in commands(document.read_text(encoding="utf-8")):
        assert call[0] in verbs, call
        verb = verbs[call[0]]
        if inner := getattr(verb, "commands", None):
            assert call[1] in inner, call
            verb = inner[call[1]]
        known = {option for p in verb.params for option in (*p.opts, *p.secondary_opts)}
        # a lone hyphen stands for standard input
        given = {word.split("=")[0] for word in call if word.startswith("-") and word != "-"}
        assert given <= known, f"lobule {shlex.join(call)}"
        needed = {p.opts[0] for p in verb.params if p.required and p.opts[0][0] == "-"}
        assert needed <= given, f"lobule {shlex.join(call)}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_option_in_the_text_exists(document):
    group = typer.main.get_command(app)
    verbs = [group, *group.commands.values()]
    verbs += [verb for group in verbs[1:] for verb in getattr(group, "commands", {}).values()]
    parameters = [p for verb in verbs for p in verb.params]
    known = {option for p in parameters for option in (*p.opts, *p.secondary_opts)} | {"--help"}
    code = re.findall(r"`([^`]+)`", prose(document))
    named = {option for words in code for option in re.findall(r"--[\w-]+", words)}
    assert named <= known | FOREIGN_OPTIONS


def slug(heading):
    """Return the anchor that a heading gets: lower case, hyphens for spaces, no punctuation."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_link_to_another_document_arrives(document):
    for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)]+)\)", prose(document)):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        there = (document.parent / file).resolve() if file else document
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", there.read_text("utf-8"), flags=re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, target


def test_the_picture_of_the_report_is_there_and_described():
    (picture,) = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", read("README.md"))
    alt, file = picture
    assert len(alt) > 40
    assert (REPOSITORY / file).read_bytes().startswith(b"\x89PNG\r\n")


def test_every_decision_is_in_the_index():
    decisions = sorted((REPOSITORY / "docs" / "decisions").glob("*.md"))
    listed = re.findall(r"\((decisions/[^)]+)\)", read("docs/index.md"))
    assert listed == [f"decisions/{path.name}" for path in decisions]
    for path in decisions:
        text = path.read_text(encoding="utf-8")
        assert re.findall(r"^## (.+)$", text, flags=re.MULTILINE) == [
            "Context", "Decision", "Consequence",
        ], path.name  # fmt: skip


# ---- what agrees


def test_changelog_and_citation_tell_the_version_of_the_package():
    version, date = re.search(
        r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d{2}-\d{2})$", read("CHANGELOG.md"), re.MULTILINE
    ).groups()
    assert version == lobule.__version__
    citation = read("CITATION.cff")
    assert re.search(r"^version: (.+)$", citation, re.MULTILINE)[1] == version
    assert re.search(r"^date-released: (.+)$", citation, re.MULTILINE)[1] == date


def test_whoever_arrives_is_told_what_it_is_not_for():
    for name in ("README.md", "docs/index.md"):
        assert "Research use only. Not for diagnosis." in read(name)


def test_the_readme_can_be_read_in_one_sitting():
    assert len(read("README.md").splitlines()) <= 120
