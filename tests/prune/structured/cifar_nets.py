"""The networks for 32x32 images that the papers on structured pruning report on, at full size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparsecore.bench.models import initialise, settle_batchnorm
from sparsecore.bench.models.blocks import conv_norm

_VGG19 = (64, 64, 0, 128, 128, 0, *[256] * 4, 0, *[512] * 4, 0, *[512] * 4)


def vgg19() -> nn.Sequential:
    """VGG-19 of Network Slimming: 16 convolutions with BatchNorm, 20 million weights."""
    layers: list[nn.Module] = []
    channels = 3
    for width in _VGG19:
        layers += [conv_norm(channels, width, 3)] if width else [nn.MaxPool2d(2)]
        channels = width or channels
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(512, 10))


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


class PreactivationBottleneck(nn.Module):
    """Three convolutions, each behind BatchNorm and ReLU, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        width = outputs // 4
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        fits = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if fits else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(torch.relu(self.bn1(x)))
        y = self.conv3(torch.relu(self.bn3(self.conv2(torch.relu(self.bn2(y))))))
        return y + self.shortcut(x)


def _stages(block: type[nn.Module], inputs: int, widths: Sequence[int], count: int) -> list[nn.Module]:
    blocks = []
    for stage, width in enumerate(widths):
        for index in range(count):
            blocks.append(block(inputs, width, 2 if stage and not index else 1))
            inputs = width
    return blocks


def resnet(depth: int) -> nn.Sequential:
    """ResNet-56, -110, ...: basic blocks of 16, 32 and 64 channels."""
    blocks = _stages(BasicBlock, 16, (16, 32, 64), (depth - 2) // 6)
    return nn.Sequential(conv_norm(3, 16, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def preactivation_resnet(depth: int) -> nn.Sequential:
    """ResNet-164, ...: preactivation bottlenecks of 64, 128 and 256 channels."""
    blocks = _stages(PreactivationBottleneck, 16, (64, 128, 256), (depth - 2) // 9)
    end = (nn.BatchNorm2d(256), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), *blocks, *end)


def settled(model: nn.Module, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """The model with random weights and statistics, in evaluation mode, and an input."""
    torch.manual_seed(seed)
    x = torch.randn(4, 3, 32, 32)
    initialise(model)
    settle_batchnorm(model, x)
    return model, x
