"""MobileNet V1 to V3 and EfficientNet: depthwise convolutions between 1x1 convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from sparsecore.bench.models.blocks import (
    Activation,
    Residual,
    SqueezeExcite,
    conv_norm,
    pooled_classifier,
    relu,
    round_channels,
)

# Output channels and stride of every depthwise-separable block.
_V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


def mobilenet_v1(num_classes: int = 1000) -> nn.Sequential:
    """Howard et al., MobileNets: Efficient Convolutional Neural Networks for Mobile Vision, 2017, table 1."""
    layers: list[nn.Module] = [conv_norm(3, 32, 3, 2)]
    in_channels = 32
    for channels, stride in _V1:
        layers.append(conv_norm(in_channels, in_channels, 3, stride, groups=in_channels))
        layers.append(conv_norm(in_channels, channels, 1))
        in_channels = channels
    return nn.Sequential(*layers, pooled_classifier(nn.Linear(in_channels, num_classes)))


@dataclass(frozen=True)
class Inverted:
    """An inverted residual block, or several alike: expand by 1x1, filter depthwise, project by 1x1.

    Attributes:
        kernel: Size of the depthwise filter.
        expanded: Channels inside; None is the input channels times ``ratio``.
        out: Output channels.
        stride: Of the first block; the others have 1.
        activation: After the expansion and the depthwise convolution.
        squeezed: Channels that squeeze-and-excitation goes down to: ``"expanded"`` or ``"input"`` quartered, or none.
        ratio: See ``expanded``.
        repeat: How many of these follow each other.
    """

    kernel: int
    out: int
    stride: int = 1
    expanded: int | None = None
    activation: Activation = relu
    squeezed: str = ""
    ratio: int = 1
    repeat: int = 1

    def block(self, in_channels: int, stride: int, eps: float) -> nn.Module:
        """One of the blocks.

        Reference:
            Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018, table 1; with
            squeeze-and-excitation Howard et al., Searching for MobileNetV3, ICCV 2019, fig. 4.
        """
        inside = self.expanded or in_channels * self.ratio
        layers: list[nn.Module] = []
        if inside != in_channels:
            layers.append(conv_norm(in_channels, inside, 1, activation=self.activation, eps=eps))
        layers.append(
            conv_norm(inside, inside, self.kernel, stride, groups=inside, activation=self.activation, eps=eps)
        )
        if self.squeezed == "expanded":
            layers.append(SqueezeExcite(inside, round_channels(inside / 4), gate=nn.Hardsigmoid))
        elif self.squeezed == "input":
            layers.append(SqueezeExcite(inside, in_channels // 4, self.activation))
        layers.append(conv_norm(inside, self.out, 1, activation=None, eps=eps))
        body = nn.Sequential(*layers)
        return Residual(body) if stride == 1 and in_channels == self.out else body


def _inverted_net(
    stem: nn.Sequential, stem_channels: int, rows: Sequence[Inverted], *head: nn.Module, eps: float = 1e-5
) -> nn.Sequential:
    layers: list[nn.Module] = [stem]
    in_channels = stem_channels
    for row in rows:
        for i in range(row.repeat):
            layers.append(row.block(in_channels, 1 if i else row.stride, eps))
            in_channels = row.out
    return nn.Sequential(*layers, *head)


_V2 = tuple(
    Inverted(3, out, stride, activation=nn.ReLU6, ratio=ratio, repeat=repeat)
    for ratio, out, repeat, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
)


def mobilenet_v2(num_classes: int = 1000) -> nn.Sequential:
    """Sandler et al., CVPR 2018, table 2."""
    return _inverted_net(
        conv_norm(3, 32, 3, 2, activation=nn.ReLU6),
        32,
        _V2,
        conv_norm(320, 1280, 1, activation=nn.ReLU6),
        pooled_classifier(nn.Dropout(0.2), nn.Linear(1280, num_classes)),
    )


def _v3_rows(*rows: tuple[int, int, int, bool, Activation, int]) -> list[Inverted]:
    return [
        Inverted(kernel, out, stride, expanded, activation, "expanded" if has_squeeze else "")
        for kernel, expanded, out, has_squeeze, activation, stride in rows
    ]


_V3_LARGE = _v3_rows(
    (3, 16, 16, False, relu, 1),
    (3, 64, 24, False, relu, 2),
    (3, 72, 24, False, relu, 1),
    (5, 72, 40, True, relu, 2),
    (5, 120, 40, True, relu, 1),
    (5, 120, 40, True, relu, 1),
    (3, 240, 80, False, nn.Hardswish, 2),
    (3, 200, 80, False, nn.Hardswish, 1),
    (3, 184, 80, False, nn.Hardswish, 1),
    (3, 184, 80, False, nn.Hardswish, 1),
    (3, 480, 112, True, nn.Hardswish, 1),
    (3, 672, 112, True, nn.Hardswish, 1),
    (5, 672, 160, True, nn.Hardswish, 2),
    (5, 960, 160, True, nn.Hardswish, 1),
    (5, 960, 160, True, nn.Hardswish, 1),
)
_V3_SMALL = _v3_rows(
    (3, 16, 16, True, relu, 2),
    (3, 72, 24, False, relu, 2),
    (3, 88, 24, False, relu, 1),
    (5, 96, 40, True, nn.Hardswish, 2),
    (5, 240, 40, True, nn.Hardswish, 1),
    (5, 240, 40, True, nn.Hardswish, 1),
    (5, 120, 48, True, nn.Hardswish, 1),
    (5, 144, 48, True, nn.Hardswish, 1),
    (5, 288, 96, True, nn.Hardswish, 2),
    (5, 576, 96, True, nn.Hardswish, 1),
    (5, 576, 96, True, nn.Hardswish, 1),
)
_V3_EPS = 1e-3


def _mobilenet_v3(rows: Sequence[Inverted], hidden: int, num_classes: int) -> nn.Sequential:
    last = rows[-1].out
    return _inverted_net(
        conv_norm(3, 16, 3, 2, activation=nn.Hardswish, eps=_V3_EPS),
        16,
        rows,
        conv_norm(last, 6 * last, 1, activation=nn.Hardswish, eps=_V3_EPS),
        pooled_classifier(nn.Linear(6 * last, hidden), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(hidden, num_classes)),
        eps=_V3_EPS,
    )


def mobilenet_v3_large(num_classes: int = 1000) -> nn.Sequential:
    """Howard et al., ICCV 2019, table 1."""
    return _mobilenet_v3(_V3_LARGE, 1280, num_classes)


def mobilenet_v3_small(num_classes: int = 1000) -> nn.Sequential:
    """Howard et al., ICCV 2019, table 2."""
    return _mobilenet_v3(_V3_SMALL, 1024, num_classes)


_EFFICIENTNET_B0 = tuple(
    Inverted(kernel, out, stride, activation=nn.SiLU, squeezed="input", ratio=ratio, repeat=repeat)
    for ratio, kernel, stride, out, repeat in (
        (1, 3, 1, 16, 1),
        (6, 3, 2, 24, 2),
        (6, 5, 2, 40, 2),
        (6, 3, 2, 80, 3),
        (6, 5, 1, 112, 3),
        (6, 5, 2, 192, 4),
        (6, 3, 1, 320, 1),
    )
)


def efficientnet_b0(num_classes: int = 1000) -> nn.Sequential:
    """Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019, table 1."""
    return _inverted_net(
        conv_norm(3, 32, 3, 2, activation=nn.SiLU),
        32,
        _EFFICIENTNET_B0,
        conv_norm(320, 1280, 1, activation=nn.SiLU),
        pooled_classifier(nn.Dropout(0.2), nn.Linear(1280, num_classes)),
    )
