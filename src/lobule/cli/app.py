"""The verbs. Each parses, calls one function, and shows what it returned.

Heavy imports stand inside the verbs, so that `lobule --help` answers at once.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from lobule import __version__
from lobule.cli import audit_log, saved, texts
from lobule.cli import serve as serving
from lobule.cli.console import Said, Verbs, bar, emit, say
from lobule.cli.options import (
    Allow,
    Backbone,
    Cache,
    Data,
    Device,
    DeviceChoice,
    Epochs,
    Folds,
    Json,
    Metadata,
    Pattern,
    Positive,
    Precision,
    PrecisionChoice,
    Root,
    Seed,
    Set,
    Size,
    Weights,
    Workers,
)
from lobule.errors import UsageError, show

app = typer.Typer(
    name="lobule",
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Breast-histology classifiers that hold on patients they have never seen.\n\n"
    "Start with `lobule demo`, or `lobule train DIR -o RUN` on your own folder of images.\n\n"
    "Research use only. Not for diagnosis.",
)


def main() -> None:
    """Entry point of the `lobule` command."""
    # Pillow's remarks on odd metadata are of no use here: what matters of it is an error of ours
    warnings.filterwarnings("ignore", module="PIL")
    log = logging.getLogger("lobule")
    log.setLevel(logging.INFO)
    log.addHandler(Said())
    app()


@app.callback(invoke_without_command=True)
def _lobule(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"lobule {__version__}")
        raise typer.Exit


@app.command(epilog="Example: lobule scan photographs -o manifest.csv")
def scan(
    folder: Annotated[Path, typer.Argument(help="Folder of images, DIR/<class>/...")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help=".csv or .parquet file.")] = None,
    pattern: Pattern = None,
    metadata: Metadata = None,
    json: Json = False,
) -> None:
    """List every image with its class, patient, slide, size and SHA-256."""
    from lobule.data.manifest import write_manifest
    from lobule.data.scan import scan as run

    manifest = run(folder, pattern=pattern, metadata=metadata, progress=bar)
    if out is not None:
        write_manifest(manifest, out)
    for file in manifest.skipped:
        say(f"passed over {show(file.path)}: {file.reason}")
    emit(texts.scan_text(manifest, out), texts.scan_record(manifest, out), as_json=json)


@app.command(epilog="Example: lobule audit photographs")
def audit(
    data: Data,
    pattern: Pattern = None,
    metadata: Metadata = None,
    root: Root = None,
    allow: Allow = None,
    json: Json = False,
) -> None:
    """Look for unreadable files, duplicates, shared patients and other faults of the data.

    Ends with exit code 3 if a finding would stop training.
    """
    from lobule.data.audit import audit as run
    from lobule.data.findings import check_allowed
    from lobule.workflow import load_data

    check_allowed(allow or [])
    manifest = load_data(data, pattern=pattern, metadata=metadata, root=root, progress=bar)
    found = run(manifest, progress=bar)
    blocking = found.blocking(allow or [])
    record = {**found.to_json(), "blocked": bool(blocking)}
    emit(texts.audit_text(found), record, as_json=json)
    if blocking:
        raise typer.Exit(3)


@app.command(epilog="Example: lobule split photographs --test 0.2 --validation 0.2 -o manifest.csv")
def split(
    data: Data,
    out: Annotated[Path, typer.Option("-o", "--out", help=".csv or .parquet file to write.")],
    test: Annotated[float, typer.Option(help="Share of patients held out.")] = 0.2,
    validation: Annotated[float, typer.Option(help="Share of patients for selection.")] = 0.2,
    folds: Annotated[int | None, typer.Option(help="Deal K folds instead.")] = None,
    seed: Seed = 0,
    resplit: Annotated[bool, typer.Option(help="Drop the split that the data came with.")] = False,
    root: Root = None,
    allow: Allow = None,
    json: Json = False,
) -> None:
    """Split by patient, stratified by class; a split that is given is checked and kept."""
    from lobule.data.manifest import write_manifest
    from lobule.workflow import load_data
    from lobule.workflow import split as run

    train_share = round(1 - test - validation, 9)
    if train_share <= 0:
        raise UsageError(f"--test {test:g} and --validation {validation:g} leave no train part")
    shares = {"train": train_share, "validation": validation, "test": test}
    manifest = run(
        load_data(data, root=root, progress=bar),
        shares=None if folds is not None else {p: share for p, share in shares.items() if share},
        folds=folds,
        seed=seed,
        resplit=resplit,
        allow=allow or [],
        progress=bar,
    )
    write_manifest(manifest, out)
    column = "fold" if "fold" in manifest.table else "split"
    record = texts.split_record(manifest, column, out)
    emit(texts.split_text(record), record, as_json=json)


@app.command(epilog="Example: lobule train photographs -o run --folds 5")
def train(
    data: Data,
    out: Annotated[Path, typer.Option("-o", "--out", help="Run folder to make.")],
    recipe: Annotated[
        str, typer.Option(help="features, finetune, densenet201, or a TOML file.")
    ] = "features",
    set_: Set = None,
    folds: Annotated[int | None, typer.Option(help="Number of patient folds; default: 5.")] = None,
    backbone: Backbone = None,
    weights: Weights = None,
    size: Size = None,
    epochs: Epochs = None,
    sensitivity: Annotated[
        float | None,
        typer.Option(help="Sensitivity that the locked operating point must reach; default: 0.95."),
    ] = None,
    specificity: Annotated[
        float | None, typer.Option(help="Specificity that it must reach instead.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the split and of all that is drawn; default: 0.")
    ] = None,
    device: DeviceChoice = Device.auto,
    precision: PrecisionChoice = Precision.auto,
    workers: Workers = None,
    pattern: Pattern = None,
    metadata: Metadata = None,
    root: Root = None,
    positive: Positive = None,
    allow: Allow = None,
    cache: Cache = True,
    json: Json = False,
) -> None:
    """Scan, audit, split by patient, fit, evaluate and report in one go.

    The same command goes on with a run that was interrupted.
    """
    from lobule.files import default_cache
    from lobule.training.distributed import joined, leading
    from lobule.training.finetune import assist
    from lobule.training.machine import Machine
    from lobule.training.settings import make_recipe, parse_settings
    from lobule.workflow import load_data
    from lobule.workflow import train as run

    if sensitivity is not None and specificity is not None:
        raise UsageError("--sensitivity and --specificity both say what the operating point is for",
                         fix="give one of them")  # fmt: skip
    options = {
        "folds": folds, "backbone": backbone, "weights": weights, "long_side_px": size,
        "epochs": epochs, "sensitivity": sensitivity, "specificity": specificity, "seed": seed,
    }  # fmt: skip
    given = {key: value for key, value in options.items() if value is not None}
    chosen = make_recipe(recipe, parse_settings(set_ or []) | given)
    with joined() as world:
        if not world.leads:
            assist(world)
            return
        machine = Machine(device.value, precision.value, workers, world=world)
        with leading(world):
            found = run(
                load_data(
                    data, pattern=pattern, metadata=metadata, root=root, positive=positive,
                    progress=bar,
                ),
                out,
                recipe=chosen,
                allow=allow or [],
                cache=default_cache() if cache else None,
                machine=machine,
                progress=bar,
            )  # fmt: skip
    emit(texts.run_text(found), texts.run_record(found), as_json=json)


@app.command(epilog="Example: lobule summary densenet201 --input 224")
def summary(
    backbone: Annotated[str, typer.Argument(help="As --backbone of train.")],
    input_px: Annotated[int, typer.Option("--input", help="Side of the input in pixels.")] = 224,
    classes: Annotated[int, typer.Option(help="Number of classes.")] = 2,
    json: Json = False,
) -> None:
    """Show output shape and parameters of every layer of the network that would be tuned."""
    from lobule.models.summary import summarise

    found = summarise(backbone, input_px=input_px, n_classes=classes)
    emit(texts.summary_text(found), found.to_json(), as_json=json)


app.command(epilog="Example: lobule predict run/model new-photographs -o predictions.csv")(
    saved.predict
)

app.command(epilog="Example: lobule serve run/model --open")(serving.serve)

app.add_typer(audit_log.logs, name="audit-log")

app.command(epilog="Example: lobule export run/model --int8")(saved.export)

app.command(epilog="Example: lobule evaluate predictions.csv --manifest manifest.csv")(
    saved.evaluate
)

app.command(epilog="Example: lobule compare run-a run-b")(saved.compare)

app.command(epilog="Example: lobule stress run/model other-site -o stress")(saved.stress)

app.command(epilog="Example: lobule external run/model other-site -o trial")(saved.external)


@app.command(epilog="Example: lobule study recipes.toml photographs -o study")
def study(
    plan: Annotated[Path, typer.Argument(help="TOML file: [recipes.NAME], baseline, seeds.")],
    data: Data,
    out: Annotated[Path, typer.Option("-o", "--out", help="Study folder to make.")],
    device: DeviceChoice = Device.auto,
    precision: PrecisionChoice = Precision.auto,
    workers: Workers = None,
    pattern: Pattern = None,
    metadata: Metadata = None,
    root: Root = None,
    positive: Positive = None,
    allow: Allow = None,
    cache: Cache = True,
    json: Json = False,
) -> None:
    """Compare recipes under the same repeated patient folds: which differences can be shown?

    The same command goes on with a study that was interrupted.
    """
    from lobule.files import default_cache
    from lobule.studies import read_plan
    from lobule.studies import study as run
    from lobule.training.machine import Machine
    from lobule.workflow import load_data

    planned = read_plan(plan)
    found = run(
        load_data(
            data, pattern=pattern, metadata=metadata, root=root, positive=positive, progress=bar
        ),
        planned,
        out,
        allow=allow or [],
        cache=default_cache() if cache else None,
        machine=Machine(device.value, precision.value, workers),
        progress=bar,
    )
    emit(texts.study_text(found, out), found.to_json(), as_json=json)


@app.command(epilog="Example: lobule leakage photographs")
def leakage(
    data: Data,
    folds: Folds = 5,
    backbone: Backbone = None,
    weights: Weights = None,
    size: Size = None,
    seed: Seed = 0,
    pattern: Pattern = None,
    metadata: Metadata = None,
    root: Root = None,
    positive: Positive = None,
    allow: Allow = None,
    cache: Cache = True,
    json: Json = False,
) -> None:
    """Score the same model under random, slide and patient folds: what leakage is worth here."""
    from lobule.files import default_cache
    from lobule.training.settings import make_recipe
    from lobule.workflow import leakage as run
    from lobule.workflow import load_data

    options = {
        "folds": folds, "backbone": backbone, "weights": weights, "long_side_px": size,
        "seed": seed,
    }  # fmt: skip
    found = run(
        load_data(
            data, pattern=pattern, metadata=metadata, root=root, positive=positive, progress=bar
        ),
        recipe=make_recipe("features", {key: v for key, v in options.items() if v is not None}),
        allow=allow or [],
        cache=default_cache() if cache else None,
        progress=bar,
    )
    emit(texts.leakage_text(found), found.to_json(), as_json=json)


@app.command(epilog="Example: lobule report run")
def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Default: RUN/report.html.")
    ] = None,
    json: Json = False,
) -> None:
    """Make report.html again from the files of a run."""
    from lobule.reporting.report import report as make

    written = make(run, out=out)
    emit(f"report: {show(written)}", {"schema": "lobule.report/1", "report": str(written)},
         as_json=json)  # fmt: skip


@app.command(epilog="Example: lobule demo")
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to make.")] = Path("lobule-demo"),
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Draw made-up tissue of 24 patients and run the whole job on it, offline."""
    from lobule.workflow import demo as run

    found = run(out, seed=seed, progress=bar)
    emit(texts.run_text(found), texts.run_record(found), as_json=json)


@app.command(epilog="Example: lobule doctor")
def doctor(json: Json = False) -> None:
    """Say what is installed, what is missing, and how to mend it; exit code 1 if something is."""
    from lobule.checkup import doctor as run

    checks = run()
    record: dict[str, Any] = {"schema": "lobule.doctor/1", "checks": [vars(c) for c in checks]}
    emit(texts.doctor_text(checks), record, as_json=json)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)
