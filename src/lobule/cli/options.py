"""Arguments and options that several verbs share, each with its help."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    Path, typer.Argument(help="Folder of images (DIR/<class>/...), or a manifest (.csv, .parquet).")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Pattern = Annotated[
    str | None,
    typer.Option(
        help="Regular expression with named groups (patient, slide, ...) searched in each path."
    ),
]
Metadata = Annotated[
    Path | None, typer.Option(help="CSV with a column path (or file) and patient, slide, label ...")
]
Root = Annotated[Path | None, typer.Option(help="Folder that the paths of a manifest start from.")]
Positive = Annotated[
    str | None, typer.Option(help="Class that sensitivity refers to; default: by its name.")
]
Allow = Annotated[
    list[str] | None,
    typer.Option(help="Accept a blocking finding by its code; may be given several times."),
]
Backbone = Annotated[
    str | None,
    typer.Option(
        help="A timm network, hf-hub:ORG/NAME, a local folder or a .safetensors file; "
        "default: that of the recipe."
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(help="Local .safetensors weights for the backbone, or none for random ones."),
]
Size = Annotated[
    int | None, typer.Option(help="Longer side of the input in pixels; default: from the images.")
]
Folds = Annotated[int, typer.Option(help="Number of patient folds.")]
Epochs = Annotated[int | None, typer.Option(help="Epochs of tuning; default: of the recipe.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Override a setting of the recipe, as in lr=3e-4; may be given several times."
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of the split.")]
Cache = Annotated[
    bool, typer.Option(help="Keep features in the cache folder ($LOBULE_CACHE) and reuse them.")
]


class OnError(StrEnum):
    """What `predict` does with an image that cannot be read."""

    fail = "fail"
    skip = "skip"
    report = "report"


class Device(StrEnum):
    """What networks are tuned on."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(StrEnum):
    """What networks are tuned in."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


DeviceChoice = Annotated[Device, typer.Option(help="Where networks are tuned.")]
PrecisionChoice = Annotated[Precision, typer.Option(help="Precision of tuning.")]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Threads that load images while tuning.",
        show_default="up to 4 beside a GPU, none beside a CPU",
    ),
]
OnErrorChoice = Annotated[OnError, typer.Option(help="For images that cannot be read.")]


class Runner(StrEnum):
    """What runs the network of a saved model."""

    auto = "auto"
    torch = "torch"
    openvino = "openvino"
    onnx = "onnx"


class Rounding(StrEnum):
    """What the network of a saved model is run in."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    int8 = "int8"


class Target(StrEnum):
    """What a network is exported for."""

    openvino = "openvino"
    onnx = "onnx"


RunnerChoice = Annotated[
    Runner, typer.Option("--engine", help="What runs the network; auto: the fastest export here.")
]
RoundingChoice = Annotated[
    Rounding,
    typer.Option("--precision", help="What it is run in; auto: the fastest that agrees here."),
]
Views = Annotated[int, typer.Option(help="Views of each image: 8, or 1 in an eighth of the time.")]


class MapMethod(StrEnum):
    """How a heat map is made."""

    cam = "cam"
    gradcam = "gradcam"
