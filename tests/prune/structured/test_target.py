"""Targets are met by the last channel needed, in the order of the loss."""

from __future__ import annotations

import copy

import pytest
from structured_nets import NETS, Concat, Residual, build

from sparsecore.bench.timing import Timing
from sparsecore.prune.structured import (
    ChannelSensitivity,
    channel_sensitivity,
    count_costs,
    latency_us,
    prunable_channels,
    prune_to_target,
    step_reduction,
    target,
)
from sparsecore.prune.structured.removal import edits_without

pytest.importorskip("torch_pruning")


def scan_of(model, x):
    y = model(x).detach()
    return channel_sensitivity(
        model, x, lambda model: -float((model(x) - y).square().mean()), (0.2, 0.4, 0.6, 0.8, 0.9)
    )


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("measure", ["flops", "parameters"])
@pytest.mark.parametrize("guided", [True, False])
def test_target_is_met_within_one_channel(kind, measure, guided):
    model, x = build(kind)
    before = count_costs(model, x)
    scan = scan_of(model, x) if guided else None
    edits = prune_to_target(model, x, 0.15, measure=measure, sensitivity=scan)
    met, limit = getattr(count_costs(model, x), measure), 0.85 * getattr(before, measure)
    assert met <= limit
    # The channel that went last is one of those that went, and the target was not met without it.
    gone = [unit for group in prunable_channels(*build(kind)).prunable for unit in group.units if is_gone(unit, edits)]
    without_one = [getattr(before.without([u for u in gone if u is not unit]), measure) for unit in gone]
    assert max(without_one) > limit


def is_gone(unit, edits):
    kept = {(edit.name, edit.dim): set(edit.kept) for edit in edits.tensors}
    return all(not kept.get(place, set(indices)).intersection(indices) for place, indices in unit.slices.items())


def test_one_level_of_loss():
    """The curves say how many channels each layer loses: all steps up to one level, none above."""
    model, x = build(Residual)
    groups = prunable_channels(model, x).prunable
    slopes = {"stem": 1.0, "conv1": 3.0, "conv3": 0.5}
    scores = {name: {0.9: -slope * 0.9} for name, slope in slopes.items()}
    scan = ChannelSensitivity(0.0, scores, {group.name: tuple(range(len(group.units))) for group in groups})
    prune_to_target(model, x, 0.4, sensitivity=scan)
    sizes = {"stem": 8, "conv1": 6, "conv3": 12}
    gone = {name: size - model.get_submodule(name).out_channels for name, size in sizes.items()}
    level = max(slopes[name] * count / sizes[name] for name, count in gone.items())
    for name, count in gone.items():
        further = slopes[name] * (count + 1) / sizes[name]
        assert further >= level or (count + 1) / sizes[name] > 0.9 or count + 1 == sizes[name]
    assert gone["conv3"] / 12 > gone["stem"] / 8 > gone["conv1"] / 6


def test_uniform_takes_the_same_ratio_everywhere():
    model, x = build(Residual)
    whole = copy.deepcopy(model)
    prune_to_target(model, x, 0.5)
    ratios = [
        1 - model.get_submodule(name).out_channels / whole.get_submodule(name).out_channels
        for name in ("stem", "conv1", "conv3")
    ]
    assert max(ratios) - min(ratios) <= 1 / 6 + 1e-9


def test_function_and_latency():
    model, x = build(Concat)
    calls = []

    def width(candidate):
        calls.append(candidate)
        return candidate.conv.out_channels + candidate.left.out_channels + candidate.right.out_channels

    prune_to_target(model, x, 1 / 3, measure=width)
    assert width(model) == 12
    assert all(candidate is not model for candidate in calls[:-1])
    assert latency_us(model, x) > 0
    with pytest.raises(ValueError, match="finite number from measure, got nan"):
        prune_to_target(model, x, 0.5, measure=lambda candidate: float("nan"))


def test_latency_is_taken_in_turns_with_the_whole_model(monkeypatch):
    """A machine that slows down all the time: only the ratio within one run tells."""
    runs = []

    def timed(calls):
        runs.append(list(calls))
        slowness = float(len(runs))
        sizes = {name: call.args[0].stem.out_channels for name, call in calls.items()}
        return {name: Timing((slowness * size,)) for name, size in sizes.items()}

    monkeypatch.setattr(target, "interleave", timed)
    model, x = build(Residual)
    prune_to_target(model, x, 0.5, measure="latency")
    assert model.stem.out_channels == 4
    assert len(runs) > 1
    assert all(names == ["whole", "cut"] for names in runs)


def test_round_to():
    model, x = build(Residual)
    prune_to_target(model, x, 0.5, round_to=4)
    assert all(model.get_submodule(name).out_channels % 4 in (0, 2) for name in ("stem", "conv1", "conv3"))
    assert model.stem.out_channels % 4 == model.conv3.out_channels % 4 == 0


def test_steps_add_up():
    assert step_reduction(0.5, 1) == 0.5
    assert (1 - step_reduction(0.6, 7)) ** 7 == pytest.approx(0.4)
    model, x = build(Residual)
    before, edits = count_costs(model, x).flops, []
    for _ in range(2):
        edits.append(prune_to_target(model, x, step_reduction(0.5, 2)))
    assert count_costs(model, x).flops <= 0.5 * before
    fresh = Residual()
    edits[0].then(edits[1]).apply(fresh)
    assert str(fresh) == str(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reduce_by": 0.0}, r"reduce_by in \(0, 1\)"),
        ({"reduce_by": 1}, r"reduce_by in \(0, 1\)"),
        ({"reduce_by": 0.999}, r"reduce_by of at most 0\.\d+, which is all"),
        ({"reduce_by": 0.5, "measure": "energy"}, "expected measure"),
        ({"reduce_by": 0.5, "round_to": 0}, "round_to of at least 1"),
        (
            {"reduce_by": 0.5, "sensitivity": ChannelSensitivity(0.0, {"a": {0.5: 0.0}}, {"a": (0, 1)})},
            "none of the model's",
        ),
        (
            {"reduce_by": 0.5, "sensitivity": ChannelSensitivity(0.0, {"stem": {0.5: 0.0}}, {"stem": (0, 1)})},
            "2 units in stem, this one has 8",
        ),
    ],
)
def test_bad_arguments_change_nothing(arguments, message):
    model, x = build(Residual)
    before = str(model)
    with pytest.raises(ValueError, match=message):
        prune_to_target(model, x, **arguments)
    assert str(model) == before


def test_removing_is_by_units():
    model, x = build(Residual)
    group = prunable_channels(model, x)["stem"]
    assert count_costs(model, x).without(group.units[:2]) == count_costs(model, x).after(
        edits_without(model, group.units[:2])
    )
