"""Costs: counted by hand, and predicted for a cut exactly as counted after it."""

from __future__ import annotations

import pytest
import torch
from structured_nets import NETS, Attention, Grouped, build
from torch import nn

from sparsecore.bench.models import create
from sparsecore.prune.structured import count_costs, prune_channels


def test_by_hand():
    model, x = build(Grouped)
    costs = count_costs(model, x)
    expected = {
        "reduce": 2 * 64 * 8 * 3,
        "grouped": 2 * 64 * 16 * 2 * 9,
        "depthwise": 2 * 64 * 16 * 9,
        "squeeze": 2 * 4 * 16,
        "excite": 2 * 16 * 4,
        "up": 2 * 256 * 16 * 6,  # each of 256 output pixels sees one input pixel
        "out": 2 * 256 * 6 * 5,
    }
    assert {name: costs.multiply_adds_of(name) for name in costs.positions} == expected
    assert costs.multiply_adds == sum(expected.values()) == costs.flops / 2
    assert costs.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert costs.channels_of("up") == 6


def test_tokens_and_a_layer_that_is_called_twice():
    model, x = build(Attention)
    costs = count_costs(model, x)
    assert costs.multiply_adds_of("up") == 2 * 6 * 16 * 24
    layer = nn.Linear(4, 4)
    assert count_costs(nn.Sequential(layer, nn.ReLU(), layer), torch.ones(3, 4)).multiply_adds == 2 * 3 * 16


def test_weights_that_are_no_parameters():
    """A tied weight counts once as parameters and as often as it multiplies; a computed one multiplies too."""
    first, tied, computed = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False), nn.Linear(6, 2, bias=False)
    tied.weight = first.weight
    torch.nn.utils.parametrizations.weight_norm(computed)
    costs = count_costs(nn.Sequential(first, tied, computed), torch.ones(5, 6))
    assert costs.multiply_adds == 5 * (36 + 36 + 12)
    assert costs.parameters == 36 + 12 + 2
    assert costs.channels_of("2") == 2
    assert str(costs)


@pytest.mark.parametrize("kind", NETS)
def test_predicted_equals_counted(kind):
    pytest.importorskip("torch_pruning")
    model, x = build(kind)
    before = count_costs(model, x)
    predicted = before.after(prune_channels(model, x, 0.4))
    counted = count_costs(model, x)
    assert predicted == counted
    assert predicted.multiply_adds < before.multiply_adds
    assert f"{before.parameters} -> {counted.parameters}" in before.compare(counted)


# As the papers and the libraries that follow them have it, for one image of 224 x 224.
@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"),
    [("resnet50", 25_557_032, 4_089_184_256), ("vgg16", 138_357_544, 15_470_264_320)],
)
def test_known_networks(name, parameters, multiply_adds):
    costs = count_costs(create(name).to("meta"), torch.empty(1, 3, 224, 224, device="meta"))
    assert (costs.parameters, costs.multiply_adds) == (parameters, multiply_adds)
