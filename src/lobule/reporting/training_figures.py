"""The drawing of tuning: a figure by epoch, training beside validation, all fits in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lobule.evaluation.calibration import FloatArray
from lobule.reporting.drawing import COLOURS, STYLE, to_svg
from lobule.reporting.fits import Fit

Quantity = Literal["loss", "accuracy"]

_LINES: dict[str, dict[str, Any]] = {
    "training": {"color": COLOURS["c0"], "ls": (0, (4, 1.5))},
    "validation": {"color": COLOURS["c1"], "ls": "-"},
}

_MARK: dict[str, Any] = {"ls": "", "marker": "D", "mfc": COLOURS["c1"], "mec": COLOURS["ink"]}


def training_figure(fits: Sequence[Fit], quantity: Quantity) -> str:
    """Training (dashed) and validation (solid) by epoch; the final fit is bold, folds are thin.

    A diamond marks the epoch that each fit kept. What was not measured leaves a gap.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.9, 2.9), layout="constrained")
        axes = figure.subplots()
        # the final fit last, so that it lies over the folds
        for fit in sorted(fits, key=lambda fit: fit.final):
            epochs = [line.epoch for line in fit.history]
            width, size = (2.2, 7.0) if fit.final else (0.9, 4.0)
            for part, style in _LINES.items():
                axes.plot(epochs, _values(fit, part, quantity), lw=width, **style)
            kept = epochs.index(fit.selected_epoch)
            at = [fit.selected_epoch], _values(fit, "validation", quantity)[[kept]]
            axes.plot(*at, ms=size, mew=size / 6, zorder=3, **_MARK)
        for part, style in _LINES.items():
            axes.plot([], [], lw=1.8, label=part, **style)
        axes.plot([], [], ms=6, mew=1, label="epoch kept", **_MARK)
        axes.set(xlabel="epoch", ylabel=quantity)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.grid(axis="y")
        if quantity == "loss":
            axes.set_ylim(bottom=0)
        else:
            axes.set_ylim(top=1.02)
        axes.legend(loc="best")
        told = "; ".join(_told(fit, quantity) for fit in fits)
        alt = f"{quantity.capitalize()} by epoch in training and validation. {told}."
        return to_svg(figure, f"training-{quantity}", alt)


def _values(fit: Fit, part: str, quantity: Quantity) -> FloatArray:
    """Return the figure of each epoch, nan where there is none."""
    name = f"{'train' if part == 'training' else part}_{quantity}"
    return np.array([getattr(line, name) for line in fit.history], dtype=np.float64)


def _told(fit: Fit, quantity: Quantity) -> str:
    parts = []
    for part in _LINES:
        values = _values(fit, part, quantity)
        values = values[np.isfinite(values)]
        if values.size:
            parts.append(f"{part} from {values[0]:.2f} to {values[-1]:.2f}")
    kept = getattr(fit.selected, f"validation_{quantity}")
    at = "" if kept is None else f" with {kept:.2f} in validation"
    return f"{fit.name}: {', '.join(parts)}, epoch {fit.selected_epoch} kept{at}"
