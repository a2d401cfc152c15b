from __future__ import annotations

import json

import torch
from torch import nn

from sparsecore.bench.sweep import benchmark


def test_one_run_holds_eager_and_every_sparsity() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    weight = model[0].weight.clone()
    report = benchmark(model, torch.randn(1, 3, 8, 8), [0.5, 0.9], min_time_s=0.01)
    names = [version["name"] for version in report["versions"]]
    assert names == ["PyTorch eager", "PyTorch eager, channels last", "50% zeros", "90% zeros"]
    assert len({version["timings"][0]["rounds"] for version in report["versions"]}) == 1
    baseline = report["versions"][names.index(report["baseline"])]
    assert baseline["timings"][0]["speedup"] == 1.0
    assert torch.equal(model[0].weight, weight)
    assert model.training
    json.dumps(report)


def test_no_channels_last_without_images() -> None:
    report = benchmark(nn.Sequential(nn.Linear(8, 8)), torch.randn(2, 8), [0.5], min_time_s=0.01)
    assert [version["name"] for version in report["versions"]] == ["PyTorch eager", "50% zeros"]
