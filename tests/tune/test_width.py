"""Counts of channels that are fast: which are tried, which wins, and what is timed; no clock decides."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsecore.graph import Call
from sparsecore.tune import measure
from sparsecore.tune.cache import TimeCache
from sparsecore.tune.width import dense_time_us, fastest_count, nearby_counts


@pytest.mark.parametrize("width", [1, 2, 3, 8, 16])
def test_nearby_counts_are_within_their_bounds(width):
    for most in (1, 2, 7, 16, 45, 64, 200):
        for target in range(1, most + 1):
            counts = nearby_counts(target, most, width)
            assert target in counts
            assert counts == sorted(set(counts))
            assert 1 <= counts[0] <= counts[-1] <= most
            lowest_step = max(1, min(8 // width, target // 8))
            assert target - counts[0] <= lowest_step
            assert counts[-1] - target <= 2 * lowest_step


def test_the_fastest_wins_and_of_equals_the_most():
    assert fastest_count(lambda count: 100.0, 179, 256) == 192
    assert fastest_count(lambda count: 100.0, 179, 180) == 179
    assert fastest_count(lambda count: float(count), 179, 256) == 179  # 176 is 1.7% faster, which is noise
    assert fastest_count(lambda count: 1.0 if count == 176 else 2.0, 179, 256) == 176
    assert fastest_count(lambda count: 1.0 if count % 16 == 0 else 2.0, 179, 256) == 192
    assert fastest_count(lambda count: -(-count // 8), 45, 64) == 48


@pytest.mark.parametrize(
    ("layer", "shape", "forms"),
    [
        (nn.Linear(24, 40), (64, 24), {"dense"}),
        (nn.Linear(24, 40), (1, 24), {"dense", "bitmap"}),
        (nn.Conv2d(3, 16, 3), (1, 3, 8, 8), {"dense", "4x1", "8x1"}),
        (nn.Conv2d(16, 16, 3, groups=16), (1, 16, 8, 8), {"dense", "depthwise"}),
        (nn.Conv1d(4, 6, 3), (1, 4, 8), {"dense"}),
        (nn.Linear(24, 40).double(), (1, 24), {"dense"}),
    ],
)
def test_the_fastest_dense_form_counts(layer, shape, forms, monkeypatch):
    seen = []

    def timed(candidates, call, is_recorded, other_bytes):
        seen.append((set(candidates), call.shape, is_recorded))
        return {name: 10.0 + number for number, name in enumerate(candidates)}, 0.0

    monkeypatch.setattr(measure, "_measure", timed)
    call = Call(shape, layer.weight.dtype)
    cache = TimeCache()
    assert dense_time_us(layer, [call, call], cache) == 20.0
    assert seen == [(forms | (seen[0][0] & {"4x1", "8x1"}), shape, True)]
    assert dense_time_us(layer, [call], cache) == 10.0
    assert len(seen) == 1  # the second time it is known


def test_other_sizes_have_other_keys(monkeypatch):
    monkeypatch.setattr(measure, "_measure", lambda forms, call, *_: (dict.fromkeys(forms, float(call.shape[1])), 0.0))
    cache = TimeCache()
    times = [dense_time_us(nn.Linear(width, 8), [Call((4, width), torch.float32)], cache) for width in (8, 16, 8)]
    assert times == [8.0, 16.0, 8.0]
