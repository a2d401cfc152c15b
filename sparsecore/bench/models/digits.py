"""A small net for 8x8 digits, and the digits themselves."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsecore.bench.models.blocks import conv_norm
from sparsecore.errors import require_extra


def digits_net() -> nn.Sequential:
    """A small convolutional net for 1x8x8 images, wide enough for sparsity to matter.

    Returns:
        A model from ``[B, 1, 8, 8]`` to ``[B, 10]`` with 0.4 million weights, in training mode.

    Example:
        >>> digits_net().eval()(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    return nn.Sequential(
        OrderedDict(
            stem=conv_norm(1, 64, 3),
            spatial=conv_norm(64, 128, 3),
            pool=nn.MaxPool2d(2),
            pointwise=conv_norm(128, 256, 1),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            hidden=nn.Linear(256 * 2 * 2, 256),
            relu=nn.ReLU(),
            classifier=nn.Linear(256, 10),
        )
    )


@dataclass(frozen=True)
class Digits:
    """Images ``[n, 1, 8, 8]`` float32 in 0..1 and labels ``[n]`` int64, split 80 to 20."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def digits_data(seed: int = 0) -> Digits:
    """Load scikit-learn's handwritten digits (1797 real images, shipped with the library).

    Args:
        seed: Of the split, which keeps the share of each digit.

    Returns:
        Training and test images with labels.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    datasets = require_extra("sklearn.datasets", "train")
    selection = require_extra("sklearn.model_selection", "train")
    images, labels = datasets.load_digits(return_X_y=True)
    images = images.reshape(-1, 1, 8, 8) / 16
    train_x, test_x, train_y, test_y = selection.train_test_split(
        images, labels, test_size=0.2, random_state=seed, stratify=labels
    )
    return Digits(
        torch.from_numpy(train_x).float(),
        torch.from_numpy(train_y).long(),
        torch.from_numpy(test_x).float(),
        torch.from_numpy(test_y).long(),
    )
