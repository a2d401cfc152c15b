"""What happens between two epochs, in which order."""

from __future__ import annotations

import pytest

pytest.importorskip("pydantic")

from sparsecore.train.compressor.schedule import events_before
from sparsecore.train.recipe import read_recipe

STRATEGIES = [
    {"name": "qat", "start": 4},
    {"name": "gradual", "sparsity": 0.5, "start": 4, "end": 6},
    {"name": "network-slimming", "ratio": 0.5, "end": 4},
    {"name": "distillation", "end": 4},
    {"name": "apprentice", "start": 4},
    {"name": "magnitude", "sparsity": 0.3, "start": 4},
    {"name": "low-rank", "rank": 2},
]


def events(epoch: int, entries: list[dict[str, object]], epochs: int = 8) -> list[str]:
    strategies = read_recipe({"epochs": epochs, "strategies": entries}).make_strategies()
    return [
        f"{event.name} {strategies[event.strategy].method.name}" for event in events_before(epoch, strategies, epochs)
    ]


def test_teachers_first_then_ends_then_beginnings_by_stage() -> None:
    entries = [entry for entry in STRATEGIES if entry["name"] != "qat"]
    assert events(0, entries) == ["begin distillation", "begin low-rank", "begin network-slimming"]
    assert events(4, entries) == [
        "finish distillation",
        "begin apprentice",
        "finish network-slimming",
        "begin gradual",
        "begin magnitude",
    ]
    assert events(5, entries) == []
    assert events(6, entries) == ["finish gradual"]
    assert events(8, entries) == ["finish apprentice"]


def test_values_become_final_after_everything_but_before_the_result() -> None:
    assert events(8, [{"name": "qat", "start": 4}, {"name": "distillation", "start": 2}]) == [
        "finish distillation",
        "finish qat",
        "conclude qat",
    ]
    entries = [{"name": "int8-static"}, {"name": "l1-filters", "ratio": 0.5, "start": 8}]
    assert events(8, entries) == ["begin l1-filters", "begin int8-static"]


def test_in_a_run_without_epochs_everything_happens_at_once() -> None:
    entries = [{"name": "int8-static"}, {"name": "magnitude", "sparsity": 0.5}]
    assert events(0, entries, epochs=0) == ["begin magnitude", "begin int8-static"]
