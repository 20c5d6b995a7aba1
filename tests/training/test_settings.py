"""Recipes by name and file, and settings over them: the right type or a reason, never a guess."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lobule.errors import UsageError
from lobule.training.recipe import RECIPES, Recipe
from lobule.training.settings import (
    OF_RECIPE,
    OF_TUNING,
    make_recipe,
    override,
    parse_settings,
)
from lobule.training.tuning import Tuning


def refusal(recipe: str = "finetune", **settings: object) -> UsageError:
    with pytest.raises(UsageError) as caught:
        make_recipe(recipe, settings)
    return caught.value


# ---- which recipe, and which settings it has


@pytest.mark.parametrize("name", ["features", "finetune", "densenet201"])
def test_a_recipe_without_settings_is_the_named_one(name):
    assert make_recipe(name) == RECIPES[name]
    assert make_recipe(name).name == name


def test_features_is_the_default():
    assert make_recipe() == Recipe()


def test_an_unknown_recipe_is_refused_with_the_nearest():
    assert str(refusal("finetun")) == (
        "no recipe is called 'finetun'\n"
        "  did you mean finetune? there are: features, finetune, densenet201; or name a TOML file"
    )


def test_settings_go_to_the_recipe_and_to_its_tuning_and_nothing_else_changes():
    made = make_recipe("finetune", {"folds": 3, "lr": 1e-3, "head": "random"})
    changed = {(f, v) for f, v in vars(made.tuning).items() if v != getattr(Tuning(), f)}
    assert changed == {("lr", 1e-3), ("head", "random")}
    differs = {f for f in OF_RECIPE if getattr(made, f) != getattr(RECIPES["finetune"], f)}
    assert (differs, made.folds) == ({"folds"}, 3)
    assert RECIPES["finetune"].folds == 5


def test_no_name_belongs_to_the_recipe_and_to_its_tuning():
    assert not set(OF_RECIPE) & set(OF_TUNING)
    assert {"name", "tuning"} | set(OF_RECIPE) == {field.name for field in fields(Recipe)}


@pytest.mark.parametrize(
    ("key", "near"),
    [("learning_rate", None), ("epoch", "epochs"), ("drop_out", "dropout"), ("fold", "folds"),
     ("batchsize", "batch_size"), ("zooom", "zoom"), ("val_split", "validation")],
)  # fmt: skip
def test_an_unknown_key_is_refused_with_the_nearest(key, near):
    error = refusal(**{key: 1})
    assert error.what == f"no setting of recipe 'finetune' is called {key!r}"
    assert error.fix.startswith("there are: " if near is None else f"did you mean {near}? ")
    for known in ("backbone", "folds", "lr", "zoom"):
        assert re.search(rf"\b{known}\b", error.fix)


@pytest.mark.parametrize("key", ["name", "tuning"])
def test_what_a_recipe_is_called_and_made_of_is_no_setting(key):
    assert refusal(**{key: "x"}).what == f"no setting of recipe 'finetune' is called {key!r}"


@pytest.mark.parametrize("key", OF_TUNING)
def test_a_recipe_that_tunes_nothing_refuses_settings_of_tuning_and_says_why(key):
    error = refusal("features", **{key: 1})
    assert str(error) == (
        f"no setting of recipe 'features' is called {key!r}\n"
        f"  {key} belongs to tuning a network: --recipe finetune or densenet201"
    )


# ---- types


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("epochs", True, "epochs takes a whole number, got True"),
        ("epochs", 2.5, "epochs takes a whole number, got 2.5"),
        ("epochs", 2.0, "epochs takes a whole number, got 2.0"),
        ("epochs", "12", "epochs takes a whole number, got '12'"),
        ("lr", "fast", "lr takes a number, got 'fast'"),
        ("lr", False, "lr takes a number, got False"),
        ("lr", [1e-3], "lr takes a number, got [0.001]"),
        ("lr", None, "lr takes a number, got None"),
        ("backbone", 201, "backbone takes text, got 201"),
        ("long_side_px", 224.0, 'long_side_px takes a whole number or "auto", got 224.0'),
        ("long_side_px", "big", 'long_side_px takes a whole number or "auto", got \'big\''),
        ("weights", 3, 'weights takes one of none or a file or "auto", got 3'),
        ("select", 3, "select takes one of loss, accuracy, balanced_accuracy, roc_auc, "
         "average_precision, got 3"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_with_what_is_taken(key, value, said):
    assert refusal(**{key: value}).what == said


@pytest.mark.parametrize("key", ["select", "plateau_metric"])
def test_a_metric_by_its_old_name_is_refused_with_those_there_are(key):
    error = refusal(**{key: "val_acc"})
    assert error.what == (
        f"{key} takes one of loss, accuracy, balanced_accuracy, roc_auc, average_precision, "
        "got 'val_acc'"
    )
    assert error.fix.endswith(
        "there are: loss, accuracy, balanced_accuracy, roc_auc, average_precision"
    )


def test_a_choice_that_is_misspelt_is_told_the_nearest():
    assert refusal(optimizer="adamww").fix == "did you mean adamw? there are: adam, adamw"


def test_a_whole_number_is_a_number():
    made = make_recipe("finetune", {"clip_norm": 2, "sensitivity": 1})
    assert type(made.tuning.clip_norm) is type(made.sensitivity) is float
    assert (made.tuning.clip_norm, made.sensitivity) == (2.0, 1.0)


def test_auto_leaves_to_lobule_what_it_can_find():
    made = make_recipe("finetune", {"long_side_px": "auto", "weights": "auto"})
    assert made.long_side_px is None
    assert made.weights is None


@pytest.mark.parametrize(
    ("given", "taken"),
    [("none", "none"), ("w.safetensors", Path("w.safetensors")), (Path("w"), Path("w"))],
)
def test_weights_are_a_file_or_none(given, taken):
    made = make_recipe("finetune", {"weights": given})
    assert made.weights == taken
    assert type(made.weights) is type(taken)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"zoom": 2}, "zoom must be at least 0 and below 1, got 2"),
        ({"lr": float("nan")}, "lr must be over 0 and at most 10, got nan"),
        ({"epochs": 0}, "epochs must be 1 or more, got 0"),
        ({"folds": 1}, "--folds must be 2 or more, got 1"),
        ({"sensitivity": float("nan")}, "--sensitivity must be over 0 and at most 1, got nan"),
    ],
)
def test_a_value_out_of_range_is_refused(settings, said):
    assert refusal(**settings).what == said


toml_values = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=12),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=3), st.integers()),
)  # fmt: skip


def set_one(key: str, value: object) -> tuple[str, object]:
    """Set one field: ("taken", what it is then), or ("refused", the message)."""
    try:
        made = make_recipe("finetune", {key: value})
    except UsageError as error:
        return "refused", error.what
    return "taken", getattr(made.tuning if key in OF_TUNING else made, key)


@given(st.sampled_from(OF_RECIPE + OF_TUNING), toml_values)
def test_whatever_is_set_is_taken_as_it_is_or_refused_by_name(key, value):
    outcome, found = set_one(key, value)
    if outcome == "refused":
        assert re.match(rf"(--)?({key}|size) (takes|must be) ", str(found))
    else:
        assert type(value) is not bool
        meant = {"auto": None, "none": "none"}.get(str(value), value)
        assert found == (Path(meant) if key == "weights" and meant not in (None, "none") else meant)


# ---- KEY=VALUE


@pytest.mark.parametrize(
    ("pair", "found"),
    [
        ("lr=3e-4", {"lr": 3e-4}),
        ("lr = 3e-4", {"lr": 3e-4}),
        ("epochs=12", {"epochs": 12}),
        ("head=random", {"head": "random"}),
        ('head="random"', {"head": "random"}),
        ("weights=a=b.safetensors", {"weights": "a=b.safetensors"}),
        ("weights=/data/my weights.safetensors", {"weights": "/data/my weights.safetensors"}),
        ("x=true", {"x": True}),
        ("x=", {"x": ""}),
        ("x=1\ny = 2", {"x": 1}),
    ],
)
def test_a_pair_is_read_as_toml_would_and_else_as_text(pair, found):
    assert parse_settings([pair]) == found


def test_of_two_pairs_of_one_key_the_later_wins():
    assert parse_settings(["lr=1", "epochs=2", "lr=3"]) == {"lr": 3, "epochs": 2}


@pytest.mark.parametrize("pair", ["lr", "", "=3", " = 3"])
def test_what_is_no_pair_is_refused(pair):
    with pytest.raises(UsageError) as caught:
        parse_settings([pair])
    assert str(caught.value) == (f"--set takes KEY=VALUE, got {pair!r}\n  as in --set lr=3e-4")


@given(st.sampled_from([name for name in OF_TUNING if name in ("lr", "weight_decay", "blur_px")]),
       st.floats(0.001, 1))  # fmt: skip
def test_a_float_that_python_prints_is_read_back(key, value):
    made = make_recipe("finetune", parse_settings([f"{key}={value!r}"]))
    assert getattr(made.tuning, key) == value


# ---- TOML files


@pytest.fixture
def toml(tmp_path):
    def write(text: str, name: str = "mine.toml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


def test_a_file_is_a_recipe_and_what_is_set_beside_it_wins(toml):
    file = toml('recipe = "densenet201"\nepochs = 30\nlr = 2e-4\nlong_side_px = 320\n')
    made = make_recipe(file, {"epochs": 3})
    wanted = override(RECIPES["densenet201"], {"epochs": 3, "lr": 2e-4, "long_side_px": 320})
    assert made == wanted
    assert (made.tuning.epochs, made.tuning.lr, made.long_side_px) == (3, 2e-4, 320)
    # what neither names is of the recipe
    assert (made.name, made.tuning.plateau_patience, made.tuning.dropout) == ("densenet201", 5, 0.5)


def test_a_file_that_names_no_recipe_is_of_finetune(toml):
    assert make_recipe(toml("lr = 1e-3")) == override(RECIPES["finetune"], {"lr": 1e-3})
    assert make_recipe(toml("", "EMPTY.TOML")) == RECIPES["finetune"]


def test_a_file_of_an_unknown_recipe_is_refused(toml):
    assert str(refusal(toml('recipe = "densenet"'))) == (
        "no recipe is called 'densenet'\n  did you mean densenet201? "
        "there are: features, finetune, densenet201; or name a TOML file"
    )


def test_an_unknown_key_in_a_file_is_named_with_the_file(toml):
    file = toml("learning_rate = 1e-3")
    assert refusal(file).what == (
        f"the recipe {file}: no setting of recipe 'finetune' is called 'learning_rate'"
    )


def test_a_file_that_is_no_toml_or_not_there_is_said(toml, tmp_path):
    file = toml("lr = = 3")
    error = refusal(file)
    assert error.what.startswith(f"the recipe {file} is not TOML: ")
    assert error.fix == 'as in: recipe = "finetune"'
    (tmp_path / "bytes.toml").write_bytes(b"lr = \xff")
    assert refusal(str(tmp_path / "bytes.toml")).what.startswith(
        f"the recipe {tmp_path}/bytes.toml is not TOML: "
    )
    assert refusal(f"{tmp_path}/none.toml").what == (
        f"cannot read the recipe {tmp_path}/none.toml: no such file or directory"
    )


def test_every_setting_can_stand_in_a_file(toml):
    recipe = RECIPES["densenet201"]
    rows = {key: getattr(recipe, key) for key in OF_RECIPE} | vars(recipe.tuning)
    lines = [f"{key} = {value!r}" for key, value in rows.items() if value is not None]
    made = make_recipe(toml('recipe = "finetune"\n' + "\n".join(lines)))
    assert made.tuning == recipe.tuning
    assert (made.backbone, made.long_side_px) == (recipe.backbone, recipe.long_side_px)
