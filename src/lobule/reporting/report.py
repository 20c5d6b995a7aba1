"""report.html: one self-contained page made of the saved files of a run, and of nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lobule.errors import show
from lobule.evaluation.evaluate import BASELINES, COLOUR, FROZEN, Evaluation
from lobule.evaluation.predictions import Level, Predictions, at_level
from lobule.files import write_text
from lobule.models.card import RESEARCH_USE, Fact, card_facts, count, figure_name, people
from lobule.reporting import figures, gallery, tables
from lobule.reporting.checklists import Known, checklists
from lobule.reporting.figures import Curve
from lobule.reporting.saved import Saved, read_run, using
from lobule.reporting.training_figures import Quantity, training_figure
from lobule.reporting.verdict import (
    basis,
    headlines,
    limits,
    number,
    of_another_model,
    span,
    verdict,
)

SPLIT_NAMES = {"image": "random images", "slide": "slides apart", "patient": "patients apart"}


@dataclass(frozen=True)
class Plot:
    """A drawing and its caption; `svg` is None where `missing` says why."""

    title: str
    caption: str
    svg: Markup | None
    missing: str | None = None


def report(run: Path, *, out: Path | None = None) -> Path:
    """Write the report of a run folder and return where it lies.

    run: as `workflow.train` leaves it (its docstring lists the files); thumbnails come from the
    images themselves, and an image that is gone is named in its place. out: the file to write,
    by default report.html in the run folder. The same files give the same bytes.
    Raises DataError naming a file of the run that is missing or unusable, OutputError if `out`
    cannot be written.
    """
    saved = read_run(run)
    with using(run / "model" / "model.json"):
        card, versions = card_facts(saved.model), saved.model["versions"]
        title, created = str(saved.model["id"]), str(saved.model["created"])
        lists = checklists(
            Known(
                saved.manifest, saved.findings, saved.evaluation, saved.leakage, saved.model,
                saved.allow,
            )
        )  # fmt: skip
    with using(run / "run.json"):
        facts = run_facts(saved)
    text = (
        environment()
        .get_template("report.html.j2")
        .render(
            **_findings(saved),
            **_figures(saved),
            **_training(saved),
            title=title,
            created=created,
            coverage=float(saved.model["sets"]["coverage"]),
            card=card,
            versions=versions,
            checklists=lists,
            run=facts,
            research_use=RESEARCH_USE,
        )
    )
    out = run / "report.html" if out is None else out
    write_text(out, text.lstrip())
    return out


def environment() -> Environment:
    """Return what fills in the templates of all pages."""
    environment = Environment(
        loader=PackageLoader("lobule.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["nan"] = math.isnan
    environment.filters |= {"number": number, "show": show, "count": count}
    return environment


def _findings(saved: Saved) -> dict[str, Any]:
    """Return what the page says and tabulates."""
    evaluation, table, root = saved.evaluation, saved.manifest.table, saved.manifest.root
    levels = tables.shown_levels(
        evaluation, slides_known=bool(saved.predictions.table["slide"].notna().all())
    )
    patients = saved.predictions.table.groupby("label")["patient"].nunique()
    right = gallery.confident(saved.predictions, root, right=True)
    wrong = gallery.confident(saved.predictions, root, right=False)
    samples = gallery.samples(table, root)
    agrees = saved.predictions.table["decision"] == saved.predictions.table["label"]
    return {
        "classes": evaluation.classes,
        "binary": len(evaluation.classes) == 2,
        "evaluation": evaluation,
        "leakage": saved.leakage,
        "basis": basis(evaluation),
        "tuned": FROZEN in evaluation.baselines,
        "another_leaks": of_another_model(saved.leakage, evaluation),
        "held_out": saved.out_of_fold is not None,
        "verdict": verdict(
            evaluation,
            saved.leakage,
            held_out=saved.out_of_fold is not None,
            allow=saved.allow,
        ),
        "headlines": headlines(evaluation),
        "limits": limits(evaluation, dict(patients), saved.allow, saved.findings),
        "findings": saved.findings,
        "allow": saved.allow,
        "data_basis": _data_basis(saved),
        "leakage_basis": _learned_basis(saved),
        "counts": tables.count_rows(table),
        "parts": bool(table["split"].notna().any()),
        "levels": levels,
        "compared": tables.compared(evaluation, levels, out_of_fold=saved.out_of_fold),
        "groups": tables.result_groups(evaluation, levels),
        "matrices": tables.matrices(evaluation),
        "subgroups": tables.subgroup_tables(evaluation),
        "samples": samples,
        "right": right,
        "wrong": wrong,
        "n_wrong": int((~agrees).sum()),
        "n_gone": len(list(gallery.unavailable(samples, right, wrong))),
    }


def _data_basis(saved: Saved) -> str:
    manifest = saved.manifest
    parts = dict.fromkeys(row.part for row in tables.count_rows(manifest.table) if row.part)
    source = f"Parts {', '.join(parts)}" if parts else "All images of the run"
    n_patients = int(manifest.groups.nunique())
    return f"{source}; {people(len(manifest), n_patients, known=manifest.patients_known)}"


def _learned_basis(saved: Saved) -> str:
    leakage = saved.leakage
    return people(leakage.n_images, leakage.n_patients, known=leakage.patients_known)


def _figures(saved: Saved) -> dict[str, Any]:
    """Return the drawings."""
    evaluation, leakage = saved.evaluation, saved.leakage
    drawn = None
    if any(math.isfinite(value.estimate) for value in leakage.auc.values()):
        drawn = Markup(figures.leakage_figure(leakage.auc, SPLIT_NAMES))
    plots = [*level_plots(evaluation, saved.predictions, "image")]
    if evaluation.patients_known:
        plots.append(next(level_plots(evaluation, saved.predictions, "patient")))
    return {"leakage_figure": drawn, "split_names": SPLIT_NAMES, "plots": plots}


def level_plots(evaluation: Evaluation, predictions: Predictions, level: Level) -> Iterator[Plot]:
    """Yield the drawings of one level of labelled images: ROC, precision, reliability, and others.

    Each is drawn when it is asked for, since bands take their time.
    """
    units = at_level(predictions, level)
    of = f"{basis(evaluation)}."
    curves = _curves(units, "prob", "model")

    def plot(kind: str, caption: str, svg: str) -> Plot:
        return Plot(f"{kind}, per {level}", caption, Markup(svg))

    roc, precision, reliability = "ROC curve", "Precision and recall", "Reliability"
    if not curves:
        why = evaluation.levels[level].metrics["roc_auc"].reason or "a class is absent"
        for kind in (roc, precision, reliability):
            yield Plot(f"{kind}, per {level}", of, None, f"undefined: {why}")
        return
    compared = [
        curve
        for name in (COLOUR, FROZEN)
        if len(curves) == 1 and units.has(BASELINES[name])
        for curve in _curves(units, BASELINES[name], name)
    ]
    beside = [*curves, *compared]
    band, said = None, ""
    if len(curves) == 1 and evaluation.n_patients > 1:
        band = figures.roc_band(curves[0].y, curves[0].score, units.groups.tolist())
        who = "patients" if evaluation.patients_known else "images"
        said = f" Band: pointwise 95%, {who} redrawn."
    roc_point, pr_point, marked = _points(evaluation, level)
    yield plot(
        roc,
        of + said + marked,
        figures.roc_figure(beside, name=f"roc-{level}", band=band, point=roc_point),
    )
    yield plot(
        precision,
        f"{of} Dotted: share of the class, which guessing reaches.{marked}",
        figures.precision_recall_figure(beside, name=f"pr-{level}", point=pr_point),
    )
    before = _curves(units, "raw", "before calibration") if units.has("raw") else []
    yield plot(
        reliability,
        f"{of} Every mark is of as many {level}s; bars count {level}s by steps of 0.05.",
        figures.reliability_figure([*curves, *before], name=f"reliability-{level}", unit=level),
    )
    if curve := evaluation.decision_curve.get(level):
        yield plot(
            "Net benefit",
            f"{of} In true positives per {level}, a false one counting as the odds of the "
            "probability; at the share of positives among these, which is not that of a clinic.",
            figures.decision_curve_figure(curve, name=f"benefit-{level}"),
        )
    yield plot(
        "Errors by how many are answered",
        f"{of} Answers are the most probable class; the least sure are left out first.",
        figures.risk_coverage_figure(units, name=f"risk-{level}"),
    )


def _curves(units: Predictions, kind: str, name: str) -> list[Curve]:
    """Return the curve of the positive class, or of each of more than two; [] if undefined."""
    y, prob, classes = units.y, units.probabilities(kind), units.classes
    positives = [1] if len(classes) == 2 else range(len(classes))
    if any((y == k).all() or not (y == k).any() for k in positives):
        return []
    return [
        Curve(
            f"{name}: {classes[k]}" if len(classes) > 2 and kind != "prob" else
            classes[k] if len(classes) > 2 else name,
            (y == k).astype(np.int64),
            prob[:, k],
            baseline=kind != "prob",
        )
        for k in positives
    ]  # fmt: skip


Point = tuple[float, float] | None


def _points(evaluation: Evaluation, level: Level) -> tuple[Point, Point, str]:
    """Return the operating point on the ROC and the precision-recall plot, and what to say."""
    decision = evaluation.levels[level].decisions[-1]
    if decision.rule != "operating point" or decision.threshold is None:
        return None, None, ""
    at = {name: value.estimate for name, value in decision.metrics.items()}
    low, high = decision.threshold
    said = f" Diamond: operating point, threshold {number(low, 3)}"
    if low != high:
        said += f" to {number(high, 3)}; each fold has its own, so it may lie beside the curve"
    roc = (1 - at["specificity"], at["sensitivity"])
    return roc, (at["sensitivity"], at["precision"]), said + "."


def _training(saved: Saved) -> dict[str, Any]:
    """Return how the network was tuned, or that it was not."""
    training = saved.training
    if training is None:
        return {"training": None}
    said = (
        f"Solid: validation; dashed: training, on augmented images. Bold: the final fit; thin: "
        f"the folds. Diamond: the epoch kept. {_learned_basis(saved)}."
    )
    quantities: tuple[Quantity, ...] = ("loss", "accuracy")
    return {
        "training": training,
        "select": figure_name(training.select),
        "judged_on": "the held-out part" if saved.out_of_fold is not None else "images out of fold",
        "judged": span(saved.evaluation.levels["image"].metrics["roc_auc"]),
        "training_plots": [
            Plot(
                f"{quantity.capitalize()} by epoch",
                said,
                Markup(training_figure(training.fits, quantity)),
            )
            for quantity in quantities
        ],
    }


def run_facts(saved: Saved) -> list[Fact]:
    """Return what was asked, when, and with what."""
    record, training = saved.record, saved.model["training"]
    finished = [("Finished", str(record["finished"]))] if "finished" in record else []
    return [
        ("Started", str(record["started"])),
        *finished,
        *settings(record["request"]["recipe"]),
        ("Accepted findings", ", ".join(saved.allow) or "none"),
        ("Data hash", str(training["data_hash"])),
    ]


def settings(recipe: dict[str, Any]) -> Iterator[Fact]:
    """Yield the settings of a recipe as a page lists them."""
    for name, value in recipe.items():
        if name != "tuning":
            said = "automatic" if value is None else str(value)
            yield f"Recipe: {name.replace('_', ' ')}", said
    for name, value in (recipe.get("tuning") or {}).items():
        yield f"Tuning: {name.replace('_', ' ')}", str(value)
