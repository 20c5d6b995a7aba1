"""The drawings of the report: arrays in, one inline SVG string out, equal input to equal bytes.

Colours are names that the page fills in (see `_COLOURS`), so that one drawing serves light, dark
and print. Every drawing says in words what it shows (`aria-label`), and no line or mark differs
from another by colour alone.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from lobule.errors import show
from lobule.evaluation.calibration import FloatArray, reliability
from lobule.evaluation.intervals import Interval, patient_weights

_COLOURS = ("ink", "muted", "rule", "surface", "c0", "c1", "c2", "c3", "c4", "c5")
"""CSS variables of the page; drawn as #000010, #000011 ... and swapped in afterwards."""

_DRAWN = {name: f"#0000{i + 10}" for i, name in enumerate(_COLOURS)}

_SERIES = tuple(
    (f"c{i}", dash)
    for i, dash in enumerate(
        ("-", (0, (5, 1.5)), (0, (1.5, 1)), "-.", (0, (7, 1, 1, 1, 1, 1)), "--")
    )
)

_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class may be called "$x$"
    "axes.unicode_minus": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": _DRAWN["ink"],
    "axes.edgecolor": _DRAWN["muted"],
    "axes.labelcolor": _DRAWN["ink"],
    "xtick.color": _DRAWN["muted"],
    "ytick.color": _DRAWN["muted"],
    "xtick.labelcolor": _DRAWN["ink"],
    "ytick.labelcolor": _DRAWN["ink"],
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": _DRAWN["rule"],
    "grid.linewidth": 0.7,
    "legend.frameon": True,
    "legend.framealpha": 0.85,
    "legend.facecolor": _DRAWN["surface"],
    "legend.edgecolor": "none",
    "legend.fontsize": 8.5,
    "legend.handlelength": 2.2,
    "legend.borderpad": 0.3,
    "path.simplify": False,
    "hatch.linewidth": 0.6,
}

BAND_DRAWS = 500

_GRID = np.linspace(0, 1, 101)


@dataclass(frozen=True, eq=False)
class Curve:
    """Scores of one class against the rest.

    label: for the legend. y: (n,) int in {0, 1}, both present. score: (n,) float, higher for 1.
    baseline: drawn in grey, for comparison.
    """

    label: str
    y: NDArray[np.int64]
    score: FloatArray
    baseline: bool = False


def leakage_figure(auc: Mapping[str, Interval], labels: Mapping[str, str]) -> str:
    """Dot and interval of the ROC AUC for each way of splitting, one row each.

    labels: what a row is called, by the same keys. Undefined rows are left to the words.
    """
    rows = [(labels[name], value) for name, value in auc.items() if np.isfinite(value.estimate)]
    with mpl.rc_context(_RC):
        figure = Figure(figsize=(3.9, 0.55 + 0.55 * len(rows)), layout="constrained")
        axes = figure.subplots()
        lowest = 0.5
        for i, (label, value) in enumerate(rows):
            y, colour, marker = -i, _DRAWN[f"c{int(i == len(rows) - 1)}"], "osD"[i % 3]
            if np.isfinite(value.low):
                axes.plot([value.low, value.high], [y, y], color=colour, lw=2.2)
                axes.plot([value.low, value.high], [y, y], color=colour, ls="", marker="|", ms=8)
                lowest = min(lowest, value.low)
            axes.plot([value.estimate], [y], color=colour, marker=marker, ms=7)
            axes.annotate(
                f"{show(label)}: {_figure(value)}",
                (0, y),
                xycoords=("axes fraction", "data"),
                xytext=(0, 9),
                textcoords="offset points",
                bbox={"facecolor": _DRAWN["surface"], "edgecolor": "none", "pad": 1.5},
            )
        axes.set(xlim=(lowest - 0.02, 1.01), ylim=(-len(rows) + 0.45, 0.75), yticks=[])
        axes.set_xlabel("image ROC AUC")
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        told = "; ".join(f"{label} {_figure(value)}" for label, value in rows)
        return _svg(figure, "leakage", f"Dot plot of image ROC AUC with 95% intervals: {told}.")


