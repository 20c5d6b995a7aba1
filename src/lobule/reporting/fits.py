"""What tuning wrote down of its fits: training.json, and a metrics.jsonl of each.

Every value is checked where it is read, so that neither drawing nor table meets one of no use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from lobule.errors import DataError
from lobule.reporting.gallery import Thumbnail

SCHEMA = "lobule.training/1"

_HIGHEST = 10**12
"""Far above any count or loss, and far below what a drawing cannot place."""

STOPPED = ("early", "all epochs")
"""Why a fit ended: the selection had not improved for a while, or the epochs were used up."""


@dataclass(frozen=True)
class Epoch:
    """One line of metrics.jsonl: figures after so many passes over the training images.

    epoch: 0 is the state before the first step, without figures of training. Losses are 0 or more,
    accuracies and the ROC AUC from 0 to 1. None is not measured or undefined.
    """

    epoch: int
    train_loss: float | None
    train_accuracy: float | None
    validation_loss: float | None
    validation_accuracy: float | None
    validation_roc_auc: float | None

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Epoch:
        """Check one line, whatever else stands in it; raises DataError."""
        return cls(
            epoch=_whole(record, "epoch"),
            train_loss=_figure(record, "train_loss", _HIGHEST),
            train_accuracy=_figure(record, "train_accuracy", 1),
            validation_loss=_figure(record, "validation_loss", _HIGHEST),
            validation_accuracy=_figure(record, "validation_accuracy", 1),
            validation_roc_auc=_figure(record, "validation_roc_auc", 1),
        )


@dataclass(frozen=True)
class Fit:
    """One network tuned: on what, for how long, and which epoch was kept.

    name: "final" of the fit that is saved as the model, otherwise that of a fold. folder: a plain
    name. Where patients are unknown, each image counts as one. stopped: one of STOPPED.
    history: its epochs in order, `selected_epoch` among them; empty until `with_history`.
    """

    name: str
    folder: str
    n_train_images: int
    n_train_patients: int
    n_validation_images: int
    n_validation_patients: int
    selected_epoch: int
    epochs: int
    stopped: str
    history: tuple[Epoch, ...] = ()

    @property
    def final(self) -> bool:
        """Whether this fit is the model that is saved."""
        return self.name == "final"

    @property
    def selected(self) -> Epoch:
        """The epoch that was kept."""
        return next(line for line in self.history if line.epoch == self.selected_epoch)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Fit:
        """Check one fit of training.json, whatever else stands in it; raises DataError."""
        stopped, folder = _text(record, "stopped"), _text(record, "folder")
        if stopped not in STOPPED:
            raise DataError(f"'stopped' is {stopped!r}, not one of {', '.join(STOPPED)}")
        # a name that leads elsewhere would show the figures of another file
        if folder in ("", ".", "..") or "/" in folder or "\\" in folder or "\0" in folder:
            raise DataError(f"'folder' is {folder!r}, not the name of a folder beside it")
        return cls(
            name=_text(record, "name"),
            folder=folder,
            n_train_images=_whole(record, "n_train_images"),
            n_train_patients=_whole(record, "n_train_patients"),
            n_validation_images=_whole(record, "n_validation_images"),
            n_validation_patients=_whole(record, "n_validation_patients"),
            selected_epoch=_whole(record, "selected_epoch"),
            epochs=_whole(record, "epochs"),
            stopped=stopped,
        )

    def with_history(self, text: str) -> Fit:
        """Add the lines of its metrics.jsonl.

        Raises DataError if a line is no record, if epochs do not rise, or if the epoch that
        training.json calls selected is not there.
        """
        history = []
        for n, line in enumerate(text.splitlines(), start=1):
            try:
                record = json.loads(line, parse_constant=_no_number)
                if not isinstance(record, dict):
                    raise DataError(f"it is a {type(record).__name__}, not a record")
                history.append(Epoch.from_json(record))
            except (ValueError, LookupError) as error:
                told = error.what if isinstance(error, DataError) else str(error)
                raise DataError(f"line {n}: {told}") from error
        epochs = [line.epoch for line in history]
        if epochs != sorted(set(epochs)):
            raise DataError("its epochs do not rise from line to line")
        if self.selected_epoch not in epochs:
            raise DataError(f"it has no line of epoch {self.selected_epoch}, which was selected")
        return replace(self, history=tuple(history))


@dataclass(frozen=True)
class Training:
    """How the networks of a run were tuned.

    select: the figure on the validation patients that chose the epoch. preview: photographs with
    their augmented views beside them; None until it is read.
    """

    select: str
    device: str
    precision: str
    fits: tuple[Fit, ...]
    preview: Thumbnail | None = None

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Training:
        """Check training.json; raises DataError for another schema or a value of no use."""
        if record.get("schema") != SCHEMA:
            raise DataError(f"not a training record: schema {record.get('schema')!r}")
        fits = tuple(Fit.from_json(fit) for fit in record["fits"])
        names = [fit.name for fit in fits]
        if not fits or len(set(names)) < len(names):
            raise DataError(f"its fits are called {names}: one or more of different names are due")
        return cls(
            select=_text(record, "select"),
            device=_text(record, "device"),
            precision=_text(record, "precision"),
            fits=fits,
        )


def _whole(record: Mapping[str, Any], name: str) -> int:
    value = record[name]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _HIGHEST:
        raise DataError(f"{name!r} is {value!r}, not a whole number from 0 on")
    return value


def _figure(record: Mapping[str, Any], name: str, highest: int) -> float | None:
    value = record[name]
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= highest:
        raise DataError(f"{name!r} is {value!r}, out of its range")
    return float(value)


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record[name]
    if not isinstance(value, str):
        raise DataError(f"{name!r} is {value!r}, not text")
    return value


def _no_number(name: str) -> NoReturn:
    raise DataError(f"{name} is no number of JSON")
