"""The tutorial that Lobule grew from, in the Keras of today: answers commands, see `Peer`.

Its recipe as published: photographs squashed to 224 x 224 in one array, raw values, zoom_range=2,
rotation and flips by ImageDataGenerator, DenseNet201, dropout, batch norm, two classes, Adam. Its
weights are random, since none can be fetched here; that changes no time.
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

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from keras.src.legacy.preprocessing.image import ImageDataGenerator  # noqa: E402
from PIL import Image  # noqa: E402

SIDE, BATCH = 224, 16

root = Path(sys.argv[1])
files = sorted(p for p in root.rglob("*.jpg"))
names = sorted({p.relative_to(root).parts[0] for p in files})


def load(paths):
    images = [Image.open(p).convert("RGB").resize((SIDE, SIDE)) for p in paths]
    return np.array([np.asarray(image) for image in images])


def build():
    keras.utils.set_random_seed(11)
    model = keras.Sequential([
        keras.applications.DenseNet201(
            weights=None, include_top=False, input_shape=(SIDE, SIDE, 3)
        ),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dropout(0.5),
        keras.layers.BatchNormalization(),
        keras.layers.Dense(2, activation="softmax"),
    ])  # fmt: skip
    model.compile(
        loss="binary_crossentropy", optimizer=keras.optimizers.Adam(1e-4), metrics=["accuracy"]
    )
    return model


model = build()
generator = ImageDataGenerator(
    zoom_range=2, rotation_range=90, horizontal_flip=True, vertical_flip=True
)
labels = keras.utils.to_categorical(
    [names.index(p.relative_to(root).parts[0]) for p in files], num_classes=2
)


def train(n):
    chosen = np.arange(n) % len(files)
    # loaded once before the first epoch, as in the tutorial, so it is no part of an epoch
    x, y = load([files[i] for i in chosen]), labels[chosen]
    began = time.perf_counter()
    model.fit(
        generator.flow(x, y, batch_size=BATCH), steps_per_epoch=n // BATCH, epochs=1, verbose=0
    )
    return n // BATCH * BATCH, time.perf_counter() - began


def predict():
    began = time.perf_counter()
    probabilities = model.predict(load(files), batch_size=BATCH, verbose=0)
    table = [(p.name, float(row[1]), names[row.argmax()]) for p, row in zip(files, probabilities)]  # noqa: B905
    return len(table), time.perf_counter() - began


for line in sys.stdin:
    asked = json.loads(line)
    if asked["do"] == "versions":
        told = {"tensorflow": tf.__version__, "keras": keras.__version__}
    else:
        n, seconds = train(asked["images"]) if asked["do"] == "train" else predict()
        told = {"images": n, "seconds": seconds}
    print(json.dumps(told), file=answers, flush=True)
