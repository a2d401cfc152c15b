"""The options that a strategy takes in a recipe, read off signatures."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_type_hints

from sparsecore.lookup import import_by_name
from sparsecore.methods import Method, Option, read_options
from sparsecore.train.strategies.base import Strategy


@dataclass(frozen=True)
class RecipeOption:
    """An option with the type that its value is checked against.

    Attributes:
        name: The key in a recipe.
        type: A type that pydantic can check.
        default: Its value when left out; REQUIRED if it must be given.
        description: One line.
    """

    name: str
    type: Any
    default: Any
    description: str


def recipe_options(method: Method, strategy: type[Strategy]) -> list[RecipeOption]:
    """Return the options of a method in a recipe: its own, then what the strategy adds.

    Example:
        >>> from sparsecore.methods import find_method
        >>> from sparsecore.train.strategies.pruning import GradualPruning
        >>> [option.name for option in recipe_options(find_method("gradual"), GradualPruning)][:2]
        ['sparsity', 'frequency']
    """
    types: dict[str, Any] = {}
    for entry in (method.entry, *method.parts.values()):
        types |= _types(import_by_name(entry))
    found = [_typed(option, types) for option in method.options if option.name not in strategy.left_out]
    for name, entry in strategy.borrowed.items():
        function = import_by_name(entry)
        found += [_typed(option, _types(function)) for option in read_options(function) if option.name == name]
    return [*found, *strategy.own]


def _typed(option: Option, types: dict[str, Any]) -> RecipeOption:
    return RecipeOption(option.name, types.get(option.name, Any), option.default, option.description)


def _types(entry: Callable[..., Any]) -> dict[str, Any]:
    function = entry.__init__ if inspect.isclass(entry) else entry
    return get_type_hints(function)
