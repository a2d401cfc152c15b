"""Turns on a clock that only calls move."""

from __future__ import annotations

import gc

import pytest

from sparsecore.bench.peers.turn import MIN_CALLS, Turn, take_turn

MS = 1_000_000


class FakeCall:
    """Costs one of these times after the other, then the last for ever."""

    def __init__(self, *costs_ns: int) -> None:
        self.costs = list(costs_ns)
        self.now_ns = 0
        self.collects: list[bool] = []

    def __call__(self) -> None:
        self.now_ns += self.costs.pop(0) if len(self.costs) > 1 else self.costs[0]
        self.collects.append(gc.isenabled())

    def clock_ns(self) -> int:
        return self.now_ns


def test_the_first_call_is_apart() -> None:
    call = FakeCall(9 * MS, 2 * MS)
    assert take_turn(call, 0.02, clock_ns=call.clock_ns) == Turn(9000.0, 2000.0, 10)


def test_slow_calls_are_made_a_few_times() -> None:
    call = FakeCall(900 * MS, 500 * MS, 100 * MS, 300 * MS)
    assert take_turn(call, 0.02, clock_ns=call.clock_ns) == Turn(900_000.0, 300_000.0, MIN_CALLS)


def test_no_garbage_is_collected_meanwhile() -> None:
    call = FakeCall(MS)
    take_turn(call, 0, clock_ns=call.clock_ns)
    assert call.collects == [False] * (1 + MIN_CALLS)
    assert gc.isenabled()


def test_the_collector_comes_back_after_an_error() -> None:
    def broken() -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        take_turn(broken, 0)
    assert gc.isenabled()


def test_fewer_calls_where_one_is_long() -> None:
    call = FakeCall(900 * MS, 500 * MS)
    assert take_turn(call, 0.02, min_calls=1, clock_ns=call.clock_ns) == Turn(900_000.0, 500_000.0, 1)
