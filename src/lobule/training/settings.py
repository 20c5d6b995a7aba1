"""Recipes by name or TOML file, and the settings that override them, typed and checked.

A setting is a field of `Recipe` or of `Tuning`; their names do not overlap, so a flat
`lr = 3e-4` says which is meant.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lobule.errors import UsageError, nearest, show
from lobule.training.recipe import RECIPES, Recipe
from lobule.training.tuning import Tuning

OF_RECIPE = tuple(f.name for f in fields(Recipe) if f.name not in ("name", "tuning"))
OF_TUNING = tuple(f.name for f in fields(Tuning))


def make_recipe(recipe: str = "features", settings: Mapping[str, object] | None = None) -> Recipe:
    """Return a recipe, its fields overridden by `settings`.

    recipe: a name of RECIPES, or a TOML file of settings with `recipe = "<name>"` among them.
    settings: by name of a field, of TOML's types; they win over those of the file.
    Raises UsageError for an unknown recipe or key (with the nearest), or a value of another type
    or out of range.
    """
    given = dict(settings or {})
    source = None
    if recipe.lower().endswith(".toml"):
        source = f"the recipe {show(recipe)}"
        stored = _read_toml(Path(recipe))
        recipe = str(stored.pop("recipe", "finetune"))
        given = {**stored, **given}
    if recipe not in RECIPES:
        fix = nearest(recipe, RECIPES) + "; or name a TOML file"
        raise UsageError(f"no recipe is called {recipe!r}", fix=fix)
    return override(RECIPES[recipe], given, source=source)


def override(
    recipe: Recipe, settings: Mapping[str, object], *, source: str | None = None
) -> Recipe:
    """Return `recipe` with fields replaced; arguments and errors as `make_recipe`."""
    known = OF_RECIPE if recipe.tuning is None else OF_RECIPE + OF_TUNING
    for key in settings:
        if key not in known:
            what = f"no setting of recipe {recipe.name!r} is called {key!r}"
            if key in OF_TUNING:
                fix = f"{key} belongs to tuning a network: --recipe finetune or densenet201"
            else:
                fix = nearest(key, known)
            raise UsageError(what if source is None else f"{source}: {what}", fix=fix)
    own = {k: _typed(k, v, Recipe) for k, v in settings.items() if k in OF_RECIPE}
    tuning = {k: _typed(k, v, Tuning) for k, v in settings.items() if k in OF_TUNING}
    if recipe.tuning is not None:
        own["tuning"] = replace(recipe.tuning, **tuning)
    return replace(recipe, **own)


def parse_settings(pairs: Sequence[str]) -> dict[str, object]:
    """Read "lr=3e-4" and the like, each value as TOML would; what is no TOML value is text.

    Raises UsageError for one without an equals sign.
    """
    found: dict[str, object] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set takes KEY=VALUE, got {pair!r}", fix="as in --set lr=3e-4")
        try:
            found[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            found[key.strip()] = text.strip()
    return found


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"cannot read the recipe {show(path)}: {(error.strerror or str(error)).lower()}"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the recipe {show(path)} is not TOML: {error}", fix='as in: recipe = "finetune"'
        ) from error


def _typed(key: str, value: object, owner: type) -> Any:  # noqa: ANN401  a field's own type
    """Return `value` as the type of the field, or raise UsageError saying what it takes."""
    hint = get_type_hints(owner)[key]
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if type(None) in options and value in (None, "auto"):
        return None
    for option in options:
        if get_origin(option) is Literal and value in get_args(option):
            return value
        if option is Path and isinstance(value, str | Path):
            return Path(value)
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if option in (int, str) and type(value) is option:
            return value
    raise UsageError(f"{key} takes {_told(options)}, got {value!r}", fix=_near(value, options))


_WORDS = {int: "a whole number", float: "a number", str: "text", Path: "a file",
          type(None): '"auto"'}  # fmt: skip


def _told(options: Sequence[Any]) -> str:
    words = [
        f"one of {', '.join(map(str, get_args(option)))}"
        if get_origin(option) is Literal
        else _WORDS[option]
        for option in options
    ]
    return " or ".join(words)


def _near(value: object, options: Sequence[Any]) -> str | None:
    choices = [str(c) for option in options if get_origin(option) is Literal
               for c in get_args(option)]  # fmt: skip
    return nearest(value, choices) if isinstance(value, str) and len(choices) > 1 else None
