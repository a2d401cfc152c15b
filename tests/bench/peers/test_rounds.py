"""Rounds: everyone once in each, in changing order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from sparsecore.bench.peers.rounds import take_rounds


class Recorder:
    """Remembers who had a turn; the result is how many turns there were."""

    def __init__(self) -> None:
        self.order = ""

    def turn(self, name: str, last: int = 10**6) -> int | None:
        self.order += name
        return len(self.order) if self.order.count(name) <= last else None

    def turns(self, names: str) -> dict[str, Callable[[], int | None]]:
        return {name: partial(self.turn, name) for name in names}


def test_everyone_once_in_every_round() -> None:
    recorder = Recorder()
    results = take_rounds(recorder.turns("abc"), 5)
    rounds = [recorder.order[i : i + 3] for i in range(0, 15, 3)]
    assert all(sorted(order) == list("abc") for order in rounds)
    assert len(set(rounds)) > 1
    assert list(results) == list("abc")
    assert results["b"] == [3 * i + order.index("b") + 1 for i, order in enumerate(rounds)]


def test_orders_come_from_the_seed() -> None:
    orders = []
    for seed in (0, 0, 1):
        recorder = Recorder()
        take_rounds(recorder.turns("abcd"), 6, seed)
        orders.append(recorder.order)
    assert orders[0] == orders[1] != orders[2]


def test_one_that_fails_drops_out() -> None:
    recorder = Recorder()
    turns = recorder.turns("abc") | {"b": partial(recorder.turn, "b", last=1)}
    results = take_rounds(turns, 4)
    assert list(results) == ["a", "c"]
    assert len(results["a"]) == len(results["c"]) == 4
    assert recorder.order.count("b") == 2


def test_no_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one round"):
        take_rounds({}, 0)
