from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from sparsecore.bench import probes
from sparsecore.bench.versions import (
    Version,
    max_relative_difference,
    measure,
    memory_bytes,
    replace_layers,
)


class Watcher(nn.Module):
    """Counts its calls and notes what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.channels_last = False

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.channels_last = not x.is_contiguous()
        return x


def test_versions_take_turns_with_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = itertools.cycle([100.0, 300.0, 200.0])
    monkeypatch.setattr(probes, "fma_gflops", lambda threads, seconds: next(peaks))
    plain, other = Watcher(), Watcher()
    versions = [
        Version("plain", "", "PyTorch", plain),
        Version("other", "", "PyTorch", other, torch.channels_last),
    ]
    run = measure(versions, torch.zeros(2, 3, 4, 4), min_time_s=0, min_rounds=3)
    assert list(run.timings) == ["plain", "other"]
    assert run.fma_gflops == 200.0
    assert plain.calls > 0
    assert not plain.channels_last
    assert other.channels_last
    row = run.row("other", baseline="plain")
    assert (row["batch"], row["rounds"]) == (2, 3)
    assert row["speedup"] == run.timings["plain"].median_us / row["median_us"]


def test_max_relative_difference() -> None:
    scaled = nn.Linear(2, 2, bias=False)
    exact = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        exact.weight.copy_(torch.eye(2) * 4)
        scaled.weight.copy_(torch.tensor([[4.0, 0.0], [0.0, 3.0]]))
    assert max_relative_difference(scaled, exact, torch.ones(1, 2)) == 0.25


def test_memory_counts_shared_tensors_once() -> None:
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    model = nn.Sequential(first, second, nn.BatchNorm1d(4))
    assert memory_bytes(model) == 16 * 4 + 4 * 4 * 4 + 8


def test_replace_layers_leaves_the_model_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    replaced = replace_layers(model, {nn.Linear: lambda linear: nn.Identity()})
    assert [type(m) for m in replaced.modules() if not list(m.children())] == [
        nn.Identity,
        nn.Identity,
        nn.ReLU,
    ]
    assert isinstance(model[0], nn.Linear)
