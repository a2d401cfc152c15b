"""Random weights, and BatchNorm as trained models have it."""

from __future__ import annotations

import torch
from torch import nn

from sparsecore.bench.models import create, initialise, settle_batchnorm


def test_variance_is_kept_per_group() -> None:
    conv = nn.Conv2d(64, 128, 3, groups=4)
    initialise(conv)
    assert abs(float(conv.weight.detach().std()) / (2 / (16 * 9)) ** 0.5 - 1) < 0.05
    assert conv.bias is not None
    assert conv.bias.abs().max() > 0


def test_settled_batchnorm_keeps_activations_in_range() -> None:
    torch.manual_seed(0)
    model = create("resnet18", num_classes=10)
    x = torch.randn(2, 3, 64, 64)
    settle_batchnorm(model, x)
    assert not model.training
    norm = model.bn1
    assert norm.momentum == 0.1
    assert norm.running_mean is not None
    assert norm.weight.std() > 0.1
    assert norm.running_mean.abs().max() > 0
    with torch.inference_mode():
        assert 0.01 < model(x).std() < 100


def test_settled_batchnorm_depends_on_the_seed_only() -> None:
    x = torch.randn(2, 3, 4, 4)
    models = [nn.Sequential(nn.BatchNorm2d(3)) for _ in range(3)]
    for model, seed in zip(models, (7, 7, 8), strict=True):
        settle_batchnorm(model, x, seed=seed)
    weights = [model[0].weight for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_only_batchnorm_trains_and_only_meanwhile() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(1.0), nn.BatchNorm2d(3))
    settle_batchnorm(model, torch.randn(2, 3, 4, 4))
    assert not any(module.training for module in model.modules())
    assert model[2].running_var.min() > 0  # dropout would have left nothing


def test_no_batchnorm_no_run() -> None:
    settle_batchnorm(nn.Linear(3, 2))
