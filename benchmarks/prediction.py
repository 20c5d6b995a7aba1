"""Predicting a folder with DenseNet201, from the files to the table, beside Keras and fastai.

Every tool looks at each photograph once (one view), since the others do; Lobule's usual eight take
eight times as long. The network runs are Lobule's engine alone on random tensors: what is left
of it when files are read, decoded and resized on the same cores is its share.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.measure import told
from benchmarks.peers import Peer
from benchmarks.startup import few_patients
from benchmarks.training import SHAPES
from lobule.data.images import decode
from lobule.data.manifest import Manifest, read_manifest
from lobule.data.scan import scan
from lobule.inference.choice import Running
from lobule.inference.export import export
from lobule.inference.predictor import open_extractor, predict_with
from lobule.measured import cores
from lobule.models.bundle import Model, load_model, make_model, save_model
from lobule.models.classifier import Heads, LinearHead
from lobule.parallel import ahead
from lobule.training.features import Extractor
from lobule.training.recipe import Recipe
from lobule.workflow import train

REPETITIONS = 3

KINDS = ("fp32", "bf16", "int8")


def measure(data: Path) -> dict[str, Any]:
    """Return images a second by way, one figure a repetition."""
    manifest = scan(data)
    rates: dict[str, list[float]] = {}
    with (
        Peer("keras", data) as keras, Peer("fastai", data) as fastai,
        tempfile.TemporaryDirectory() as folder,
    ):  # fmt: skip
        keras.warm()
        fastai.warm()
        versions = {**keras.ask("versions"), **fastai.ask("versions")}
        ways = {}
        for aspect, size in SHAPES.items():
            model = made_up_model(few_patients(data), Path(folder) / aspect, aspect)
            for kind in KINDS:
                running = Running("openvino", kind, views=1)
                ways[f"{kind}, {size}"] = model, open_extractor(model, manifest, running)
        for model, extractor in ways.values():
            # compiles for every size, and compares with torch
            files_to_table(model, extractor, data)
        for repetition in range(REPETITIONS):
            print(f"repetition {repetition + 1} of {REPETITIONS}", file=sys.stderr, flush=True)
            note(rates, "Keras, the tutorial's way", keras.rate("predict"))
            note(rates, "fastai", fastai.rate("predict"))
            for name, (model, extractor) in ways.items():
                note(rates, f"Lobule {name}", files_to_table(model, extractor, data))
                note(rates, f"engine alone {name}", engine_alone(extractor, manifest))
            note(rates, "decoding and resizing alone", decoding(manifest, extractor))
    print(f"{versions}; {len(manifest)} photographs, in images a second:\n")
    print("| way | median (range) | times Keras | times fastai |\n| --- | --- | --- | --- |")
    for name, found in rates.items():
        ratios = [told(list(np.array(found) / rates[base])) for base in list(rates)[:2]]
        print(f"| {name} | {told(found, 1)} | {' | '.join(ratios)} |")
    print("\n| Lobule | share of its engine alone | share of what decoding leaves |")
    print("| --- | --- | --- |")
    shares = {}
    for name in ways:
        whole, alone = (np.array(rates[f"{k} {name}"]) for k in ("Lobule", "engine alone"))
        # the cores decode and compute in turns: at best the seconds of both are added
        left = 1 / (1 / alone + 1 / np.array(rates["decoding and resizing alone"]))
        shares[name] = list(whole / alone), list(whole / left)
        print(f"| {name} | {told(shares[name][0])} | {told(shares[name][1])} |")
    floor = rates.pop("decoding and resizing alone")
    return {
        "versions": versions,
        "images_a_second": rates,
        "decoded_a_second": floor,
        "shares": shares,
    }


def note(rates: dict[str, list[float]], name: str, rate: float) -> None:
    rates.setdefault(name, []).append(rate)


def made_up_model(few: Manifest, folder: Path, aspect: Literal["keep", "square"]) -> Model:
    """Train, save and export a DenseNet201 of random weights that says the same of every image.

    int8 is kept only where it agrees, and random features tell nothing that could agree.
    """
    run = folder / "run"
    train(
        few, run, recipe=Recipe(backbone="densenet201", weights="none", long_side_px=224, folds=2)
    )
    trained = load_model(run / "model")
    classes = trained.info.classes
    blind, colour = (
        LinearHead(np.zeros((len(classes), n)), np.arange(len(classes)) * 1.0)
        for n in (trained.backbone.n_features, 12)
    )
    made = make_model(
        trained.info,
        trained.backbone,
        replace(trained.preprocessing, aspect=aspect),
        Heads(blind, colour, np.full(len(classes), 1 / len(classes))),
    )
    save_model(made, folder / "model")
    model = replace(made, folder=folder / "model")
    for int8 in (False, True):
        export(model, read_manifest(run / "manifest.parquet"), int8=int8)
    return model


def files_to_table(model: Model, extractor: Extractor, data: Path) -> float:
    began = time.perf_counter()
    table = predict_with(model, extractor, scan(data)).table
    return len(table) / (time.perf_counter() - began)


def engine_alone(extractor: Extractor, manifest: Manifest) -> float:
    first = decode(manifest.file(manifest.table["path"].iat[0]))
    shape = extractor.prep(first).shape
    batch = np.random.default_rng(0).normal(size=(16 * cores(), *shape)).astype(np.float32)
    began = time.perf_counter()
    n = 0
    while time.perf_counter() - began < 3:
        extractor.engine.run(batch)
        n += len(batch)
    return n / (time.perf_counter() - began)


def decoding(manifest: Manifest, extractor: Extractor) -> float:
    files = [manifest.file(path) for path in manifest.table["path"]]
    began = time.perf_counter()
    n = sum(1 for _ in ahead(lambda file: extractor.prep(decode(file)), files))
    return n / (time.perf_counter() - began)
