"""The verbs on what was saved: a model, and its predictions. Registered by `app`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from lobule.cli import answers, texts
from lobule.cli.console import PARTIAL, bar, emit, say
from lobule.cli.options import (
    Cache,
    Data,
    Json,
    MapMethod,
    Metadata,
    OnError,
    OnErrorChoice,
    Pattern,
    Root,
    Rounding,
    RoundingChoice,
    Runner,
    RunnerChoice,
    Target,
    Views,
)
from lobule.errors import show

Compared = Annotated[Path, typer.Argument(help="Run folder, or predictions (.csv, .parquet).")]


def predict(
    model: Annotated[Path, typer.Argument(help="Model folder, RUN/model.")],
    images: Annotated[
        list[str],
        typer.Argument(
            help="Image files, folders, quoted patterns ('photos/**/*.jpg'), and - for paths on "
            "standard input."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help=".csv, .parquet or .jsonl file.")
    ] = None,
    on_error: OnErrorChoice = OnError.fail,
    engine: RunnerChoice = Runner.auto,
    precision: RoundingChoice = Rounding.fp32,
    views: Views = 8,
    cache: Cache = True,
    audit_log: Annotated[
        Path | None,
        typer.Option(help="Hash-chained log to add what was answered to, without file names."),
    ] = None,
    explain: Annotated[
        Path | None, typer.Option(help="Folder for a heat map of each image, as PNG.")
    ] = None,
    map_method: Annotated[MapMethod, typer.Option(help="How heat maps are made.")] = MapMethod.cam,
    json: Json = False,
) -> None:
    """Predict images with a saved model; exit code 5 if some could not be read."""
    from lobule.data.named import expand
    from lobule.data.scan import scan_files
    from lobule.evaluation.predictions import ENDINGS, write_predictions
    from lobule.files import default_cache, table_kind
    from lobule.inference.choice import Running
    from lobule.inference.predictor import predict as run
    from lobule.models.bundle import open_model

    # all that may be wrong with the call, before the work
    running = Running(engine.value, precision.value, views)
    if out is not None:
        table_kind(out, ENDINGS)
    log = None
    if audit_log is not None:
        from lobule.audit_log import AuditLog

        log = AuditLog(audit_log)
    leaves_out, reports = on_error is not OnError.fail, on_error is OnError.report
    lost: dict[str, str] = {}
    # a process may have been started without standard input
    paths = expand(images, lambda: b"" if sys.stdin is None else sys.stdin.buffer.read())
    manifest = scan_files(paths, failed=lost if leaves_out else None, progress=bar)
    for file in manifest.skipped:
        say(f"passed over {show(file.path)}: {file.reason}")
    opened = open_model(model)
    found = run(
        opened,
        manifest,
        on_error="skip" if leaves_out else "fail",
        running=running,
        cache=default_cache() if cache else None,
        progress=bar,
    )
    predictions = replace(found, failed={**lost, **found.failed})
    if log is not None:
        log.append("predict", **answers.audit_record(predictions, manifest))
    if out is not None:
        write_predictions(predictions, out, failures=reports)
    if explain is not None:
        # last, since the answers are there by then, whatever becomes of the maps
        from lobule.explain.pictures import write_maps

        write_maps(
            opened, predictions, manifest.root, explain, method=map_method.value, progress=bar
        )
    for reason in predictions.failed.values():
        say(f"{'reported' if reports else 'skipped'}: {reason}")
    emit(
        answers.predictions_text(predictions, out, explain),
        answers.predictions_record(predictions, out, explain),
        as_json=json,
    )
    if predictions.failed:
        raise typer.Exit(PARTIAL)


def export(
    model: Annotated[Path, typer.Argument(help="Model folder, RUN/model.")],
    to: Annotated[Target, typer.Option(help="What the network is exported for.")] = Target.openvino,
    int8: Annotated[bool, typer.Option("--int8", help="Round to 8 bits (OpenVINO).")] = False,
    images: Annotated[
        Path | None,
        typer.Option(help="The images it was trained on; default: RUN/manifest.parquet."),
    ] = None,
    root: Root = None,
    cache: Cache = True,
    json: Json = False,
) -> None:
    """Write the network for a faster engine beside the model, if it agrees on real images.

    `lobule predict` then uses the fastest one by itself, and starts without torch.
    """
    from lobule.files import default_cache
    from lobule.inference.export import export as run
    from lobule.models.bundle import load_model
    from lobule.workflow import load_data

    loaded = load_model(model)
    data = model.absolute().parent / "manifest.parquet" if images is None else images
    found = run(
        loaded,
        load_data(data, root=root, progress=bar),
        to=to.value,
        int8=int8,
        cache=default_cache() if cache else None,
        progress=bar,
    )
    emit(texts.export_text(found), texts.export_record(found), as_json=json)


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Predictions table (.csv, .parquet).")],
    manifest: Annotated[
        Path | None, typer.Option(help="Manifest that knows labels and patients.")
    ] = None,
    root: Root = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help=".json file.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the patient bootstrap.")] = 0,
    json: Json = False,
) -> None:
    """Compute every figure of a predictions table, with patient-bootstrap intervals.

    Thresholds are those the table carries; nothing is tuned.
    """
    from lobule.data.manifest import read_manifest
    from lobule.evaluation.evaluate import evaluate as run
    from lobule.evaluation.predictions import read_predictions
    from lobule.files import write_json

    known = None if manifest is None else read_manifest(manifest, root=root, with_images=False)
    found = run(read_predictions(predictions, manifest=known), seed=seed)
    if out is not None:
        write_json(out, found.to_json())
    emit(texts.evaluation_text(found), found.to_json(), as_json=json)


def compare(
    first: Compared,
    second: Compared,
    seed: Annotated[int, typer.Option(help="Seed of the patient bootstrap.")] = 0,
    json: Json = False,
) -> None:
    """Hold two models' predictions of the same images against each other, paired by patient.

    A difference is called one only where its 95% interval leaves out 0.
    """
    from lobule.evaluation.compare import compare as run
    from lobule.evaluation.predictions import read_predictions

    both = [read_predictions(f / "predictions.parquet" if f.is_dir() else f)
            for f in (first, second)]  # fmt: skip
    found = run(*both, seed=seed)
    names = (show(first), show(second))
    emit(texts.comparison_text(found, *names), found.to_json(), as_json=json)


def stress(
    model: Annotated[Path, typer.Argument(help="Model folder, RUN/model.")],
    data: Data,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for stress.json, report.html.")],
    damage: Annotated[
        list[str] | None,
        typer.Option(help="Only this damage; may be given several times. Default: all."),
    ] = None,
    pattern: Pattern = None,
    metadata: Metadata = None,
    root: Root = None,
    cache: Cache = True,
    json: Json = False,
) -> None:
    """Damage labelled photographs in stain, light, focus, scale and more: what is left of a model?

    Of data with a test part, that part is taken.
    """
    from lobule.data.damage import DAMAGES
    from lobule.errors import UsageError, nearest
    from lobule.files import default_cache, write_json
    from lobule.inference.stress import stress as run
    from lobule.models.bundle import open_model
    from lobule.reporting.stress import stress_report
    from lobule.workflow import held_out_rows, load_data

    for name in damage or ():
        if name not in DAMAGES:
            raise UsageError(f"no damage is called {name!r}", fix=nearest(name, DAMAGES))
    opened = open_model(model)
    manifest = load_data(data, pattern=pattern, metadata=metadata, root=root, progress=bar)
    held_out = held_out_rows(manifest)
    if held_out.any():
        manifest = manifest.where(held_out)
    elif manifest.data_hash == opened.info.training["data_hash"]:
        say("warning: the model was trained on these very images, so all figures are too good")
    found = run(
        opened,
        manifest,
        damages=[DAMAGES[name] for name in dict.fromkeys(damage)] if damage else None,
        cache=default_cache() if cache else None,
        progress=bar,
    )
    write_json(out / "stress.json", found.to_json())
    stress_report(found, out / "report.html")
    emit(texts.stress_text(found, out), found.to_json(), as_json=json)


def external(
    model: Annotated[Path, typer.Argument(help="Model folder, RUN/model.")],
    data: Data,
    out: Annotated[
        Path,
        typer.Option("-o", "--out", help="Folder for external.json, report.html and predictions."),
    ],
    seed: Annotated[int, typer.Option(help="Seed of the intervals and of the local cases.")] = 0,
    pattern: Pattern = None,
    metadata: Metadata = None,
    root: Root = None,
    cache: Cache = True,
    json: Json = False,
) -> None:
    """Try a model on another site's images: what holds, what moved, what labelled cases would buy?

    Images that cannot be read are left out and named; exit code 5 then. Labels are not needed.
    """
    from lobule.evaluation.predictions import write_predictions
    from lobule.files import default_cache, write_json
    from lobule.inference.external import external as run
    from lobule.models.bundle import open_model
    from lobule.reporting.external import external_report
    from lobule.workflow import load_data

    manifest = load_data(data, pattern=pattern, metadata=metadata, root=root, progress=bar)
    for file in manifest.skipped:
        say(f"passed over {show(file.path)}: {file.reason}")
    found = run(
        open_model(model),
        manifest,
        cache=default_cache() if cache else None,
        seed=seed,
        progress=bar,
    )
    if found.seen:
        say(
            f"warning: the model was trained on {found.seen} of these images, so all figures are "
            "too good"
        )
    write_predictions(found.predictions, out / "predictions.parquet")
    write_json(out / "external.json", found.to_json())
    external_report(found, out / "report.html")
    for reason in found.failed.values():
        say(f"skipped: {reason}")
    emit(texts.external_text(found, out), found.to_json(), as_json=json)
    if found.failed:
        raise typer.Exit(PARTIAL)
