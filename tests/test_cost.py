"""Counted multiply-adds against the formulas of the layers."""

from __future__ import annotations

import torch
from torch import nn

from sparsecore.cost import count_by_layer, count_multiply_adds


def test_layers_by_their_formulas() -> None:
    conv = nn.Conv2d(8, 12, (3, 5), stride=2, padding=1, groups=4)
    model = nn.Sequential(conv, nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))
    x = torch.randn(3, 8, 16, 16)
    size = conv(x)[0, 0].numel()
    model(x)
    assert count_multiply_adds(model, x) == 3 * (12 * 2 * 3 * 5 * size + 12 * size * 10)


def test_attention_counts() -> None:
    B, L, E = 2, 5, 8
    attention = nn.MultiheadAttention(E, 2, batch_first=True)
    x = torch.randn(B, L, E)
    assert count_multiply_adds(attention, (x, x, x)) == B * (4 * L * E * E + 2 * L * L * E)


def test_the_model_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()
    count_multiply_adds(model, torch.randn(3, 4))
    assert model.training
    assert model[1].num_batches_tracked == 0


def test_every_call_of_a_layer_counts() -> None:
    """Twice called, under two names, not called; on one sample, whose product is a matrix times a vector."""
    layer, unused = nn.Linear(4, 4), nn.Linear(4, 4)
    model = nn.ModuleDict({"first": layer, "again": layer, "unused": unused})
    model.forward = lambda x: layer(layer(x))  # type: ignore[method-assign]
    for x, count in ((torch.ones(3, 4), 96), (torch.ones(4), 32)):
        assert count_by_layer(model, (x,), dict(model.items())) == {"first": count}
        assert count_multiply_adds(model, (x,)) == count
    assert count_by_layer(nn.Linear(4, 2, bias=False), torch.ones(4), {}) == {}
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks


def test_layers_and_attention_add_up() -> None:
    """On shapes alone, with PyTorch's fast path for inference, which calls no layer."""
    B, L, E, F = 2, 5, 8, 16
    block = nn.TransformerEncoderLayer(E, 2, F, batch_first=True).eval()
    layers = {name: module for name, module in block.named_modules() if type(module) is nn.Linear}
    for device in ("cpu", "meta"):
        counted = count_by_layer(block.to(device), torch.zeros(B, L, E, device=device), layers)
        assert counted == {"linear1": B * L * E * F, "linear2": B * L * E * F}
        whole = count_multiply_adds(block, torch.zeros(B, L, E, device=device))
        assert whole == sum(counted.values()) + B * (4 * L * E * E + 2 * L * L * E)
