"""The settings of tuning: what each takes, and that nothing else gets in."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lobule.errors import UsageError
from lobule.training.recipe import RECIPES
from lobule.training.tuning import _RANGES, METRICS, Tuning

HINTS = get_type_hints(Tuning)

NUMBERS = [name for name, hint in HINTS.items() if hint in (int, float)]

CHOICES = [name for name, hint in HINTS.items() if get_origin(hint) is Literal]


def edges(name: str) -> tuple[list[float], list[float]]:
    """Values at the edges of a field's range, as its words tell them: inside, and just outside."""
    kind = HINTS[name]
    words = _RANGES[name][1]
    found: tuple[list[float], list[float]] = ([], [])

    def after(value: float, towards: float) -> float:
        step = int(math.copysign(1, towards - value))
        return value + step if kind is int else float(np.nextafter(value, towards))

    for part in words.split(" and "):
        if part.endswith(" or more"):
            edge, sign, within = part.removesuffix(" or more"), 1, True
        elif " to " in part:
            low, edge = part.split(" to ")
            found[0].append(kind(low))
            found[1].append(after(kind(low), -math.inf))
            sign, within = -1, True
        else:
            first, edge = part.rsplit(" ", 1)
            sign, within = {"at least": (1, True), "over": (1, False),
                            "at most": (-1, True), "below": (-1, False)}[first]  # fmt: skip
        value = kind(edge)
        found[0].append(value if within else after(value, sign * math.inf))
        found[1].append(after(value, -sign * math.inf) if within else value)
    return found


def test_every_number_has_a_range_and_every_other_field_a_choice():
    assert sorted(_RANGES) == sorted(NUMBERS)
    assert sorted(NUMBERS + CHOICES) == sorted(field.name for field in fields(Tuning))


@pytest.mark.parametrize("name", NUMBERS)
def test_the_edges_of_a_range_are_taken_and_what_lies_beyond_is_refused(name):
    inside, outside = edges(name)
    for value in inside:
        assert getattr(Tuning(**{name: value}), name) == value
    for value in [*outside, math.nan, -math.inf]:
        with pytest.raises(UsageError, match=f"{name} must be {_RANGES[name][1]}, got ") as caught:
            Tuning(**{name: value})
        assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", [name for name in NUMBERS if HINTS[name] is float])
def test_no_rate_or_share_is_infinite(name):
    with pytest.raises(UsageError, match=f"{name} must be .*, got inf"):
        Tuning(**{name: math.inf})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("zoom", 2.0, "zoom must be at least 0 and below 1, got 2"),
        ("zoom", 1.0, "zoom must be at least 0 and below 1, got 1"),
        ("lr", 0.0, "lr must be over 0 and at most 10, got 0"),
        ("lr", -1e-4, "lr must be over 0 and at most 10, got -0.0001"),
        ("dropout", 1.0, "dropout must be at least 0 and below 1, got 1"),
        ("epochs", 0, "epochs must be 1 or more, got 0"),
        ("batch_size", 1, "batch_size must be 2 or more, got 1"),
        ("layer_decay", 0.0, "layer_decay must be over 0 and at most 1, got 0"),
        ("brightness", 1.0, "brightness must be 0 to 0.5, got 1"),
        ("plateau_factor", 1.0, "plateau_factor must be over 0 and below 1, got 1"),
        ("plateau_patience", 0, "plateau_patience must be 1 or more, got 0"),
        ("ema", 1.0, "ema must be at least 0 and below 1, got 1"),
        ("validation", 0.0, "validation must be over 0 and at most 0.5, got 0"),
        ("patience", -1, "patience must be 0 or more, got -1"),
    ],
)
def test_what_no_training_can_use_is_refused_in_words(name, value, message):
    with pytest.raises(UsageError) as caught:
        Tuning(**{name: value})
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["select", "plateau_metric"])
def test_a_metric_that_is_not_measured_is_refused_at_the_start(name):
    with pytest.raises(UsageError) as caught:
        Tuning(**{name: "val_acc"})
    assert caught.value.what == f"{name} is 'val_acc', which is unknown"
    assert caught.value.fix.endswith(
        "there are: loss, accuracy, balanced_accuracy, roc_auc, average_precision"
    )
    for metric in METRICS:
        assert getattr(Tuning(**{name: metric}), name) == metric


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_outside_its_list_is_refused_with_the_list(name):
    with pytest.raises(UsageError) as caught:
        Tuning(**{name: "sgd"})
    assert caught.value.what == f"{name} is 'sgd', which is unknown"
    assert caught.value.fix.endswith("there are: " + ", ".join(get_args(HINTS[name])))


def test_the_nearest_choice_is_named():
    with pytest.raises(UsageError, match="did you mean accuracy\\? "):
        Tuning(select="acuracy")


@given(st.sampled_from(NUMBERS), st.floats())
def test_a_number_is_taken_or_refused_and_never_altered(name, value):
    try:
        made = Tuning(**{name: value})
    except UsageError as error:
        refused = error.what.startswith(f"{name} must be ")
        made = None
    else:
        refused = False
    assert refused if made is None else getattr(made, name) == value


@pytest.mark.parametrize("name", ["finetune", "densenet201"])
def test_the_settings_of_the_recipes_pass_their_own_checks(name):
    tuning = RECIPES[name].tuning
    assert Tuning(**vars(tuning)) == tuning
