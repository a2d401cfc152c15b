"""Small networks with what real ones are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def sparse_(model: nn.Module, sparsity: float = 0.8, seed: int = 0) -> Any:
    """Zero entries of all weights at random, and give BatchNorms numbers that are not 0 and 1."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=generator)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight *= uniform(module.weight, 0, 1) > sparsity
            elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.copy_(uniform(module.running_mean, -0.5, 0.5))
                module.running_var.copy_(uniform(module.running_var, 0.5, 2))
                if module.affine:
                    module.weight.copy_(uniform(module.weight, 0.5, 1.5))
                    module.bias.copy_(uniform(module.bias, -0.5, 0.5))
    return model.eval()


def with_signs_(layer: nn.Module, zeros: bool) -> Any:
    """Round a layer's weight to -0.75, 0 and 0.5, or without zeros to +-0.5: what ternary and binary formats hold."""
    with torch.no_grad():
        weight = layer.weight
        assert isinstance(weight, Tensor)
        signs = weight.sign() if zeros else torch.where(weight < 0, -1.0, 1.0)
        weight.copy_(signs * torch.where((signs < 0) & zeros, 0.75, 0.5))
    return layer


def fit_(cls: type, layer: nn.Module) -> Any:
    """Round a layer's weight to what a class of compressed layers can hold, if that is little."""
    has_signs = cls.__name__.startswith(("Binary", "Ternary"))
    return with_signs_(layer, cls.__name__.startswith("Ternary")) if has_signs else layer


class Residual(nn.Module):
    """Convolution, BatchNorm, ReLU and a shortcut, which comes first or last in the sum."""

    def __init__(self, channels: int = 16, shortcut_first: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.project = nn.Conv2d(channels, channels, 1)
        self.shortcut_first = shortcut_first

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        shortcut = self.project(x)
        return F.relu(shortcut + y if self.shortcut_first else y + shortcut)


class SqueezeExcite(nn.Module):
    """A gate per channel, made from the channel's mean."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.reduce = nn.Conv2d(channels, 4, 1)
        self.expand = nn.Conv2d(4, channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.bn(self.depthwise(x)))
        gate = self.expand(F.silu(self.reduce(y.mean((2, 3), keepdim=True))))
        return self.project(y * torch.sigmoid(gate))


class Dense(nn.Module):
    """BatchNorm before the convolution, and concatenation: nothing can absorb that BatchNorm."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, 8, 3, padding=1, bias=False)
        self.last = nn.BatchNorm2d(channels + 8)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x, self.conv(F.relu(self.bn(x)))], 1)
        return F.avg_pool2d(F.relu(self.last(y)), 2)


class Split(nn.Module):
    """Views of one memory in several parts, shuffled channels, a layer that is called twice."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)
        self.twice = nn.Conv2d(channels // 2, channels // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv(x).chunk(2, 1)
        y = torch.cat([self.twice(a), F.relu(self.twice(F.relu(b)))], 1)
        batch, channels, height, width = y.shape
        return y.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)


class Mixer(nn.Module):
    """A block of a network that works on channels last: LayerNorm and linear layers between permutations."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.up = nn.Linear(channels, 4 * channels)
        self.down = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


class Classifier(nn.Module):
    """A small network from an image to numbers, with several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.block = Residual()
        self.dropout = nn.Dropout()
        self.fc = nn.Linear(16, 10)
        self.bn = nn.BatchNorm1d(10)

    def forward(self, x: Tensor) -> dict[str, Any]:
        features = self.block(self.pool(self.stem(x)))
        pooled = F.adaptive_avg_pool2d(features, 1).flatten(1)
        logits = self.bn(self.fc(self.dropout(pooled)))
        return {"logits": logits, "all": (features, pooled)}


class Conv1D(nn.Module):
    """Looks like transformers' layer of that name: weight stored [K, N]."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class DataDependent(nn.Module):
    """What export cannot capture."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x - 1


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def assert_same(got: Any, want: Any, tolerance: float = 1e-5) -> None:
    assert len(tensors(got)) == len(tensors(want))
    for a, b in zip(tensors(got), tensors(want), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def image(batch: int, channels: int = 16, height: int = 13, width: int = 11, seed: int = 1) -> Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "residual": (Residual, 16),
    "shortcut first": (lambda: Residual(shortcut_first=True), 16),
    "squeeze-excite": (SqueezeExcite, 16),
    "dense": (Dense, 16),
    "split": (Split, 16),
    "mixer": (Mixer, 16),
    "classifier": (Classifier, 3),
}
