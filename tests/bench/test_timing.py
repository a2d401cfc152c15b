"""The timing core on a fake clock: no test here depends on how fast the machine is."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest

from sparsecore.bench.timing import MIN_SAMPLE_NS, Timing, interleave, speedup

US = 1_000
MS = 1_000_000


class FakeMachine:
    """A clock that only candidates move; it remembers who ran."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.ran: list[str] = []

    def clock_ns(self) -> int:
        return self.now_ns

    def candidate(self, name: str, *cost_ns: int) -> Callable[[], object]:
        """A call that costs cost_ns[0], cost_ns[1], ... and then the last of them for ever."""
        costs = list(cost_ns)

        def call() -> None:
            self.ran.append(name)
            self.now_ns += costs.pop(0) if len(costs) > 1 else costs[0]

        return call


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


def test_timing_statistics() -> None:
    timing = Timing((4.0, 1.0, 3.0, 2.0, 5.0))
    assert (timing.q25_us, timing.median_us, timing.q75_us) == (2.0, 3.0, 4.0)
    assert timing.spread == pytest.approx(2 / 3)
    assert timing.to_dict() == {"median_us": 3.0, "q25_us": 2.0, "q75_us": 4.0, "rounds": 5}


def test_timing_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        Timing(())


def test_times_are_per_call(machine: FakeMachine) -> None:
    timings = interleave(
        {"a": machine.candidate("a", 4 * MS), "b": machine.candidate("b", 1 * MS)},
        min_time_s=0,
        clock_ns=machine.clock_ns,
    )
    assert list(timings) == ["a", "b"]
    assert timings["a"].samples_us == (4000.0,) * 5
    assert timings["b"].samples_us == (1000.0,) * 5
    assert speedup(timings["a"], timings["b"]) == 4.0


def rounds_of(machine: FakeMachine, names: str, count: int) -> list[str]:
    """Run that many rounds and return the order of each."""
    calls = {name: machine.candidate(name, MS) for name in names}
    interleave(calls, min_time_s=0, min_rounds=count, warmup=1, clock_ns=machine.clock_ns)
    ran = "".join(machine.ran)
    assert ran.startswith(names)  # the warm-up
    return [ran[i : i + len(names)] for i in range(len(names), len(ran), len(names))]


def test_candidates_take_turns_in_every_round(machine: FakeMachine) -> None:
    assert all(sorted(order) == list("abc") for order in rounds_of(machine, "abc", 9))


def test_every_second_round_runs_backwards(machine: FakeMachine) -> None:
    rounds = rounds_of(machine, "abcd", 8)
    assert [order[::-1] for order in rounds[::2]] == rounds[1::2]


def test_nobody_keeps_a_place_or_a_predecessor(machine: FakeMachine) -> None:
    rounds = rounds_of(machine, "abcd", 400)
    firsts = [order[0] for order in rounds]
    before_a = [order[order.index("a") - 1] for order in rounds if order[0] != "a"]
    assert min(firsts.count(name) for name in "abcd") > 60
    assert min(before_a.count(name) for name in "bcd") > 60


def test_orders_are_the_same_on_every_run() -> None:
    assert rounds_of(FakeMachine(), "abcde", 6) == rounds_of(FakeMachine(), "abcde", 6)


def test_warm_up_is_not_counted(machine: FakeMachine) -> None:
    cold_start = machine.candidate("a", 900 * MS, 500 * MS, MS)
    timings = interleave({"a": cold_start}, min_time_s=0, warmup=3, clock_ns=machine.clock_ns)
    assert timings["a"].samples_us == (1000.0,) * 5


@pytest.mark.parametrize("cost_ns", [1, 700, 40 * US, 99 * US])
def test_short_calls_are_batched(machine: FakeMachine, cost_ns: int) -> None:
    lengths_ns: list[int] = []
    last_ns = 0

    def progress(_: float) -> None:
        nonlocal last_ns
        lengths_ns.append(machine.now_ns - last_ns)
        last_ns = machine.now_ns

    timings = interleave(
        {"a": machine.candidate("a", cost_ns)},
        min_time_s=0,
        progress=progress,
        clock_ns=machine.clock_ns,
    )
    # 1 ns is below what a batch is allowed to make up for.
    floor_ns = MIN_SAMPLE_NS if cost_ns > 1 else MIN_SAMPLE_NS // 2
    assert min(lengths_ns) >= floor_ns
    assert timings["a"].median_us == pytest.approx(cost_ns / US)


def test_a_call_that_costs_nothing_ends(machine: FakeMachine) -> None:
    timings = interleave({"a": lambda: None}, min_time_s=0, clock_ns=machine.clock_ns)
    assert timings["a"].median_us == 0.0
    assert timings["a"].spread == 0.0


def test_runs_until_min_time(machine: FakeMachine) -> None:
    timings = interleave(
        {"a": machine.candidate("a", 10 * MS), "b": machine.candidate("b", 10 * MS)},
        min_time_s=0.2,
        clock_ns=machine.clock_ns,
    )
    assert len(timings["a"].samples_us) == 10


def test_max_rounds_wins_over_min_time(machine: FakeMachine) -> None:
    timings = interleave({"a": machine.candidate("a", MS)}, min_time_s=1e9, max_rounds=7, clock_ns=machine.clock_ns)
    assert len(timings["a"].samples_us) == 7


def test_progress_rises_to_one(machine: FakeMachine) -> None:
    shares: list[float] = []
    interleave(
        {"a": machine.candidate("a", 10 * MS)},
        min_time_s=0.1,
        progress=shares.append,
        clock_ns=machine.clock_ns,
    )
    assert shares == pytest.approx([i / 10 for i in range(1, 11)])


def test_what_comes_before_a_call_is_not_counted(machine: FakeMachine) -> None:
    timings = interleave(
        {"a": machine.candidate("a", 2 * MS), "b": machine.candidate("b", 10)},
        min_time_s=0,
        min_rounds=3,
        warmup=1,
        before=machine.candidate("before", 7 * MS),
        clock_ns=machine.clock_ns,
    )
    assert timings["a"].samples_us == (2000.0, 2000.0, 2000.0)
    assert timings["b"].samples_us == (0.01, 0.01, 0.01)  # one call a sample, however short
    last = machine.ran[-12:]
    assert last[::2] == ["before"] * 6


def test_garbage_collector_is_off_and_comes_back(machine: FakeMachine) -> None:
    seen: list[bool] = []

    def call() -> None:
        seen.append(gc.isenabled())
        machine.now_ns += MS

    interleave({"a": call}, min_time_s=0, clock_ns=machine.clock_ns)
    assert seen
    assert not any(seen)
    assert gc.isenabled()


def test_garbage_collector_comes_back_after_an_error() -> None:
    def broken() -> None:
        raise RuntimeError("broken candidate")

    with pytest.raises(RuntimeError, match="broken candidate"):
        interleave({"a": broken})
    assert gc.isenabled()


def test_no_candidates_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one candidate"):
        interleave({})


@pytest.mark.parametrize("rounds", [(0, 5), (6, 5)])
def test_impossible_rounds_are_refused(rounds: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="min_rounds"):
        interleave({"a": lambda: None}, min_rounds=rounds[0], max_rounds=rounds[1])


def test_speedup_needs_one_run() -> None:
    with pytest.raises(ValueError, match="one interleaved run"):
        speedup(Timing((1.0, 2.0)), Timing((1.0,)))
