"""The report of a stress test: curves by severity, and the figures behind them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from markupsafe import Markup

from lobule.files import write_text
from lobule.inference.stress import STRESSED, Stress
from lobule.models.card import RESEARCH_USE, figure_name, people
from lobule.reporting.report import environment
from lobule.reporting.stress_figures import stress_figure

_FIGURES = ("roc_auc", "accuracy")


def stress_report(stress: Stress, out: Path) -> None:
    """Write the page; the same figures give the same bytes. Raises OutputError."""
    basis = people(stress.n_images, stress.n_patients, known=stress.patients_known)
    plots = [
        {
            "title": f"Per {level}",
            "svg": Markup(stress_figure(stress, level)),
            "caption": f"Band: 95%. Dotted: undamaged. Diamond: moderate. {basis}.",
        }
        for level in STRESSED
    ]
    tables = [
        {
            "title": f"{figure_name(figure)}, per {level}",
            "figure": figure_name(figure),
            "undamaged": stress.undamaged[level][figure],
            "rows": [r for r in stress.rows if (r.level, r.figure) == (level, figure)],
        }
        for figure in _FIGURES
        for level in STRESSED
    ]
    text = environment().get_template("stress.html.j2").render(
        stress=stress,
        basis=basis,
        verdict=list(verdict(stress)),
        redrawn="patients" if stress.patients_known else "images",
        plots=plots,
        tables=tables,
        research_use=RESEARCH_USE,
    )  # fmt: skip
    write_text(out, text.lstrip())


def verdict(stress: Stress) -> Iterator[str]:
    """Say what each moderate damage does to the image ROC AUC."""
    for row in stress.rows:
        if row.moderate and (row.level, row.figure) == ("image", "roc_auc"):
            yield (
                f"{row.damage}, {row.severity:g} {row.unit}: image ROC AUC {row.value.told()}, "
                f"a difference of {row.difference.told()}."
            )
