"""Features of the eight views: what they are, and when they are computed."""

from __future__ import annotations

import os
import shutil
import signal

import numpy as np
import pytest
import torch

from lobule.data.images import decode, dihedral_view
from lobule.data.scan import scan
from lobule.errors import ImageError
from lobule.models.backbones import load_backbone
from lobule.training.features import colour_statistics, embed
from lobule.training.signals import Interrupted


@pytest.fixture(scope="module")
def backbone():
    return load_backbone()


@pytest.fixture(scope="module")
def folder(tissue, tmp_path_factory):
    """Six photographs, of which one has another size."""
    root = tmp_path_factory.mktemp("six")
    for label in ("benign", "malignant"):
        (root / label).mkdir()
        for file in sorted((tissue.images / label).iterdir())[:3]:
            shutil.copy(file, root / label)
    return root


def test_features_are_those_of_torch_on_each_view(folder, backbone):
    manifest = scan(folder)
    prep = backbone.preprocessing(80)
    found = embed(manifest, backbone, prep)
    image = decode(manifest.file(manifest.table["path"].iat[2]))
    plain = torch.from_numpy(prep(image))
    for view in range(8):
        turned = torch.rot90(plain, view % 4, (1, 2))
        turned = turned.flip(2) if view >= 4 else turned
        with torch.inference_mode():
            expected = backbone.network(turned[None]).numpy()[0]
        assert np.abs(found.views[2, view] - expected).max() < 1e-4


def test_an_image_has_the_same_features_whoever_stands_beside_it(folder, backbone):
    manifest = scan(folder)
    prep = backbone.preprocessing(64)
    together = embed(manifest, backbone, prep)
    alone = embed(manifest.where(np.arange(6) == 4), backbone, prep)
    assert np.array_equal(together.views[4], alone.views[0])
    assert np.array_equal(together.colour[4], alone.colour[0])


def test_cached_features_are_read_back_without_the_images(folder, backbone, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    manifest = scan(copied)
    prep = backbone.preprocessing(64)
    first = embed(manifest, backbone, prep, cache=tmp_path / "cache")
    shutil.rmtree(copied)
    again = embed(manifest, backbone, prep, cache=tmp_path / "cache")
    assert np.array_equal(first.views, again.views)
    assert np.array_equal(first.colour, again.colour)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_image_under_way_be_kept(folder, backbone, tmp_path, number):
    manifest = scan(folder)
    prep = backbone.preprocessing(64)

    def stopping(items, *, total, task):
        for n, item in enumerate(items, start=1):
            if n == 3:
                os.kill(os.getpid(), number)
            yield item

    with pytest.raises(Interrupted, match=number.name):
        embed(manifest, backbone, prep, cache=tmp_path, progress=stopping)
    assert len(list(tmp_path.rglob("*.npz"))) == 3 < len(manifest)
    left = []
    embed(manifest, backbone, prep, cache=tmp_path,
          progress=lambda items, *, total, task: left.append(total) or items)  # fmt: skip
    assert left == [len(manifest) - 3]


def test_another_size_does_not_take_the_cached_features(folder, backbone, tmp_path):
    manifest = scan(folder)
    small = embed(manifest, backbone, backbone.preprocessing(48), cache=tmp_path)
    large = embed(manifest, backbone, backbone.preprocessing(64), cache=tmp_path)
    assert not np.allclose(small.views, large.views)


def test_colour_statistics_are_means_and_deviations_of_light_and_density():
    image = np.zeros((2, 2, 3), np.uint8)
    image[0] = 255
    found = colour_statistics(image)
    half_density = np.log10(256) / 2
    assert found[:3] == pytest.approx([0.5] * 3)
    assert found[3:6] == pytest.approx([0.5] * 3)
    assert found[6:9] == pytest.approx([half_density] * 3)
    assert found[9:] == pytest.approx([half_density] * 3)


def test_colour_statistics_of_a_large_photograph_are_as_exact_as_float64():
    # summed up in float32, those of a bright photograph are off in the third digit
    image = np.random.default_rng(0).integers(150, 256, (460, 700, 3), dtype=np.uint8)
    light = image.reshape(-1, 3) / 255
    density = -np.log10((image.reshape(-1, 3) + 1.0) / 256)
    expected = [*light.mean(0), *light.std(0), *density.mean(0), *density.std(0)]
    assert colour_statistics(image) == pytest.approx(expected, rel=1e-6)


def test_colour_statistics_do_not_depend_on_the_view():
    image = np.random.default_rng(0).integers(0, 255, (9, 5, 3), dtype=np.uint8)
    for view in range(8):
        turned = colour_statistics(np.ascontiguousarray(dihedral_view(image, view)))
        assert np.array_equal(turned, colour_statistics(image))


def test_an_unreadable_image_is_named_and_those_before_it_are_kept(folder, backbone, tmp_path):
    root = tmp_path / "folder"
    shutil.copytree(folder, root)
    (root / "malignant" / "zz.png").write_bytes(b"\x89PNG no more")
    manifest = scan(root)
    with pytest.raises(ImageError, match=r"zz\.png"):
        embed(manifest, backbone, backbone.preprocessing(48), cache=tmp_path / "cache")
    assert len(list(tmp_path.rglob("*.npz"))) == len(manifest) - 1


def test_a_damaged_cache_file_is_computed_again(folder, backbone, tmp_path):
    manifest = scan(folder)
    prep = backbone.preprocessing(64)
    first = embed(manifest, backbone, prep, cache=tmp_path)
    kept = sorted(tmp_path.rglob("*.npz"))[0]
    kept.write_bytes(kept.read_bytes()[:100])
    again = embed(manifest, backbone, prep, cache=tmp_path)
    assert np.array_equal(first.views, again.views)
