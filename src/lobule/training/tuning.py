"""How a network is tuned: one small record, each field checked where it is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

from lobule.errors import UsageError, nearest

Metric = Literal["loss", "accuracy", "balanced_accuracy", "roc_auc", "average_precision"]

METRICS: tuple[Metric, ...] = get_args(Metric)
"""What can be watched on the validation patients; of `loss` less is better, of the rest more."""


@dataclass(frozen=True)
class Tuning:
    """Settings of tuning a network.

    epochs: passes over the training images. batch_size: images a step, over all processes.
    optimizer, lr, weight_decay: torch's Adam or AdamW; lr is that of the head and last layers.
    layer_decay: factor of the rate from a layer to the one before it; 1 gives all the same.
    head: "probe" starts from the head fitted on frozen features, "random" from nothing.
    unfreeze_share: share of the backbone's layers, counted from the last, that learn in the end.
    unfreeze_epochs: they are unfrozen one after another, from the last on, over that many epochs;
        0 trains them all from the first step.
    norm_statistics: whether batch-norm statistics stay those of the pretrained network.
    schedule: "plateau" multiplies the rate by plateau_factor once plateau_metric has not improved
        for plateau_patience epochs, down to min_lr; "cosine" lets it fall to min_lr over all
        epochs, after warmup_epochs of linear rise.
    ema: decay a step of the moving average of weights that is validated and kept; 0 for none.
    label_smoothing, dropout: 0 to below 1. clip_norm: largest gradient norm; 0 for no limit.
    balance: "patient" gives each class, and in it each patient, the same weight in the loss;
        "class" each class; "none" each image.
    zoom, shift, stain, brightness, blur_px: see `training.augment`.
    select: what decides which epoch is kept, on validation patients. patience: epochs without a
        better one after which training stops; 0 never stops early.
    validation: share of the training patients that is set aside to select on.
    """

    epochs: int = 12
    batch_size: int = 16
    optimizer: Literal["adam", "adamw"] = "adamw"
    lr: float = 1e-4
    weight_decay: float = 0.05
    layer_decay: float = 0.8
    head: Literal["probe", "random"] = "probe"
    unfreeze_share: float = 0.5
    unfreeze_epochs: int = 3
    norm_statistics: Literal["frozen", "updated"] = "frozen"
    schedule: Literal["plateau", "cosine"] = "cosine"
    warmup_epochs: int = 1
    plateau_metric: Metric = "accuracy"
    plateau_patience: int = 5
    plateau_factor: float = 0.2
    min_lr: float = 1e-7
    ema: float = 0.98
    label_smoothing: float = 0.0
    dropout: float = 0.2
    clip_norm: float = 1.0
    balance: Literal["patient", "class", "none"] = "patient"
    zoom: float = 0.15
    shift: float = 0.05
    stain: float = 0.05
    brightness: float = 0.1
    blur_px: float = 0.7
    select: Metric = "loss"
    patience: int = 4
    validation: float = 0.2

    def __post_init__(self) -> None:
        """Refuse values that no training can use."""
        for name, hint in get_type_hints(Tuning).items():
            value = getattr(self, name)
            if get_origin(hint) is Literal and value not in get_args(hint):
                raise UsageError(
                    f"{name} is {value!r}, which is unknown",
                    fix=nearest(str(value), get_args(hint)),
                )
        for name, (holds, words) in _RANGES.items():
            value = getattr(self, name)
            if not holds(value):
                raise UsageError(f"{name} must be {words}, got {value:g}")


Range = tuple[Callable[[float], bool], str]

_SHARE: Range = (lambda v: 0 <= v < 1, "at least 0 and below 1")
_HALF: Range = (lambda v: 0 <= v <= 0.5, "0 to 0.5")

_RANGES: dict[str, Range] = {
    "epochs": (lambda v: v >= 1, "1 or more"),
    "batch_size": (lambda v: v >= 2, "2 or more"),
    "lr": (lambda v: 0 < v <= 10, "over 0 and at most 10"),
    "weight_decay": (lambda v: 0 <= v <= 1, "0 to 1"),
    "layer_decay": (lambda v: 0 < v <= 1, "over 0 and at most 1"),
    "unfreeze_share": (lambda v: 0 <= v <= 1, "0 to 1"),
    "unfreeze_epochs": (lambda v: v >= 0, "0 or more"),
    "warmup_epochs": (lambda v: v >= 0, "0 or more"),
    "plateau_patience": (lambda v: v >= 1, "1 or more"),
    "plateau_factor": (lambda v: 0 < v < 1, "over 0 and below 1"),
    "min_lr": (lambda v: 0 <= v <= 1, "0 to 1"),
    "ema": _SHARE,
    "label_smoothing": _SHARE,
    "dropout": _SHARE,
    "clip_norm": (lambda v: 0 <= v < float("inf"), "0 or more"),
    # the origin's zoom of 2 meant factors from -1 to 3: mirrored, empty, or mostly border
    "zoom": _SHARE,
    "shift": _HALF,
    "stain": _HALF,
    "brightness": _HALF,
    "blur_px": (lambda v: 0 <= v <= 5, "0 to 5"),
    "patience": (lambda v: v >= 0, "0 or more"),
    "validation": (lambda v: 0 < v <= 0.5, "over 0 and at most 0.5"),
}
