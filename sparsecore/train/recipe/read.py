"""Reading a recipe: YAML or a dict, checked as a whole before anything is done."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsecore.errors import RecipeError, require_extra
from sparsecore.lookup import close_matches
from sparsecore.methods import REQUIRED, Method, find_method, read_options
from sparsecore.train.recipe.marks import Document, parse
from sparsecore.train.recipe.timeline import find_conflict
from sparsecore.train.strategies import Stage, Strategy, recipe_methods, recipe_options, strategy_class

if TYPE_CHECKING:
    from sparsecore.train.recipe.schema import Recipe, StrategyEntry

# What does not change the weights that come out.
_FREE = ("output", "checkpoint_every")
# What to say instead of the name of a class of the schema.
_WANTED = {
    "StrategyEntry": "a dictionary such as {name: magnitude, sparsity: 0.5}",
    "Call": "a dictionary with a name, or a name alone",
}


@dataclass(frozen=True)
class CheckedRecipe:
    """A recipe without any error that shows before it is tried on a model.

    Attributes:
        recipe: What it says.
        document: Where it says so, for errors.
        plans: Method, options and epochs of each strategy.
    """

    recipe: Recipe
    document: Document
    plans: tuple[tuple[Method, dict[str, Any], int, int], ...]

    def make_strategies(self) -> list[Strategy]:
        """Return new strategies, none of which has begun."""
        return [strategy_class(method)(method, options, start, end) for method, options, start, end in self.plans]

    def digest(self) -> str:
        """Return a hash of all that decides about the weights, the same for the same recipe wherever it stands."""
        content = self.recipe.model_dump(mode="json", exclude=set(_FREE))
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def read_recipe(source: str | os.PathLike[str] | Mapping[str, Any]) -> CheckedRecipe:
    """Read and check a recipe.

    Args:
        source: A YAML file, or its content as a dict.

    Raises:
        RecipeError: It is wrong; the message begins with file, line and column.
        TypeError: It is something else.
        MissingExtraError: pydantic or PyYAML is not installed.
        OSError: The file cannot be read.

    Example:
        >>> checked = read_recipe({"epochs": 3, "strategies": [{"name": "magnitude", "sparsity": 0.9, "start": 2}]})
        >>> checked.recipe.batch, checked.plans[0][2:]
        (64, (2, 2))
        >>> read_recipe({"epochs": 3, "epoch": 4})
        Traceback (most recent call last):
        sparsecore.errors.RecipeError: recipe: epoch: unknown key, perhaps you meant epochs
    """
    require_extra("pydantic", "recipes")
    if isinstance(source, Mapping):
        document = Document(_plain(source))
    elif not isinstance(source, str | os.PathLike):
        raise TypeError(f"expected a recipe as the path of a YAML file or as a dict, got {type(source).__name__}")
    else:
        try:
            document = parse(Path(source).read_text(encoding="utf-8"), os.fspath(source))
        except UnicodeDecodeError as error:
            raise RecipeError(f"{os.fspath(source)}: expected text in UTF-8 ({error.reason})") from error
    if not isinstance(document.content, Mapping):
        raise document.error((), "expected keys such as epochs: 10")
    from sparsecore.train.recipe.schema import Recipe

    recipe: Recipe = _validated(Recipe, document.content, document, ())
    _check_compile_options(recipe, document)
    checked = CheckedRecipe(
        recipe,
        document,
        tuple(_plan(entry, recipe.epochs, document, index) for index, entry in enumerate(recipe.strategies)),
    )
    if conflict := find_conflict(checked.make_strategies(), recipe.epochs):
        raise document.error(("strategies", conflict.strategy, conflict.key), conflict.message)
    return checked


def _plain(source: Mapping[str, Any]) -> Any:
    """Return what a file could hold too."""
    try:
        return json.loads(json.dumps(source))
    except (TypeError, ValueError) as error:
        raise RecipeError(f'recipe: expected what YAML has, and functions as "module:function" ({error})') from error


def _plan(entry: StrategyEntry, epochs: int, document: Document, index: int) -> tuple[Method, dict[str, Any], int, int]:
    """Return the method of a strategy, its checked options, and its epochs."""
    path = ("strategies", index)
    usable = [method.name for method in recipe_methods()]
    if entry.name not in usable:
        try:
            find_method(entry.name)
            why = f"{entry.name} cannot stand in a recipe{close_matches(entry.name, usable)}"
        except ValueError:
            why = f"no method is called {entry.name!r}{close_matches(entry.name, usable)}"
        raise document.error((*path, "name"), f"{why}; methods: {', '.join(usable)}")
    method = find_method(entry.name)
    kind = strategy_class(method)
    _validated(_options_model(method, kind), entry.options, document, path)
    start = entry.start if entry.start is not None else epochs if kind.stage is Stage.RESULT else 0
    end = entry.end if entry.end is not None else epochs if kind.spans else start
    return method, entry.options, start, end


def _options_model(method: Method, kind: type[Strategy]) -> Any:
    """Return a pydantic model of a method's options."""
    from pydantic import ConfigDict, Field, create_model

    fields: dict[str, Any] = {
        f"option_{option.name}": (
            option.type,
            Field(... if option.default is REQUIRED else option.default, alias=option.name),
        )
        for option in recipe_options(method, kind)
    }
    return create_model(
        method.name,
        __config__=ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True),
        **fields,
    )


