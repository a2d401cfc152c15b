"""Everything a run is made of at one moment, as tensors and JSON; and a run made of that again."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsecore.prune import Masks
from sparsecore.train.compressor.optimizer import load_optimizer_state, optimizer_state
from sparsecore.train.compressor.run import Run
from sparsecore.train.compressor.structure import apply_change
from sparsecore.train.strategies import Strategy
from sparsecore.train.strategies.base import State

_TENSOR = "$tensor"
_TUPLE = "$tuple"


def flatten(state: Any, path: str = "", tensors: dict[str, Tensor] | None = None) -> tuple[Any, dict[str, Tensor]]:
    """Split nested dicts and lists into what JSON has, and tensors by their path.

    Example:
        >>> flatten({"a": torch.ones(1), "b": [2, (3,)]})
        ({'a': {'$tensor': 'a'}, 'b': [2, {'$tuple': [3]}]}, {'a': tensor([1.])})
    """
    tensors = {} if tensors is None else tensors
    if isinstance(state, Tensor):
        tensors[path] = state
        return {_TENSOR: path}, tensors
    if isinstance(state, Mapping):
        join = f"{path}/" if path else ""
        return {name: flatten(value, f"{join}{name}", tensors)[0] for name, value in state.items()}, tensors
    if isinstance(state, list | tuple):
        found = [flatten(value, f"{path}/{index}", tensors)[0] for index, value in enumerate(state)]
        return ({_TUPLE: found} if isinstance(state, tuple) else found), tensors
    return state, tensors


def unflatten(content: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Put together what :func:`flatten` split.

    Example:
        >>> unflatten(*flatten({"b": [2, (3,)]}))
        {'b': [2, (3,)]}
    """
    if isinstance(content, dict):
        if content.keys() == {_TENSOR}:
            return tensors[content[_TENSOR]]
        if content.keys() == {_TUPLE}:
            return tuple(unflatten(value, tensors) for value in content[_TUPLE])
        return {name: unflatten(value, tensors) for name, value in content.items()}
    if isinstance(content, list):
        return [unflatten(value, tensors) for value in content]
    return content


def state_of(run: Run, strategies: Sequence[Strategy]) -> State:
    """Return the state of a run; every process has to call it, for their random numbers."""
    return {
        "step": run.step,
        "events": run.events,
        "model": run.model.state_dict(),
        "training": [module.training for module in run.model.modules()],
        "optimizer": optimizer_state(run.optimizer, run.named_parameters()),
        "scheduler": _plain(run.scheduler.state_dict()) if run.scheduler is not None else None,
        "masks": run.masks.state_dict() if run.masks else None,
        "strategies": {str(index): strategies[index].state_dict() for index in active(run, strategies)},
        "random": run.ranks.gathered(random_state()),
        "generator": run.generator.get_state(),
    }


def restore(run: Run, strategies: Sequence[Strategy], state: State) -> None:
    """Make a fresh run what it was, to the last bit."""
    for event in state["events"]:
        _replay(run, strategies[event["strategy"]], event)
    run.events = state["events"]
    run.step = state["step"]
    _load_values(run, state)
    if state["masks"] is not None:
        run.hold(Masks(run.model, state["masks"]))
    working = active(run, strategies)
    for index in working:
        strategies[index].resume(run, state["strategies"][str(index)])
    # Again, for a strategy that goes on may have changed what it looked at.
    _load_values(run, state)
    load_optimizer_state(run.optimizer, run.named_parameters(), state["optimizer"])
    if run.scheduler is not None:
        run.scheduler.load_state_dict(state["scheduler"])
    run.generator.set_state(state["generator"])
    set_random_state(state["random"][run.ranks.rank])


def active(run: Run, strategies: Sequence[Strategy]) -> list[int]:
    """Return the numbers of the strategies that have begun and work on."""
    begun = [event["strategy"] for event in run.events if event["event"] == "begin"]
    ended = {event["strategy"] for event in run.events if event["event"] == "finish"}
    return [index for index in begun if strategies[index].spans and index not in ended]


def seed_everything(seed: int, rank: int) -> None:
    """Seed the global generators; each process has its own numbers."""
    torch.manual_seed((seed << 16) + rank)
    np.random.seed((seed + (rank << 16)) % 2**32)
    random.seed((seed << 16) + rank)


def random_state() -> State:
    """Return the states of the global generators of torch, numpy and Python."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    state: State = {
        "torch": torch.get_rng_state(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: State) -> None:
    """Make the global generators what they were."""
    torch.set_rng_state(state["torch"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    random.setstate(state["python"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def _replay(run: Run, strategy: Strategy, event: Mapping[str, Any]) -> None:
    with run.changing():
        if event["event"] == "finish":
            strategy.replay_finish(run)
        for change in event["changes"]:
            apply_change(run.model, change, run.example_inputs)
        if event["event"] == "begin":
            strategy.replay_begin(run)


def _load_values(run: Run, state: State) -> None:
    run.model.load_state_dict(state["model"])
    for module, training in zip(run.model.modules(), state["training"], strict=True):
        module.training = training


def _plain(state: Any) -> Any:
    """Leave out of a scheduler's state what it was built with, such as functions and milestones by step."""
    if isinstance(state, Mapping):
        return {
            name: _plain(value) for name, value in state.items() if not (callable(value) or isinstance(value, Mapping))
        }
    if isinstance(state, list | tuple):
        return type(state)(_plain(value) for value in state)
    return state.item() if isinstance(state, np.generic) else state
