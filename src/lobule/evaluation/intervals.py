"""Intervals of a statistic when whole patients, not images, are redrawn.

Images of one patient resemble each other; redrawing them one by one would make an interval too
narrow. A redrawn set of patients is held as row weights: how often each row's patient was drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lobule.errors import DataError, UsageError

FloatArray = NDArray[np.float64]

Statistic = Callable[[FloatArray], Mapping[str, FloatArray]]
"""From row weights (draws, n) to named values (draws,), nan where undefined."""

_CHUNK_VALUES = 1 << 20
"""Weights made at a time (8 MiB); the metrics hold some ten arrays of that size."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its percentile interval.

    draws: replicates made, 0 where there was nobody to redraw. dropped: those among them left out
    as undefined. Where the estimate or the bounds could not be had they are nan, and `reason`
    says why; otherwise it is None.
    """

    estimate: float
    low: float
    high: float
    draws: int
    dropped: int
    reason: str | None = None

    @property
    def leaves_out_0(self) -> bool:
        """Whether both bounds are on one side of 0; without bounds nothing is known."""
        return self.low > 0 or self.high < 0

    @property
    def half_width(self) -> float:
        """Half the way between the bounds: about the smallest difference that can be shown."""
        return (self.high - self.low) / 2

    def told(self, digits: int = 3) -> str:
        """Return "0.760 (0.610 to 0.890)", or why there is no such figure."""
        if math.isnan(self.estimate):
            return f"undefined: {self.reason}"
        if math.isnan(self.low):
            return f"{self.estimate:.{digits}f} (no interval: {self.reason})"
        return f"{self.estimate:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON holds them: nan becomes None."""
        return {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Interval:
        """Rebuild from `to_json`; raises DataError on unknown, missing or unusable fields."""
        try:
            numbers = {
                key: math.nan if fields[key] is None else float(fields[key])
                for key in ("estimate", "low", "high")
            }
            return cls(**{**fields, **numbers})
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"interval cannot be read: {error!r}") from error


def patient_weights(
    patient: Sequence[object] | NDArray[Any], *, draws: int = 2000, seed: int = 0
) -> Iterator[FloatArray]:
    """Yield chunks (c, n) of how often each row's patient was redrawn, `draws` rows in all.

    patient: (n,) names; two are the same patient if they read the same as text. A draw takes as
    many patients as there are, with replacement. It depends on the seed and the sorted names
    alone: the order of rows and the number of rows a patient has change nothing, so that two
    models seen on the same patients are compared on the same draws.
    Raises DataError if there are no rows or a name is missing, UsageError if draws < 1.
    """
    names, index = _patients(patient)
    if draws < 1:
        raise UsageError(f"a bootstrap needs at least one draw, got {draws}")
    return _weight_chunks(len(names), index, draws, seed)


