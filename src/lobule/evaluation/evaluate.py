"""From a predictions table to an Evaluation: every figure with its interval, images and patients.

Nothing is tuned here. The thresholds are those that the table carries; they were locked before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lobule.data.findings import FEW_PATIENTS
from lobule.errors import DataError
from lobule.evaluation.calibration import calibration_error_by_chance, ratio
from lobule.evaluation.decision_curve import Benefit, decision_curve
from lobule.evaluation.intervals import (
    FloatArray,
    Interval,
    Statistic,
    equal_shares,
    paired,
    patient_bootstrap,
)
from lobule.evaluation.metrics import (
    confusion,
    decision_metrics,
    probability_metrics,
    roc_auc,
    score_metrics,
    set_metrics,
    why_undefined,
)
from lobule.evaluation.predictions import LEVELS, Level, Predictions, at_level, decide

SCHEMA = "lobule.evaluation/3"

DRAWS = 2000

FROZEN, COLOUR, MAJORITY = "frozen features", "colour statistics", "majority"

BASELINES = {FROZEN: "frozen", COLOUR: "colour", MAJORITY: "prior"}
"""The kind of probabilities behind each baseline (see `predictions.KINDS`)."""


@dataclass(frozen=True)
class Decisions:
    """Figures of one decision rule at one level.

    rule: "0.5", "operating point" or "most probable". threshold: lowest and highest threshold
    in use (they differ where each fold locked its own), None for "most probable".
    confusion: (K, K) counts, rows truth.
    """

    rule: str
    threshold: tuple[float, float] | None
    metrics: dict[str, Interval]
    confusion: list[list[int]]


@dataclass(frozen=True)
class LevelFigures:
    """All figures of one level: what a unit is, how many, and how well they are told apart."""

    level: Level
    n_units: int
    n_images: int
    n_patients: int
    class_units: dict[str, int]
    metrics: dict[str, Interval]
    decisions: list[Decisions]


@dataclass(frozen=True)
class Subgroup:
    """Images that share a value of a column; `metrics` is empty where patients are too few."""

    column: str
    value: str
    n_images: int
    n_patients: int
    note: str | None
    metrics: dict[str, Interval]


@dataclass(frozen=True)
class Evaluation:
    """What a model is worth on these images, as far as they can tell.

    source: the data and split the figures are of. plain: image level without averaging over
    views. baselines: by name (those of BASELINES that there are predictions of), then by level.
    gain: ROC AUC of the model less that of a baseline on the same redrawn patients, by name, then
    by level; not of the majority, which ranks nothing. decision_curve: net benefit by level, of two
    classes; empty with more. n_failed: images that could not be read, and so are in no figure.
    """

    classes: tuple[str, ...]
    source: str
    model: str
    patients_known: bool
    n_images: int
    n_patients: int
    levels: dict[Level, LevelFigures]
    plain: LevelFigures | None
    baselines: dict[str, dict[Level, LevelFigures]]
    gain: dict[str, dict[Level, Interval]]
    subgroups: list[Subgroup]
    decision_curve: dict[Level, list[Benefit]]
    n_failed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return plain types with a schema; undefined figures are None with a reason."""
        plain: dict[str, Any] = _plain({"schema": SCHEMA, **vars(self)})
        return plain

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Evaluation:
        """Rebuild from `to_json`; raises DataError for another schema or a missing field."""
        if record.get("schema") != SCHEMA:
            raise DataError(f"not an evaluation: schema {record.get('schema')!r}, not {SCHEMA!r}")
        try:
            # records of before do not say how many could not be read
            record = {"n_failed": 0, **record}
            fields = {key: record[key] for key in cls.__dataclass_fields__}
            fields["classes"] = tuple(record["classes"])
            fields["levels"] = {k: _figures(v) for k, v in record["levels"].items()}
            fields["plain"] = None if record["plain"] is None else _figures(record["plain"])
            fields["baselines"] = {
                name: {k: _figures(v) for k, v in levels.items()}
                for name, levels in record["baselines"].items()
            }
            fields["gain"] = {name: _intervals(levels) for name, levels in record["gain"].items()}
            fields["subgroups"] = [
                Subgroup(**{**group, "metrics": _intervals(group["metrics"])})
                for group in record["subgroups"]
            ]
            fields["decision_curve"] = {
                level: [Benefit.from_json(benefit) for benefit in benefits]
                for level, benefits in record["decision_curve"].items()
            }
            return cls(**fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"evaluation cannot be read: {error!r}") from error


