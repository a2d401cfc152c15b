"""ResNet, ResNeXt and RegNet: stages of residual blocks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sparsecore.bench.models.blocks import SqueezeExcite, conv_norm, pooled_classifier, relu


class ResidualBlock(nn.Module):
    """Convolutions ``conv1``, ``conv2``, ... each with its BatchNorm ``bn1``, ..., plus the shortcut.

    ReLU follows every BatchNorm; the last one's comes after the shortcut is added.

    Reference:
        He et al., Deep Residual Learning for Image Recognition, CVPR 2016, fig. 5; the stride sits in the 3x3
        convolution ("v1.5": Goyal et al., Accurate, Large Minibatch SGD, 2017).
    """

    def __init__(self, convs: Sequence[nn.Conv2d]) -> None:
        super().__init__()
        for i, conv in enumerate(convs, 1):
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", nn.BatchNorm2d(conv.out_channels))
        self.num_convs = len(convs)
        self.relu = relu()
        self.downsample: nn.Sequential | None = None
        in_channels, out_channels = convs[0].in_channels, convs[-1].out_channels
        stride = max(conv.stride[0] for conv in convs)
        if stride != 1 or in_channels != out_channels:
            self.downsample = conv_norm(in_channels, out_channels, 1, stride, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        for i in range(1, self.num_convs):
            x = self.relu(self._conv_norm(i, x))
        output: Tensor = self.relu(self._conv_norm(self.num_convs, x) + shortcut)
        return output

    def _conv_norm(self, i: int, x: Tensor) -> Tensor:
        conv, norm = self.get_submodule(f"conv{i}"), self.get_submodule(f"bn{i}")
        y: Tensor = norm(conv(x))
        return y


class ResNet(nn.Module):
    """ResNet v1.5; parameter names are torchvision's, so its checkpoints load.

    Args:
        blocks: Blocks of each of the four stages.
        expansion: Output channels of a block over its channels: 4 for the bottleneck of three convolutions, 1 for two
            3x3 convolutions.
        groups: Of the 3x3 convolution of a bottleneck.
        group_width: Channels per group in the first stage; None is what makes the bottleneck's channels 64.
        num_classes: Outputs of the classifier.

    Reference:
        He et al., CVPR 2016, table 1; Xie et al., Aggregated Residual Transformations, CVPR 2017, table 1.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        expansion: int,
        *,
        groups: int = 1,
        group_width: int = 64,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = relu()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        in_channels = 64
        for stage, count in enumerate(blocks):
            channels = 64 << stage
            out_channels = channels * expansion
            width = groups * (group_width << stage)
            layers = []
            for i in range(count):
                stride = 2 if stage and not i else 1
                make = _basic if expansion == 1 else _bottleneck
                layers.append(ResidualBlock(make(in_channels, width, out_channels, stride, groups)))
                in_channels = out_channels
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.num_stages = len(blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(self.num_stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def _bottleneck(in_channels: int, width: int, out_channels: int, stride: int, groups: int) -> list[nn.Conv2d]:
    return [
        nn.Conv2d(in_channels, width, 1, bias=False),
        nn.Conv2d(width, width, 3, stride, padding=1, groups=groups, bias=False),
        nn.Conv2d(width, out_channels, 1, bias=False),
    ]


def _basic(in_channels: int, width: int, out_channels: int, stride: int, groups: int) -> list[nn.Conv2d]:
    return [
        nn.Conv2d(in_channels, width, 3, stride, padding=1, groups=groups, bias=False),
        nn.Conv2d(width, out_channels, 3, padding=1, groups=groups, bias=False),
    ]


def resnet18(num_classes: int = 1000) -> ResNet:
    return ResNet((2, 2, 2, 2), expansion=1, num_classes=num_classes)


def resnet50(num_classes: int = 1000) -> ResNet:
    return ResNet((3, 4, 6, 3), expansion=4, num_classes=num_classes)


def resnext50_32x4d(num_classes: int = 1000) -> ResNet:
    return ResNet((3, 4, 6, 3), expansion=4, groups=32, group_width=4, num_classes=num_classes)


class RegNetBlock(nn.Module):
    """A bottleneck without reduction, its 3x3 convolution in groups, and squeeze-and-excitation behind that."""

    def __init__(self, in_channels: int, channels: int, stride: int, group_width: int) -> None:
        super().__init__()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = conv_norm(in_channels, channels, 1, stride, activation=None)
        self.body = nn.Sequential(
            conv_norm(in_channels, channels, 1),
            conv_norm(channels, channels, 3, stride, groups=channels // group_width),
            SqueezeExcite(channels, round(in_channels / 4)),
            conv_norm(channels, channels, 1, activation=None),
        )
        self.relu = relu()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return y


# RegNetY-400MF: channels and blocks of each stage.
_REGNET_Y_400MF = ((48, 1), (104, 3), (208, 6), (440, 6))
_REGNET_GROUP_WIDTH = 8


def regnet_y_400mf(num_classes: int = 1000) -> nn.Sequential:
    """Radosavovic et al., Designing Network Design Spaces, CVPR 2020, fig. 19."""
    layers: list[nn.Module] = [conv_norm(3, 32, 3, 2)]
    in_channels = 32
    for channels, count in _REGNET_Y_400MF:
        for i in range(count):
            layers.append(RegNetBlock(in_channels, channels, 1 if i else 2, _REGNET_GROUP_WIDTH))
            in_channels = channels
    return nn.Sequential(*layers, pooled_classifier(nn.Linear(in_channels, num_classes)))