def _weight_chunks(
    n_patients: int, index: NDArray[np.intp], draws: int, seed: int
) -> Iterator[FloatArray]:
    generator = np.random.default_rng(seed)
    size = max(1, _CHUNK_VALUES // len(index))
    for start in range(0, draws, size):
        rows = min(size, draws - start)
        drawn = generator.integers(n_patients, size=(rows, n_patients))
        cell = drawn + n_patients * np.arange(rows)[:, None]
        counts = np.bincount(cell.ravel(), minlength=rows * n_patients)
        yield counts.reshape(rows, n_patients).astype(np.float64)[:, index]


def _patients(
    patient: Sequence[object] | NDArray[Any],
) -> tuple[NDArray[np.str_], NDArray[np.intp]]:
    """Return the sorted names of the patients and, for each row, which one it belongs to."""
    values = list(patient)
    if not values:
        raise DataError("an interval needs at least one row, got none")
    missing = np.flatnonzero(pd.Series(values, dtype=object).isna())
    if missing.size:
        raise DataError(
            f"{missing.size:,} of {len(values):,} rows name no patient; the first is row "
            f"{missing[0]:,}",
            fix="where patients are unknown, give each image a name of its own",
        )
    names, index = np.unique([str(name) for name in values], return_inverse=True)
    return names, index


def equal_shares(patient: Sequence[object] | NDArray[Any]) -> FloatArray:
    """Return (n,) what each row counts for where every patient counts 1: one over its rows.

    patient: (n,) names, as `patient_weights` takes them; so are the errors.
    """
    _, index = _patients(patient)
    shares: FloatArray = 1 / np.bincount(index)[index]
    return shares


def patient_bootstrap(
    statistic: Statistic,
    patient: Sequence[object] | NDArray[Any],
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Percentile interval of each value of `statistic` when whole patients are redrawn.

    statistic: from weights (c, n) to {name: (c,)}; called once with ones for the estimate, then
    on chunks of draws. patient: (n,) names. level: share of replicates inside, in (0, 1).
    Draws in which a value is undefined are dropped and counted in `Interval.dropped`. The bounds
    are nan, with a reason, where there are fewer than two patients, the estimate is undefined,
    or more than half of the draws are. It is too narrow with few patients: see the coverage
    simulation in tests/evaluation/test_intervals.py.
    Raises DataError if there are no rows or a name is missing, UsageError if draws < 1 or level
    is out of range. Source: Field & Welsh, JRSS-B 69 (2007), the cluster bootstrap.
    """
    if not 0 < level < 1:
        raise UsageError(f"the level of an interval must lie between 0 and 1, got {level}")
    chunks = patient_weights(patient, draws=draws, seed=seed)
    estimates = statistic(np.ones((1, len(patient))))
    if len(_patients(patient)[0]) < 2:
        reason = "one patient only, so nothing is known of others"
        return {
            name: Interval(value.item(), math.nan, math.nan, 0, 0, reason)
            for name, value in estimates.items()
        }
    replicates = [statistic(weight) for weight in chunks]
    return {
        name: _percentile(value.item(), np.concatenate([part[name] for part in replicates]), level)
        for name, value in estimates.items()
    }


def _percentile(estimate: float, replicates: FloatArray, level: float) -> Interval:
    defined = replicates[~np.isnan(replicates)]
    draws, dropped = replicates.size, replicates.size - defined.size
    reason = None
    if math.isnan(estimate):
        reason = "undefined on these rows"
    elif dropped > draws / 2:
        reason = f"undefined in {dropped:,} of {draws:,} draws of patients"
    if reason is not None:
        return Interval(estimate, math.nan, math.nan, draws, dropped, reason)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), draws, dropped)


@dataclass(frozen=True)
class Pair:
    """One value of two statistics of the same rows, and by how much the first is above the second.

    All three are of the same redrawn patients.
    """

    first: Interval
    second: Interval
    difference: Interval


def paired(
    first: Statistic,
    second: Statistic,
    patient: Sequence[object] | NDArray[Any],
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Pair]:
    """Percentile intervals of two statistics and of `first - second`, by name of the value.

    first, second: statistics of the same n rows, such as the AUC of random folds and of patient
    folds. What the two share (an easy or a hard patient) cancels in the difference. A draw counts
    as undefined there where either is. Otherwise as `patient_bootstrap`.
    Raises UsageError if the two do not give values of the same names.
    """

    def both(weight: FloatArray) -> dict[str, FloatArray]:
        a, b = first(weight), second(weight)
        if a.keys() != b.keys():
            raise UsageError(f"cannot subtract {sorted(b)} from {sorted(a)}: the names differ")
        return {
            f"{kind} {name}": value
            for name in a
            for kind, value in zip(_PAIR, (a[name], b[name], a[name] - b[name]), strict=True)
        }

    found = patient_bootstrap(both, patient, draws=draws, seed=seed, level=level)
    names = [name.removeprefix("first ") for name in found if name.startswith("first ")]
    return {name: Pair(*(found[f"{kind} {name}"] for kind in _PAIR)) for name in names}


_PAIR = ("first", "second", "difference")
