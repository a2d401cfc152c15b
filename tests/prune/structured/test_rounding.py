"""Counts that stay, rounded to what is fast: the shapes that are timed, and what the cuts make of the answer."""

from __future__ import annotations

import pytest
import torch
from structured_nets import Concat, Grouped, Residual, build
from torch import nn

from sparsecore.prune.structured import count_costs, prunable_channels, prune_channels, prune_to_target, rounding
from sparsecore.prune.structured.rounding import MeasuredRounding

pytest.importorskip("torch_pruning")


class Timer:
    """Stands for the clock: time goes with vectors of channels, in and out."""

    def __init__(self, vector: int) -> None:
        self.vector, self.seen = vector, []

    def __call__(self, layer, calls, cache):
        linear = isinstance(layer, nn.Linear)
        sizes = (layer.in_features, layer.out_features) if linear else (layer.in_channels, layer.out_channels)
        with torch.no_grad():
            for call in calls:
                layer(torch.zeros(call.shape, dtype=call.dtype))  # the shape fits
        self.seen.append(sizes)
        return sum(float(-(-size // self.vector)) for size in sizes)


@pytest.fixture
def timer(monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSECORE_CACHE_DIR", str(tmp_path))
    timer = Timer(4)
    monkeypatch.setattr(rounding, "dense_time_us", timer)
    return timer


@pytest.mark.parametrize("kind", [Residual, Concat, Grouped])
@pytest.mark.parametrize("criterion", ["l1", "l1_greedy"])
def test_layers_are_timed_in_the_shapes_after_the_cut(kind, criterion, timer):
    """The timer runs every layer on its input, so a shape that does not fit would fail."""
    model, x = build(kind)
    prune_channels(model, x, 0.3, criterion=criterion, round_to="measured")
    assert timer.seen
    model(x)


def test_counts_become_those_that_the_timer_likes(timer):
    """stem: 8 -> 6 by the ratio; 7 and 8 take the same time with vectors of four, 5 too, so the most of all wins."""
    model, x = build(Residual)
    prune_channels(model, x, {"stem": 0.25}, round_to="measured")
    assert model.stem.out_channels == 8
    timer.vector = 5
    prune_channels(model, x, {"stem": 0.25}, round_to="measured")
    assert model.stem.out_channels == 5


def test_layers_that_are_fed_count_too(timer):
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    prune_channels(model, torch.ones(3, 4), 0.5, round_to="measured")
    assert {sizes for sizes in timer.seen if sizes[0] == 4} == {(4, count) for count in (7, 8, 9, 10)}
    assert {sizes for sizes in timer.seen if sizes[1] == 2} == {(count, 2) for count in (7, 8, 9, 10)}
    assert model[0].out_features == 8


@pytest.mark.parametrize("measure", ["flops", "parameters"])
def test_the_target_is_met_after_rounding(measure, timer):
    model, x = build(Residual)
    limit = 0.6 * getattr(count_costs(model, x), measure)
    prune_to_target(model, x, 0.4, measure=measure, round_to="measured")
    assert getattr(count_costs(model, x), measure) <= limit


def test_a_target_that_no_rounded_count_meets_is_met_without(monkeypatch, timer):
    """A clock that likes whole layers alone rounds everything up."""
    monkeypatch.setattr(rounding, "fastest_count", lambda time_us, target, most, width: most)
    model, x = build(Residual)
    limit = 0.6 * count_costs(model, x).flops
    prune_to_target(model, x, 0.4, round_to="measured")
    assert count_costs(model, x).flops <= limit


def test_the_model_stays_as_it_is(timer):
    model, x = build(Grouped)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    groups = prunable_channels(model, x).prunable
    stay = {group.name: max(len(group.units) // 2, 1) for group in groups}
    MeasuredRounding(model, x, None)(groups, stay)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert all(value.device.type == "cpu" for value in model.state_dict().values())


def test_other_values_are_refused():
    model, x = build(Residual)
    for function in (prune_channels, prune_to_target):
        for wrong in ("fast", 1.5, True, None, -8):
            with pytest.raises(ValueError, match='round_to of at least 1, or "measured", got'):
                function(model, x, 0.5, round_to=wrong)
    with pytest.raises(ValueError, match=r"times layers on the CPU, but stem\.weight is on meta"):
        MeasuredRounding(model.to("meta"), x, None)
