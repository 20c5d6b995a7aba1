"""Whether heat maps can be believed, on made-up tissue whose lesions are known.

    python -m benchmarks.maps work

Draws patients, learns from seven in ten of them, and explains the photographs of the others: what
showing (insertion) and hiding (deletion) the places of most evidence first does to the class that
was decided on, beside random maps and a map of the middle; whether a network with shuffled weights
gives the same map; and in malignant photographs how well evidence tells lesion pixels from others.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from lobule.data.cohort import write_tissue
from lobule.data.images import ImageArray, decode
from lobule.data.scan import scan
from lobule.evaluation.intervals import patient_bootstrap
from lobule.explain.faithfulness import judge, lesion_auc, shuffled
from lobule.explain.maps import METHODS, explain
from lobule.inference.predictor import open_extractor
from lobule.models.classifier import mean_over_views
from lobule.workflow import train

MALIGNANT = 1


def measure(work: Path, *, patients: int = 40, images_per_patient: int = 6) -> pd.DataFrame:
    """Return a row a held-out image and method."""
    tissue = write_tissue(
        work / "tissue", patients=patients, images_per_patient=images_per_patient,
        layout="splits", plant=False,
    )  # fmt: skip
    run = train(tissue.images, work / "run")
    model, other = run.model, shuffled(run.model)
    extractor = open_extractor(model, scan(tissue.images))

    def score(shown: ImageArray, *, target: int) -> float:
        views = extractor.of_views(shown)[None]
        return float(mean_over_views(model.heads.tissue, views)[0, target])

    rows = []
    for shot in tissue.truth[tissue.truth["split"] == "validation"].itertuples():
        image = decode(tissue.images / shot.path)
        lesion = np.asarray(Image.open(tissue.masks / Path(shot.path).with_suffix(".png"))) > 0
        target = int(shot.label == "malignant")
        for method in METHODS:
            found = explain(model, image, target=target, method=method)
            random = explain(other, image, target=target, method=method)
            judged = judge(found, image, partial(score, target=target), randomised=random)
            towards = explain(model, image, target=MALIGNANT, method=method)
            auc = lesion_auc(towards.over(image.shape[1], image.shape[0]), lesion)
            who = {"patient": shot.patient, "label": shot.label, "method": method}
            rows.append({**who, **vars(judged), "lesion_auc": auc})
            print(rows[-1], file=sys.stderr, flush=True)
    return pd.DataFrame(rows)


def tables(rows: pd.DataFrame) -> str:
    """Return the tables of docs/heat-maps.md: means over images, patients redrawn."""
    lines = ["| method | what | mean (95% interval) |", "| --- | --- | --- |"]
    for method, part in rows.groupby("method"):
        figures = {
            "insertion": part["insertion"],
            "insertion less that of random maps": part["insertion"] - part["insertion_random"],
            "insertion less that of the middle": part["insertion"] - part["insertion_centre"],
            "deletion": part["deletion"],
            "deletion less that of random maps": part["deletion"] - part["deletion_random"],
            "deletion less that of the middle": part["deletion"] - part["deletion_centre"],
            "rank correlation with a network of shuffled weights": part["randomised"],
            "ROC AUC of lesion pixels, malignant photographs": part["lesion_auc"],
        }
        for what, values in figures.items():
            known = values.notna().to_numpy()
            x = values.to_numpy()[known]
            found = patient_bootstrap(
                lambda weight, x=x: {"mean": weight @ x / weight.sum(axis=1)},
                part["patient"].to_numpy()[known],
            )["mean"]
            lines.append(f"| {method} | {what} | {found.told()} |")
    n = rows[rows["method"] == METHODS[0]]
    lines.append(f"\n{len(n)} photographs of {n['patient'].nunique()} patients")
    return "\n".join(lines)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    found = measure(folder)
    found.to_csv(folder / "maps.csv", index=False)
    print(tables(found))
