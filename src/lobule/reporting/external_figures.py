"""The drawings of an external trial: where scores lie here and there, and what local cases buy."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lobule.evaluation.calibration import FloatArray
from lobule.evaluation.drift import Drift, share_up_to
from lobule.evaluation.local import LocalGain
from lobule.reporting.drawing import COLOURS, STYLE, to_svg

_EDGES = np.linspace(0, 1, 21)

_LOOKS = (("c0", "-", "o"), ("c1", (0, (5, 1.5)), "s"), ("muted", (0, (1.5, 1)), "^"))
"""Colour, dash and mark of the updates of one drawing."""

UPDATES = {
    "threshold": "a new threshold",
    "temperature": "temperature",
    "line": "slope and intercept",
    "shares": "class shares alone",
}
"""What an update is called."""


def drift_figure(drift: Drift, score: FloatArray, *, meaning: str) -> str:
    """Shares of the images by steps of 0.05 of the score: here, filled, and out of fold, outlined.

    score: (n,) in [0, 1]. meaning: what a score is the probability of.
    """
    quantiles = np.array(drift.there)
    there = np.diff(share_up_to(quantiles, _EDGES))
    # what stands at 0 belongs into the first step, though nothing lies below it
    there[0] += share_up_to(quantiles, 0.0)
    here = np.histogram(score, bins=_EDGES)[0] / len(score)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 2.6), layout="constrained")
        axes = figure.subplots()
        axes.stairs(here, _EDGES, fill=True, color=COLOURS["c0"], alpha=0.35, label="here")
        axes.stairs(there, _EDGES, color=COLOURS["ink"], lw=1.6, ls=(0, (4, 1.5)),
                    label="out of fold, where it was trained")  # fmt: skip
        if drift.threshold is not None:
            axes.axvline(drift.threshold, color=COLOURS["c1"], lw=1.4, label="threshold")
        axes.set(xlim=(0, 1), ylim=(0, None), ylabel="share of the images")
        axes.set_xlabel(f"probability of {meaning}")
        axes.grid(axis="y")
        axes.legend(loc="upper right")
        alt = (
            f"Shares of the images by probability of {meaning}. Out of fold, where the model was "
            f"trained: mean {drift.mean_there:.3f}, median {drift.there[50]:.3f}. Here: mean "
            f"{drift.mean_here.told()}, median {drift.here[50]:.3f}."
        )
        return to_svg(figure, "drift", alt)


def gains_figure(gains: Sequence[LocalGain], *, name: str) -> str:
    """Difference by number of labelled cases, a panel a figure: mean over the choices and band.

    gains: of updates that have their figures in common.
    """
    figures = list(dict.fromkeys(gain.figure for gain in gains))
    updates = list(dict.fromkeys(gain.update for gain in gains))
    with mpl.rc_context(STYLE):
        drawing = Figure(figsize=(5.6, 2.4), layout="constrained")
        panels = drawing.subplots(1, len(figures), squeeze=False)[0]
        told = []
        for axes, figure in zip(panels, figures, strict=True):
            for i, update in enumerate(updates):
                rows = [g for g in gains if (g.figure, g.update) == (figure, update)]
                _draw(axes, rows, i)
                last = rows[-1]
                told.append(
                    f"{UPDATES[update]}, {last.told}: {last.difference.told()} after less before "
                    f"with {last.k} cases, better in {last.better:.0%} of the choices"
                )
            _finish(axes, next(g for g in gains if g.figure == figure), {g.k for g in gains})
        if len(updates) > 1:
            handles = panels[0].get_legend_handles_labels()
            drawing.legend(*handles, loc="outside upper center", ncols=len(updates))
        drawing.supxlabel("labelled cases", fontsize=STYLE["font.size"])
        alt = f"What labelled cases of this site buy. {'; '.join(told)}."
        return to_svg(drawing, name, alt)


def _draw(axes: Axes, rows: Sequence[LocalGain], i: int) -> None:
    colour, dash, mark = _LOOKS[i % len(_LOOKS)]
    k = [row.k for row in rows]
    differences = [(d.estimate, d.low, d.high) for d in (row.difference for row in rows)]
    mean, low, high = np.array(differences).T
    axes.fill_between(k, low, high, color=COLOURS[colour], alpha=0.18, lw=0)
    axes.plot(k, mean, color=COLOURS[colour], ls=dash, marker=mark, ms=4, lw=1.6,
              label=UPDATES[rows[0].update])  # fmt: skip


def _finish(axes: Axes, gain: LocalGain, numbers: set[int]) -> None:
    axes.axhline(0, color=COLOURS["muted"], lw=0.9)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(numbers), [str(k) for k in sorted(numbers)])
    axes.minorticks_off()
    better = "lower is better" if gain.lower_is_better else "higher is better"
    axes.set_title(f"{gain.told}\n{better}", fontsize=STYLE["legend.fontsize"])
    axes.grid(axis="y")
    axes.margins(x=0.08)
