"""An optimizer whose parameters change while it works, and its state by the names of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from sparsecore.errors import UnsupportedError
from sparsecore.lookup import close_matches, import_by_name
from sparsecore.prune.structured import Edits

Parameters = Mapping[str, nn.Parameter]

#: Arguments of schedulers that are the length of the whole run if left out.
_LENGTHS = ("T_max", "total_steps", "total_iters")


def make_optimizer(name: str, arguments: Mapping[str, Any], parameters: Parameters) -> Optimizer:
    """Build an optimizer: a class of torch.optim by name, or ``"module:function"`` of the parameters.

    Raises:
        ValueError: There is no such class, it does not take these arguments, or it is no optimizer.
        UnsupportedError: It is LBFGS, which evaluates the model within a step.
    """
    made = _make(name, torch.optim, list(parameters.values()), arguments)
    if not isinstance(made, Optimizer):
        raise ValueError(f"expected {name} to be an optimizer, got {type(made).__name__}")
    if isinstance(made, LBFGS):
        raise UnsupportedError("LBFGS evaluates the model within a step, where no mask holds; use another optimizer")
    return made


def make_scheduler(name: str, arguments: Mapping[str, Any], optimizer: Optimizer, steps: int) -> Any:
    """Build a scheduler: a class of torch.optim.lr_scheduler by name, or ``"module:function"`` of the optimizer.

    Args:
        name: Of the class or function.
        arguments: Its keyword arguments; lengths that are left out are the number of steps.
        optimizer: What it schedules.
        steps: Of the whole run.

    Raises:
        ValueError: There is no such class, it does not take these arguments, or it has no step().
    """
    arguments = dict(arguments)
    kind = getattr(torch.optim.lr_scheduler, name, None)
    if kind is not None:
        code = kind.__init__.__code__
        names = code.co_varnames[: code.co_argcount]
        arguments = {length: max(steps, 1) for length in _LENGTHS if length in names} | arguments
    made = _make(name, torch.optim.lr_scheduler, optimizer, arguments)
    if not callable(getattr(made, "step", None)) or isinstance(made, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise ValueError(f"expected {name} to be a scheduler that steps without a metric, got {type(made).__name__}")
    return made


def _make(name: str, module: Any, first: Any, arguments: Mapping[str, Any]) -> Any:
    known = [known for known in dir(module) if isinstance(getattr(module, known), type)]
    if ":" not in name and name not in known:
        raise ValueError(f"{module.__name__} has no {name!r}{close_matches(name, known)}")
    build = import_by_name(name) if ":" in name else getattr(module, name)
    try:
        return build(first, **arguments)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error


def carry_over(optimizer: Optimizer, before: Parameters, after: Parameters, edits: Edits | None) -> None:
    """Give an optimizer the parameters that a model has after a change, in place.

    What is still there stays with its state. A parameter that was cut keeps the state of the entries that stayed. One
    that is new joins the first group, without a state.

    Args:
        optimizer: Of the model.
        before: The model's parameters when the optimizer last knew them.
        after: What they are now.
        edits: The cut, if there was one.
    """
    name_of = {id(parameter): name for name, parameter in before.items()}
    staying = {id(parameter) for parameter in after.values()}
    known = set()
    for group in optimizer.param_groups:
        kept = []
        for parameter in group["params"]:
            name = name_of.get(id(parameter), "")
            now = parameter if id(parameter) in staying else after.get(name)
            state = optimizer.state.pop(parameter, None)
            if now is None or id(now) in known:
                continue
            known.add(id(now))
            kept.append(now)
            if state and now is parameter:
                optimizer.state[now] = state
            elif state and edits is not None and (cut := _cut_state(state, parameter, now, name, edits)):
                optimizer.state[now] = cut
        group["params"] = kept
    new = [parameter for parameter in after.values() if id(parameter) not in known and parameter.requires_grad]
    optimizer.param_groups[0]["params"] += list(dict.fromkeys(new))


def _cut_state(
    state: Mapping[str, Any], before: Tensor, after: Tensor, name: str, edits: Edits
) -> dict[str, Any] | None:
    """The state of the entries that stayed; None if the parameter was changed in another way."""
    cuts = [edit for edit in edits.tensors if edit.name == name]
    if not cuts:
        return None
    found: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, Tensor) and value.shape == before.shape:
            for edit in cuts:
                value = value.index_select(edit.dim, torch.tensor(edit.kept, device=value.device))
            if value.shape != after.shape:
                return None
        found[key] = value
    return found


def add_group(optimizer: Optimizer, scheduler: Any, parameters: list[nn.Parameter], **options: Any) -> None:
    """Move parameters into a group of their own, with those of the options that the optimizer has.

    Args:
        optimizer: It may hold them already.
        scheduler: Of the optimizer, which has to know of the group too; or None.
        parameters: Of the new group.
        **options: Such as ``weight_decay``.
    """
    own = {id(parameter) for parameter in parameters}
    first = optimizer.param_groups[0]
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
    common = {name: value for name, value in first.items() if name != "params"}
    known = {name: value for name, value in options.items() if name in optimizer.defaults}
    optimizer.add_param_group({**common, **known, "params": parameters})
    for each in [scheduler, *getattr(scheduler, "_schedulers", ())]:
        for per_group in ("base_lrs", "lr_lambdas", "_last_lr"):
            values = getattr(each, per_group, None)
            if isinstance(values, list) and values:
                values.append(values[0])


def optimizer_state(optimizer: Optimizer, parameters: Parameters) -> dict[str, Any]:
    """Return groups and state with parameters by name."""
    name_of = {id(parameter): name for name, parameter in parameters.items()}
    groups = [
        {
            "names": [name_of[id(parameter)] for parameter in group["params"]],
            "options": {name: value for name, value in group.items() if name != "params"},
        }
        for group in optimizer.param_groups
    ]
    state = {name_of[id(parameter)]: dict(values) for parameter, values in optimizer.state.items()}
    return {"groups": groups, "state": state}


def load_optimizer_state(optimizer: Optimizer, parameters: Parameters, saved: Mapping[str, Any]) -> None:
    """Make an optimizer what it was when :func:`optimizer_state` was called."""
    usual = {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}
    groups = []
    for group in saved["groups"]:
        options = {
            # JSON has lists for tuples, such as Adam's betas.
            name: tuple(value) if isinstance(usual.get(name), tuple) else value
            for name, value in group["options"].items()
        }
        groups.append({**usual, **options, "params": [parameters[name] for name in group["names"]]})
    optimizer.param_groups[:] = groups
    optimizer.state.clear()
    for name, values in saved["state"].items():
        optimizer.state[parameters[name]] = {
            key: value.clone() if isinstance(value, Tensor) else value for key, value in values.items()
        }
