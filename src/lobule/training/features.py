"""From image files to the features of their exact views, with a cache on disk.

An image's features do not depend on which other images are in the folder, nor on how many are
worked on at once. They are handed on one image at a time, so that memory does not grow with them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lobule.data.images import N_VIEWS, ImageArray, Preprocessing, decode, dihedral_view
from lobule.data.manifest import Manifest
from lobule.errors import ImageError
from lobule.files import replacing
from lobule.measured import cores
from lobule.models.classifier import Features
from lobule.models.engines import Engine, EngineName, make_engine
from lobule.parallel import ahead
from lobule.progress import Progress, no_progress
from lobule.training.signals import Interrupted, noticing

if TYPE_CHECKING:
    from lobule.models.backbones import Backbone

AT_ONCE = 16
"""Images in work at most, each of which needs some 20 MB."""

ImageFeatures = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Of one image: (views, n_features) of its views, and (12,) of its colours."""


@dataclass(frozen=True)
class Extractor:
    """What turns a decoded image into its features.

    engine: runs the network. network_id: its weights, and what is taken from it. views: how many
    of the eight. change: what is done to every image first, such as a damage; features of changed
    images are neither taken from a cache nor put there.
    """

    engine: Engine
    prep: Preprocessing
    network_id: str
    views: int = N_VIEWS
    change: Callable[[ImageArray], ImageArray] | None = None

    @property
    def id(self) -> str:
        """All that the features of an image depend on."""
        plain = "" if self.views == N_VIEWS else f" {self.views}"
        return f"{self.network_id} {self.prep.id} {self.engine.name}{plain} colour by level"

    def __call__(self, image: ImageArray) -> ImageFeatures:
        """Return the features of an image (h, w, 3) uint8."""
        if self.change is not None:
            image = self.change(image)
        return self.of_views(image), colour_statistics(image)

    def of_views(self, image: ImageArray) -> NDArray[np.float32]:
        """Return the features of the first `views` dihedral views: (views, n_features) float32.

        Row k belongs to `dihedral_view(image, k)`.
        """
        return self.of_many([image])[0]

    def of_one(self, image: ImageArray) -> NDArray[np.float32]:
        """Return the features of an image as it lies, (n_features,) float32."""
        features: NDArray[np.float32] = self._run([self.prep(image).transpose(1, 2, 0)], range(1))[
            0, 0
        ]
        return features

    def of_many(self, images: Sequence[ImageArray]) -> list[NDArray[np.float32]]:
        """Return `of_views` of each image, computed in batches of one size."""
        # resizing and normalising commute with the views, so they are done once
        ready = [self.prep(image).transpose(1, 2, 0) for image in images]
        rows = [np.empty((0, 0), np.float32)] * len(images)
        for shape in dict.fromkeys(one.shape for one in ready):
            alike = [i for i, one in enumerate(ready) if one.shape == shape]
            # even views lie like the image, odd ones across: two batches, each of one shape
            found = [self._run([ready[i] for i in alike], range(k, self.views, 2)) for k in (0, 1)]
            for place, i in enumerate(alike):
                rows[i] = np.empty((self.views, found[0].shape[-1]), dtype=np.float32)
                rows[i][::2] = found[0][place]
                if self.views > 1:
                    rows[i][1::2] = found[1][place]
        return rows

    def _run(self, ready: list[NDArray[np.float32]], views: range) -> NDArray[np.float32]:
        """Return (images, views, n_features) of some views of images of one size."""
        if not views:
            return np.empty((len(ready), 0, 0), np.float32)
        turned = [
            np.ascontiguousarray(dihedral_view(one, k).transpose(2, 0, 1))
            for one in ready
            for k in views
        ]
        found = self.engine.run(np.stack(turned))
        return found.reshape(len(ready), len(views), -1)


