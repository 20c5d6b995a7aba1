"""The pixel cache: the very pixels, decoded once, and never those of another image or size."""

from __future__ import annotations

import multiprocessing
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lobule.data import cache
from lobule.data.cache import PIXELS, drop_pixels, open_pixels
from lobule.data.images import Preprocessing, decode
from lobule.data.manifest import Manifest, complete, measure
from lobule.errors import DataError, ImageError, OutputError

PREP = Preprocessing(24, "keep", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

SIZES = ((48, 32), (32, 48), (24, 16), (30, 30))
"""Sizes (width, height) of the images, in turn: larger, upright, as they are, square."""


class Watch:
    """A progress that remembers how many were announced and how many passed."""

    def __init__(self) -> None:
        self.totals: list[int] = []
        self.passed = 0

    def __call__(self, items, *, total, task):
        assert task == "decoding images"
        self.totals.append(total)
        for item in items:
            self.passed += 1
            yield item


def write_image(path: Path, seed: int) -> None:
    width, height = SIZES[seed % len(SIZES)]
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(image).save(path)


def list_images(folder: Path) -> Manifest:
    rows = [{"path": file.name, **measure(file)} for file in sorted(folder.glob("*.png"))]
    return Manifest(folder, complete(pd.DataFrame(rows)))


@pytest.fixture
def images(tmp_path) -> Callable[[int], Manifest]:
    """Write n different images: images(10)."""

    def write(n: int) -> Manifest:
        (tmp_path / "images").mkdir()
        for i in range(n):
            write_image(tmp_path / "images" / f"{i:02d}.png", i)
        return list_images(tmp_path / "images")

    return write


def expected(manifest: Manifest, prep: Preprocessing = PREP) -> list[np.ndarray]:
    return [prep.resize(decode(manifest.file(path))) for path in manifest.table["path"]]


def same(found, wanted) -> bool:
    assert len(found) == len(wanted)
    return all(
        a.dtype == np.uint8 and a.shape == b.shape and np.array_equal(a, b)
        for a, b in zip((found[i] for i in range(len(found))), wanted, strict=True)
    )


def shards_of(folder: Path) -> list[Path]:
    return sorted((folder / PIXELS).rglob("*.safetensors"))


@pytest.mark.parametrize("aspect", ["keep", "square"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_are_those_of_the_resized_image_to_the_bit(images, tmp_path, aspect, interpolation):
    manifest = images(6)
    prep = replace(PREP, aspect=aspect, interpolation=interpolation)
    pixels = open_pixels(manifest, prep, tmp_path / "cache")
    wanted = expected(manifest, prep)
    assert same(pixels, wanted)
    assert pixels.sizes == tuple(image.shape[:2] for image in wanted)
    assert pixels.sha256 == tuple(manifest.table["sha256"])


def test_a_second_opening_decodes_nothing(images, tmp_path):
    manifest = images(5)
    wanted = expected(manifest)
    watch = Watch()
    first = open_pixels(manifest, PREP, tmp_path / "cache", progress=watch)
    shutil.rmtree(manifest.root)
    again = open_pixels(manifest, PREP, tmp_path / "cache", progress=watch)
    assert (watch.totals, watch.passed) == ([5, 0], 5)
    assert again == first
    assert same(again, wanted)


def test_the_folder_that_the_images_lie_in_does_not_matter(images, tmp_path):
    manifest = images(3)
    open_pixels(manifest, PREP, tmp_path / "cache")
    moved = Manifest(manifest.root.rename(tmp_path / "elsewhere"), manifest.table)
    watch = Watch()
    assert same(open_pixels(moved, PREP, tmp_path / "cache", progress=watch), expected(moved))
    assert watch.totals == [0]


@pytest.mark.parametrize(
    "change", [{"long_side_px": 20}, {"aspect": "square"}, {"interpolation": "bilinear"}]
)
def test_another_preprocessing_has_pixels_of_its_own(images, tmp_path, change):
    manifest = images(3)
    first = open_pixels(manifest, PREP, tmp_path / "cache")
    watch = Watch()
    other = replace(PREP, **change)
    second = open_pixels(manifest, other, tmp_path / "cache", progress=watch)
    assert watch.totals == [3]
    assert same(second, expected(manifest, other))
    assert same(first, expected(manifest))


def test_another_image_under_the_same_name_is_decoded(images, tmp_path):
    manifest = images(3)
    open_pixels(manifest, PREP, tmp_path / "cache")
    write_image(manifest.root / "01.png", 77)
    changed = list_images(manifest.root)
    assert same(open_pixels(changed, PREP, tmp_path / "cache"), expected(changed))


def test_images_lie_in_several_shards_and_come_in_the_order_of_the_manifest(
    images, tmp_path, monkeypatch
):
    monkeypatch.setattr(cache, "SHARD", 3)
    manifest = images(10)
    pixels = open_pixels(manifest, PREP, tmp_path / "cache")
    assert len(shards_of(tmp_path / "cache")) == 4
    assert same(pixels, expected(manifest))
    backwards = Manifest(manifest.root, manifest.table[::-1].reset_index(drop=True))
    watch = Watch()
    turned = open_pixels(backwards, PREP, tmp_path / "cache", progress=watch)
    assert watch.totals == [0]
    assert same(turned, expected(manifest)[::-1])


def test_images_of_equal_content_are_decoded_once(images, tmp_path):
    manifest = images(3)
    shutil.copy(manifest.root / "01.png", manifest.root / "copy.png")
    doubled = list_images(manifest.root)
    watch = Watch()
    pixels = open_pixels(doubled, PREP, tmp_path / "cache", progress=watch)
    assert len(pixels) == 4
    assert watch.totals == [3]
    assert same(pixels, expected(doubled))


def test_an_image_that_was_written_into_is_read_anew(images, tmp_path):
    manifest = images(1)
    pixels = open_pixels(manifest, PREP, tmp_path / "cache")
    pixels[0][:] = 0
    assert same(pixels, expected(manifest))


# ---- what becomes of it when something goes wrong


def test_a_shard_that_is_cut_off_anywhere_is_made_anew(images, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SHARD", 2)
    manifest = images(4)
    open_pixels(manifest, PREP, tmp_path / "cache")
    shard = shards_of(tmp_path / "cache")[0]
    whole = shard.read_bytes()
    for end in (0, 1, 8, 100, len(whole) // 2, len(whole) - 1):
        shard.write_bytes(whole[:end])
        watch = Watch()
        pixels = open_pixels(manifest, PREP, tmp_path / "cache", progress=watch)
        assert watch.totals == [2]
        assert same(pixels, expected(manifest))
        assert shard.read_bytes() == whole


def test_a_pixel_that_changed_on_the_disk_is_an_error_that_names_the_file(images, tmp_path):
    manifest = images(2)
    open_pixels(manifest, PREP, tmp_path / "cache")
    (shard,) = shards_of(tmp_path / "cache")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1  # the last pixel of the image whose name sorts last
    shard.write_bytes(data)
    pixels = open_pixels(manifest, PREP, tmp_path / "cache")
    whole, broken = np.argsort(manifest.table["sha256"].to_numpy())
    name = manifest.table["sha256"].iat[broken]
    with pytest.raises(DataError) as caught:
        pixels[broken]
    assert str(caught.value) == (
        f"cannot read the pixel cache {shard}: the pixels of {name} have changed\n"
        "  delete that file and run the same command again; it is made anew"
    )
    assert np.array_equal(pixels[whole], expected(manifest)[whole])
    shard.unlink()
    assert same(open_pixels(manifest, PREP, tmp_path / "cache"), expected(manifest))


def refused(manifest: Manifest, prep: Preprocessing, folder: Path, shard: Path) -> bool:
    """Whether an image is refused by the name of the shard; where none is, all must be right."""
    try:
        assert same(open_pixels(manifest, prep, folder), expected(manifest, prep))
    except DataError as error:
        return str(shard) in error.what
    return False


def test_no_changed_bit_ever_gives_other_pixels(images, tmp_path):
    manifest = images(2)
    prep = replace(PREP, long_side_px=4)
    open_pixels(manifest, prep, tmp_path / "cache")
    (shard,) = shards_of(tmp_path / "cache")
    whole = shard.read_bytes()
    in_pixels = []
    for bit in np.random.default_rng(0).choice(8 * len(whole), 250, replace=False):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        shard.write_bytes(data)
        found = refused(manifest, prep, tmp_path / "cache", shard)
        if bit // 8 >= len(whole) - 2 * 3 * 4 * 3:
            in_pixels.append(found)
    assert len(in_pixels) > 10
    assert all(in_pixels)


def test_a_shard_that_is_gone_is_named(images, tmp_path):
    manifest = images(2)
    pixels = open_pixels(manifest, PREP, tmp_path / "cache")
    (shard,) = shards_of(tmp_path / "cache")
    shard.unlink()
    with pytest.raises(DataError, match=re.escape(f"cannot read the pixel cache {shard}: ")):
        pixels[0]


def test_an_interruption_loses_no_more_than_the_shard_under_way(images, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SHARD", 3)
    manifest = images(10)

    def interrupted(items, *, total, task):
        for done, item in enumerate(items, start=1):
            yield item
            if done == 8:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_pixels(manifest, PREP, tmp_path / "cache", progress=interrupted)
    assert len(shards_of(tmp_path / "cache")) == 2
    assert not list(tmp_path.rglob("*.tmp"))
    watch = Watch()
    pixels = open_pixels(manifest, PREP, tmp_path / "cache", progress=watch)
    assert watch.totals == [4]
    assert same(pixels, expected(manifest))


def test_an_image_that_cannot_be_decoded_is_named_and_no_shard_is_left(images, tmp_path):
    manifest = images(3)
    file = manifest.root / "01.png"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ImageError, match=r"cannot read .*/01\.png: damaged or truncated"):
        open_pixels(manifest, PREP, tmp_path / "cache")
    assert shards_of(tmp_path / "cache") == []


def test_a_place_that_cannot_be_written_is_named(images, tmp_path):
    manifest = images(1)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=re.escape(f"cannot write {tmp_path}/file/")):
        open_pixels(manifest, PREP, tmp_path / "file")


def test_a_full_disk_is_said_and_leaves_nothing(images, small_disk):
    manifest = images(12)
    disk = small_disk(8)
    with pytest.raises(OutputError, match="no space left on the device"):
        open_pixels(manifest, PREP, disk)
    assert [path for path in disk.rglob("*") if path.is_file()] == []


# ---- other processes


def test_it_survives_pickling_with_its_files_open(images, tmp_path):
    manifest = images(3)
    pixels = open_pixels(manifest, PREP, tmp_path / "cache")
    assert same(pixels, expected(manifest))
    again = pickle.loads(pickle.dumps(pixels))  # noqa: S301  our own
    assert again == pixels
    assert same(again, expected(manifest))


def test_another_process_reads_the_same_pixels(images, tmp_path):
    manifest = images(3)
    pixels = open_pixels(manifest, PREP, tmp_path / "cache")
    assert same(pixels, expected(manifest))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert same(pool.map(pixels.__getitem__, range(3)), expected(manifest))


def test_a_dropped_cache_is_gone_and_can_be_dropped_again(images, tmp_path):
    manifest = images(2)
    folder = tmp_path / "cache"
    open_pixels(manifest, PREP, folder)
    (folder / "features").mkdir()
    drop_pixels(folder)
    drop_pixels(folder)
    assert [path.name for path in folder.iterdir()] == ["features"]
