"""The drawings of the report: arrays in, one inline SVG string out, equal input to equal bytes.

Every drawing says in words what it shows (`aria-label`), and no line or mark differs from another
by colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from lobule.errors import show
from lobule.evaluation.calibration import FloatArray, reliability
from lobule.evaluation.decision_curve import Benefit
from lobule.evaluation.intervals import Interval, patient_weights
from lobule.evaluation.predictions import Predictions
from lobule.evaluation.selective import risk_coverage
from lobule.reporting.drawing import COLOURS, STYLE, to_svg

_SERIES = tuple(
    (f"c{i}", dash)
    for i, dash in enumerate(
        ("-", (0, (5, 1.5)), (0, (1.5, 1)), "-.", (0, (7, 1, 1, 1, 1, 1)), "--")
    )
)

_BASELINES: tuple[Any, ...] = ((0, (3, 2)), (0, (7, 2, 1.5, 2)))

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
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.9, 0.55 + 0.55 * len(rows)), layout="constrained")
        axes = figure.subplots()
        lowest = 0.5
        for i, (label, value) in enumerate(rows):
            y, colour, marker = -i, COLOURS[f"c{int(i == len(rows) - 1)}"], "osD"[i % 3]
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
                bbox={"facecolor": COLOURS["surface"], "edgecolor": "none", "pad": 1.5},
            )
        axes.set(xlim=(lowest - 0.02, 1.01), ylim=(-len(rows) + 0.45, 0.75), yticks=[])
        axes.set_xlabel("image ROC AUC")
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        told = "; ".join(f"{label} {_figure(value)}" for label, value in rows)
        return to_svg(figure, "leakage", f"Dot plot of image ROC AUC with 95% intervals: {told}.")


def roc_figure(
    curves: Sequence[Curve],
    *,
    name: str,
    band: FloatArray | None = None,
    point: tuple[float, float] | None = None,
) -> str:
    """ROC curves. band: (2, 101) bounds from `roc_band`. point: (1 - specificity, sensitivity)."""
    with mpl.rc_context(STYLE):
        figure, axes = _square("false positive rate (1 - specificity)", "sensitivity")
        axes.plot([0, 1], [0, 1], color=COLOURS["muted"], lw=0.8, ls=":")
        if band is not None:
            axes.fill_between(_GRID, *band, color=COLOURS["c0"], alpha=0.22, lw=0, label="95% band")
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
        return to_svg(figure, name, alt)


def precision_recall_figure(
    curves: Sequence[Curve], *, name: str, point: tuple[float, float] | None = None
) -> str:
    """Precision by recall, with each class's prevalence. point: (sensitivity, precision)."""
    with mpl.rc_context(STYLE):
        figure, axes = _square("recall (sensitivity)", "precision")
        told = []
        alone = sum(not curve.baseline for curve in curves) == 1
        for style, curve in _styled(curves):
            precision, recall, _ = precision_recall_curve(curve.y, curve.score)
            axes.plot(recall, precision, drawstyle="steps-post", label=show(curve.label), **style)
            prevalence = float(curve.y.mean())
            if not curve.baseline:
                colour = COLOURS["muted"] if alone else style["color"]
                axes.axhline(prevalence, color=colour, lw=0.8, ls=":")
                half = precision[recall >= 0.5].max()
                told.append(
                    f"{curve.label}: prevalence {prevalence:.2f}, best precision {half:.2f} at "
                    "recall of 0.5 or more"
                )
        axes.plot([], [], color=COLOURS["muted"], lw=0.8, ls=":", label="prevalence")
        _mark(axes, point)
        axes.legend(loc="lower left")
        return to_svg(figure, name, f"Precision by recall. {'; '.join(told)}.")


