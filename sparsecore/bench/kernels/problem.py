"""What every library computes: one layer's numbers, in a file without pickle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class Problem:
    """A layer with its input; the zeros are in the weight.

    Attributes:
        weight: float32 ``[N, K]`` of a linear layer, ``[N, C, KH, KW]`` of a convolution.
        bias: float32 ``[N]``.
        x: float32 ``[M, K]`` or ``[B, C, H, W]``.
        stride: Of a convolution, in pixels.
        padding: Of a convolution, in pixels of zeros at each end.
    """

    weight: Floats
    bias: Floats
    x: Floats
    stride: int = 1
    padding: int = 0

    @property
    def is_conv(self) -> bool:
        return self.weight.ndim == 4

    @property
    def is_product(self) -> bool:
        """The layer is one matrix product: linear, or 1x1 with stride 1."""
        return not self.is_conv or (self.weight.shape[2:] == (1, 1) and self.stride == 1)

    @property
    def matrix(self) -> Floats:
        """The weight as ``[N, K]``."""
        return self.weight.reshape(len(self.weight), -1)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """``[M, N]`` or ``[B, N, OH, OW]``."""
        if not self.is_conv:
            return (len(self.x), len(self.weight))
        sizes = zip(self.x.shape[2:], self.weight.shape[2:], strict=True)
        pixels = ((size + 2 * self.padding - kernel) // self.stride + 1 for size, kernel in sizes)
        return (len(self.x), len(self.weight), *pixels)

    @property
    def num_columns(self) -> int:
        """M of a linear layer, pixels of all output images of a convolution."""
        shape = self.output_shape
        return math.prod(shape) // shape[1]

    def columns(self) -> Floats:
        """The input of a matrix product as ``[K, P]``, rows of memory along P.

        Raises:
            ValueError: The layer is no matrix product.
        """
        if not self.is_product:
            raise ValueError("expected a linear layer or a 1x1 convolution of stride 1")
        channels_first = np.moveaxis(self.x, 1, 0)
        return np.ascontiguousarray(channels_first.reshape(self.x.shape[1], -1))

    def from_columns(self, y: Floats) -> Floats:
        """Bring an output ``[N, P]`` into `output_shape`."""
        shape = self.output_shape
        return np.moveaxis(y.reshape(shape[1], shape[0], *shape[2:]), 0, 1)

    def per_output(self, values: Floats) -> Floats:
        """Shape ``[N]`` so that it broadcasts over the output."""
        return values.reshape(-1, 1, 1) if self.is_conv else values

    def save(self, path: Path) -> None:
        """Write one .npz file."""
        geometry = np.array([self.stride, self.padding])
        np.savez(path, weight=self.weight, bias=self.bias, x=self.x, geometry=geometry)

    @classmethod
    def load(cls, path: Path) -> Problem:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            stride, padding = arrays["geometry"].tolist()
            return cls(arrays["weight"], arrays["bias"], arrays["x"], stride, padding)
