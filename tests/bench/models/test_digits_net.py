from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsecore.bench.models import digits_data, digits_net


def test_digits_net() -> None:
    net = digits_net().eval()
    assert net(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    kinds = {type(module) for module in net.modules()}
    assert {nn.Conv2d, nn.BatchNorm2d, nn.Linear} <= kinds


def test_digits_data() -> None:
    pytest.importorskip("sklearn")
    data = digits_data(seed=3)
    assert data.train_x.shape == (1437, 1, 8, 8)
    assert data.test_x.shape == (360, 1, 8, 8)
    assert data.train_x.dtype == torch.float32
    assert (float(data.train_x.min()), float(data.train_x.max())) == (0.0, 1.0)
    assert set(data.test_y.tolist()) == set(range(10))
    assert torch.equal(digits_data(seed=3).test_y, data.test_y)
    assert not torch.equal(digits_data(seed=4).test_y, data.test_y)
