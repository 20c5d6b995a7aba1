"""The record of the leakage meter: written, read, and refused when it is another."""

from __future__ import annotations

import json

import pytest

from lobule.errors import DataError
from lobule.evaluation.intervals import Interval
from lobule.evaluation.leakage import Leakage

FOUND = Leakage(
    auc={
        "image": Interval(0.9, 0.8, 0.95, 100, 0),
        "slide": Interval(0.85, 0.7, 0.9, 100, 0),
        "patient": Interval(0.8, float("nan"), float("nan"), 100, 60, "too few draws"),
    },
    inflation=Interval(0.1, 0.02, 0.2, 100, 0),
    n_images=48,
    n_slides=24,
    n_patients=12,
    folds=5,
    seed=0,
    long_side_px=224,
    patients_known=True,
    model="another",
)


def test_a_record_survives_json():
    back = Leakage.from_json(json.loads(json.dumps(FOUND.to_json(), allow_nan=False)))
    assert back.to_json() == FOUND.to_json()
    assert back.model == "another"


def test_a_record_that_names_no_model_is_of_frozen_features():
    record = FOUND.to_json()
    del record["model"]
    assert Leakage.from_json(record).model == "frozen features"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "lobule.leakage/9"}, "not a leakage record: schema 'lobule.leakage/9'"),
        ({"auc": 3}, "leakage record cannot be read"),
        ({"inflation": {}}, "interval cannot be read"),
    ],
)
def test_a_record_of_no_use_is_refused(change, message):
    with pytest.raises(DataError, match=message):
        Leakage.from_json(FOUND.to_json() | change)
