"""What a leakage measurement says; `training.leakage` makes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lobule.errors import DataError
from lobule.evaluation.evaluate import FROZEN
from lobule.evaluation.intervals import Interval

SCHEMA = "lobule.leakage/1"


@dataclass(frozen=True)
class Leakage:
    """Image ROC AUC of one model and budget under three ways of splitting, pooled out of fold.

    auc: by "image" (random images), "slide" and "patient". inflation: AUC of random images less
    that of patients, on the same redrawn patients. long_side_px: input size. model: what was
    scored, by the name that it has as a baseline where the run's own model is another.
    """

    auc: dict[str, Interval]
    inflation: Interval
    n_images: int
    n_slides: int
    n_patients: int
    folds: int
    seed: int
    long_side_px: int
    patients_known: bool
    model: str = FROZEN

    def to_json(self) -> dict[str, Any]:
        """Return plain types with a schema."""
        return {
            "schema": SCHEMA,
            **vars(self),
            "auc": {name: interval.to_json() for name, interval in self.auc.items()},
            "inflation": self.inflation.to_json(),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Leakage:
        """Rebuild from `to_json`; raises DataError for another schema or a missing field."""
        if record.get("schema") != SCHEMA:
            raise DataError(f"not a leakage record: schema {record.get('schema')!r}")
        try:
            # files of version 0.1.0 do not name the model: there was one kind
            record = {"model": cls.model, **record}
            fields = {key: record[key] for key in cls.__dataclass_fields__}
            fields["auc"] = {k: Interval.from_json(v) for k, v in record["auc"].items()}
            fields["model"] = str(record["model"])
            fields["inflation"] = Interval.from_json(record["inflation"])
            return cls(**fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"leakage record cannot be read: {error!r}") from error
