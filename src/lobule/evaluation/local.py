"""What labelled cases of a new site buy: an update made on a few of them, tried on the others.

A case is a patient, or an image where patients are unknown; it brings all its images. Every image
counts the same, as where the operating point was chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from lobule.evaluation.brier import CLIP, calibration_in_the_large, calibration_line
from lobule.evaluation.calibration import FloatArray, expected_calibration_error
from lobule.evaluation.intervals import Interval
from lobule.evaluation.metrics import brier, confusion, decision_metrics
from lobule.evaluation.predictions import Predictions, decide, threshold_of
from lobule.evaluation.recalibration import fit_recalibration
from lobule.evaluation.thresholds import choose_threshold
from lobule.progress import Progress, no_progress

CHOICES = 200
"""Random choices of each number of cases."""

FEWEST = 5
"""Labelled cases that the first number is; each next one is twice as many."""

Update = Literal["threshold", "temperature", "line", "shares"]

DECIDED = ("sensitivity", "specificity", "balanced_accuracy")
"""Figures of a new threshold."""

MEANT = ("log_loss", "brier", "ece")
"""Figures of updated probabilities; of all a lower one is better."""

_TOLD = {"brier": "Brier score", "ece": "calibration error"}

Target = tuple[str, float]
"""What an operating point must reach: "sensitivity" or "specificity", and how much of it."""

Figures = dict[str, float]

Pair = tuple[Figures, Figures]
"""Figures of the cases not chosen, before an update and after it."""


@dataclass(frozen=True)
class LocalGain:
    """One figure of the cases not chosen, before and after an update made on `k` that were.

    before, after: means over the choices. difference: mean of after less before, and where 95% of
    the choices lie; this says how much depends on which cases happen to be labelled. better: share
    of the choices after which the figure was better, in [0, 1].
    """

    k: int
    update: Update
    figure: str
    before: float
    after: float
    difference: Interval
    better: float

    @property
    def lower_is_better(self) -> bool:
        """Whether a figure that fell is a better one."""
        return self.figure in MEANT

    @property
    def told(self) -> str:
        """What people call the figure."""
        return _TOLD.get(self.figure, self.figure.replace("_", " "))


def local_gains(
    predictions: Predictions,
    *,
    target: Target | None,
    choices: int = CHOICES,
    seed: int = 0,
    progress: Progress = no_progress,
) -> tuple[LocalGain, ...]:
    """Update on k labelled cases and test on all others, again and again; k as `case_numbers` says.

    predictions: labelled. target: what the operating point was chosen for; None, or more than two
    classes, gives no figures of a new threshold. Updates: "threshold", chosen anew for the target;
    "temperature", one number that draws probabilities together or apart; "line" (two classes), two
    numbers, slope and intercept of the logits, or the intercept alone where the cases chosen are
    parted by some cut of the score, so that no finite line fits them best; and, to hold these
    against, "shares": every image gets the shares of the classes, and the model is not asked.
    Before stands what the table holds. seed: choice i of k cases depends on it, on k, i and the
    names of the cases alone.
    Returns nothing where cases are too few.
    """
    y, prob, k_classes = predictions.y, predictions.probabilities(), len(predictions.classes)
    names, index = np.unique(predictions.groups.to_numpy(dtype=str), return_inverse=True)
    case_class = _class_of_cases(y, index, len(names), k_classes)
    numbers = case_numbers(np.bincount(case_class, minlength=k_classes))
    updates: list[Callable[[NDArray[np.bool_]], dict[Update, Pair]]] = []
    if target is not None and k_classes == 2:
        locked = decide(prob, threshold_of(predictions))
        updates.append(partial(_threshold, y, prob, locked, target))
    updates.append(partial(_probabilities, y, prob))
    gains: list[LocalGain] = []
    for k in progress(numbers, total=len(numbers), task="local cases"):
        tried: dict[Update, list[Pair]] = {}
        for i in range(choices):
            chosen = choose_cases(case_class, k, np.random.default_rng([seed, k, i]))[index]
            for update in updates:
                for name, both in update(chosen).items():
                    tried.setdefault(name, []).append(both)
        gains += [gain for name, pairs in tried.items() for gain in _gains(k, name, pairs)]
    return tuple(gains)


def case_numbers(counts: ArrayLike) -> tuple[int, ...]:
    """Return how many cases are labelled: FEWEST, twice as many ... up to half of all.

    counts: (K,) cases of each class. None where a class has fewer than two, one to choose and one
    to test on.
    """
    counts = np.asarray(counts)
    if counts.min() < 2:
        return ()
    numbers, k = [], FEWEST
    while 2 * k <= counts.sum():
        if k >= len(counts):
            numbers.append(k)
        k *= 2
    return tuple(numbers)


def choose_cases(
    case_class: NDArray[np.int64], k: int, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Return which k cases are chosen, (n,): of each class about its share, one and not all.

    case_class: (n,) class index of each case.
    """
    counts = np.bincount(case_class)
    wanted = k * counts / counts.sum()
    quota = np.clip(np.floor(wanted), 1, counts - 1)
    while quota.sum() < k:
        quota[np.argmax(np.where(quota < counts - 1, wanted - quota, -np.inf))] += 1
    while quota.sum() > k:
        quota[np.argmax(np.where(quota > 1, quota - wanted, -np.inf))] -= 1
    chosen = np.zeros(len(case_class), dtype=bool)
    for c, n in enumerate(quota.astype(int)):
        chosen[generator.choice(np.flatnonzero(case_class == c), size=n, replace=False)] = True
    return chosen


