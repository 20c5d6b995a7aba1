"""The rules of the house: layers, public names, documented options and codes, safe reading."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import typer

import lobule
from lobule import errors
from lobule.cli import console
from lobule.cli.app import app
from lobule.data.findings import OVERRIDABLE
from lobule.data.manifest import SCHEMA
from lobule.evaluation.predictions import IDENTITY
from lobule.training.recipe import RECIPES
from lobule.training.settings import OF_RECIPE, OF_TUNING

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = Path(lobule.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

MOST_LINES = 400


def name_of(path):
    return path.relative_to(PACKAGE).as_posix()


def reference():
    return (REPOSITORY / "docs" / "reference.md").read_text(encoding="utf-8")


def section(heading):
    """Return what stands under a heading of the reference, up to the next of its rank or above."""
    text = reference()
    found = re.search(rf"^(#+) {re.escape(heading)}$", text, flags=re.MULTILINE)
    assert found is not None, f"the reference has no heading {heading!r}"
    rank = len(found[1])
    end = re.search(rf"^#{{1,{rank}}} ", text[found.end() :], flags=re.MULTILINE)
    return text[found.end() :][: end.start() if end else None]


def rows(text):
    """Return the cells of every table row, without the head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if not set(row[0]) <= set("- ")]


def python(*arguments):
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# ---- layers and names


def test_rooms_import_one_way():
    pytest.importorskip("importlinter", reason="import-linter is not installed")
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = python("-c", code, "--no-cache")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_help_answers_without_loading_torch():
    done = python("-X", "importtime", "-m", "lobule", "--help")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "lobule demo" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "lobule.cli.app" in imported
    heavy = {
        "torch",
        "timm",
        "openvino",
        "sklearn",
        "scipy",
        "matplotlib",
        "pandas",
        "pyarrow",
        "numpy",
    }
    assert {name.split(".")[0] for name in imported} & heavy == set()


def test_public_names_are_sorted_and_each_has_a_home():
    assert lobule.__all__ == sorted(lobule.__all__)
    assert set(lobule.__all__) == {*lobule._HOMES, "__version__"}
    assert dir(lobule) == lobule.__all__


@pytest.mark.parametrize("name", sorted(lobule._HOMES))
def test_a_public_name_is_what_its_home_defines_however_often_it_is_asked_for(name):
    first, again = getattr(lobule, name), getattr(lobule, name)
    assert first is again
    # a module of the same name would take its place once imported
    assert not isinstance(again, ModuleType)
    assert first.__module__ == lobule._HOMES[name]


@pytest.mark.parametrize("name", lobule.__all__)
def test_a_public_name_is_documented(name):
    assert f"`{name}`" in section("Python names")
    if inspect.isfunction(getattr(lobule, name)):
        quickstart = (REPOSITORY / "docs" / "quickstart.md").read_text(encoding="utf-8")
        assert f"lobule.{name}(" in quickstart


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'lobule' has no attribute 'evaluat'"):
        lobule.evaluat  # noqa: B018


# ---- the reference


def verbs():
    """Return the commands by name; one of a group by both names."""
    found = {}
    for name, command in typer.main.get_command(app).commands.items():
        inner = getattr(command, "commands", None)
        found |= {f"{name} {verb}": it for verb, it in inner.items()} if inner else {name: command}
    return found


OF_THE_RECIPE = defaultdict(set) | {
    "train": {"folds", "backbone", "weights", "size", "epochs", "sensitivity", "seed"}
}


