"""Small networks with every structure that channels can be cut through."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsecore.bench.models import initialise, settle_batchnorm

IMAGE = (2, 3, 8, 8)


class Residual(nn.Module):
    """A stem, a block with a shortcut, a block with a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.projection = nn.Conv2d(8, 12, 1, stride=2)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.relu(x + self.bn2(self.conv2(torch.relu(self.conv1(x)))))
        x = torch.relu(self.conv3(x) + self.projection(x))
        return self.fc(x.mean((2, 3)))


class Concat(nn.Module):
    """Two branches side by side, their BatchNorm, and one more that is put beside."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3, padding=1)
        self.right = nn.Conv2d(3, 6, 1)
        self.bn = nn.BatchNorm2d(10)
        self.conv = nn.Conv2d(10, 8, 3, padding=1)
        self.out = nn.Conv2d(18, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(torch.cat([self.left(x), self.right(x)], 1)))
        return self.out(torch.cat([x, torch.sigmoid(self.conv(x))], 1))


class SideBySide(nn.Module):
    """A layer that is added to two others side by side, each of which has a part of its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 10, 1)
        self.left = nn.Conv2d(3, 4, 3, padding=1)
        self.right = nn.Conv2d(3, 6, 3, padding=1)
        self.out = nn.Conv2d(10, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.wide(x) + torch.cat([self.left(x), self.right(x)], 1)))


class Grouped(nn.Module):
    """A grouped, a depthwise, a transposed convolution, GroupNorm, PReLU and squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(3, 8, 1)
        self.grouped = nn.Conv2d(8, 16, 3, padding=1, groups=4)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.prelu = nn.PReLU(16)
        self.squeeze = nn.Conv2d(16, 4, 1)
        self.excite = nn.Conv2d(4, 16, 1)
        self.up = nn.ConvTranspose2d(16, 6, 2, stride=2)
        self.norm = nn.GroupNorm(3, 6)
        self.out = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.depthwise(torch.relu(self.grouped(torch.relu(self.reduce(x))))))
        x = x * torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.out(torch.relu(self.norm(self.up(x))))


class Flattened(nn.Sequential):
    """Convolutions whose channels become blocks of a linear layer's inputs."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 6, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(6 * 16, 12),
            nn.Sigmoid(),
            nn.Linear(12, 5),
        )


class Attention(nn.Module):
    """A transformer block: the view of the heads and LayerNorm forbid what a feed-forward layer allows."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.project = nn.Linear(16, 16)
        self.norm2 = nn.LayerNorm(16)
        self.up = nn.Linear(16, 24)
        self.down = nn.Linear(24, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x)
        q, k, v = (layer(y).unflatten(-1, (4, 4)).transpose(1, 2) for layer in self.qkv)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.project(y.transpose(1, 2).flatten(2))
        x = x + self.down(torch.nn.functional.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


NETS = (Residual, Concat, SideBySide, Grouped, Flattened, Attention)


def build(kind: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    """A network with random weights and statistics, in evaluation mode, and an input."""
    torch.manual_seed(0)
    x = torch.randn(2, 6, 8) if kind is Attention else torch.randn(IMAGE)
    model = kind()
    initialise(model)
    settle_batchnorm(model, x)
    return model, x