def evaluate(predictions: Predictions, *, draws: int = DRAWS, seed: int = 0) -> Evaluation:
    """Compute every figure of a predictions table at image, slide and patient level.

    draws, seed: of the patient bootstrap behind all 95% intervals.
    Where patients are unknown each image counts as one, and `patients_known` is False.
    Raises DataError if there are no predictions.
    """
    if len(predictions) == 0:
        raise DataError("there are no predictions to evaluate")
    table = predictions.table
    units = {level: at_level(predictions, level) for level in LEVELS}
    n_images = len(predictions)

    def figures(level: Level, kind: str) -> LevelFigures:
        return _level(units[level], level, kind, n_images=n_images, draws=draws, seed=seed)

    known = {name: kind for name, kind in BASELINES.items() if predictions.has(kind)}
    return Evaluation(
        classes=predictions.classes,
        source=_one(table, "source"),
        model=_one(table, "model"),
        patients_known=predictions.patients_known,
        n_images=n_images,
        n_patients=int(predictions.groups.nunique()),
        levels={level: figures(level, "prob") for level in LEVELS},
        plain=figures("image", "plain") if predictions.has("plain") else None,
        baselines={
            name: {level: figures(level, kind) for level in LEVELS} for name, kind in known.items()
        },
        gain={
            name: {level: _gain(units[level], kind, draws, seed) for level in LEVELS}
            for name, kind in known.items()
            if name != MAJORITY
        },
        subgroups=[
            group
            for column in ("subtype", "magnification")
            for group in _subgroups(predictions, column, draws, seed)
        ],
        decision_curve={
            level: decision_curve(
                of.y, of.probabilities()[:, 1], of.groups.tolist(), draws=draws, seed=seed
            )
            for level, of in units.items()
            if len(predictions.classes) == 2
        },
        n_failed=len(predictions.failed),
    )


def _level(
    units: Predictions, level: Level, kind: str, *, n_images: int, draws: int, seed: int
) -> LevelFigures:
    y, prob = units.y, units.probabilities(kind)
    k = len(units.classes)
    rules = _rules(units, prob, locked=kind in ("prob", "plain"))
    sets = units.sets if kind == "prob" else None
    accepted = units.accepted if kind == "prob" else None
    # the promise of sets is for patients who each count the same
    share = equal_shares(units.groups)

    def statistic(weight: FloatArray) -> dict[str, FloatArray]:
        values = score_metrics(y, prob, weight)
        if kind == "prob":
            values |= probability_metrics(y, prob, weight)
        if sets is not None:
            values |= set_metrics(y, sets, share, weight)
        if accepted is not None:
            values["accepted"] = ratio(weight @ accepted, weight.sum(axis=-1))
        for rule, (_, decision) in rules.items():
            scored = decision_metrics(confusion(y, decision, k, weight))
            values |= {f"{rule}/{name}": value for name, value in scored.items()}
        return values

    found = patient_bootstrap(statistic, units.groups, draws=draws, seed=seed)
    if kind == "prob":
        found["ece_if_calibrated"] = _by_chance(prob)
    first = next(iter(rules.values()))[1]
    decisions = [
        Decisions(
            rule=rule,
            threshold=threshold,
            metrics={
                name.removeprefix(f"{rule}/"): _explained(
                    interval, name.removeprefix(f"{rule}/"), y, decision, units.classes
                )
                for name, interval in found.items()
                if name.startswith(f"{rule}/")
            },
            confusion=confusion(y, decision, k).astype(int).tolist(),
        )
        for rule, (threshold, decision) in rules.items()
    ]
    return LevelFigures(
        level=level,
        n_units=len(units),
        n_images=n_images,
        n_patients=int(units.groups.nunique()),
        class_units={name: int((y == i).sum()) for i, name in enumerate(units.classes)},
        metrics={
            name: _explained(interval, name, y, first, units.classes)
            for name, interval in found.items()
            if "/" not in name
        },
        decisions=decisions,
    )


