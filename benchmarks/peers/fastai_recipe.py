"""The same backbone in fastai, as its documentation has it: answers commands, see `Peer`.

Random weights, all layers learning, one epoch without validation; images are resized and augmented
by fastai's own transforms, and loaded in the training process: with two cores, two loaders take
from training what they give.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

# what libraries print must not be taken for an answer
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import fastai  # noqa: E402
import torch  # noqa: E402
from fastai.vision.all import (  # noqa: E402
    CategoryBlock,
    DataBlock,
    ImageBlock,
    IndexSplitter,
    Resize,
    ResizeMethod,
    accuracy,
    aug_transforms,
    densenet201,
    vision_learner,
)

BATCH = 16

root = Path(sys.argv[1])
files = sorted(p for p in root.rglob("*.jpg"))


def learner(paths):
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_y=lambda path: path.relative_to(root).parts[0],
        splitter=IndexSplitter([0]),
        item_tfms=Resize(224, method=ResizeMethod.Squish),
        batch_tfms=aug_transforms(flip_vert=True),
    )
    data = block.dataloaders(paths, bs=BATCH, num_workers=0)
    made = vision_learner(data, densenet201, pretrained=False, metrics=accuracy)
    made.unfreeze()
    return made


kept = learner(files)


def train(n):
    paths = [files[i % len(files)] for i in range(n + 1)]
    made = learner(paths)
    made.model = kept.model
    with made.no_bar(), made.no_logging():
        made._do_epoch_validate = lambda *_, **__: None
        began = time.perf_counter()
        made.fit(1, 1e-4)
        taken = time.perf_counter() - began
    return n // BATCH * BATCH, taken


def predict():
    with kept.no_bar(), kept.no_logging():
        began = time.perf_counter()
        probabilities, _ = kept.get_preds(dl=kept.dls.test_dl(files, bs=BATCH))
        table = [(p.name, float(row[1])) for p, row in zip(files, probabilities)]  # noqa: B905
        return len(table), time.perf_counter() - began


for line in sys.stdin:
    asked = json.loads(line)
    if asked["do"] == "versions":
        told = {"fastai": fastai.__version__, "torch": torch.__version__}
    else:
        n, seconds = train(asked["images"]) if asked["do"] == "train" else predict()
        told = {"images": n, "seconds": seconds}
    print(json.dumps(told), file=answers, flush=True)
