"""The report of a study: a forest plot of differences, the figures behind it, and the recipes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from lobule.errors import show
from lobule.evaluation.intervals import Interval
from lobule.evaluation.study import FIGURES, LEVELS, Finding, Study
from lobule.files import write_text
from lobule.models.card import RESEARCH_USE, Fact, people
from lobule.reporting.drawing import COLOURS, STYLE, to_svg
from lobule.reporting.report import environment, settings
from lobule.reporting.verdict import number

_TITLES = {
    "roc_auc": "ROC AUC",
    "brier": "Brier score (lower is better)",
    "ece": "calibration error (lower is better)",
}


@dataclass(frozen=True)
class Row:
    """A line of a table; texts as they are shown."""

    recipe: str
    value: Interval
    by_seed: list[str]
    difference: Interval | None
    resolvable: str
    told: str


def study_report(study: Study, out: Path) -> None:
    """Write the page; the same study gives the same bytes. Raises OutputError."""
    of = people(study.n_images, study.n_patients, known=study.patients_known)
    splits = f"{study.folds} patient folds under {len(study.seeds)} splits, pooled out of fold"
    redrawn = "patients" if study.patients_known else "images"
    groups = [(level, figure) for figure in FIGURES for level in LEVELS]
    tables = [
        {
            "title": f"{_TITLES[figure]}, per {level}",
            "figure": _TITLES[figure],
            "rows": [_row(f) for f in study.of(level, figure)],
        }
        for level, figure in groups
    ]
    plots = [
        {
            "title": f"{_TITLES[figure]}, per {level}",
            "svg": Markup(forest_figure(study.of(level, figure), name=f"forest-{figure}-{level}")),
            "caption": f"Difference from {study.baseline}, with its 95% interval. {of}.",
        }
        for level, figure in groups
    ]
    text = environment().get_template("study.html.j2").render(
        study=study,
        basis=f"{of}; {splits}",
        verdict=list(verdict(study)),
        draws=max(f.value.draws for f in study.findings),
        redrawn=redrawn,
        tables=tables,
        plots=plots,
        recipes=[(name, _facts(recipe)) for name, recipe in study.recipes.items()],
        research_use=RESEARCH_USE,
    )  # fmt: skip
    write_text(out, text.lstrip())


def verdict(study: Study) -> Iterator[str]:
    """Say of every recipe, by image and patient ROC AUC, whether it is told from the baseline."""
    for level in LEVELS:
        rows = [f for f in study.of(level, "roc_auc") if f.difference is not None]
        for says in ("better", "worse"):
            names = [f"{f.recipe} ({_signed(f.difference)})" for f in rows if f.told == says]
            if names:
                yield f"{says.capitalize()} by {level} ROC AUC: {', '.join(names)}."
        rest = [f.recipe for f in rows if f.told == "not told apart"]
        if rest:
            yield f"Not told apart by {level} ROC AUC: {', '.join(rest)}."


def _row(finding: Finding) -> Row:
    difference = finding.difference
    resolvable = "" if difference is None else number(difference.half_width, 3)
    by_seed = [number(value, 3) for value in finding.by_seed]
    return Row(finding.recipe, finding.value, by_seed, difference, resolvable, finding.told)


def _signed(value: Interval | None) -> str:
    if value is None:
        return ""
    return f"{value.estimate:+.3f}, {value.low:+.3f} to {value.high:+.3f}"


def _facts(recipe: dict[str, Any]) -> list[Fact]:
    hidden = ("seed", "folds")
    return list(settings({k: v for k, v in recipe.items() if k not in hidden}))


def forest_figure(findings: Sequence[Finding], *, name: str) -> str:
    """Dot and interval of each difference from the baseline, one row each; 0 is marked."""
    rows = [(f.recipe, f.difference, f.told) for f in findings if f.difference is not None]
    drawn = [(r, d, t) for r, d, t in rows if math.isfinite(d.estimate)]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 0.7 + 0.5 * max(1, len(rows))), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=COLOURS["muted"], lw=1)
        for i, (label, value, says) in enumerate(drawn):
            y, colour = -i, COLOURS["muted" if says == "not told apart" else "c1"]
            if math.isfinite(value.low):
                axes.plot([value.low, value.high], [y, y], color=colour, lw=2.2)
                axes.plot([value.low, value.high], [y, y], color=colour, ls="", marker="|", ms=8)
            # an open mark for what is not told from the baseline, so that colour is not needed
            face = "none" if says == "not told apart" else colour
            axes.plot([value.estimate], [y], color=colour, marker="o", ms=7, mfc=face)
            axes.annotate(
                f"{show(label)}: {_signed(value)}", (0, y),
                xycoords=("axes fraction", "data"), xytext=(0, 9), textcoords="offset points",
                bbox={"facecolor": COLOURS["surface"], "edgecolor": "none", "pad": 1.5},
            )  # fmt: skip
        ends = [v for _, d, _ in drawn for v in (d.low, d.high, d.estimate) if np.isfinite(v)]
        reach = 1.05 * max(map(abs, [*ends, 0.01]))
        axes.set(xlim=(-reach, reach), ylim=(-max(1, len(drawn)) + 0.45, 0.75), yticks=[])
        quantity = _TITLES[findings[0].figure].removesuffix(" (lower is better)")
        axes.set_xlabel(f"difference in {quantity}")
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        said = "; ".join(f"{label} {_signed(value)}" for label, value, _ in drawn)
        return to_svg(figure, name, f"Forest plot of differences with 95% intervals: {said}.")
