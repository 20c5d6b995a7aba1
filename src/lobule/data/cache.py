"""Pixels decoded and resized once, and read from disk for every epoch after.

A cache is a folder of shards, each a safetensors file of some hundred images: uint8, named by the
SHA-256 of the image file. Folder and shards are named by the preprocessing and by the contents, so
that another run of the same images finds them, and a changed image or size never does.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.numpy

from lobule.data.images import ImageArray, Preprocessing, decode
from lobule.data.manifest import Manifest
from lobule.errors import DataError, show
from lobule.files import replacing
from lobule.progress import Progress, no_progress

PIXELS = "pixels"

SHARD = 256
"""Images in a shard. Work that is cut off is lost back to the last whole one."""


@dataclass(frozen=True)
class PixelCache:
    """The images of a manifest after `Preprocessing.resize`, in its order; memory-mapped.

    sha256: of each image file. shards: the file that holds it. sizes: (height, width) in pixels.
    checks: CRC-32 of its pixels, compared when an image is first read.
    """

    sha256: tuple[str, ...]
    shards: tuple[Path, ...]
    sizes: tuple[tuple[int, int], ...]
    checks: tuple[int, ...]
    _open: dict[Path, Any] = field(default_factory=dict, compare=False, repr=False)
    _checked: set[int] = field(default_factory=set, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.sha256)

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files behind: another process opens its own."""
        return {**self.__dict__, "_open": {}, "_checked": set()}

    def __getitem__(self, row: int) -> ImageArray:
        """Return image `row`, (height, width, 3) uint8.

        Raises DataError if the file is gone or its pixels are not those that were written.
        """
        path = self.shards[row]
        try:
            if path not in self._open:
                self._open[path] = safetensors.safe_open(path, framework="np")
            image: ImageArray = self._open[path].get_tensor(self.sha256[row])
        except (OSError, safetensors.SafetensorError) as error:
            raise _damaged(path, str(error)) from error
        if row not in self._checked:
            if zlib.crc32(image.data) != self.checks[row]:
                raise _damaged(path, f"the pixels of {self.sha256[row]} have changed")
            self._checked.add(row)
        return image


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(
        f"cannot read the pixel cache {show(path)}: {reason}",
        fix="delete that file and run the same command again; it is made anew",
    )


def open_pixels(
    manifest: Manifest, prep: Preprocessing, folder: Path, *, progress: Progress = no_progress
) -> PixelCache:
    """Return the resized images of a manifest, decoding those that `folder` does not hold yet.

    Raises ImageError if an image cannot be decoded, OutputError if `folder` cannot be written.
    """
    sha256, paths = manifest.table["sha256"].tolist(), manifest.table["path"].tolist()
    # a file that stands in the manifest twice is decoded once
    first = dict(zip(reversed(sha256), reversed(paths), strict=True))
    names = sorted(first)
    groups = [names[i : i + SHARD] for i in range(0, len(names), SHARD)]
    shards = {name: _shard(folder, prep, group) for group in groups for name in group}
    told: dict[str, tuple[tuple[int, int], int]] = {}
    todo = []
    for group in groups:
        known = _read_index(shards[group[0]], group)
        if known is None:
            todo.append(group)
        else:
            told |= known

    def decode_all() -> Iterator[None]:
        for group in todo:
            images = {}
            for name in group:
                images[name] = prep.resize(decode(manifest.file(first[name])))
                yield
            told.update(_write(shards[group[0]], images))

    total = sum(len(group) for group in todo)
    for _ in progress(decode_all(), total=total, task="decoding images"):
        pass
    return PixelCache(
        sha256=tuple(sha256),
        shards=tuple(shards[name] for name in sha256),
        sizes=tuple(told[name][0] for name in sha256),
        checks=tuple(told[name][1] for name in sha256),
    )


def drop_pixels(folder: Path) -> None:
    """Remove the cache in `folder`, if there is one."""
    if (folder / PIXELS).exists():
        shutil.rmtree(folder / PIXELS)


def _shard(folder: Path, prep: Preprocessing, names: Sequence[str]) -> Path:
    contents = hashlib.sha256("\n".join(names).encode()).hexdigest()[:24]
    return folder / PIXELS / prep.id / f"{contents}.safetensors"


Index = dict[str, tuple[tuple[int, int], int]]


def _write(path: Path, images: dict[str, ImageArray]) -> Index:
    """Write a shard; the metadata hold the checksum of every image."""
    checks = {name: zlib.crc32(image.data) for name, image in images.items()}
    data = safetensors.numpy.save(images, metadata={"crc32": json.dumps(checks)})
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return {name: (image.shape[:2], checks[name]) for name, image in images.items()}


def _read_index(path: Path, names: Sequence[str]) -> Index | None:
    """Return size and checksum by image; None where the shard is not there or was cut off."""
    try:
        with safetensors.safe_open(path, framework="np") as stored:
            checks = json.loads(stored.metadata()["crc32"])
            shapes = {name: stored.get_slice(name).get_shape() for name in names}
            return {
                name: ((int(shape[0]), int(shape[1])), int(checks[name]))
                for name, shape in shapes.items()
            }
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError):
        # whatever is wrong with a cache, it can be made again
        return None