def _class_of_cases(
    y: NDArray[np.int64], index: NDArray[np.intp], n: int, k_classes: int
) -> NDArray[np.int64]:
    """Return the class of each case as `predictions.at_level` has it: positive if any image is."""
    table = np.zeros((n, k_classes), dtype=np.int64)
    np.add.at(table, (index, y), 1)
    if k_classes == 2:
        return (table[:, 1] > 0).astype(np.int64)
    return np.asarray(table.argmax(axis=1), dtype=np.int64)


def _threshold(
    y: NDArray[np.int64],
    prob: FloatArray,
    locked: NDArray[np.int64],
    target: Target,
    chosen: NDArray[np.bool_],
) -> dict[Update, Pair]:
    name, value = target
    new = choose_threshold(y[chosen], prob[chosen, 1], **{name: value})
    rest = ~chosen
    return {
        "threshold": (_decided(y[rest], locked[rest]), _decided(y[rest], decide(prob[rest], new)))
    }


def _decided(y: NDArray[np.int64], decision: NDArray[np.int64]) -> Figures:
    scored = decision_metrics(confusion(y, decision, 2))
    return {name: scored[name].item() for name in DECIDED}


def _probabilities(
    y: NDArray[np.int64], prob: FloatArray, chosen: NDArray[np.bool_]
) -> dict[Update, Pair]:
    rest = ~chosen
    maps: dict[Update, Callable[[FloatArray], FloatArray]] = {
        "temperature": fit_recalibration("temperature", y[chosen], prob[chosen])
    }
    if prob.shape[1] == 2:
        maps["line"] = _line(y[chosen], prob[chosen, 1])
    shares = np.bincount(y[chosen], minlength=prob.shape[1]) / chosen.sum()
    maps["shares"] = lambda prob: np.tile(shares, (len(prob), 1))
    before = _meant(y[rest], prob[rest])
    return {name: (before, _meant(y[rest], change(prob[rest]))) for name, change in maps.items()}


def _line(y: NDArray[np.int64], p: FloatArray) -> Callable[[FloatArray], FloatArray]:
    found = calibration_line(y, p)
    slope, intercept = found["slope"].item(), found["intercept"].item()
    if np.isnan(slope):
        slope, intercept = 1.0, calibration_in_the_large(y, p).item()

    def change(prob: FloatArray) -> FloatArray:
        updated = expit(intercept + slope * logit(np.clip(prob[:, 1], CLIP, 1 - CLIP)))
        return np.stack([1 - updated, updated], axis=1)

    return change


def _meant(y: NDArray[np.int64], prob: FloatArray) -> Figures:
    told = np.clip(prob[np.arange(len(y)), y], CLIP, None)
    return {
        "log_loss": float(-np.log(told).mean()),
        "brier": brier(y, prob).item(),
        "ece": expected_calibration_error(y, prob).item(),
    }


def _gains(k: int, update: Update, pairs: list[Pair]) -> list[LocalGain]:
    gains = []
    for figure in pairs[0][0]:
        before, after = np.array([(b[figure], a[figure]) for b, a in pairs]).T
        difference = after - before
        low, high = np.quantile(difference, [0.025, 0.975]).tolist()
        gained = difference < 0 if figure in MEANT else difference > 0
        gains.append(
            LocalGain(
                k=k,
                update=update,
                figure=figure,
                before=float(before.mean()),
                after=float(after.mean()),
                difference=Interval(float(difference.mean()), low, high, len(pairs), 0),
                better=float(gained.mean()),
            )
        )
    return gains


def gain_from_json(record: dict[str, Any]) -> LocalGain:
    """Rebuild a gain from plain types."""
    return LocalGain(**{**record, "difference": Interval.from_json(record["difference"])})
