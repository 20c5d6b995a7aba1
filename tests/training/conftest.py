"""Images that are known without a decoder, in a pixel cache."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import safetensors.numpy

from lobule.data.cache import PixelCache


@pytest.fixture(scope="session")
def keep_pixels(tmp_path_factory) -> Callable[[Sequence[np.ndarray]], PixelCache]:
    """Make a pixel cache of images (h, w, 3) uint8: keep_pixels(images)."""

    def keep(images: Sequence[np.ndarray]) -> PixelCache:
        path = tmp_path_factory.mktemp("pixels") / "shard.safetensors"
        names = tuple(hashlib.sha256(image.tobytes()).hexdigest() for image in images)
        safetensors.numpy.save_file(dict(zip(names, images, strict=True)), path)
        return PixelCache(
            sha256=names,
            shards=(path,) * len(images),
            sizes=tuple(image.shape[:2] for image in images),
            checks=tuple(zlib.crc32(image.tobytes()) for image in images),
        )

    return keep