@pytest.mark.parametrize("verb", sorted(verbs()))
def test_every_option_of_a_command_is_documented_with_its_default(verb):
    parameters = verbs()[verb].params
    arguments = [p for p in parameters if p.param_type_name == "argument"]
    heading = " ".join(["lobule", verb, *(p.name.upper() for p in arguments)])
    heading += "..." if any(p.nargs == -1 for p in arguments) else ""
    table = rows(section(f"`{heading}`"))[1:]
    documented = {tuple(re.findall(r"`([^`]+)`", row[0])): row[1] for row in table}
    options = [p for p in parameters if p.param_type_name == "option"]
    assert set(documented) == {(*p.opts, *p.secondary_opts) for p in options}
    for p in options:
        told = documented[(*p.opts, *p.secondary_opts)]
        if p.required:
            expected = "required"
        elif isinstance(p.show_default, str):
            expected = p.show_default
        elif p.secondary_opts:
            expected = "on" if p.default else "off"
        else:
            expected = "" if p.default is None or p.default is False else str(p.default)
        if p.name in OF_THE_RECIPE[verb]:
            assert p.default is None
            expected = "of the recipe"
        assert told == expected, p.opts


def test_every_command_is_in_the_reference_and_no_other():
    told = re.findall(r"^### `lobule ([a-z][a-z -]*[a-z])", reference(), flags=re.MULTILINE)
    assert sorted(told) == sorted(verbs())


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_of_a_recipe_is_documented_with_its_value(name):
    recipe = RECIPES[name]
    settings = {key: getattr(recipe, key) for key in OF_RECIPE}
    if recipe.tuning is not None:
        settings |= {key: getattr(recipe.tuning, key) for key in OF_TUNING}
    documented, column = {}, None
    for row in rows(section("Recipes")):
        if row[0] == "setting":
            column = row.index(f"`{name}`") if f"`{name}`" in row else None
        elif column is not None:
            documented[row[0].strip("`")] = row[column]
    assert set(documented) == set(settings)
    for key, value in settings.items():
        text = "auto" if value is None else documented[key]
        assert documented[key] == text
        if isinstance(value, int | float):
            assert float(documented[key]) == value, key
        elif value is not None:
            assert documented[key] == value, key


def test_every_exit_code_is_documented():
    kinds = [e for _, e in inspect.getmembers(errors, inspect.isclass)]
    codes = {e.exit_code for e in kinds if issubclass(e, errors.LobuleError)}
    codes |= {0, console.PARTIAL, console.INTERRUPTED, console.TERMINATED}
    table = rows(section("Exit codes"))[1:]
    assert {int(row[0]) for row in table} == codes


SEVERITIES = {"blocking", "warning", "note"}


def constants(node):
    return {leaf.value for leaf in ast.walk(node) if isinstance(leaf, ast.Constant)}


def finding_codes():
    """Return every finding code in the source of the audit, with the severities beside it.

    A code is the first argument of `Finding`, or stands in a table of cases.
    """
    tree = ast.parse((PACKAGE / "data" / "audit.py").read_text(encoding="utf-8"))
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding":
            code, severity = node.args[:2]
            if isinstance(code, ast.Constant):
                found.setdefault(code.value, set()).update(constants(severity) & SEVERITIES)
        elif isinstance(node, ast.Tuple):
            words = {e.value for e in node.elts if isinstance(e, ast.Constant)}
            for code in {w for w in words if re.fullmatch(r"[a-z]+(-[a-z]+)+", str(w))}:
                found.setdefault(code, set()).update(words & SEVERITIES)
    return found


def test_every_finding_of_the_audit_is_documented_with_its_severity():
    table = {re.search(r"`(.+)`", row[0])[1]: row for row in rows(section("Audit findings"))[1:]}
    codes = finding_codes()
    assert len(codes) >= 18
    assert set(table) == set(codes)
    for code, severities in codes.items():
        told = set(table[code][1].split(", "))
        assert told <= SEVERITIES
        assert not severities or told == severities, code
        if "blocking" in told:
            assert table[code][2] == ("yes" if code in OVERRIDABLE else "no"), code
        else:
            assert table[code][2] == "", code
    assert set(OVERRIDABLE) <= set(table)


