"""What a training run is asked to do, as one small record that goes into the run folder."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lobule.data.images import Preprocessing, decode
from lobule.data.manifest import Manifest
from lobule.data.stain import fit_stain_target
from lobule.errors import UsageError
from lobule.evaluation.locked import Targets
from lobule.evaluation.recalibration import Method
from lobule.models.backbones import DEFAULT, Backbone, load_backbone
from lobule.models.folder import Pooling
from lobule.training.head import StrengthChoice
from lobule.training.tuning import Tuning

SIZE_RANGE_PX = (224, 560)
"""Bounds of the automatic input length, by measurement: on photographs of 700 x 460, 560 px was
better than 224 and 350 and no worse than 700 at 64% of its cost (docs/results.md)."""

STAIN_IMAGES = 64
"""About how many images tell what stain all are given: medians of more hardly differ."""


@dataclass(frozen=True)
class Recipe:
    """Settings of a run.

    name: of the recipe. backbone: what `models.backbones.load_backbone` takes. weights: a local
    safetensors file for it, or "none" for random ones. pooling: what is taken from it, see
    `models.folder.Pooling`; of a tuned network its own features. long_side_px: length of the longer
    side of the input; None takes the median of the images, within SIZE_RANGE_PX.
    stain_normalisation: how all images are made to look alike, if at all. recompression: JPEG
    quality that all are brought to first; None leaves them. regularisation: how the strength of
    the head is chosen on inner folds. folds: parts of the
    cross-validation. sensitivity: what the operating point must reach; specificity, where given,
    in its place. calibration: how probabilities are recalibrated on honest scores. coverage: share
    of images of new patients whose set of classes is to hold the true one. seed: of the split, the
    inner folds and all that training draws. tuning: how the network is tuned; None leaves it
    frozen and fits a linear head on its features.
    """

    name: str = "features"
    backbone: str = DEFAULT
    weights: Literal["none"] | Path | None = None
    pooling: Pooling = "last"
    long_side_px: int | None = None
    stain_normalisation: Literal["none", "macenko", "reinhard"] = "none"
    recompression: int | None = None
    regularisation: StrengthChoice = "one-se"
    folds: int = 5
    sensitivity: float = 0.95
    specificity: float | None = None
    calibration: Method = "none"
    coverage: float = 0.9
    seed: int = 0
    tuning: Tuning | None = None

    def __post_init__(self) -> None:
        """Refuse values that no run can use."""
        if self.folds < 2:
            raise UsageError(f"--folds must be 2 or more, got {self.folds}")
        if self.long_side_px is not None and not 32 <= self.long_side_px <= 4096:
            raise UsageError(f"--size must be 32 to 4096 pixels, got {self.long_side_px}")
        if not 0 < self.sensitivity <= 1:
            raise UsageError(f"--sensitivity must be over 0 and at most 1, got {self.sensitivity}")
        if self.recompression is not None and not 1 <= self.recompression <= 95:
            raise UsageError(f"recompression must be 1 to 95, got {self.recompression}")
        if self.specificity is not None and not 0 < self.specificity <= 1:
            raise UsageError(f"--specificity must be over 0 and at most 1, got {self.specificity}")
        if not 0 < self.coverage < 1:
            raise UsageError(f"coverage must be over 0 and below 1, got {self.coverage}")
        if self.seed < 0:
            raise UsageError(f"--seed must be 0 or more, got {self.seed}")
        if self.tuning is not None and self.pooling != "last":
            raise UsageError(
                f"recipe {self.name!r} tunes the network, which takes pooling=last, got "
                f"{self.pooling!r}",
                fix="--recipe features takes any pooling",
            )

    @property
    def targets(self) -> Targets:
        """What is settled on honest scores before any image is judged."""
        return Targets(
            sensitivity=self.sensitivity if self.specificity is None else None,
            specificity=self.specificity,
            coverage=self.coverage,
            calibration=self.calibration,
        )

    def open_backbone(self) -> Backbone:
        """Return the network with its weights; errors as `load_backbone`."""
        return load_backbone(
            self.backbone, weights=self.weights, pooling=self.pooling, seed=self.seed
        )

    def preprocessing(self, backbone: Backbone, manifest: Manifest) -> Preprocessing:
        """Return the preprocessing of this run, its size and stain settled by images to learn from.

        What stain they have in the middle is told by some of them, whatever their classes.
        Raises DataError if none tells it, ImageError if one cannot be decoded.
        """
        long_side_px = self.long_side_px
        if long_side_px is None:
            longest = manifest.table[["width", "height"]].max(axis=1).median()
            low, high = SIZE_RANGE_PX
            long_side_px = int(min(high, max(low, longest)))
        prep = replace(backbone.preprocessing(long_side_px), jpeg_quality=self.recompression)
        if self.stain_normalisation == "none":
            return prep
        some = manifest.table["path"].iloc[:: max(1, len(manifest) // STAIN_IMAGES)]
        images = (prep.resize(decode(manifest.file(path))) for path in some)
        return replace(prep, stain=fit_stain_target(images, self.stain_normalisation))

    def to_json(self) -> dict[str, Any]:
        """Return plain types."""
        fields = asdict(self)
        return fields | {"weights": None if self.weights is None else os.fspath(self.weights)}


RECIPES = {
    "features": Recipe(),
    # the longer side by what two cores tune in minutes; see docs/results.md
    "finetune": Recipe(name="finetune", long_side_px=384, tuning=Tuning()),
    # the tutorial that Lobule grew from: what it got right as it was, the rest mended
    "densenet201": Recipe(
        name="densenet201",
        backbone="densenet201",
        long_side_px=224,
        tuning=Tuning(
            epochs=60,
            batch_size=16,
            optimizer="adam",
            lr=1e-4,
            weight_decay=0.0,
            layer_decay=1.0,
            head="random",
            unfreeze_share=1.0,
            unfreeze_epochs=0,
            norm_statistics="updated",
            schedule="plateau",
            warmup_epochs=0,
            plateau_metric="accuracy",
            plateau_patience=5,
            plateau_factor=0.2,
            min_lr=1e-7,
            ema=0.0,
            dropout=0.5,
            clip_norm=0.0,
            balance="none",
            select="loss",
            patience=0,
        ),
    ),
}
"""The recipes that can be named; any field can be overridden, see `training.settings`."""