def roc_figure(
    curves: Sequence[Curve],
    *,
    name: str,
    band: FloatArray | None = None,
    point: tuple[float, float] | None = None,
) -> str:
    """ROC curves. band: (2, 101) bounds from `roc_band`. point: (1 - specificity, sensitivity)."""
    with mpl.rc_context(_RC):
        figure, axes = _square("false positive rate (1 - specificity)", "sensitivity")
        axes.plot([0, 1], [0, 1], color=_DRAWN["muted"], lw=0.8, ls=":")
        if band is not None:
            axes.fill_between(_GRID, *band, color=_DRAWN["c0"], alpha=0.22, lw=0, label="95% band")
        told = []
        for style, curve in _styled(curves):
            false_positive, sensitivity, _ = roc_curve(curve.y, curve.score)
            axes.plot(false_positive, sensitivity, label=show(curve.label), **style)
            at = ", ".join(
                f"{sensitivity[false_positive <= rate].max():.2f} at {rate:g}"
                for rate in (0.1, 0.2, 0.5)
            )
            told.append(f"{curve.label}: sensitivity {at}")
        _mark(axes, point)
        axes.legend(loc="lower right")
        alt = f"ROC curve, sensitivity by false positive rate. {'; '.join(told)}."
        if point is not None:
            alt += f" Operating point: sensitivity {point[1]:.2f} at {point[0]:.2f}."
        return _svg(figure, name, alt)


def precision_recall_figure(
    curves: Sequence[Curve], *, name: str, point: tuple[float, float] | None = None
) -> str:
    """Precision by recall, with each class's prevalence. point: (sensitivity, precision)."""
    with mpl.rc_context(_RC):
        figure, axes = _square("recall (sensitivity)", "precision")
        told = []
        alone = sum(not curve.baseline for curve in curves) == 1
        for style, curve in _styled(curves):
            precision, recall, _ = precision_recall_curve(curve.y, curve.score)
            axes.plot(recall, precision, drawstyle="steps-post", label=show(curve.label), **style)
            prevalence = float(curve.y.mean())
            if not curve.baseline:
                colour = _DRAWN["muted"] if alone else style["color"]
                axes.axhline(prevalence, color=colour, lw=0.8, ls=":")
                half = precision[recall >= 0.5].max()
                told.append(
                    f"{curve.label}: prevalence {prevalence:.2f}, best precision {half:.2f} at "
                    "recall of 0.5 or more"
                )
        axes.plot([], [], color=_DRAWN["muted"], lw=0.8, ls=":", label="prevalence")
        _mark(axes, point)
        axes.legend(loc="lower left")
        return _svg(figure, name, f"Precision by recall. {'; '.join(told)}.")


def reliability_figure(curves: Sequence[Curve], *, name: str, unit: str) -> str:
    """Observed frequency by predicted probability, above bars of how many rows were told what.

    The points are the bins of `calibration.reliability`: equal numbers of rows in each.
    """
    with mpl.rc_context(_RC):
        figure = Figure(figsize=(3.6, 3.6), layout="constrained")
        axes, bars = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        axes.plot([0, 1], [0, 1], color=_DRAWN["muted"], lw=0.8, ls=":", label="perfect")
        told = []
        for i, (style, curve) in enumerate(_styled(curves)):
            points = reliability(curve.y, curve.score)
            axes.plot(
                points.mean_predicted, points.observed,
                marker="osD^vP"[i % 6], ms=4, label=show(curve.label), **style,
            )  # fmt: skip
            counts, edges = np.histogram(curve.score, bins=20, range=(0, 1))
            bars.stairs(counts, edges, fill=len(curves) == 1, color=style["color"], lw=1)
            ends = [
                f"said {points.mean_predicted[j]:.2f}, was {points.observed[j]:.2f}"
                for j in (0, -1)
            ]
            told.append(f"{curve.label}: lowest bin {ends[0]}; highest bin {ends[1]}")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="observed frequency")
        bars.set(xlabel="predicted probability", ylabel=f"{unit}s")
        axes.grid()
        axes.legend(loc="upper left")
        alt = f"Reliability: observed frequency by predicted probability. {'; '.join(told)}."
        return _svg(figure, name, alt)


