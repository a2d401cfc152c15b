"""What several of the networks are built from."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Activation = Callable[[], nn.Module]


def relu() -> nn.Module:
    return nn.ReLU(inplace=True)


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    *,
    groups: int = 1,
    activation: Activation | None = relu,
    eps: float = 1e-5,
) -> nn.Sequential:
    """A convolution that keeps the size at stride 1, BatchNorm, and the activation if there is one."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels, eps=eps),
    ]
    if activation is not None:
        layers.append(activation())
    return nn.Sequential(*layers)


def pooled_classifier(*layers: nn.Module) -> nn.Sequential:
    """Global average pooling, and layers on ``[B, C]``."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), *layers)


def round_channels(channels: float, divisor: int = 8) -> int:
    """The nearest multiple, but not below 90% of the channels.

    Reference:
        ``_make_divisible`` in the authors' code of MobileNetV2.
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class SqueezeExcite(nn.Module):
    """Scale every channel by a gate that is computed from all channels' means.

    Reference:
        Hu et al., Squeeze-and-Excitation Networks, CVPR 2018, fig. 2.
    """

    def __init__(self, channels: int, squeezed: int, activation: Activation = relu, gate: Activation = nn.Sigmoid):
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            activation(),
            nn.Conv2d(squeezed, channels, 1),
            gate(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class Residual(nn.Module):
    """The input added to what the body makes of it."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)
