"""The report of a trial on another site's images."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from markupsafe import Markup

from lobule.evaluation.local import DECIDED
from lobule.files import write_text
from lobule.inference.external import External, Photographs
from lobule.models.card import RESEARCH_USE, Fact, people
from lobule.reporting import tables
from lobule.reporting.external_figures import UPDATES, drift_figure, gains_figure
from lobule.reporting.external_words import cases, verdict
from lobule.reporting.report import Plot, environment, level_plots
from lobule.reporting.verdict import basis, headlines


def external_report(found: External, out: Path) -> None:
    """Write the page; the same trial gives the same bytes. Raises OutputError."""
    evaluation = found.evaluation
    figures: dict[str, Any] = {"levels": [], "groups": [], "headlines": []}
    if evaluation is not None:
        slides_known = bool(found.labelled.table["slide"].notna().all())
        levels = tables.shown_levels(evaluation, slides_known=slides_known)
        figures = {
            "levels": levels,
            "groups": tables.result_groups(evaluation, levels),
            "headlines": headlines(evaluation),
            "basis": basis(evaluation),
        }
    text = environment().get_template("external.html.j2").render(
        found=found,
        evaluation=evaluation,
        who=people(found.n_images, found.n_patients, known=found.patients_known),
        verdict=list(verdict(found)),
        unknown=found.cannot_know,
        plots=list(_plots(found)),
        drift=_drift(found),
        gains=list(_gains(found)),
        cases=cases(found) if found.n_labelled else "",
        choices=found.gains[0].difference.draws if found.gains else 0,
        photographs=list(_facts(found)),
        research_use=RESEARCH_USE,
        **figures,
    )  # fmt: skip
    write_text(out, text.lstrip())


def _plots(found: External) -> Iterator[Plot]:
    """Yield ROC curve and reliability per image, and the ROC curve per patient."""
    if found.evaluation is None:
        return
    roc, _, reliability = islice(level_plots(found.evaluation, found.labelled, "image"), 3)
    yield from (roc, reliability)
    if found.evaluation.patients_known:
        yield next(level_plots(found.evaluation, found.labelled, "patient"))


def _drift(found: External) -> Plot | None:
    """Return where scores lie, or None where there are none to compare with."""
    if found.drift is None:
        return None
    meaning = found.classes[-1] if len(found.classes) == 2 else "the most probable class"
    who = people(found.n_images, found.n_patients, known=found.patients_known)
    return Plot(
        "Where scores lie",
        f"Here: {who}. Outlined: {found.drift.source}, of the model's training.",
        Markup(drift_figure(found.drift, found.predictions.score, meaning=meaning)),
    )


def _gains(found: External) -> Iterator[dict[str, Any]]:
    """Yield plot and rows of a new threshold, then of updated probabilities."""
    for title, name, decided in (
        ("A new threshold", "gain-threshold", True),
        ("Updated probabilities", "gain-probabilities", False),
    ):
        rows = [gain for gain in found.gains if (gain.figure in DECIDED) == decided]
        if rows:
            yield {
                "title": title,
                "svg": Markup(gains_figure(rows, name=name)),
                "figures": list(dict.fromkeys(gain.told for gain in rows)),
                "rows": [
                    (UPDATES[update], k, [g for g in rows if (g.update, g.k) == (update, k)])
                    for update in dict.fromkeys(gain.update for gain in rows)
                    for k in dict.fromkeys(gain.k for gain in rows)
                ],
            }


def _facts(found: External) -> Iterator[Fact]:
    """Yield what the photographs are like."""
    seen = found.photographs
    yield "Predicted", people(found.n_images, found.n_patients, known=found.patients_known)
    yield "With a label", f"{found.n_labelled:,}"
    yield "Size", _size(seen)
    yield "Files", ", ".join(seen.endings)
    known = ", ".join(f"{m:g}X" for m in seen.magnifications)
    yield "Magnification", known or "unknown"
    if found.seen is not None:
        yield "Trained on", f"{found.seen:,} of them"
    for path, reason in found.failed.items():
        yield "Left out", f"{path}: {reason}"
    yield "Model", found.model
    yield "Data hash", found.data_hash


def _size(seen: Photographs) -> str:
    scaled = f"scaled until the longer side has {seen.long_side_px} px"
    if seen.width_px is None or seen.height_px is None:
        return f"unknown; {scaled}"
    sizes = [f"{w} x {h} px" for w, h in zip(seen.width_px, seen.height_px, strict=True)]
    told = sizes[0] if sizes[0] == sizes[1] else f"from {sizes[0]} to {sizes[1]}"
    return f"{told}; {scaled}"
