"""The sheet of augmented images: the originals as they are, and beside them what training sees."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lobule.data.images import decode
from lobule.errors import OutputError
from lobule.training.augment import augment
from lobule.training.batches import EpochShare, Examples, load, plan_epoch
from lobule.training.preview import (
    DRAWN,
    GAP_PX,
    ORIGINALS,
    WIDTH_PX,
    augmentation_sheet,
    write_sheet,
)
from lobule.training.tuning import Tuning

CANVAS = (20, 30)

OFF = Tuning(zoom=0, shift=0, stain=0, brightness=0, blur_px=0)


def noise(n: int, size: tuple[int, int] = CANVAS, *, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(n)]


def examples_of(y: Sequence[int]) -> Examples:
    return Examples(np.arange(len(y)), np.array(y), np.ones(len(y)))


def cells(sheet: np.ndarray, canvas: tuple[int, int] = CANVAS) -> np.ndarray:
    """Return the pictures of a sheet, (ORIGINALS, 1 + DRAWN, h, w, 3)."""
    height, width = canvas
    rows, columns = ORIGINALS, 1 + DRAWN
    assert sheet.dtype == np.uint8
    assert sheet.shape == (
        rows * height + (rows - 1) * GAP_PX, columns * width + (columns - 1) * GAP_PX, 3,
    )  # fmt: skip
    return np.array([
        [
            sheet[i * (height + GAP_PX) :, j * (width + GAP_PX) :][:height, :width]
            for j in range(columns)
        ]
        for i in range(rows)
    ])  # fmt: skip


def which(picture: np.ndarray, images: Sequence[np.ndarray]) -> int:
    """Return the one image that the picture is, to the bit."""
    (found,) = [i for i, image in enumerate(images) if np.array_equal(picture, image)]
    return found


def laid(image: np.ndarray) -> np.ndarray:
    return np.rot90(image) if image.shape[0] > image.shape[1] else image


# ---- what stands where


def test_pictures_stand_in_rows_of_an_original_and_five_views_with_white_between(keep_pixels):
    # no pixel of these is white
    images = [np.minimum(image, 200) for image in noise(8)]
    sheet = augmentation_sheet(keep_pixels(images), examples_of([0, 1] * 4), OFF, seed=0)
    assert cells(sheet).max() == 200
    white = (sheet == 255).all(axis=2)
    height, width = CANVAS
    for axis, size, n in ((1, height, 4), (0, width, 6)):
        lines = np.flatnonzero(white.all(axis=axis))
        wanted = [k * size + (k - 1) * 4 + i for k in range(1, n) for i in range(4)]
        assert lines.tolist() == wanted
    assert white.sum() == sheet[..., 0].size - 4 * 6 * height * width


def test_the_left_column_is_photographs_of_every_class_untouched(keep_pixels):
    images = noise(20)
    y = [0] * 14 + [1] * 6
    sheet = augmentation_sheet(keep_pixels(images), examples_of(y), Tuning(), seed=0)
    shown = [which(line[0], images) for line in cells(sheet)]
    assert len(set(shown)) == 4
    assert [y[i] for i in shown] == [0, 1, 0, 1]
    # not the first ones, which are often of one patient
    assert [shown[0], shown[2]] == [14 // 3, 28 // 3]
    assert [shown[1], shown[3]] == [14 + 2, 14 + 4]


def test_only_examples_are_shown(keep_pixels):
    images = noise(12)
    rows = np.array([9, 2, 7, 4, 11])
    examples = Examples(rows, np.array([0, 1, 0, 1, 0]), np.ones(5))
    sheet = augmentation_sheet(keep_pixels(images), examples, Tuning(), seed=0)
    assert {which(line[0], images) for line in cells(sheet)} <= set(rows.tolist())


@pytest.mark.parametrize("n_classes", [1, 2, 3, 4])
def test_up_to_four_classes_are_all_shown(keep_pixels, n_classes):
    images = noise(24)
    y = np.arange(24) % n_classes
    sheet = augmentation_sheet(keep_pixels(images), examples_of(y), Tuning(), seed=0)
    shown = [which(line[0], images) for line in cells(sheet)]
    assert {int(y[i]) for i in shown} == set(range(n_classes))
    assert len(set(shown)) == 4


@pytest.mark.parametrize("y", [[0], [1], [0, 1], [0, 0, 1], [0, 1, 2]])
def test_few_images_fill_the_sheet_and_all_are_there(keep_pixels, y):
    images = noise(len(y))
    sheet = augmentation_sheet(keep_pixels(images), examples_of(y), Tuning(), seed=0)
    shown = {which(line[0], images) for line in cells(sheet)}
    assert {y[i] for i in shown} == set(y)
    if len(set(y)) == len(y):
        assert shown == set(range(len(y)))


# ---- the views


def test_the_views_to_the_right_differ_from_the_original_and_from_each_other(keep_pixels):
    sheet = augmentation_sheet(
        keep_pixels(noise(8)), examples_of([0, 1] * 4), Tuning(), seed=0
    )  # fmt: skip
    for line in cells(sheet):
        assert len({picture.tobytes() for picture in line}) == 1 + DRAWN


def test_the_views_are_those_that_training_sees_in_its_first_epochs(keep_pixels):
    images = noise(9) + noise(3, CANVAS[::-1], seed=1)
    pixels, examples = keep_pixels(images), examples_of([0, 1, 1] * 4)
    tuning = Tuning(batch_size=5)
    shown = cells(augmentation_sheet(pixels, examples, tuning, seed=7))
    rows = [which(line[0], [laid(image) for image in images]) for line in shown]
    for epoch in range(1, 1 + DRAWN):
        plan = plan_epoch(pixels, examples, tuning, seed=7, epoch=epoch)
        share = EpochShare(pixels, examples, tuning, plan, seed=7, epoch=epoch, n_features=11)
        seen = {}
        for batch in load(share, start=0, workers=0):
            light = augment(batch.images, batch.draws).permute(0, 2, 3, 1).numpy()
            seen |= dict(zip(batch.rows.tolist(), light, strict=True))
        for line, row in zip(shown, rows, strict=True):
            # a level of 256 is what the sheet rounds to
            assert np.abs(line[epoch] / 255 - laid(seen[row])).max() <= 0.51 / 255


def test_where_nothing_but_the_view_is_drawn_the_views_are_exact(keep_pixels):
    images = noise(8)
    sheet = augmentation_sheet(keep_pixels(images), examples_of([0, 1] * 4), OFF, seed=3)
    seen = set()
    for line in cells(sheet):
        original = line[0]
        # of the eight views four lie, and the other four lie once they are turned
        lying = [original, original[::-1], original[:, ::-1], original[::-1, ::-1]]
        seen |= {which(picture, lying) for picture in line[1:]}
    assert seen == {0, 1, 2, 3}


def test_the_same_seed_gives_the_same_sheet_and_another_seed_other_views(keep_pixels):
    pixels, examples = keep_pixels(noise(8)), examples_of([0, 1] * 4)
    one, same, other = (
        augmentation_sheet(pixels, examples, Tuning(), seed=seed) for seed in (5, 5, 6)
    )
    assert np.array_equal(one, same)
    assert np.array_equal(cells(one)[:, 0], cells(other)[:, 0])
    for line, redrawn in zip(cells(one)[:, 1:], cells(other)[:, 1:], strict=True):
        assert not {p.tobytes() for p in line} & {p.tobytes() for p in redrawn}


# ---- images of other sizes


def test_upright_photographs_are_laid_down_and_otherwise_untouched(keep_pixels):
    images = noise(8, CANVAS[::-1])
    sheet = augmentation_sheet(keep_pixels(images), examples_of([0, 1] * 4), OFF, seed=0)
    for line in cells(sheet):
        which(line[0], [np.rot90(image) for image in images])
        lying = [line[0], line[0][::-1], line[0][:, ::-1], line[0][::-1, ::-1]]
        for picture in line[1:]:
            which(picture, lying)


def test_square_photographs_stay_as_they_stand(keep_pixels):
    images = noise(8, (24, 24))
    sheet = augmentation_sheet(keep_pixels(images), examples_of([0, 1] * 4), OFF, seed=0)
    for line in cells(sheet, (24, 24)):
        which(line[0], images)
        views = [turned for k in range(4)
                 for turned in (np.rot90(line[0], k), np.rot90(line[0], k)[:, ::-1])]  # fmt: skip
        for picture in line[1:]:
            which(picture, views)


def test_of_a_photograph_that_is_larger_than_most_the_middle_is_shown(keep_pixels):
    images = [*noise(3), *noise(1, (26, 40), seed=1), *noise(3, seed=2)]
    examples = examples_of([0, 0, 0, 1, 0, 0, 0])
    shown = cells(augmentation_sheet(keep_pixels(images), examples, Tuning(), seed=0))
    assert np.array_equal(shown[1, 0], images[3][3:23, 5:35])


# ---- the file


@pytest.fixture
def smooth() -> np.ndarray:
    """A sheet without detail, which JPEG keeps."""
    y, x = np.mgrid[:300, :500]
    return np.stack([x // 2, y // 2, np.full_like(x, 90)], axis=2).astype(np.uint8)


def test_the_file_is_a_jpeg_of_the_sheet(smooth, tmp_path):
    write_sheet(smooth, tmp_path / "new" / "augmented.jpg")
    with Image.open(tmp_path / "new" / "augmented.jpg") as image:
        assert image.format == "JPEG"
    found = decode(tmp_path / "new" / "augmented.jpg")
    assert found.shape == smooth.shape
    assert np.abs(found.astype(int) - smooth).mean() < 2
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["augmented.jpg"]


def test_a_wide_sheet_is_made_smaller_and_keeps_its_shape(smooth, tmp_path):
    wide = smooth.repeat(5, axis=0).repeat(5, axis=1)
    write_sheet(wide, tmp_path / "augmented.jpg")
    found = decode(tmp_path / "augmented.jpg")
    assert found.shape == (1500 * WIDTH_PX // 2500, WIDTH_PX, 3)
    there = np.asarray(Image.fromarray(wide).resize(found.shape[1::-1], Image.Resampling.BOX))
    assert np.abs(found.astype(int) - there).mean() < 2


def test_the_same_sheet_gives_the_same_file(smooth, tmp_path):
    for name in ("a.jpg", "b.jpg"):
        write_sheet(smooth, tmp_path / name)
    assert (tmp_path / "a.jpg").read_bytes() == (tmp_path / "b.jpg").read_bytes()


def test_an_earlier_file_is_replaced_and_not_written_into(smooth, tmp_path):
    path, kept = tmp_path / "augmented.jpg", tmp_path / "another name of it"
    write_sheet(smooth, path)
    before = path.read_bytes()
    os.link(path, kept)
    write_sheet(255 - smooth, path)
    assert kept.read_bytes() == before
    assert np.abs(decode(path).astype(int) - (255 - smooth)).mean() < 2
    assert len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_is_said_and_leaves_the_earlier_file(smooth, small_disk):
    disk: Path = small_disk(64)
    write_sheet(smooth, disk / "augmented.jpg")
    before = (disk / "augmented.jpg").read_bytes()
    (detailed,) = noise(1, (600, 1000))
    with pytest.raises(OutputError, match=r"cannot write .*augmented\.jpg: no space left"):
        write_sheet(detailed, disk / "augmented.jpg")
    assert (disk / "augmented.jpg").read_bytes() == before
    assert [path.name for path in disk.iterdir()] == ["augmented.jpg"]