def _validated(model: Any, content: Any, document: Document, path: tuple[str | int, ...]) -> Any:
    """Return the content as a pydantic model, or raise its first error with its place."""
    from pydantic import ValidationError

    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise _located(error, model, document, path) from None


def _located(error: Any, model: Any, document: Document, path: tuple[str | int, ...]) -> RecipeError:
    """Turn pydantic's errors into one of ours: the first, and all about the same place."""
    # A misspelt key is unknown, and the right one missing: the first says more.
    problems = sorted(
        error.errors(include_url=False, include_context=False), key=lambda each: each["type"] != "extra_forbidden"
    )
    first = problems[0]
    where = _inside(document.content, (*path, *first["loc"]))
    if first["type"] == "extra_forbidden":
        known = [info.alias or name for name, info in model.model_fields.items()]
        return document.error(
            where, f"unknown key{close_matches(str(where[-1]), known) or '; known: ' + ', '.join(known)}", at_key=True
        )
    if first["type"] == "missing":
        name = first["loc"][-1]
        return document.error(where[:-1] if where and where[-1] == name else where, f"expected a value for {name}")
    same = [each["msg"] for each in problems if _inside(document.content, (*path, *each["loc"])) == where]
    message = " or ".join(dict.fromkeys(_lower(text) for text in same))
    return document.error(where, f"{message}, got {_value_at(document.content, where)!r}")


def _inside(content: Any, loc: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """Return the part of a location that is in the content; pydantic adds names of types to it."""
    where: list[str | int] = []
    for step in loc:
        if _has(content, step):
            content = content[step]
            where.append(step)
        elif isinstance(content, Mapping) and step == loc[-1]:
            return (*where, step)  # a key that is missing
        else:
            break
    return tuple(where)


def _has(content: Any, step: str | int) -> bool:
    if isinstance(content, list):
        return isinstance(step, int) and 0 <= step < len(content)
    return isinstance(content, Mapping) and step in content


def _value_at(content: Any, where: tuple[str | int, ...]) -> Any:
    for step in where:
        if isinstance(content, Mapping) and step not in content:
            return None
        content = content[step]
    return content


def _lower(text: str) -> str:
    text = text.removeprefix("Value error, ")
    for name, wanted in _WANTED.items():
        text = text.replace(f"a valid dictionary or instance of {name}", wanted)
    text = text.replace("Input should be", "expected").replace("a valid ", "a ").replace("a integer", "an integer")
    return text[:1].lower() + text[1:]


def _check_compile_options(recipe: Recipe, document: Document) -> None:
    if isinstance(recipe.compile, bool):
        return
    from sparsecore.tune import compile

    known = [
        option.name for option in read_options(compile) if option.name not in ("model", "example_inputs", "progress")
    ]
    for name in recipe.compile:
        if name not in known:
            raise document.error(
                ("compile", name), f"unknown key{close_matches(name, known)}; known: {', '.join(known)}", at_key=True
            )