def colour_statistics(image: ImageArray) -> NDArray[np.float32]:
    """Return mean and standard deviation of R, G, B, as intensity and as optical density: (12,).

    image: (h, w, 3) uint8. Optical density is -log10 of the transmitted share of light, in which
    the amounts of stain add up (Beer-Lambert). A classifier that cannot beat these twelve
    numbers has learned the stain, not the tissue.
    """
    # there are but 256 levels, so counting them is exact, and far quicker than a logarithm a pixel
    counts = np.array(Image.fromarray(image).histogram()).reshape(3, 256)
    share = counts / counts.sum(axis=1, keepdims=True)
    level = np.arange(256)
    values = np.stack([level / 255, -np.log10((level + 1) / 256)])
    mean = values @ share.T
    spread = np.sqrt(((values[:, None] - mean[..., None]) ** 2 * share).sum(axis=2))
    return np.concatenate([mean[0], spread[0], mean[1], spread[1]]).astype(np.float32)


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

    cache, progress, errors: as `embed_each`. engine: what runs the network.
    """
    extractor = Extractor(make_engine(backbone.module, engine), prep, backbone.features_id)
    return gather(manifest, extractor, cache=cache, progress=progress)


def gather(
    manifest: Manifest,
    extractor: Extractor,
    *,
    cache: Path | None = None,
    progress: Progress = no_progress,
) -> Features:
    """Return what `embed_each` yields, in the order of the manifest; it must not be empty."""
    features: Features | None = None
    for i, (views, colour) in embed_each(manifest, extractor, cache=cache, progress=progress):
        if features is None:
            n = len(manifest)
            features = Features(
                np.empty((n, *views.shape), np.float32), np.empty((n, len(colour)), np.float32)
            )
        features.views[i], features.colour[i] = views, colour
    if features is None:
        raise ValueError("no images")
    return features


def embed_each(
    manifest: Manifest,
    extractor: Extractor,
    *,
    cache: Path | None = None,
    failed: dict[str, str] | None = None,
    progress: Progress = no_progress,
) -> Iterator[tuple[int, ImageFeatures]]:
    """Yield row and features of each image: first those that are kept, then, in order, the others.

    cache: a folder; features found there (by content hash, weights hash and preprocessing) are not
    computed again, so that an interrupted run goes on where it stopped. failed: where given, an
    image that cannot be decoded is noted there with the reason, instead of raised, and not
    yielded.
    Raises ImageError if an image cannot be decoded; Interrupted after SIGINT or SIGTERM.
    """
    kept = _Kept.of(extractor, cache)
    paths: list[str] = manifest.table["path"].tolist()
    sha256: list[str] = manifest.table["sha256"].tolist()
    todo = []
    for i, name in enumerate(sha256):
        if (stored := kept.read(name)) is None:
            todo.append(i)
        else:
            yield i, stored

    def compute(i: int) -> ImageFeatures | ImageError:
        try:
            image = decode(manifest.file(paths[i]), None if failed is None else paths[i])
        except ImageError as error:
            return error
        return extractor(image)

    # two a core: one is in the network, and another is ready when it comes out
    computing = ahead(compute, todo, threads=min(AT_ONCE, 2 * cores()))
    computed = progress(computing, total=len(todo), task="computing features")
    with noticing() as asked:
        for i, found in zip(todo, computed, strict=True):
            if not isinstance(found, ImageError):
                kept.write(sha256[i], found)
                yield i, found
            elif failed is None:
                raise found
            else:
                failed[paths[i]] = found.what
            if asked.signal:
                raise Interrupted(asked.signal)


@dataclass(frozen=True)
class _Kept:
    """The features of one extractor in the cache; without a folder nothing is kept."""

    folder: Path | None

    @classmethod
    def of(cls, extractor: Extractor, cache: Path | None) -> _Kept:
        if cache is None or extractor.change is not None:
            return cls(None)
        name = hashlib.sha256(extractor.id.encode()).hexdigest()[:24]
        return cls(cache / "features" / name)

    def read(self, sha256: str) -> ImageFeatures | None:
        """Return what is kept of an image; None where its file is not there or damaged."""
        if self.folder is None:
            return None
        try:
            # opened here, since numpy leaves a damaged file open
            with (
                self._file(self.folder, sha256).open("rb") as data,
                np.load(data, allow_pickle=False) as stored,
            ):
                return stored["views"], stored["colour"]
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None

    def write(self, sha256: str, found: ImageFeatures) -> None:
        if self.folder is not None:
            file = self._file(self.folder, sha256)
            with replacing(file) as temporary, temporary.open("xb") as out:
                np.savez(out, views=found[0], colour=found[1])

    @staticmethod
    def _file(folder: Path, sha256: str) -> Path:
        return folder / sha256[:2] / f"{sha256}.npz"
