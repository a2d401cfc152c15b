"""What a recipe names, imported: model, data, metric, loss and training step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from sparsecore.lookup import import_by_name
from sparsecore.train.compressor.run import Functions
from sparsecore.train.compressor.state import random_state, seed_everything, set_random_state
from sparsecore.train.recipe import CheckedRecipe
from sparsecore.user_code import described

if TYPE_CHECKING:
    from sparsecore.train.recipe.schema import Call


class Given(NamedTuple):
    """What the caller gives himself; None is what the recipe names."""

    model: nn.Module | None
    data: Any
    metric: Callable[..., Any] | None
    loss: Callable[..., Any] | None
    training_step: Callable[..., Any] | None


def resolve(checked: CheckedRecipe, given: Given) -> tuple[nn.Module, Any, Functions]:
    """Return model, data and functions of a run.

    Raises:
        RecipeError: One is neither given nor named, cannot be imported, or is something else.
    """
    recipe = checked.recipe
    with _recipe_folder_on_path(checked):
        metric = given.metric or _function(checked, "metric", recipe.metric)
        loss = given.loss or (_function(checked, "loss", recipe.loss) if recipe.loss else None)
        step = given.training_step
        if step is None and recipe.training_step:
            step = _function(checked, "training_step", recipe.training_step)
        data = given.data if given.data is not None else _called(checked, "data", recipe.data)
        model = given.model if given.model is not None else _seeded_model(checked)
    if not isinstance(model, nn.Module) or not any(True for _ in model.parameters()):
        raise checked.document.error(
            ("model",), f"expected a torch.nn.Module with parameters, got {type(model).__name__}"
        )
    return model, data, Functions(metric, loss, step)


def _seeded_model(checked: CheckedRecipe) -> Any:
    before = random_state()
    seed_everything(checked.recipe.seed, 0)
    try:
        return _called(checked, "model", checked.recipe.model)
    finally:
        set_random_state(before)


def _function(checked: CheckedRecipe, key: str, call: Call | None) -> Callable[..., Any]:
    """Import a function, with its keyword arguments if there are any."""
    if call is None:
        argument = {"data": "train_data"}.get(key, key)
        raise checked.document.error((), f'expected {key}: "module:function", or the argument {argument}')
    try:
        found = import_by_name(call.name)
    except ValueError as error:
        raise checked.document.error((key,), str(error)) from error
    if not callable(found):
        raise checked.document.error((key,), f"expected a function, got {type(found).__name__} {call.name}")
    return partial(found, **call.arguments) if call.arguments else found


def _called(checked: CheckedRecipe, key: str, call: Call | None) -> Any:
    """Import a function and call it."""
    function = _function(checked, key, call)
    try:
        return function()
    except Exception as error:
        raise checked.document.error((key,), described(error)) from error


@contextmanager
def _recipe_folder_on_path(checked: CheckedRecipe) -> Iterator[None]:
    """Let modules beside the recipe be found, as those in the current folder are."""
    folder = str(Path(checked.document.source).resolve().parent)
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