def reliability_figure(curves: Sequence[Curve], *, name: str, unit: str) -> str:
    """Observed frequency by predicted probability, above bars of how many rows were told what.

    The points are the bins of `calibration.reliability`: equal numbers of rows in each.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.6, 3.6), layout="constrained")
        axes, bars = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        axes.plot([0, 1], [0, 1], color=COLOURS["muted"], lw=0.8, ls=":", label="perfect")
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
        return to_svg(figure, name, alt)


def decision_curve_figure(curve: Sequence[Benefit], *, name: str) -> str:
    """Net benefit by threshold: of the model with its 95% band, of acting on all, and on none."""
    x = [benefit.threshold for benefit in curve]
    model = np.array([(b.model.estimate, b.model.low, b.model.high) for b in curve]).T
    everyone = [benefit.all.estimate for benefit in curve]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.6, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.fill_between(x, model[1], model[2], color=COLOURS["c0"], alpha=0.22, lw=0)
        axes.plot(x, model[0], color=COLOURS["c0"], lw=1.8, label="model, 95% band")
        axes.plot(x, everyone, color=COLOURS["muted"], lw=1.1, ls=_BASELINES[0], label="act on all")
        axes.axhline(0, color=COLOURS["muted"], lw=0.8, ls=":", label="act on none")
        top = float(np.nanmax([*model[2], everyone[0]]))
        axes.set(xlim=(0, 1), ylim=(-0.25 * top, 1.1 * top))
        axes.set(xlabel="probability from which one acts", ylabel="net benefit")
        axes.grid()
        axes.legend(loc="upper right")
        told = ", ".join(
            f"{b.model.estimate:.2f} at {b.threshold:g} (all: {b.all.estimate:.2f})"
            for b in curve[3::4]
        )
        return to_svg(figure, name, f"Net benefit by threshold, of the model: {told}.")


def risk_coverage_figure(units: Predictions, *, name: str) -> str:
    """Share of errors among the images answered, by how many are answered, with its 95% band.

    The surest are answered first; the dotted line is the share of errors when all are.
    """
    y, prob = units.y, units.probabilities()
    covered, risk = risk_coverage(y, prob)

    def at_grid(weight: FloatArray) -> FloatArray:
        some, errors = risk_coverage(y, prob, weight=weight)
        seen = np.isfinite(errors)
        return np.interp(_GRID, some[seen], errors[seen])

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.6, 3.6), layout="constrained")
        axes = figure.subplots()
        if units.groups.nunique() > 1:
            drawn = [
                at_grid(weight)
                for weights in patient_weights(units.groups.tolist(), draws=BAND_DRAWS)
                for weight in weights
            ]
            band = np.quantile(drawn, [0.025, 0.975], axis=0)
            axes.fill_between(_GRID, *band, color=COLOURS["c0"], alpha=0.22, lw=0, label="95% band")
        axes.plot(covered, risk, color=COLOURS["c0"], lw=1.8, label="model")
        axes.axhline(risk[-1], color=COLOURS["muted"], lw=0.8, ls=":", label="all answered")
        axes.set(xlim=(0, 1.02), ylim=(0, None))
        axes.set(xlabel="share answered, surest first", ylabel="share of errors among them")
        axes.grid()
        axes.legend(loc="lower right")
        told = ", ".join(
            f"{np.interp(share, covered, risk):.2f} of {share:g}" for share in (0.25, 0.5, 0.75, 1)
        )
        return to_svg(figure, name, f"Share of errors among the images answered: {told}.")


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
    styled, n, n_grey = [], 0, 0
    for curve in curves:
        if curve.baseline:
            dash = _BASELINES[n_grey % len(_BASELINES)]
            style: dict[str, Any] = {"color": COLOURS["muted"], "lw": 1.1, "ls": dash}
            n_grey += 1
        else:
            colour, dash = _SERIES[n % len(_SERIES)]
            style = {"color": COLOURS[colour], "lw": 1.8, "ls": dash}
            n += 1
        styled.append((style, curve))
    return styled


def _mark(axes: Axes, point: tuple[float, float] | None) -> None:
    if point is not None and np.isfinite(point).all():
        axes.plot(
            [point[0]], [point[1]], ls="", marker="D", ms=7, mew=1.5, mec=COLOURS["ink"],
            mfc=COLOURS["c1"], label="operating point", clip_on=False,
        )  # fmt: skip


def _figure(value: Interval) -> str:
    if not np.isfinite(value.low):
        return f"{value.estimate:.3f}"
    return f"{value.estimate:.3f} ({value.low:.3f} to {value.high:.3f})"
