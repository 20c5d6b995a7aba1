"""The tables of the report as plain rows: which figure stands where, and what each is of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import nan

import pandas as pd

from lobule.data.manifest import SPLITS
from lobule.evaluation.evaluate import Decisions, Evaluation, LevelFigures, Subgroup
from lobule.evaluation.intervals import FloatArray, Interval, patient_bootstrap
from lobule.evaluation.metrics import score_metrics
from lobule.evaluation.predictions import Level, Predictions, at_level

METRICS = {
    "roc_auc": "ROC AUC",
    "average_precision": "average precision",
    "brier": "Brier score (lower is better)",
    "ece": "calibration error, ECE (lower is better)",
    "ece_if_calibrated": "calibration error if every probability were right",
    "calibration_slope": "calibration slope (1 if calibrated, less if too sure)",
    "calibration_intercept": "calibration intercept (0 if calibrated)",
    "calibration_in_the_large": "calibration in the large (0 if calibrated)",
    "brier_reliability": "Brier score: reliability (lower is better)",
    "brier_resolution": "Brier score: resolution (higher is better)",
    "brier_uncertainty": "Brier score: uncertainty (of the images, not of the model)",
    "brier_within": "Brier score: within bins",
    "aurc": "error rate averaged over coverage (lower is better)",
    "set_coverage": "sets that hold the true class",
    "set_size": "classes in a set, mean",
    "set_single": "sets of one class",
    "accepted": "let through by the gate",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "precision": "precision (PPV)",
    "npv": "negative predictive value",
    "f1": "F1",
    "macro_f1": "macro F1",
    "kappa": "Cohen's kappa",
    "mcc": "Matthews correlation",
}
"""Metric names as people write them, in the order of the results table."""


@dataclass(frozen=True)
class Count:
    """How many of one class (None: all classes) in one part (None: all parts).

    slides and patients are None where unknown.
    """

    part: str | None
    label: str | None
    images: int
    slides: int | None
    patients: int | None


@dataclass(frozen=True)
class Compared:
    """One row of the comparison: a model or baseline, and its main figures; None is not had."""

    name: str
    auc: dict[Level, Interval | None]
    balanced_accuracy: Interval | None
    brier: Interval | None


@dataclass(frozen=True)
class Group:
    """Rows of the results table under one heading: by metric name, one interval a level.

    thresholds: one a level, or None where the rule has none.
    """

    heading: str
    thresholds: list[tuple[float, float] | None] | None
    rows: list[tuple[str, list[Interval]]]


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix: counts (K, K), rows truth, and what it is of."""

    title: str
    unit: str
    counts: list[list[int]]

    @property
    def shares(self) -> list[list[float | None]]:
        """Counts over the sum of their row; None in a row without any."""
        return [[n / sum(row) if sum(row) else None for n in row] for row in self.counts]


@dataclass(frozen=True)
class Subgroups:
    """The subgroups of one column, the images in them together, and the names of the figures."""

    column: str
    rows: list[Subgroup]
    n_images: int
    metrics: list[str]


def count_rows(table: pd.DataFrame) -> list[Count]:
    """Count images, slides and patients by part and class of a manifest's table.

    A total counts a patient with images of two classes, or in two parts, once.
    """
    named = [str(part) for part in table["split"].dropna().unique()]
    rank = {part: i for i, part in enumerate(SPLITS)}
    parts = sorted(named, key=lambda part: (rank.get(part, len(rank)), part))
    rows = []
    for part in [*parts, None]:
        inside = table if part is None else table[table["split"] == part]
        rows += [
            _count(inside[inside["label"] == label], part, str(label))
            for label in sorted(inside["label"].dropna().unique())
        ]
        rows.append(_count(inside, part, None))
    return rows


def _count(rows: pd.DataFrame, part: str | None, label: str | None) -> Count:
    slide = rows["patient"].fillna("") + "/" + rows["slide"]
    return Count(
        part=part,
        label=label,
        images=len(rows),
        slides=None if slide.isna().any() else int(slide.nunique()),
        patients=None if rows["patient"].isna().any() else int(rows["patient"].nunique()),
    )


def shown_levels(evaluation: Evaluation, *, slides_known: bool) -> list[Level]:
    """Return the levels that have a meaning here: no patient level where patients are unknown."""
    known = {"image": True, "slide": slides_known, "patient": evaluation.patients_known}
    return [level for level in evaluation.levels if known[level]]


