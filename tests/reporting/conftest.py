"""Run folders made directly: known images, seeded probabilities, no network."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lobule.data.findings import Audit, Finding
from lobule.data.manifest import Manifest, complete, write_manifest
from lobule.evaluation.evaluate import evaluate
from lobule.evaluation.intervals import Interval
from lobule.evaluation.leakage import Leakage
from lobule.evaluation.predictions import make_predictions, write_predictions
from lobule.files import write_json, write_text

FINDINGS = (
    Finding("few-patients", "warning", "class 'benign' has 4 patients", ()),
    Finding("sizes", "note", "images have 2 sizes", ("a.png", "b.png")),
)


@pytest.fixture(scope="session")
def make_run():
    return build_run


@pytest.fixture(scope="session")
def run(make_run, tmp_path_factory):
    """A two-class run of 12 patients, as train leaves it; read it, do not change it."""
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def tuned_run(make_run, tmp_path_factory):
    """The same run with a tuned network; read it, do not change it."""
    return make_run(tmp_path_factory.mktemp("tuned"), tuned=True)


def build_run(
    folder,
    *,
    classes=("benign", "malignant"),
    n_patients=12,
    patients_known=True,
    names=None,
    held_out=False,
    allow=(),
    findings=FINDINGS,
    inflation=(0.1, 0.02, 0.2),
    seed=0,
    tuned=False,
):
    """Write images/ and run/ below `folder`; returns the run folder.

    names: other file names, by number. Every image has a colour of its own. tuned: whether the
    network was tuned, so that there are frozen_ columns and a folder training/.
    """
    manifest = make_manifest(folder / "images", classes, n_patients, names or {})
    if not patients_known:
        manifest = manifest.with_columns(patient=pd.NA, slide=pd.NA)
        manifest = Manifest(manifest.root, complete(manifest.table))
    if held_out:
        # patients 0 and 1, 4 and 5 ... to test: both classes in each part
        number = manifest.table["patient"].str[1:].astype(int)
        part = np.where(number % 4 < 2, "test", "train")
        manifest = manifest.with_columns(split=pd.array(part, dtype="string"))
    return write_run(
        folder / "run",
        manifest,
        classes,
        allow=allow,
        findings=findings,
        inflation=inflation,
        seed=seed,
        tuned=tuned,
    )


def make_manifest(root, classes, n_patients, names):
    root.mkdir(parents=True)
    rng = np.random.default_rng(5)
    rows = []
    for i in range(n_patients * 4):
        patient = i // 4
        label = classes[patient % len(classes)]
        name = names.get(i, f"{label}/p{patient:02d}-{i:03d}.png".replace(" ", "_"))
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((46, 70, 3), rng.integers(20, 235, size=3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)
        rows.append(
            {
                "path": name,
                "label": label,
                "patient": f"P{patient:02d}",
                "slide": f"S{i // 2}",
                "magnification": 100.0,
                "subtype": f"{label} kind {patient % 3}",
                "width": 70,
                "height": 46,
                "bytes": (root / name).stat().st_size,
                "sha256": hashlib.sha256((root / name).read_bytes()).hexdigest(),
            }
        )
    return Manifest(root, complete(pd.DataFrame(rows)))


def write_run(out, manifest, classes, *, allow, findings, inflation, seed, tuned):
    rng = np.random.default_rng(seed)
    strengths = {"prob": 1.5, "plain": 1.2, "colour": 0.6} | ({"frozen": 1.0} if tuned else {})
    name = "lobule-finetune" if tuned else "lobule-features"
    known = manifest.patients_known

    def predict(part, source):
        y = part.table["label"].map(classes.index).to_numpy(dtype=int)
        logits = {
            kind: strength * np.eye(len(classes))[y] + rng.normal(size=(len(y), len(classes)))
            for kind, strength in strengths.items()
        }
        prob = {
            kind: np.exp(value) / np.exp(value).sum(axis=1, keepdims=True)
            for kind, value in logits.items()
        }
        prob["prior"] = np.full(prob["prob"].shape, 1 / len(classes))
        spread = 0.4 + 0.02 * (np.arange(len(part)) % 3)
        limits = {"set_quantile": 0.6}
        if len(classes) == 2:
            limits |= {"threshold": spread, "threshold_slide": 0.42, "threshold_patient": 0.44}
        return make_predictions(
            part,
            classes,
            prob,
            limits,
            model=f"{name}-0123456789ab",
            weights="ab" * 32,
            preprocessing="0123456789ab",
            source=source,
        )

    unit = "patient" if known else "image (patients unknown)"
    learn = manifest
    predictions = oof = predict(manifest, f"pooled out-of-fold predictions of 5 {unit} folds")
    if manifest.table["split"].notna().any():
        learn = manifest.where(manifest.table["split"] == "train")
        oof = predict(learn, "pooled out-of-fold predictions of 5 patient folds")
        predictions = predict(
            manifest.where(manifest.table["split"] == "test"), "held-out test part"
        )
        write_predictions(oof, out / "out_of_fold.parquet")
    evaluation = evaluate(predictions, draws=200, seed=0)
    measured = evaluation.baselines["frozen features"] if tuned else evaluation.levels
    apart = measured["image"].metrics["roc_auc"]
    leakage = Leakage(
        auc={
            "image": Interval(0.98, 0.95, 0.99, 200, 0),
            "slide": Interval(0.91, 0.85, 0.97, 200, 0),
            "patient": apart,
        },
        inflation=Interval(*inflation, 200, 0),
        n_images=len(learn),
        n_slides=24,
        n_patients=int(learn.groups.nunique()),
        folds=5,
        seed=0,
        long_side_px=700,
        patients_known=known,
    )
    audit = Audit(findings, len(manifest), int(manifest.table["patient"].nunique()), known)
    write_json(
        out / "run.json",
        {
            "schema": "lobule.run/1",
            "state": "incomplete",
            "started": "2026-01-02T03:04:05Z",
            "request": {
                "recipe": {
                    "name": name.removeprefix("lobule-"),
                    "backbone": "net",
                    "weights": None,
                    "folds": 5,
                    "tuning": {"epochs": 6, "layer_decay": 0.8} if tuned else None,
                },
                "data_hash": manifest.data_hash,
                "allow": list(allow),
            },
        },
    )
    write_manifest(manifest, out / "manifest.parquet")
    write_json(out / "audit.json", audit.to_json())
    write_predictions(predictions, out / "predictions.parquet")
    write_json(out / "evaluation.json", evaluation.to_json())
    write_json(out / "leakage.json", leakage.to_json())
    record = model_record(learn, classes, evaluation, name=name)
    if tuned:
        record["training"] |= {"strength": None, "tuning": TUNING}
        write_training(out / "training", manifest)
    write_json(out / "model" / "model.json", record)
    return out


TUNING = {"selected_epoch": 4, "epochs": 6, "select": "loss", "n_validation_patients": 3, "lr": 1}


def write_training(folder, manifest):
    """What tuning leaves: three folds that stopped early, and the final fit.

    Fit k keeps epoch k, whose validation loss is 0.3 + k / 100 and ROC AUC 0.9 - k / 100. Fold 1
    also has the epoch before the first step.
    """
    names = ["fold 1", "fold 2", "fold 3", "final"]
    fits = [
        {
            "name": name,
            "folder": name.replace(" ", "-"),
            "n_train_images": 20 + k,
            "n_train_patients": 5 + k,
            "n_validation_images": 8,
            "n_validation_patients": 2,
            "selected_epoch": k,
            "epochs": 6 if name == "final" else 5,
            "steps": 60,
            "stopped": "all epochs" if name == "final" else "early",
        }
        for k, name in enumerate(names, start=1)
    ]
    for k, fit in enumerate(fits, start=1):
        lines = [epoch_line(n, k) for n in range(0 if k == 1 else 1, fit["epochs"] + 1)]
        write_text(folder / fit["folder"] / "metrics.jsonl", "".join(lines))
    write_json(
        folder / "training.json",
        {
            "schema": "lobule.training/1",
            "select": "loss",
            "device": "cpu",
            "precision": "bf16",
            "fits": fits,
        },
    )
    first = Image.open(manifest.file(manifest.table["path"].iloc[0]))
    sheet = Image.new("RGB", (first.width * 5, first.height * 3), "white")
    for x in range(5):
        for y in range(3):
            sheet.paste(first.rotate(9 * x), (first.width * x, first.height * y))
    sheet.save(folder / "augmented.jpg")


def epoch_line(epoch, kept):
    """One line of metrics.jsonl; the validation loss is lowest at epoch `kept`."""
    start = epoch == 0
    record = {
        "epoch": epoch,
        "step": 10 * epoch,
        "lr": None if start else 0.0003,
        "train_loss": None if start else 0.7 - 0.1 * epoch,
        "train_accuracy": None if start else 0.5 + 0.08 * epoch,
        "validation_loss": 0.3 + kept / 100 + 0.04 * abs(epoch - kept),
        "validation_accuracy": 0.8 - 0.02 * abs(epoch - kept),
        "validation_balanced_accuracy": 0.75,
        "validation_roc_auc": None if start else 0.9 - kept / 100 - 0.01 * abs(epoch - kept),
        "validation_average_precision": None,
    }
    return json.dumps(record) + "\n"


def model_record(manifest, classes, evaluation, *, name):
    """What `models.bundle.describe` returns, by hand."""
    by_class = {
        name: {"images": len(rows), "patients": int(rows["patient"].nunique())}
        for name, rows in manifest.table.groupby("label")
    }
    points = {
        level: {
            "threshold": 0.41,
            "target": "sensitivity",
            "value": 0.95,
            "achieved": 0.97,
            "source": "pooled out-of-fold scores",
            "level": level,
        }
        for level in ("image", "slide", "patient")
    }
    return {
        "schema": "lobule.model/1",
        "id": f"{name}-0123456789ab",
        "name": name,
        "created": "2026-01-02T03:14:15Z",
        "classes": list(classes),
        "operating_points": points if len(classes) == 2 else {},
        "calibration": {"method": "none", "source": "pooled out-of-fold scores"},
        "sets": {
            "coverage": 0.9,
            "quantile": 0.6,
            "patients": 12,
            "source": "pooled out-of-fold scores",
        },
        "reporting": [],
        "gate": {"kept": 0.95, "accepted": 0.96, "patients": 12, "source": "pooled out-of-fold"},
        "out_of_fold": {"quantiles": [k / 100 for k in range(101)], "source": "pooled out-of-fold"},
        "training": {
            "data_hash": manifest.data_hash,
            "n_images": len(manifest),
            "n_patients": int(manifest.groups.nunique()),
            "patients_known": manifest.patients_known,
            "classes": by_class,
            "strength": 0.001,
            "tuning": None,
            "recipe": {"name": name.removeprefix("lobule-")},
        },
        "performance": {"source": evaluation.source, "rows": []},
        "versions": {"lobule": "0.1.0", "python": "3.11", "torch": "2.6"},
        "positive": classes[-1],
        "preprocessing": {
            "long_side_px": 700,
            "aspect": "keep",
            "interpolation": "bicubic",
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "id": "0123456789ab",
        },
        "backbone": {
            "name": "tf_efficientnet_lite0",
            "weights": "somewhere",
            "license": "Apache-2.0",
            "n_features": 1280,
            "arguments": {},
            "pooling": "last",
        },
        "weights_sha256": "ab" * 32,
    }


def edit_json(path, change):
    """Rewrite a JSON file through `change`."""
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
