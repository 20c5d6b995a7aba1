"""The drawing of a stress test: a small curve for each damage, all to one scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lobule.errors import show
from lobule.evaluation.intervals import Interval
from lobule.evaluation.predictions import Level
from lobule.inference.stress import Harm, Stress
from lobule.reporting.drawing import COLOURS, STYLE, to_svg

_COLUMNS = 3


def stress_figure(stress: Stress, level: Level = "image") -> str:
    """ROC AUC by severity with its 95% band, one panel for each damage of the rows at `level`.

    A curve begins at severity 0 with the undamaged images, whose AUC the dotted line goes on to
    tell. A diamond marks the moderate severity. What is undefined leaves a gap.
    """
    undamaged = stress.undamaged[level]["roc_auc"]
    rows = [row for row in stress.rows if (row.level, row.figure) == (level, "roc_auc")]
    panels = {row.damage: [r for r in rows if r.damage == row.damage] for row in rows}
    with mpl.rc_context(STYLE):
        n_lines = math.ceil(len(panels) / _COLUMNS)
        figure = Figure(figsize=(5.6, 1.7 * n_lines), layout="constrained")
        grid = figure.subplots(n_lines, _COLUMNS, sharey=True, squeeze=False).ravel()
        for axes, panel in zip(grid, panels.values(), strict=False):
            _draw(axes, undamaged, panel)
        for axes in grid[len(panels) :]:
            axes.remove()
        figure.supylabel(f"{level} ROC AUC", fontsize=STYLE["font.size"])
        told = "; ".join(_told(panel) for panel in panels.values())
        alt = f"{level} ROC AUC by severity of damage; undamaged {undamaged.told()}. {told}."
        return to_svg(figure, f"stress-{level}", alt)


def _draw(axes: Axes, undamaged: Interval, rows: Sequence[Harm]) -> None:
    severity = [0.0, *(row.severity for row in rows)]
    values = [undamaged, *(row.value for row in rows)]
    estimate, low, high = np.array([(v.estimate, v.low, v.high) for v in values]).T
    axes.fill_between(severity, low, high, color=COLOURS["c0"], alpha=0.22, lw=0)
    axes.axhline(undamaged.estimate, color=COLOURS["muted"], lw=0.8, ls=":")
    # the first mark lies on the axis, where it would be cut in half
    axes.plot(severity, estimate, color=COLOURS["c0"], lw=1.8, marker="o", ms=3.5, clip_on=False)
    for row in rows:
        if row.moderate:
            axes.plot(
                [row.severity], [row.value.estimate], ls="", marker="D", ms=6, mew=1,
                mec=COLOURS["ink"], mfc=COLOURS["c1"],
            )  # fmt: skip
    axes.set_title(show(rows[0].damage), fontsize=STYLE["font.size"], color=COLOURS["ink"])
    axes.set_xlabel(show(rows[0].unit), fontsize=STYLE["legend.fontsize"])
    axes.set_xlim(left=0)
    axes.grid(axis="y")


def _told(rows: Sequence[Harm]) -> str:
    """Say where the curve is at the moderate severity, and where it ends."""
    marked = [row for row in rows if row.moderate or row is rows[-1]]
    at = ", ".join(f"{row.value.told()} at {row.severity:g} {row.unit}" for row in marked)
    return f"{rows[0].damage}: {at}"
