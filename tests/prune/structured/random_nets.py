"""Networks drawn at random from the structures that channels are cut through, and some that they are not."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import torch
from torch import Tensor, nn

from sparsecore.bench.models import initialise, settle_batchnorm

_WIDTHS = (4, 6, 8, 12)


class Sum(nn.Module):
    """The sum of branches; none is the input itself."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = [branch(x) for branch in self.branches]
        for other in others:
            first = first + other
        return first


class Beside(Sum):
    """Branches side by side."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Product(Sum):
    """The product of two branches."""

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.branches
        return one(x) * torch.sigmoid(other(x))


class Halves(nn.Module):
    """One half of the channels gates the other."""

    def forward(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, 1)
        return one * torch.sigmoid(other)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))


class Scale(nn.Module):
    """A factor for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.rand(width, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factors


class ChannelsLast(nn.Module):
    """Two linear layers on the channels of each pixel, as in ConvNeXt, with LayerNorm or without."""

    def __init__(self, width: int, inner: int, has_norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if has_norm else nn.Identity()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(self.norm(x.permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)


class Shuffle(nn.Module):
    """Channels in another order, as in ShuffleNet."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


class Twice(nn.Module):
    """A layer that is called twice."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.relu(self.layer(x)))


class FirstChannels(nn.Module):
    """The first half of the channels by a number in the code."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : x.shape[1] // 2] + x[:, x.shape[1] // 2 :]


class Builder:
    """Draws modules from ``[B, width, 8, 8]`` to ``[B, other width, 8, 8]``."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)

    def network(self) -> nn.Module:
        width, parts = self.random.choice(_WIDTHS), []
        parts += [nn.Conv2d(3, width, 3, padding=1, bias=self.flag()), *self.between(width)]
        for _ in range(self.random.randint(2, 4)):
            block, width = self.block(width, depth=2)
            parts += [block, *self.between(width)]
        return nn.Sequential(*parts, *self.head(width))

    def flag(self) -> bool:
        return self.random.random() < 0.5

    def between(self, width: int) -> list[nn.Module]:
        norms: list[Callable[[], nn.Module]] = [
            lambda: nn.BatchNorm2d(width),
            lambda: nn.BatchNorm2d(width),
            lambda: nn.GroupNorm(2, width),
            lambda: Scale(width),
            nn.Identity,
        ]
        activations = [nn.ReLU(), nn.SiLU(), nn.PReLU(width), nn.Identity(), nn.Dropout2d()]
        return [self.random.choice(norms)(), self.random.choice(activations)]

    def head(self, width: int) -> list[nn.Module]:
        inner, pixels = self.random.choice(_WIDTHS), self.random.choice((1, 4))
        pool = nn.AdaptiveAvgPool2d(1) if pixels == 1 else nn.AdaptiveMaxPool2d(2)
        middle = [nn.LayerNorm(inner)] if self.random.random() < 0.2 else []
        return [pool, nn.Flatten(), nn.Linear(width * pixels, inner), *middle, nn.GELU(), nn.Linear(inner, 5)]

    def block(self, width: int, depth: int) -> tuple[nn.Module, int]:
        simple = [self.convolution, self.grouped, self.depthwise, self.transposed, self.gate, self.last, self.twice]
        simple += [self.halves, self.shuffle, self.first_channels]
        nested = [self.residual, self.residual, self.concat, self.product] if depth else []
        return self.random.choice(simple + nested * 2)(width, depth)

    def chain(self, width: int, depth: int) -> tuple[list[nn.Module], int]:
        parts: list[nn.Module] = []
        for _ in range(self.random.randint(1, 2)):
            block, width = self.block(width, depth - 1)
            parts += [block, *self.between(width)]
        return parts, width

    def convolution(self, width: int, depth: int) -> tuple[nn.Module, int]:
        other, size = self.random.choice(_WIDTHS), self.random.choice((1, 3))
        return nn.Conv2d(width, other, size, padding=size // 2, bias=self.flag()), other

    def grouped(self, width: int, depth: int) -> tuple[nn.Module, int]:
        other = width * self.random.choice((1, 2))
        return nn.Conv2d(width, other, 3, padding=1, groups=2), other

    def depthwise(self, width: int, depth: int) -> tuple[nn.Module, int]:
        other = width * self.random.choice((1, 1, 2))
        return nn.Conv2d(width, other, 3, padding=1, groups=width), other

    def transposed(self, width: int, depth: int) -> tuple[nn.Module, int]:
        other = self.random.choice(_WIDTHS)
        return nn.ConvTranspose2d(width, other, 3, padding=1, groups=self.random.choice((1, 2))), other

    def gate(self, width: int, depth: int) -> tuple[nn.Module, int]:
        return Gate(width, 4), width

    def last(self, width: int, depth: int) -> tuple[nn.Module, int]:
        return ChannelsLast(width, self.random.choice(_WIDTHS), self.flag()), width

    def twice(self, width: int, depth: int) -> tuple[nn.Module, int]:
        return Twice(nn.Conv2d(width, width, 3, padding=1)), width

    def halves(self, width: int, depth: int) -> tuple[nn.Module, int]:
        return nn.Sequential(nn.Conv2d(width, 2 * width, 1), Halves()), width

    def shuffle(self, width: int, depth: int) -> tuple[nn.Module, int]:
        return Shuffle(2), width

    def first_channels(self, width: int, depth: int) -> tuple[nn.Module, int]:
        return nn.Sequential(nn.Conv2d(width, 2 * width, 1), FirstChannels()), width

    def residual(self, width: int, depth: int) -> tuple[nn.Module, int]:
        parts, inner = self.chain(width, depth)
        if inner == width and self.flag():
            return Sum(nn.Identity(), nn.Sequential(*parts)), width
        if self.flag():
            return Sum(nn.Sequential(*parts, nn.Conv2d(inner, width, 1)), nn.Identity()), width
        return Sum(nn.Sequential(*parts), nn.Conv2d(width, inner, 1)), inner

    def concat(self, width: int, depth: int) -> tuple[nn.Module, int]:
        parts, inner = self.chain(width, depth)
        if self.flag():
            return Beside(nn.Identity(), nn.Sequential(*parts)), width + inner
        other = self.random.choice(_WIDTHS)
        return Beside(nn.Sequential(*parts), nn.Conv2d(width, other, 1)), inner + other

    def product(self, width: int, depth: int) -> tuple[nn.Module, int]:
        parts, inner = self.chain(width, depth)
        return Product(nn.Sequential(*parts), nn.Conv2d(width, inner, 1)), inner


def random_net(seed: int) -> tuple[nn.Module, Tensor]:
    """A network with random weights and statistics, in evaluation mode, and an input."""
    model, x = Builder(seed).network(), torch.randn(2, 3, 8, 8)
    initialise(model)
    settle_batchnorm(model, x)
    return model.eval(), x
