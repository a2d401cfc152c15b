"""What the recipes in this folder train: a small convolutional net on scikit-learn's 8x8 digits."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from sparsecore.bench.models import Digits, digits_data, digits_net


def model() -> nn.Module:
    """The net, with random weights."""
    return digits_net()


@cache
def _digits(split: int) -> Digits:
    return digits_data(split)


def train_data(split: int = 0) -> tuple[Tensor, Tensor]:
    """1437 images and their labels; the split into training and test images depends on its number."""
    digits = _digits(split)
    return digits.train_x, digits.train_y


def accuracy(net: nn.Module, split: int = 0) -> float:
    """Share of the 360 test images that are recognised."""
    digits = _digits(split)
    return float((net(digits.test_x).argmax(1) == digits.test_y).double().mean())


def training_step(net: nn.Module, batch: Any, loss: Any) -> Tensor:
    """As the usual step, on images moved by up to one pixel."""
    images, labels = batch
    down, right = torch.randint(-1, 2, (2,)).tolist()
    moved = torch.roll(images, (down, right), (2, 3))
    result: Tensor = loss(net(moved), labels, moved)
    return result
