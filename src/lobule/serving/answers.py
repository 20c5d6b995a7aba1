"""What the server says of an image: one schema for API, page, downloads and the audit log."""

from __future__ import annotations

from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from lobule.evaluation.predictions import Predictions
from lobule.identity import NOTICE, TOOL, now
from lobule.models.bundle import Model

SCHEMA: Literal["lobule.answer/1"] = "lobule.answer/1"

Verdict = Literal["decided", "uncertain", "unlike"]
"""Whether the class decided on stands alone in its set; whether several, or none, are in it; or
whether the photograph is unlike those that the model learned from, so that nothing is said."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Identity(_Strict):
    """Who says so. Every answer, file and page carries it."""

    model: str = Field(description="Name and the first digits of the weights' hash.")
    weights_sha256: str
    preprocessing: str = Field(description="Changes with any setting of the preprocessing.")
    training_data: str = Field(description="Hash of the images and labels learned from.")
    tool: str = Field(description="Lobule and its version.")
    time: str = Field(description="When it was said, UTC.")
    notice: str = NOTICE


class Threshold(_Strict):
    """The operating point, chosen before this image was seen."""

    value: float = Field(description="Of the positive class's probability.")
    target: str = Field(description="What it was chosen for, such as 'sensitivity'.")
    wanted: float = Field(description="Of the target.")
    source: str = Field(description="The scores that it was chosen on, in words.")


class Answer(_Strict):
    """What the model says of one image."""

    schema_: Literal["lobule.answer/1"] = Field(SCHEMA, alias="schema")
    name: str = Field(description="File name as sent, one line, for display only.")
    sha256: str = Field(description="Of the bytes sent.")
    width_px: int
    height_px: int
    patient: str | None = Field(description="As sent with the image.")
    verdict: Verdict = Field(
        description="Whether one class is left; several or none; or nothing is said, since the "
        "image is unlike those learned from."
    )
    decision: str | None = Field(description="Class at the operating point; null if unlike.")
    probabilities: dict[str, float] = Field(description="Calibrated, by class; they sum to 1.")
    set: list[str] | None = Field(
        description="Classes that hold the true one at the coverage asked for."
    )
    coverage: float | None = Field(description="What share of such sets is to hold the true class.")
    threshold: Threshold | None = Field(description="Null with more than two classes.")
    ood_score: float | None = Field(description="How unlike the training images, 0 to 4.")
    identity: Identity


def identify(model: Model) -> Identity:
    """Return who is speaking, now."""
    return Identity(
        model=model.id,
        weights_sha256=model.weights_sha256,
        preprocessing=model.preprocessing.id,
        training_data=str(model.info.training["data_hash"]),
        tool=TOOL,
        time=now(),
    )


def as_answer(
    model: Model, predictions: Predictions, row: int, *, name: str, size: tuple[int, int]
) -> Answer:
    """Return one row of a predictions table as an answer.

    size: (width, height) in pixels. The path of an uploaded image is the SHA-256 of its bytes.
    """
    fields: dict[str, Any] = predictions.table.iloc[row].to_dict()
    accepted = predictions.accepted
    sets = predictions.members
    members = None if sets is None else sets[row]
    unlike = accepted is not None and not accepted[row]
    verdict: Verdict = "uncertain" if members is not None and len(members) != 1 else "decided"
    point = model.info.operating_points.get("image")
    patient = fields["patient"]
    return Answer(
        schema=SCHEMA,
        name=name,
        sha256=fields["path"],
        width_px=size[0],
        height_px=size[1],
        patient=None if patient is None or patient is pd.NA else str(patient),
        verdict="unlike" if unlike else verdict,
        decision=None if unlike else str(fields["decision"]),
        probabilities=dict(
            zip(predictions.classes, predictions.probabilities()[row].tolist(), strict=True)
        ),
        set=members,
        coverage=None if members is None else model.info.sets.get("coverage"),
        threshold=None
        if point is None
        else Threshold(
            value=point["threshold"],
            target=point["target"],
            wanted=point["value"],
            source=point["source"],
        ),
        ood_score=None if accepted is None else float(fields["ood_score"]),
        identity=identify(model),
    )
