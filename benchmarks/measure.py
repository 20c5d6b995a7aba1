"""Times of several ways to do one thing, taken in turns, so that a busy machine is busy for all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np


def alternate(ways: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    """Return the seconds that each way took, by repetition."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repetitions):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def spread(values: list[float]) -> tuple[float, float, float]:
    """Return median, smallest and largest."""
    return float(np.median(values)), min(values), max(values)


def told(values: list[float], digits: int = 2) -> str:
    """Say median and range."""
    return "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(*spread(values), d=digits)


def bars(rates: Mapping[str, list[float]], file: Path) -> None:
    """Draw images a second by way: the median, and a line from the smallest to the largest."""
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.3 * len(rates)), layout="constrained")
    middle, low, high = np.array([spread(found) for found in rates.values()]).T
    colours = ["#3b6ea5" if name.startswith("Lobule") else "#b8bfc6" for name in rates]
    axes.barh(list(rates), middle, xerr=(middle - low, high - middle), color=colours)
    axes.invert_yaxis()
    axes.set(xlabel="images a second")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)
    plt.close(figure)
