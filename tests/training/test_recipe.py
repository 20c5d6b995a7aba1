"""The recipe: what it accepts, the automatic input size, and those that have a name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lobule.data.images import Preprocessing, decode
from lobule.data.manifest import Manifest, complete
from lobule.data.scan import scan
from lobule.data.stain import fit_stain_target, normalise_stain
from lobule.errors import DataError, UsageError
from lobule.models.backbones import load_backbone
from lobule.training.recipe import RECIPES, Recipe
from lobule.training.tuning import Tuning


@pytest.fixture(scope="module")
def backbone():
    return load_backbone()


def images(width: int, height: int) -> Manifest:
    rows = [{"path": f"{i}.png", "width": width, "height": height} for i in range(3)]
    return Manifest(Path(), complete(pd.DataFrame(rows)))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((50, 50), 224), ((350, 230), 350), ((230, 350), 350), ((700, 460), 560), ((2048, 1536), 560)],
)
def test_automatic_size_is_the_longer_side_within_224_and_560(backbone, size, expected):
    prep = Recipe().preprocessing(backbone, images(*size))
    assert (prep.long_side_px, prep.aspect) == (expected, "keep")


def test_a_size_that_is_given_is_taken(backbone):
    assert Recipe(long_side_px=96).preprocessing(backbone, images(700, 460)).long_side_px == 96


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "--folds must be 2 or more, got 1"),
        ({"long_side_px": 8}, "--size must be 32 to 4096 pixels, got 8"),
        ({"long_side_px": 4097}, "--size must be 32 to 4096 pixels, got 4097"),
        ({"sensitivity": 0.0}, "--sensitivity must be over 0 and at most 1, got 0"),
        ({"specificity": 1.1}, "--specificity must be over 0 and at most 1, got 1.1"),
        ({"recompression": 0}, "recompression must be 1 to 95, got 0"),
        ({"coverage": 1.0}, "coverage must be over 0 and below 1, got 1.0"),
        ({"sensitivity": 1.5}, "--sensitivity must be over 0 and at most 1, got 1.5"),
        ({"seed": -1}, "--seed must be 0 or more, got -1"),
    ],
)
def test_what_no_run_can_use_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Recipe(**options)


def test_every_recipe_has_the_name_it_is_called_by():
    assert {name: recipe.name for name, recipe in RECIPES.items()} == {
        name: name for name in ("features", "finetune", "densenet201")
    }
    assert RECIPES["features"].tuning is None


@pytest.mark.parametrize("name", ["features", "finetune", "densenet201"])
def test_a_recipe_is_written_in_plain_types_and_read_back(name):
    recipe = RECIPES[name]
    stored = json.loads(json.dumps(recipe.to_json(), allow_nan=False))
    tuning = stored.pop("tuning")
    assert Recipe(**stored, tuning=None if tuning is None else Tuning(**tuning)) == recipe


def test_a_file_of_weights_is_written_as_its_path():
    assert Recipe(weights=Path("a/b.safetensors")).to_json()["weights"] == "a/b.safetensors"
    assert Recipe(weights="none").to_json()["weights"] == "none"


ORIGIN = {
    # the numbers are the rows of the table of what the tutorial asks for
    "backbone": "densenet201",  # 9
    "long_side_px": 224,  # 2, without the squash
    "batch_size": 16,  # 6
    "dropout": 0.5,  # 9
    "head": "random",  # 9
    "unfreeze_share": 1.0,  # 9: all 18,100,610 parameters learn
    "unfreeze_epochs": 0,  # and from the first step on
    "layer_decay": 1.0,  # at one rate
    "norm_statistics": "updated",  # 9: 18,333,506 with batch-norm statistics
    "optimizer": "adam",  # 10
    "lr": 1e-4,  # 10
    "weight_decay": 0.0,  # 10
    "label_smoothing": 0.0,  # 10
    "clip_norm": 0.0,  # 10
    "balance": "none",  # 10: every image counts alike
    "schedule": "plateau",  # 12
    "plateau_metric": "accuracy",  # 12
    "plateau_patience": 5,  # 12
    "plateau_factor": 0.2,  # 12
    "min_lr": 1e-7,  # 12
    "warmup_epochs": 0,  # 12
    "ema": 0.0,  # 13: the weights themselves are kept
    "epochs": 60,  # 14
    "patience": 0,  # 14: an early stop is offered, not taken
    "validation": 0.2,  # 4, of patients
}


def test_the_recipe_of_the_origin_is_its_table():
    recipe = RECIPES["densenet201"]
    found = vars(recipe.tuning) | {
        key: getattr(recipe, key) for key in ("backbone", "long_side_px", "weights")
    }
    assert {key: found[key] for key in ORIGIN} == ORIGIN
    # its ImageNet weights, which have a mean and standard deviation of their own (8)
    assert recipe.weights is None


def test_the_recipe_of_the_origin_is_mended_where_the_origin_was_wrong():
    tuning = RECIPES["densenet201"].tuning
    # 7: a zoom of 2 meant factors from -1 to 3
    assert 0 < tuning.zoom < 1
    # 13: the best of 60 noisy accuracies on few images is luck
    assert tuning.select == "loss"


# ---- stain


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_stain_is_normalised_towards_the_middle_of_the_images(method, backbone, tissue):
    manifest = scan(tissue.images)
    prep = Recipe(long_side_px=96, stain_normalisation=method).preprocessing(backbone, manifest)
    plain = Recipe(long_side_px=96).preprocessing(backbone, manifest)
    assert (plain.stain, prep.stain.method) == (None, method)
    assert prep.id != plain.id
    # 48 images are fewer than are asked, so that all of them tell
    images = [plain.resize(decode(manifest.file(path))) for path in manifest.table["path"]]
    assert prep.stain == fit_stain_target(images, method)
    assert np.array_equal(prep.resize(images[0]), normalise_stain(images[0], prep.stain)[0])
    assert not np.array_equal(prep.resize(images[0]), images[0])


def test_the_way_an_image_is_made_ready_is_written_and_read_back(backbone, tissue):
    recipe = Recipe(long_side_px=96, stain_normalisation="macenko")
    prep = recipe.preprocessing(backbone, scan(tissue.images))
    stored = json.loads(json.dumps(prep.to_json()))
    assert Preprocessing.from_json(stored) == prep
    assert "stain" not in Recipe().preprocessing(backbone, scan(tissue.images)).to_json()
    with pytest.raises(DataError, match="stain target cannot be used"):
        Preprocessing.from_json(stored | {"stain": {"method": "macenko"}})
