"""Which strategies may meet: what a later stage builds on has to be over when it begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sparsecore.train.strategies import Stage, Strategy

_WHAT = {
    Stage.TEACHER: "the loss",
    Stage.LAYERS: "layers",
    Stage.CHANNELS: "channels",
    Stage.ZEROS: "zeros",
    Stage.VALUES: "values",
    Stage.RESULT: "the result",
}


class Conflict(NamedTuple):
    """What is wrong with a strategy's epochs: its number, the key to blame, and why."""

    strategy: int
    key: str
    message: str


def find_conflict(strategies: Sequence[Strategy], epochs: int) -> Conflict | None:
    """Return the first conflict of strategies in time, or None.

    Args:
        strategies: In the order of the recipe.
        epochs: Of the run.
    """
    for index, strategy in enumerate(strategies):
        if conflict := _own_conflict(index, strategy, epochs):
            return conflict
        for other_index, other in enumerate(strategies[:index]):
            message = _between(strategy, index, other, other_index)
            if message:
                return Conflict(index, "start", message)
    return None


def _own_conflict(index: int, strategy: Strategy, epochs: int) -> Conflict | None:
    name, start, end = strategy.method.name, strategy.start, strategy.end
    if start > epochs:
        return Conflict(index, "start", f"expected an epoch up to {epochs}, the recipe's epochs, got {start}")
    if end > epochs:
        return Conflict(index, "end", f"expected an epoch up to {epochs}, the recipe's epochs, got {end}")
    if end < start:
        return Conflict(index, "end", f"expected an epoch from its start, {start}, on, got {end}")
    if strategy.spans and end == start:
        return Conflict(
            index,
            "end",
            f"{name} works while the model trains: expected an end after its start, {start}, got {end}",
        )
    if not strategy.spans and end != start:
        return Conflict(index, "end", f"{name} works at once, in epoch {start}; leave end out")
    if strategy.must_last and end != epochs:
        return Conflict(index, "end", f"{name} goes on to the last epoch, {epochs}; leave end out")
    if strategy.stage is Stage.RESULT and start != epochs:
        return Conflict(index, "start", f"{name} works when all training is over, in epoch {epochs}; leave start out")
    return None


def _between(a: Strategy, index_a: int, b: Strategy, index_b: int) -> str:
    """Return why two strategies cannot go together, or nothing."""
    if a.stage == b.stage:
        if a.must_last and b.must_last:
            return f"{_name(a, index_a)} and {_name(b, index_b)} both change {_WHAT[a.stage]}; leave one out"
        if a.spans and b.spans and a.start < b.end and b.start < a.end:
            return (
                f"{_name(a, index_a)} and {_name(b, index_b)} both change {_WHAT[a.stage]} in epoch "
                f"{max(a.start, b.start)}; let one end before the other starts"
            )
        if a.stage in (Stage.VALUES, Stage.RESULT):
            return f"{_name(a, index_a)} and {_name(b, index_b)} both change {_WHAT[a.stage]}; leave one out"
        return ""
    (early, early_index), (late, late_index) = sorted([(a, index_a), (b, index_b)], key=lambda pair: pair[0].stage)
    if late.stage is Stage.RESULT and early.stage is Stage.VALUES:
        return f"{_name(early, early_index)} leaves nothing for {_name(late, late_index)} to do; leave one out"
    if early.stage is Stage.TEACHER or late.stage is Stage.RESULT or early.end <= late.start:
        return ""
    return (
        f"{_name(early, early_index)} changes {_WHAT[early.stage]} up to epoch {early.end}, but "
        f"{_name(late, late_index)} builds on them from epoch {late.start} on; let it start in {early.end} or later"
    )


def _name(strategy: Strategy, index: int) -> str:
    return f"{strategy.method.name} (strategy {index + 1})"
