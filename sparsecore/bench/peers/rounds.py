"""Rounds: in each, every candidate has one turn, in another order."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from random import Random
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


def take_rounds(
    turns: Mapping[Key, Callable[[], Result | None]], rounds: int, seed: int = 0
) -> dict[Key, list[Result]]:
    """Let candidates take turns.

    Args:
        turns: Candidate to its turn; one that returns None drops out with all its results.
        rounds: Turns of every candidate.
        seed: Of the orders.

    Returns:
        Candidate to its results, one per round, in the order of ``turns``; without those that dropped out.

    Raises:
        ValueError: Fewer than one round.
    """
    if rounds < 1:
        raise ValueError(f"expected at least one round, got {rounds}")
    shuffle = Random(seed).shuffle
    results: dict[Key, list[Result]] = {key: [] for key in turns}
    for _ in range(rounds):
        order = list(results)
        shuffle(order)
        for key in order:
            result = turns[key]()
            if result is None:
                del results[key]
            else:
                results[key].append(result)
    return results
