"""The table of what models cost."""

from __future__ import annotations

import json

import torch
from torch import nn

from sparsecore.bench.model_cost import compare_cost


def test_rows() -> None:
    large = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 4)).train()
    small = nn.Sequential(nn.Linear(8, 4, bias=False))
    table = compare_cost({"large": large, "small": small}, torch.randn(2, 8), min_time_s=0.0)
    assert [row.name for row in table] == ["large", "small"]
    assert [row.multiply_adds for row in table] == [2 * (8 * 16 + 16 * 4), 2 * 8 * 4]
    assert [row.parameters for row in table] == [8 * 16 + 16 + 16 * 4 + 4, 8 * 4]
    assert all(row.median_ms > 0 for row in table)
    assert large.training
    assert json.loads(json.dumps(table.to_dict()))["rows"][1]["multiply_adds"] == 64
    lines = str(table).splitlines()
    assert lines[0].split() == ["model", "parameters", "multiply-adds", "of", "first", "ms", "of", "first"]
    assert lines[3].split()[:4] == ["small", "32", "64", "16.7%"]