def compared(
    evaluation: Evaluation,
    levels: Iterable[Level],
    *,
    out_of_fold: Predictions | None = None,
    seed: int = 0,
) -> list[Compared]:
    """Put the model beside its plain view, its baselines and, if held out, its training folds."""
    levels = list(levels)

    def row(name: str, figures: dict[Level, LevelFigures]) -> Compared:
        image = figures["image"]
        return Compared(
            name,
            {level: figures[level].metrics["roc_auc"] if level in figures else None
             for level in levels},
            image.decisions[0].metrics["balanced_accuracy"],
            image.metrics["brier"],
        )  # fmt: skip

    rows = [row("model, mean of 8 views", evaluation.levels)]
    if evaluation.plain is not None:
        rows.append(row("model, plain view only", {"image": evaluation.plain}))
    rows += [row(f"baseline: {name}", figures) for name, figures in evaluation.baselines.items()]
    if out_of_fold is not None:
        auc = {level: _auc(at_level(out_of_fold, level), seed) for level in levels}
        n = f"{len(out_of_fold)} images, {who(out_of_fold)}"
        rows.append(Compared(f"model, out of fold on the training part ({n})", auc, None, None))
    return rows


def who(predictions: Predictions) -> str:
    """Return how many patients, or that they are unknown."""
    if not predictions.patients_known:
        return "patients unknown"
    return f"{predictions.groups.nunique():,} patients"


def _auc(units: Predictions, seed: int) -> Interval | None:
    y, prob = units.y, units.probabilities()

    def statistic(weight: FloatArray) -> dict[str, FloatArray]:
        return {"roc_auc": score_metrics(y, prob, weight)["roc_auc"]}

    return patient_bootstrap(statistic, units.groups, seed=seed)["roc_auc"]


def result_groups(evaluation: Evaluation, levels: Iterable[Level]) -> list[Group]:
    """Return every figure of the model: those of the ranking, then those of each decision rule."""
    figures = [evaluation.levels[level] for level in levels]
    groups = [
        Group(heading, None, rows)
        for heading, names in _HEADINGS.items()
        if (
            rows := [
                (METRICS[name], [level.metrics.get(name, _NOT_HERE) for level in figures])
                for name in names
                if name in figures[0].metrics
            ]
        )
    ]
    for rule in (decision.rule for decision in figures[0].decisions):
        decisions = [decision_of(level, rule) for level in figures]
        rows = [
            (METRICS[name], [d.metrics[name] if d else _NO_RULE for d in decisions])
            for name in METRICS
            if decisions[0] and name in decisions[0].metrics
        ]
        thresholds = [decision.threshold if decision else None for decision in decisions]
        groups.append(Group(rule_name(rule), thresholds if any(thresholds) else None, rows))
    return groups


_HEADINGS = {
    "Ranking and probabilities (no threshold)": ("roc_auc", "average_precision", "brier", "aurc"),
    "Calibration": tuple(n for n in METRICS if n.startswith(("ece", "calibration_", "brier_"))),
    "Sets of classes": tuple(name for name in METRICS if name.startswith("set_")),
    "Gate": ("accepted",),
}

_NOT_HERE = Interval(nan, nan, nan, 0, 0, "of images only")

_NO_RULE = Interval(nan, nan, nan, 0, 0, "no threshold could be chosen at this level")


def decision_of(figures: LevelFigures, rule: str) -> Decisions | None:
    """Return the figures of one decision rule, or None where the level has no such rule."""
    return next((decision for decision in figures.decisions if decision.rule == rule), None)


def rule_name(rule: str) -> str:
    """Return a heading for a decision rule."""
    return {
        "0.5": "At probability 0.5",
        "operating point": "At the locked operating point",
        "most probable": "Most probable class",
    }.get(rule, rule)


def matrices(evaluation: Evaluation) -> list[Matrix]:
    """Return the confusion matrices: of images with and without the 8 views, and of patients."""
    image, patient = evaluation.levels["image"], evaluation.levels["patient"]
    of = [("images, mean of 8 views", "images", image)]
    if evaluation.plain is not None:
        of.append(("images, plain view only", "images", evaluation.plain))
    if evaluation.patients_known:
        of.append(("patients, mean of their images", "patients", patient))
    return [
        Matrix(f"{rule_name(rule)}: {title}", unit, decision.confusion)
        for rule in (decision.rule for decision in image.decisions)
        for title, unit, figures in of
        if (decision := decision_of(figures, rule)) is not None
    ]


def subgroup_tables(evaluation: Evaluation) -> list[Subgroups]:
    """Return the subgroups by column, in the order of the evaluation."""
    tables = []
    for column in dict.fromkeys(group.column for group in evaluation.subgroups):
        rows = [group for group in evaluation.subgroups if group.column == column]
        names = list(dict.fromkeys(name for group in rows for name in group.metrics))
        tables.append(Subgroups(column, rows, sum(group.n_images for group in rows), names))
    return tables