def test_every_column_of_the_manifest_is_documented():
    told = " ".join(row[0] for row in rows(section("Manifest (`.csv`, `.parquet`)")))
    assert set(re.findall(r"`(\w+)`", told)) == {*SCHEMA, "fold"}


@pytest.mark.slow
def test_every_field_of_the_files_of_a_run_is_documented(finished_run):
    text = reference()

    def told(heading, names):
        known = set(re.findall(r"`([^`]+)`", section(heading)))
        assert set(names) <= known, (heading, set(names) - known)

    folder = finished_run.folder
    made = {p.name for p in folder.iterdir()}
    told("The run folder", {f"{name}/" if name == "model" else name for name in made})
    for name in ("evaluation.json", "leakage.json", "audit.json", "run.json"):
        told(f"`{name}`", json.loads((folder / name).read_text(encoding="utf-8")))
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    told("`run.json`", record["request"])
    model = json.loads((folder / "model" / "model.json").read_text(encoding="utf-8"))
    told("The model folder", model)
    parts = ("preprocessing", "backbone", "training", "performance", "calibration", "sets", "gate")
    for part in parts:
        told("The model folder", model[part])
    told("The model folder", model["operating_points"]["image"])
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    level = evaluation["levels"]["image"]
    told("`evaluation.json`", {*level, *level["metrics"], *evaluation["baselines"]})
    for decision in level["decisions"]:
        told("`evaluation.json`", {*decision, *decision["metrics"], decision["rule"]})
    told("`evaluation.json`", [f.name for f in fields(type(finished_run.evaluation.subgroups[0]))])
    for name in level["metrics"]["roc_auc"]:
        assert f"`{name}`" in section("Files").split("### ")[0]
    columns = pd.read_parquet(folder / "predictions.parquet").columns
    shown = {re.sub(r"^(prob|plain|colour|prior|set)_.+", r"\1_<class>", name) for name in columns}
    told("Predictions (`.csv`, `.parquet`, `.jsonl`)", {*shown, *IDENTITY, "error"})
    for schema in re.findall(r'"(lobule\.[\w-]+/\d+)"', "".join(p.read_text() for p in MODULES)):
        assert f"`{schema}`" in text


@pytest.mark.slow
def test_every_field_of_the_files_of_a_tuned_run_is_documented(tuned_run):
    known = set(re.findall(r"`([^`]+)`", section("The run folder") + section("`training/`")))
    folder = tuned_run.folder / "training"
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    line = json.loads((folder / "final" / "metrics.jsonl").read_text().splitlines()[0])
    assert {*record, *record["fits"][0], *line, "training/", "augmented.jpg"} <= known
    model = json.loads((tuned_run.folder / "model" / "model.json").read_text(encoding="utf-8"))
    told = set(re.findall(r"`([^`]+)`", section("Recipes"))) | known
    assert set(model["training"]["tuning"]) <= told
    columns = pd.read_parquet(tuned_run.folder / "predictions.parquet").columns
    assert any(name.startswith("frozen_") for name in columns)
    assert "`frozen_<class>`" in section("Predictions (`.csv`, `.parquet`, `.jsonl`)")


