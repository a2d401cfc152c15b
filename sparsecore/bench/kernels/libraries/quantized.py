"""int8 for peers: symmetric weights per output, one scale and zero point for activations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsecore.bench.kernels.problem import Floats, Problem
from sparsecore.bench.peers.vnni import weight_levels

LEVELS = 255  # of uint8 activations


@dataclass(frozen=True)
class UInt8Scale:
    """real = scale * (q - zero_point)."""

    scale: np.float32
    zero_point: np.uint8

    @classmethod
    def of(cls, values: Floats) -> UInt8Scale:
        """Cover the values and 0."""
        low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
        scale = (high - low) / LEVELS or 1.0
        return cls(np.float32(scale), np.uint8(round(-low / scale)))

    def quantize(self, values: Floats) -> NDArray[np.uint8]:
        return np.clip(np.rint(values / self.scale) + self.zero_point, 0, LEVELS).astype(np.uint8)

    def dequantize(self, q: NDArray[np.uint8]) -> Floats:
        return (q.astype(np.float32) - np.float32(self.zero_point)) * self.scale

    @property
    def range(self) -> tuple[float, float]:
        """The least and the largest real number."""
        low = -float(self.zero_point) * float(self.scale)
        return low, low + LEVELS * float(self.scale)


def quantize_weight(problem: Problem) -> tuple[NDArray[np.int8], Floats]:
    """Quantize the weight with one scale per output.

    Returns:
        int8 of the weight's shape, and scales ``[N]``.
    """
    scale = np.abs(problem.matrix).max(axis=1) / weight_levels()
    scale[scale == 0] = 1.0
    q = np.rint(problem.matrix / scale[:, None]).astype(np.int8)
    return q.reshape(problem.weight.shape), scale.astype(np.float32)


def quantize_bias(problem: Problem, scales: Floats) -> NDArray[np.int32]:
    """Quantize the bias to the scale of the sums, ``[N]``."""
    return np.rint(problem.bias / scales).astype(np.int32)
