"""From image files to the features of their eight exact views, with a cache on disk.

The order of work is fixed (one image at a time, four views a batch), so that an image's
features do not depend on which other images are in the folder.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from lobule.data.images import N_VIEWS, ImageArray, Preprocessing, decode, dihedral_view
from lobule.data.manifest import Manifest
from lobule.files import replacing
from lobule.models.backbones import Backbone
from lobule.models.classifier import Features
from lobule.models.engines import Engine, EngineName, make_engine
from lobule.progress import Progress, no_progress
from lobule.training.signals import Interrupted, noticing

AHEAD = 4
"""Images decoded before the network asks for them."""


def embed_image(
    image: ImageArray, engine: Engine, prep: Preprocessing, n_features: int
) -> NDArray[np.float32]:
    """Return the features of the eight dihedral views: (8, n_features) float32.

    image: (h, w, 3) uint8. Row k belongs to `dihedral_view(image, k)`.
    """
    # resizing commutes with the views, so it is done once
    small = prep.resize(image)
    views = [prep.normalise(dihedral_view(small, view)) for view in range(N_VIEWS)]
    rows = np.empty((N_VIEWS, n_features), dtype=np.float32)
    # even views lie like the image, odd ones across: two batches, each of one shape
    for lying in (slice(0, None, 2), slice(1, None, 2)):
        rows[lying] = engine(np.stack(views[lying]))
    return rows


def colour_statistics(image: ImageArray) -> NDArray[np.float32]:
    """Return mean and standard deviation of R, G, B, as intensity and as optical density: (12,).

    image: (h, w, 3) uint8. Optical density is -log10 of the transmitted share of light, in which
    the amounts of stain add up (Beer-Lambert). A classifier that cannot beat these twelve
    numbers has learned the stain, not the tissue.
    """
    intensity = image.reshape(-1, 3).astype(np.float32) / 255
    density = -np.log10((intensity * 255 + 1) / 256)
    return np.concatenate(
        [intensity.mean(axis=0), intensity.std(axis=0), density.mean(axis=0), density.std(axis=0)]
    )


def embed(
    manifest: Manifest,
    backbone: Backbone,
    prep: Preprocessing,
    *,
    cache: Path | None = None,
    engine: EngineName = "auto",
    progress: Progress = no_progress,
) -> Features:
    """Return the features of every image of the manifest.

    cache: a folder; features found there (by content hash, weights hash and preprocessing) are
    not computed again, so that an interrupted run goes on where it stopped. engine: what runs
    the network.
    Raises ImageError if an image cannot be decoded; Interrupted after SIGINT or SIGTERM.
    """
    engine_name, run = make_engine(backbone.network, engine)
    kept = _cache_files(manifest, f"{backbone.weights_sha256} {prep.id} {engine_name}", cache)
    views = np.empty((len(manifest), N_VIEWS, backbone.n_features), dtype=np.float32)
    colour = np.empty((len(manifest), 12), dtype=np.float32)
    todo = []
    for i, file in enumerate(kept):
        if file is None or not _read_kept(file, views[i], colour[i]):
            todo.append(i)
    paths = [manifest.file(manifest.table["path"].iat[i]) for i in todo]
    images = progress(decode_ahead(paths), total=len(todo), task="computing features")
    with noticing() as asked:
        for i, image in zip(todo, images, strict=True):
            views[i] = embed_image(image, run, prep, backbone.n_features)
            colour[i] = colour_statistics(image)
            if (file := kept[i]) is not None:
                with replacing(file) as temporary, temporary.open("xb") as out:
                    np.savez(out, views=views[i], colour=colour[i])
            if asked.signal:
                raise Interrupted(asked.signal)
    return Features(views, colour)


def decode_ahead(paths: Sequence[Path]) -> Iterator[ImageArray]:
    """Decode images in order, a few of them ahead of their use in another thread."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting: deque[Future[ImageArray]] = deque()
        for path in paths:
            waiting.append(pool.submit(decode, path))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read_kept(file: Path, views: NDArray[np.float32], colour: NDArray[np.float32]) -> bool:
    """Fill one image's rows from the cache; False where its file is not there or damaged."""
    try:
        # opened here, since numpy leaves a damaged file open
        with file.open("rb") as data, np.load(data, allow_pickle=False) as stored:
            views[...], colour[...] = stored["views"], stored["colour"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return False
    return True


def _cache_files(manifest: Manifest, key: str, cache: Path | None) -> list[Path | None]:
    if cache is None:
        return [None] * len(manifest)
    folder = cache / "features" / hashlib.sha256(key.encode()).hexdigest()[:24]
    return [folder / sha256[:2] / f"{sha256}.npz" for sha256 in manifest.table["sha256"]]
