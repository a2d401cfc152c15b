"""Counted multiply-adds against the formulas of the layers."""

from __future__ import annotations

import torch
from torch import nn

from sparsecore.cost import count_multiply_adds


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