def roc_band(
    y: NDArray[np.int64], score: FloatArray, patient: Sequence[str], *, seed: int = 0
) -> FloatArray:
    """Pointwise 95% bounds (2, 101) of the sensitivity at false positive rates 0, 0.01 ... 1.

    y: (n,) int in {0, 1}. score: (n,). Whole patients are redrawn, as in `patient_bootstrap`;
    draws without both classes are left out. Source: Macskassy, Provost & Rosset, ICML (2005).
    """
    found = []
    for weights in patient_weights(patient, draws=BAND_DRAWS, seed=seed):
        for weight in weights:
            if weight[y == 1].sum() and weight[y == 0].sum():
                x, sensitivity, _ = roc_curve(y, score, sample_weight=weight)
                found.append(np.interp(_GRID, x, sensitivity))
    band: FloatArray = np.quantile(found, [0.025, 0.975], axis=0)
    return band


def _square(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(3.6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x, ylabel=y)
    axes.grid()
    return figure, axes


def _styled(curves: Sequence[Curve]) -> list[tuple[dict[str, Any], Curve]]:
    """Give every curve a colour and a dash of its own; baselines are thin and grey."""
    styled, n = [], 0
    for curve in curves:
        if curve.baseline:
            style: dict[str, Any] = {"color": _DRAWN["muted"], "lw": 1.1, "ls": (0, (3, 2))}
        else:
            colour, dash = _SERIES[n % len(_SERIES)]
            style = {"color": _DRAWN[colour], "lw": 1.8, "ls": dash}
            n += 1
        styled.append((style, curve))
    return styled


def _mark(axes: Axes, point: tuple[float, float] | None) -> None:
    if point is not None and np.isfinite(point).all():
        axes.plot(
            [point[0]], [point[1]], ls="", marker="D", ms=7, mew=1.5, mec=_DRAWN["ink"],
            mfc=_DRAWN["c1"], label="operating point", clip_on=False,
        )  # fmt: skip


def _figure(value: Interval) -> str:
    if not np.isfinite(value.low):
        return f"{value.estimate:.3f}"
    return f"{value.estimate:.3f} ({value.low:.3f} to {value.high:.3f})"


def _svg(figure: Figure, name: str, alt: str) -> str:
    """Render, and turn a stand-alone SVG file into an element that lives among others.

    Identifiers that nothing refers to go; the rest get `name` in front. The font is the page's.
    """
    out = io.StringIO()
    with warnings.catch_warnings(), mpl.rc_context({"svg.hashsalt": name}):
        # the browser draws the text: a sign that our own font lacks is no loss
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=nothing)
    drawn = out.getvalue()
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawn)[0]
    body = drawn[drawn.index(">", drawn.index("<svg")) + 1 :]
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.S)
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', body))

    def adapt(tag: re.Match[str]) -> str:
        text = re.sub(
            r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", tag[0]
        )
        text = re.sub(r"url\(#", f"url(#{name}-", text)
        text = re.sub(r'xlink:href="#', f'href="#{name}-', text)
        text = re.sub(r"font-family: [^;\"]*; ", "", text)
        return re.sub(r"#0000(\d\d)", lambda m: f"var(--{_COLOURS[int(m[1]) - 10]})", text)

    # only inside tags: what stands between them may be a class name
    body = re.sub(r"<[^>]*>", adapt, body)
    body = re.sub(r"\s*\n\s*", "\n", body).strip()
    return (
        f'<svg class="drawing" role="img" viewBox="0 0 {width} {height}" '
        f'aria-label="{escape(show(alt))}">\n{body}'
    )