def _by_chance(prob: FloatArray) -> Interval:
    """Return the calibration error of a perfect model, and where 95% of such errors lie."""
    errors = calibration_error_by_chance(prob)
    low, high = np.quantile(errors, [0.025, 0.975])
    return Interval(float(errors.mean()), float(low), float(high), len(errors), 0)


Rule = tuple[tuple[float, float] | None, NDArray[np.int64]]


def _rules(units: Predictions, prob: FloatArray, *, locked: bool) -> dict[str, Rule]:
    """Return by name the threshold range and the decisions of each rule that applies."""
    if len(units.classes) > 2:
        return {"most probable": (None, decide(prob, None))}
    rules: dict[str, Rule] = {"0.5": ((0.5, 0.5), decide(prob, 0.5))}
    if locked and "threshold" in units.table and units.table["threshold"].notna().all():
        threshold = units.table["threshold"].to_numpy(dtype=np.float64)
        span = (float(threshold.min()), float(threshold.max()))
        rules["operating point"] = (span, decide(prob, threshold))
    return rules


def _explained(
    interval: Interval,
    name: str,
    y: NDArray[np.int64],
    decision: NDArray[np.int64],
    classes: tuple[str, ...],
) -> Interval:
    """Say in the field's words why an estimate is undefined."""
    if not np.isnan(interval.estimate):
        return interval
    why = why_undefined(name, y, decision, classes)
    return Interval(**{**asdict(interval), "reason": why})


def _gain(units: Predictions, kind: str, draws: int, seed: int) -> Interval:
    y = units.y
    positives = [1] if len(units.classes) == 2 else range(len(units.classes))

    def auc(kind: str) -> Statistic:
        prob = units.probabilities(kind)

        def statistic(weight: FloatArray) -> dict[str, FloatArray]:
            aucs = [roc_auc((y == c).astype(int), prob[:, c], weight) for c in positives]
            return {"roc_auc": np.mean(aucs, axis=0)}

        return statistic

    found = paired(auc("prob"), auc(kind), units.groups, draws=draws, seed=seed)
    return found["roc_auc"].difference


def _subgroups(predictions: Predictions, column: str, draws: int, seed: int) -> list[Subgroup]:
    table = predictions.table
    if table[column].isna().all():
        return []
    values = table[column].map(lambda v: f"{v:g}" if isinstance(v, float) else str(v))
    values = values.where(table[column].notna(), "unknown")
    found = []
    for value in sorted(values.unique(), key=lambda v: (v == "unknown", len(v), v)):
        part = Predictions(table[values == value].reset_index(drop=True), predictions.classes)
        n_patients = int(part.groups.nunique())
        enough = n_patients >= FEW_PATIENTS
        metrics: dict[str, Interval] = {}
        if enough:
            level = _level(part, "image", "prob", n_images=len(part), draws=draws, seed=seed)
            metrics = {f"accuracy at {d.rule}": d.metrics["accuracy"] for d in level.decisions}
            metrics["roc_auc"] = level.metrics["roc_auc"]
        note = None if enough else f"too few patients ({n_patients} of {FEW_PATIENTS})"
        found.append(Subgroup(column, value, len(part), n_patients, note, metrics))
    return found


def _one(table: pd.DataFrame, column: str) -> str:
    """Return what a column says of all rows, or "not stated"."""
    if column not in table:
        return "not stated"
    return "; ".join(sorted({str(value) for value in table[column]}))


def _plain(value: object) -> Any:  # noqa: ANN401  whatever JSON holds
    if isinstance(value, Interval):
        return value.to_json()
    if isinstance(value, Decisions | LevelFigures | Subgroup | Benefit):
        return _plain(vars(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _intervals(record: Mapping[str, Any]) -> dict[Any, Interval]:
    return {name: Interval.from_json(fields) for name, fields in record.items()}


def _figures(record: Mapping[str, Any]) -> LevelFigures:
    decisions = [
        Decisions(
            **{
                **decision,
                "threshold": None
                if decision["threshold"] is None
                else tuple(decision["threshold"]),
                "metrics": _intervals(decision["metrics"]),
            }
        )
        for decision in record["decisions"]
    ]
    return LevelFigures(
        **{**record, "metrics": _intervals(record["metrics"]), "decisions": decisions}
    )
