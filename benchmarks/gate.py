"""What the refusal gate lets through: patients left out, what is no tissue, and what is near.

python -m benchmarks.gate ../shared/data

By cross-validation over patients; the gate of a fold has seen none of its patients.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_images
from sklearn.metrics import roc_auc_score

from lobule.data.damage import DAMAGES, HED, blur
from lobule.data.images import ImageArray, decode
from lobule.data.manifest import Manifest
from lobule.data.scan import scan
from lobule.data.splits import assign_folds
from lobule.data.stain import DENSITY, to_levels
from lobule.models.classifier import Features
from lobule.models.engines import make_engine
from lobule.training.features import Extractor, gather
from lobule.training.gate import fit_gate
from lobule.training.recipe import Recipe

SIZE = (700, 460)

Images = Iterator[ImageArray]


def crops(rng: np.random.Generator) -> Images:
    """Photographs of a palace, a flower and a person: each in the middle, and five of its parts."""
    admiral = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    for photograph in [*load_sample_images().images, decode(admiral)]:
        image = Image.fromarray(photograph)
        widest = min(image.width, int(image.height * 70 / 46))
        for width in [widest, *rng.integers(120, widest, size=5)]:
            height = int(width * 46 / 70)
            x = int(rng.integers(0, image.width - width + 1))
            y = int(rng.integers(0, image.height - height + 1))
            yield np.asarray(image.crop((x, y, x + int(width), y + height)).resize(SIZE))


def pages(rng: np.random.Generator) -> Images:
    font = font_manager.findfont("DejaVu Sans")
    colours = [("white", "black"), ("black", "white"), ("#f5d7e6", "#40205a"), ("#faf8f0", "navy")]
    for paper, ink in colours * 3:
        page = Image.new("RGB", SIZE, paper)
        text = "\n".join(
            " ".join(rng.choice(["lobule", "in", "situ", "2014"], 30)) for _ in "a" * 40
        )
        font_px = int(rng.integers(10, 40))
        ImageDraw.Draw(page).text((9, 9), text, ink, ImageFont.truetype(font, font_px), spacing=4)
        yield np.asarray(page)


def noises(rng: np.random.Generator) -> Images:
    for i in range(12):
        # of every second the three colours are the same
        grain = rng.uniform(5, 80) * rng.normal(size=(SIZE[1], SIZE[0], 3 if i % 2 else 1))
        yield np.clip(rng.uniform(80, 200, 3) + grain, 0, 255).astype(np.uint8)


def glasses(rng: np.random.Generator) -> Images:
    """Nothing on the slide: bright, tinted, darker towards the corners, with a little noise."""
    y, x = np.mgrid[-1:1:460j, -1:1:700j]
    for _ in range(12):
        shade = 1 - rng.uniform(0, 0.15) * (x**2 + y**2)[..., None]
        bright = rng.uniform(200, 250) * (1 - rng.uniform(0, 0.06, 3))
        light = bright * shade + rng.normal(0, rng.uniform(0, 4), (460, 700, 3))
        yield np.clip(light, 0, 255).astype(np.uint8)


STRANGE: dict[str, Callable[[np.random.Generator], Images]] = {
    "photographs": crops,
    "text": pages,
    "noise": noises,
    "blank glass": glasses,
}
"""What is no tissue, by kind."""


def half(image: ImageArray) -> ImageArray:
    """Half the resolution, as a file of half the size."""
    small = Image.fromarray(image).resize(
        (image.shape[1] // 2, image.shape[0] // 2), Image.Resampling.LANCZOS
    )
    return np.asarray(small.resize(SIZE, Image.Resampling.BICUBIC))


def middle(image: ImageArray) -> ImageArray:
    """What an objective of twice the strength would see."""
    height, width = image.shape[:2]
    part = image[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4]
    return np.asarray(Image.fromarray(part).resize(SIZE, Image.Resampling.BICUBIC))


def dab(image: ImageArray) -> ImageArray:
    """Haematoxylin as it is, and DAB where eosin was."""
    vectors = HED / np.linalg.norm(HED, axis=1, keepdims=True)
    amounts = DENSITY[image] @ np.linalg.inv(vectors)
    amounts = np.stack([amounts[..., 0], amounts[..., 2], np.zeros(amounts.shape[:2])], axis=-1)
    return to_levels((10 ** -(amounts @ vectors)).astype(np.float32))


CHANGED: dict[str, Callable[[ImageArray], ImageArray]] = {
    "blur 4 px": lambda image: blur(image, 4),
    "blur 8 px": lambda image: blur(image, 8),
    "haematoxylin and DAB": dab,
    "half the resolution": half,
    "twice the objective": middle,
    **{
        f"moderate {name}": partial(DAMAGES[name].apply, level=DAMAGES[name].moderate)
        for name in ("stain", "brightness", "jpeg", "noise", "blur")
    },
}
"""What is done to photographs of the patients left out, by kind."""


def skin(slides: Path) -> Images:
    """Fields of a slide of skin, stained with H&E, that are tissue for the most part."""
    slide = np.asarray(Image.open(slides / "CMU-1-Small-Region.svs").convert("RGB"))
    for y in range(0, slide.shape[0] - SIZE[1] + 1, 230):
        for x in range(0, slide.shape[1] - SIZE[0] + 1, 253):
            field = slide[y : y + SIZE[1], x : x + SIZE[0]]
            if (field.min(axis=2) < 205).mean() > 0.5:
                yield field


@dataclass(frozen=True)
class Measured:
    """refused: share of photographs of patients left out, by seed.

    kinds: by name, (gates, 2): AUROC against those photographs, and share refused. n: pictures.
    """

    refused: list[float]
    kinds: dict[str, np.ndarray]
    n: dict[str, int]


def measure(
    data: Path,
    *,
    seeds: range,
    changed: dict[str, Callable[[ImageArray], ImageArray]],
    near: bool,
    each: int = 2,
) -> Measured:
    """Fit gates on the training patients of 5 folds under each seed, and ask them.

    changed: of CHANGED. near: whether the slide and the other magnifications are asked about.
    each: photographs of a patient that are changed.
    """
    manifest = scan(data / "breakhis-100x")
    recipe = Recipe()
    backbone = recipe.open_backbone()
    prep = recipe.preprocessing(backbone, manifest)
    extractor = Extractor(make_engine(backbone.module), prep, backbone.features_id)
    tissue = gather(manifest, extractor)
    rng = np.random.default_rng(0)
    strange = {kind: seen(extractor, make(rng)) for kind, make in STRANGE.items()}
    if near:
        strange["skin"] = seen(extractor, skin(data / "slides"))
        others = scan(data / "breakhis-originals")
        for power, part in others.table.groupby("magnification"):
            files = (decode(others.file(path)) for path in part["path"])
            strange[f"BreakHis at {power:g}X"] = seen(extractor, files)

    patient = manifest.table["patient"].to_numpy(dtype=str)
    some = np.sort(
        np.concatenate([np.flatnonzero(patient == p)[:each] for p in np.unique(patient)])
    )
    plain = [decode(manifest.file(manifest.table["path"].iloc[i])) for i in some]
    altered = {kind: seen(extractor, map(change, plain)) for kind, change in changed.items()}
    refused: list[float] = []
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in seeds:
        fold = _folds(manifest, patient, seed)
        accepted = np.empty(len(fold), bool)
        for k in range(5):
            test = fold == k
            gate = fit_gate(tissue.where(~test), patient[~test].tolist(), seed=seed)
            accepted[test] = gate.accepts(tissue.where(test))
            own = gate.score(tissue.where(test))
            same = {kind: of.where(test[some]) for kind, of in altered.items()}
            for kind, features in (strange | same).items():
                scores = gate.score(features)
                y = np.repeat([0, 1], [len(own), len(scores)])
                auc = roc_auc_score(y, np.concatenate([own, scores]))
                found.setdefault(kind, []).append((auc, 1 - gate.accepts(features).mean()))
        refused.append(float(1 - accepted.mean()))
    return Measured(
        refused,
        {kind: np.array(values) for kind, values in found.items()},
        {kind: len(of) for kind, of in (strange | altered).items()},
    )


def seen(extractor: Extractor, images: Images) -> Features:
    views, colour = zip(*map(extractor, images), strict=True)
    return Features(np.stack(views), np.stack(colour))


def _folds(manifest: Manifest, patient: np.ndarray, seed: int) -> np.ndarray:
    labels = manifest.table["label"].tolist()
    return assign_folds(labels, patient.tolist(), folds=5, seed=seed)


def main(data: Path) -> None:
    found = measure(data, seeds=range(10), changed=CHANGED, near=True)
    told = " ".join(f"{share:.3f}" for share in found.refused)
    print(f"refused of patients left out, by split: {told}; mean {np.mean(found.refused):.3f}\n")
    print("| kind | pictures | AUROC | lowest of the gates | refused |")
    print("| --- | --- | --- | --- | --- |")
    for kind, values in found.kinds.items():
        auc, share = values.T
        row = f"{auc.mean():.3f} | {auc.min():.3f} | {share.mean():.0%}"
        print(f"| {kind} | {found.n[kind]} | {row} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