# ---- the source


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_a_module_can_be_read_in_one_sitting(module):
    assert len(module.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_everything_public_has_a_docstring(module):
    tree = ast.parse(module.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "the module says nothing of itself"
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    homes = [tree, *(node for node in classes if not node.name.startswith("_"))]
    silent = [
        node.name
        for home in homes
        for node in home.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not silent


RUNS_CODE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def unsafe_reading(source):
    """Return the lines of Python source that can run code out of a file that is read."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            if {name.split(".")[0] for name in names} & RUNS_CODE:
                lines.append(node.lineno)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            options = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            if (
                (called == "torch.load" and options.get("weights_only") is not True)
                or options.get("allow_pickle") not in (None, False)
                or called.endswith(".read_pickle")
                or called in ("eval", "exec")
            ):
                lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_no_file_that_is_read_can_run_code(module):
    assert unsafe_reading(module.read_text(encoding="utf-8")) == []


def test_the_search_for_unsafe_reading_finds_it():
    source = (
        "import pickle\nfrom joblib import load\ntorch.load(f)\ntorch.load(f, weights_only=False)\n"
        "torch.load(f, weights_only=True)\nnp.load(f, allow_pickle=True)\nnp.load(f)\n"
        "pd.read_pickle(f)\neval(x)\nnetwork.eval()\n"
    )
    assert unsafe_reading(source) == [1, 2, 3, 4, 6, 8, 9]


# ---- the repository

# in pieces, so that this file does not hold what it looks for
FORBIDDEN = [
    "pypi" + ".org", "python" + "hosted.org", "npm" + "js.org", "npm" + "js.com",
    "crates" + ".io", "download.py" + "torch.org", "conda." + "anaconda", "--index" + "-url",
    "/ro" + "ot/", "/ho" + "me/", "/wo" + "rk/", "site-" + "packages/",
]  # fmt: skip


def tracked_files():
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a checkout: there is no .git to ask for the files")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    paths = [REPOSITORY / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and path.suffix not in (".png", ".jpg")]


def test_no_file_names_a_registry_or_a_place_of_one_machine():
    files = tracked_files()
    assert REPOSITORY / "pyproject.toml" in files
    found = [
        f"{path.relative_to(REPOSITORY)}: {word}"
        for path in files
        for word in FORBIDDEN
        if word in path.read_text(encoding="utf-8")
    ]
    assert not found


def project():
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_every_dependency_says_why_it_or_its_bound_is_there():
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^dependencies = \[\n(.*?)^\]$", text, flags=re.DOTALL | re.MULTILINE)[1]
    lines = [line.strip() for line in listed.splitlines() if line.strip().startswith('"')]
    assert len(lines) == len(project()["dependencies"])
    silent = [line for line in lines if not re.search(r",\s*# \S", line)]
    assert not silent


def licence(name):
    """Return what the metadata of a distribution say of its licence, in one line."""
    metadata = distribution(name).metadata
    if stated := metadata.get("License-Expression"):
        return stated
    classifiers = [c for c in metadata.get_all("Classifier", []) if c.startswith("License ::")]
    if classifiers:
        return "; ".join(classifiers)
    # a whole text may stand here, which speaks of bundled libraries too; its first line is the name
    return ((metadata.get("License") or "").splitlines() or [""])[0]


def installed_with_lobule():
    """Return the names of all distributions that installing Lobule brings along."""
    from packaging.requirements import Requirement

    try:
        waiting = [Requirement(line) for line in distribution("lobule").requires or []]
    except PackageNotFoundError:
        pytest.skip("Lobule is not installed here, only on the path")
    found = set()
    while waiting:
        requirement = waiting.pop()
        name = requirement.name.lower().replace("_", "-")
        needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if needed and name not in found:
            found.add(name)
            waiting += [Requirement(line) for line in distribution(name).requires or []]
    return found


COPYLEFT = re.compile(r"\b[AL]?GPL|GNU .*General Public", re.IGNORECASE)


def test_nothing_that_lobule_brings_along_is_under_a_gpl():
    names = installed_with_lobule()
    assert {"torch", "timm", "pillow", "openvino"} <= names
    stated = {name: licence(name) for name in names}
    assert not {name: told for name, told in stated.items() if COPYLEFT.search(told)}


@pytest.mark.parametrize(
    ("told", "refused"),
    [
        ("GPL-3.0-or-later", True),
        ("LGPLv3", True),
        ("License :: OSI Approved :: GNU Affero General Public License v3", True),
        ("AGPL-3.0", True),
        ("MIT AND MPL-2.0", False),
        ("Apache-2.0 WITH LLVM-exception", False),
    ],
)
def test_a_gpl_is_recognised_by_any_of_its_names(told, refused):
    assert bool(COPYLEFT.search(told)) is refused
