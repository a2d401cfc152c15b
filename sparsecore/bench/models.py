"""Workloads as plain modules: ResNet-50, a small net for 8x8 digits, and the digits themselves."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsecore.errors import require_extra


class Bottleneck(nn.Module):
    """1x1 reduce, 3x3, 1x1 expand by four, each with BatchNorm, plus the shortcut.

    Reference:
        He et al., Deep Residual Learning for Image Recognition, CVPR 2016, fig. 5; the stride sits
        in the 3x3 convolution ("v1.5": Goyal et al., Accurate, Large Minibatch SGD, 2017).
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        output: Tensor = self.relu(self.bn3(self.conv3(y)) + shortcut)
        return output


class ResNet50(nn.Module):
    """ResNet-50 v1.5; parameter names are torchvision's, so its checkpoints load."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _resnet_layer(64, 64, blocks=3, stride=1)
        self.layer2 = _resnet_layer(256, 128, blocks=4, stride=2)
        self.layer3 = _resnet_layer(512, 256, blocks=6, stride=2)
        self.layer4 = _resnet_layer(1024, 512, blocks=3, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2048, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def resnet50(num_classes: int = 1000) -> ResNet50:
    """ResNet-50 v1.5 with random weights (He et al., Delving Deep into Rectifiers, ICCV 2015).

    Args:
        num_classes: Outputs of the classifier.

    Returns:
        A model for ``[B, 3, H, W]`` images, in training mode.

    Example:
        >>> resnet50().eval()(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 1000])
    """
    model = ResNet50(num_classes)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


@torch.no_grad()
def settle_batchnorm(model: nn.Module, batch: Tensor, seed: int = 0) -> None:
    """Give BatchNorm the look of a trained model: varied scale and shift, statistics of real data.

    The affine parameters become random, the running statistics those of the batch, so that
    activations neither vanish nor explode, and an error in folding them shows. Ends in eval mode.

    Args:
        model: Changed in place.
        batch: Input of the model, at least two samples.
        seed: Of the random affine parameters.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.weight.uniform_(0.5, 1.5, generator=generator)
        norm.bias.normal_(0.0, 0.2, generator=generator)
        norm.momentum = None  # the running statistics become the average over all batches seen
        norm.reset_running_stats()
    model.train()
    model(batch)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


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
            stem=_conv_block(1, 64, kernel_size=3),
            spatial=_conv_block(64, 128, kernel_size=3),
            pool=nn.MaxPool2d(2),
            pointwise=_conv_block(128, 256, kernel_size=1),
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


def _resnet_layer(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    out_channels = channels * Bottleneck.expansion
    rest = [Bottleneck(out_channels, channels) for _ in range(blocks - 1)]
    return nn.Sequential(Bottleneck(in_channels, channels, stride), *rest)


def _conv_block(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )
