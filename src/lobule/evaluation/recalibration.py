"""Probabilities made to mean what they say, by one monotone map fitted on honest scores.

The scores it is fitted on must come from models that had not seen their patients. The order of
images in one fold stays as it was; only how far from 0 and 1 they lie is changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.isotonic import IsotonicRegression

from lobule.errors import DataError, ModelError, UsageError, nearest
from lobule.evaluation.calibration import FloatArray, class_labels, probabilities, row_weights

Method = Literal["none", "temperature", "isotonic"]

TEMPERATURES = (0.05, 20.0)
"""Bounds of the temperature: beyond them all probabilities are as good as 0 or 1, or equal."""

_LEAST = 1e-6
"""How near to 0 a probability is let before its logarithm is taken."""


@dataclass(frozen=True)
class Recalibration:
    """A map of probabilities (n, K) to probabilities (n, K).

    temperature: softmax(log(prob) / temperature); above 1 it draws them together. steps: of
    "isotonic", pairs of the positive class's probability and what it stands for, rising in both,
    between which it is linear and beyond which it is level.
    """

    method: Method = "none"
    temperature: float = 1.0
    steps: tuple[tuple[float, float], ...] = ()

    def __call__(self, prob: ArrayLike) -> FloatArray:
        """Return the recalibrated probabilities; each row sums to 1."""
        prob = probabilities(prob)
        if self.method == "none":
            return prob
        if self.method == "temperature":
            logits = np.log(np.clip(prob, _LEAST, None))
            scaled: FloatArray = softmax(logits / self.temperature, axis=1)
            return scaled
        said, meant = np.array(self.steps).T
        positive = np.interp(prob[:, 1], said, meant)
        return np.stack([1 - positive, positive], axis=1)

    def to_json(self) -> dict[str, Any]:
        """Return the method and its numbers."""
        if self.method == "temperature":
            return {"method": self.method, "temperature": self.temperature}
        if self.method == "isotonic":
            return {"method": self.method, "steps": [list(step) for step in self.steps]}
        return {"method": self.method}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Recalibration:
        """Rebuild from `to_json`, passing over other keys; raises ModelError if it is unusable."""
        try:
            method = record["method"]
            if method not in get_args(Method):
                raise ValueError(f"no method is called {method!r}")
            temperature = float(record.get("temperature", 1.0))
            steps = tuple((float(x), float(y)) for x, y in record.get("steps", ()))
            values = np.array(steps).reshape(-1, 2)
            rising = (np.diff(values, axis=0) >= 0).all() and (np.abs(values - 0.5) <= 0.5).all()
            if not TEMPERATURES[0] <= temperature <= TEMPERATURES[1] or not rising:
                raise ValueError(f"{dict(record)} is out of range")
            if (method == "isotonic") != bool(steps):
                raise ValueError(f"{method} with {len(steps)} steps")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(
                f"the model's calibration cannot be used: {error}",
                fix="copy the whole model folder again",
            ) from error
        return cls(method, temperature, steps)


def fit_recalibration(
    method: Method, y: ArrayLike, prob: ArrayLike, weight: ArrayLike | None = None
) -> Recalibration:
    """Return the map under which the labels are likeliest.

    y: (n,) int in 0..K-1. prob: (n, K) honest probabilities. weight: (n,) >= 0, ones where None.
    Isotonic regression least squares is of two classes only; its ends are kept _LEAST from 0 and
    1 so that no image is ever called certain.
    Raises UsageError for an unknown method or isotonic with more than two classes, DataError if
    there are no rows. Sources: temperature: Guo et al., ICML (2017); isotonic: Zadrozny & Elkan,
    KDD (2002).
    """
    if method not in get_args(Method):
        raise UsageError(
            f"no calibration is called {method!r}", fix=nearest(method, get_args(Method))
        )
    if method == "none":
        return Recalibration()
    prob = probabilities(prob)
    y = class_labels(y, len(prob), prob.shape[1])
    w = row_weights(weight, len(y))
    if not w.sum() > 0:
        raise DataError("probabilities cannot be calibrated on no images")
    if method == "temperature":
        logits = np.log(np.clip(prob, _LEAST, None))

        def loss(log_temperature: float) -> float:
            told = log_softmax(logits / np.exp(log_temperature), axis=1)
            return float(-(w * told[np.arange(len(y)), y]).sum() / w.sum())

        found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded",
                                options={"xatol": 1e-8})  # fmt: skip
        return Recalibration("temperature", float(np.exp(found.x)))
    if prob.shape[1] != 2:
        raise UsageError(
            f"isotonic calibration is of two classes, there are {prob.shape[1]}",
            fix="calibration=temperature takes any number",
        )
    regression = IsotonicRegression(y_min=_LEAST, y_max=1 - _LEAST, out_of_bounds="clip")
    seen = w > 0
    regression.fit(prob[seen, 1], y[seen], sample_weight=w[seen])
    said, meant = regression.X_thresholds_, regression.y_thresholds_
    return Recalibration("isotonic", steps=tuple(zip(said.tolist(), meant.tolist(), strict=True)))
