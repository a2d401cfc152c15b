"""VGG, DenseNet and ConvNeXt."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsecore.bench.models.blocks import Residual, conv_norm, pooled_classifier, relu

# Output channels of the 3x3 convolutions between two poolings.
_VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg16(num_classes: int = 1000) -> nn.Sequential:
    """Simonyan and Zisserman, Very Deep Convolutional Networks, ICLR 2015, table 1, column D."""
    layers: list[nn.Module] = []
    in_channels = 3
    for group in _VGG16:
        for channels in group:
            layers += [nn.Conv2d(in_channels, channels, 3, padding=1), relu()]
            in_channels = channels
        layers.append(nn.MaxPool2d(2))
    classifier = nn.Sequential(
        nn.Linear(in_channels * 7 * 7, 4096),
        relu(),
        nn.Dropout(),
        nn.Linear(4096, 4096),
        relu(),
        nn.Dropout(),
        nn.Linear(4096, num_classes),
    )
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(7), nn.Flatten(1), classifier)


class DenseLayer(nn.Sequential):
    """BatchNorm and ReLU before each of a 1x1 and a 3x3 convolution; the output is appended to the input."""

    def __init__(self, in_channels: int, growth: int) -> None:
        inside = 4 * growth
        super().__init__(
            nn.BatchNorm2d(in_channels),
            relu(),
            *conv_norm(in_channels, inside, 1),
            nn.Conv2d(inside, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self:
            y = layer(y)
        return torch.cat([x, y], dim=1)


_DENSENET121_LAYERS = (6, 12, 24, 16)
_DENSENET121_GROWTH = 32


def densenet121(num_classes: int = 1000) -> nn.Sequential:
    """Huang et al., Densely Connected Convolutional Networks, CVPR 2017, table 1."""
    channels = 64
    layers: list[nn.Module] = [
        nn.Conv2d(3, channels, 7, 2, 3, bias=False),
        nn.BatchNorm2d(channels),
        relu(),
        nn.MaxPool2d(3, 2, 1),
    ]
    for stage, count in enumerate(_DENSENET121_LAYERS):
        if stage:
            transition = nn.Conv2d(channels, channels // 2, 1, bias=False)
            layers.append(nn.Sequential(nn.BatchNorm2d(channels), relu(), transition, nn.AvgPool2d(2)))
            channels //= 2
        for _ in range(count):
            layers.append(DenseLayer(channels, _DENSENET121_GROWTH))
            channels += _DENSENET121_GROWTH
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), relu(), pooled_classifier(nn.Linear(channels, num_classes)))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of every pixel of ``[B, C, H, W]``."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBody(nn.Module):
    """Depthwise 7x7, LayerNorm, linear to four times the channels, GELU, linear back, and a scale per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels, eps=1e-6),
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Linear(4 * channels, channels),
        )
        # 1e-6 at the start of training would hide what the block computes.
        self.layer_scale = nn.Parameter(torch.full((channels,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mlp(self.depthwise(x).permute(0, 2, 3, 1)) * self.layer_scale
        return y.permute(0, 3, 1, 2)


# Channels and blocks of each stage.
_CONVNEXT_TINY = ((96, 3), (192, 3), (384, 9), (768, 3))


def convnext_tiny(num_classes: int = 1000) -> nn.Sequential:
    """Liu et al., A ConvNet for the 2020s, CVPR 2022, section 2 and table 9."""
    layers: list[nn.Module] = []
    in_channels = 3
    for stage, (channels, count) in enumerate(_CONVNEXT_TINY):
        if stage:
            layers += [ChannelNorm(in_channels, eps=1e-6), nn.Conv2d(in_channels, channels, 2, 2)]
        else:
            layers += [nn.Conv2d(in_channels, channels, 4, 4), ChannelNorm(channels, eps=1e-6)]
        layers += [Residual(ConvNeXtBody(channels)) for _ in range(count)]
        in_channels = channels
    head = pooled_classifier(nn.LayerNorm(in_channels, eps=1e-6), nn.Linear(in_channels, num_classes))
    return nn.Sequential(*layers, head)
