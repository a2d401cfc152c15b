"""How to choose the layers' formats: what convert() and compile() are asked for, checked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from sparsecore.calls import ExampleInputs
from sparsecore.errors import UnsupportedError, require_module
from sparsecore.tune.budget import check_max_error
from sparsecore.tune.cache import TimeCache

Policy = Literal["measure", "model"] | Mapping[str, str]


@dataclass(frozen=True)
class Settings:
    """How to choose, checked.

    Attributes:
        is_measured: times are measured; else predicted.
        fixed: layer name to the format or kernel that it runs on, whatever the times.
        max_error: see convert().
        excluded: names of layers that stay as they are.
        cache: where times are looked up and kept; None measures all anew.
        is_recorded: layers will run recorded, without the cost of a call from Python.
    """

    is_measured: bool
    fixed: Mapping[str, str]
    max_error: float | None
    excluded: Set[str]
    cache: TimeCache | None
    is_recorded: bool = False


def check_settings(
    model: nn.Module,
    example_inputs: ExampleInputs | None,
    max_error: float | None,
    policy: Policy | None,
    exclude: Iterable[str],
    cache: bool | str | os.PathLike[str],
) -> Settings:
    """Check what convert() and compile() have in common.

    Raises:
        TypeError: the model is not a module.
        ValueError: see convert().
        UnsupportedError: a tensor of the model has no values yet.
    """
    require_module(model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise UnsupportedError(f"{name} has no values yet; initialise the model first")
    names = dict(model.named_modules(remove_duplicate=False)).keys()
    fixed = dict(policy) if isinstance(policy, Mapping) else {}
    for key, value in fixed.items():
        if not (isinstance(key, str) and isinstance(value, str)):
            raise ValueError(f"expected policy as {{layer: format or kernel}}, names both, got {{{key!r}: {value!r}}}")
    if unknown := fixed.keys() - names:
        raise ValueError(f"policy: nothing in the model is called {sorted(unknown)}")
    if fixed or policy is None:
        policy = "model" if example_inputs is None else "measure"
    if policy not in ("measure", "model"):
        raise ValueError(f'expected policy "measure", "model" or {{layer: format or kernel}}, got {policy!r}')
    if policy == "measure" and example_inputs is None:
        raise ValueError('policy "measure" needs example_inputs to know the shapes; give them, or take "model"')
    if max_error is not None:
        max_error = check_max_error(max_error)
        if example_inputs is None:
            raise ValueError("max_error needs example_inputs to measure the error on; give them, or leave it out")
    excluded = {exclude} if isinstance(exclude, str) else set(exclude)
    if unknown := excluded - names:
        raise ValueError(f"exclude: nothing in the model is called {sorted(unknown)}")
    times = None
    if cache is not False:
        times = TimeCache() if cache is True else TimeCache(Path(cache))
    return Settings(policy == "measure", fixed, max_error, excluded, times)
