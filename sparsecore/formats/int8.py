"""Int8Weight: a dense weight matrix in int8 with one scale per output channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecore.errors import FormatError
from sparsecore.formats.check import (
    FLOAT_DTYPES,
    as_matrix,
    check_finite,
    check_same_device,
    check_scale,
    check_tensor,
)
from sparsecore.formats.csr import CsrWeight
from sparsecore.quantize.affine import quantize_symmetric, row_absmax, symmetric_scale


@dataclass(frozen=True, eq=False)
class Int8Weight:
    """A dense weight ``[N, K]`` as integers, ``real[n, k] = scale[n] * q[n, k]``; validated.

    Args:
        q: ``[N, K]`` int8.
        scale: ``[N]`` float32, positive.

    Raises:
        FormatError: a tensor has the wrong type, size or content.

    Example:
        >>> weight = Int8Weight.from_dense(torch.tensor([[127.0, 0.0, -1.0]]))
        >>> weight.q.tolist(), weight.scale.tolist()
        ([[127, 0, -1]], [1.0])
    """

    q: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        q = check_tensor("q", self.q, (torch.int8,), (None, None))
        scale = check_scale(self.scale, q.shape[0])
        check_same_device({"q": q, "scale": scale})
        object.__setattr__(self, "q", q)
        object.__setattr__(self, "scale", scale)

    @property
    def shape(self) -> tuple[int, int]:
        """``(N, K)``"""
        return self.q.shape[0], self.q.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes in memory of both tensors together."""
        return self.q.nbytes + self.scale.nbytes

    @property
    def dtype(self) -> torch.dtype:
        """Type of the stored values."""
        return self.q.dtype

    @property
    def device(self) -> torch.device:
        return self.q.device

    @classmethod
    def from_dense(cls, weight: Tensor) -> Int8Weight:
        """Quantize symmetrically per output channel: scale = absmax / 127, q in [-127, 127].

        Args:
            weight: ``[N, ...]``, flattened to ``[N, K]``; float32, float16 or bfloat16, finite.

        Returns:
            Integers within half a scale of the weight; zero stays exactly zero, a channel of zeros
            gets scale 1.

        Raises:
            FormatError: wrong type or shape, or a value is NaN or infinite.
        """
        matrix = check_finite(as_matrix(weight, FLOAT_DTYPES)).float()
        scale = symmetric_scale(row_absmax(matrix))
        return cls(quantize_symmetric(matrix, scale[:, None]), scale)

    def to_dense(self) -> Tensor:
        """Return the float32 matrix ``[N, K]`` the integers stand for."""
        return self.q.float() * self.scale[:, None]

    @classmethod
    def from_csr(cls, weight: CsrWeight) -> Int8Weight:
        """Fill in the missing zeros of an int8 CsrWeight; the exact inverse of ``to_csr()``."""
        if weight.scale is None:
            raise FormatError("expected an int8 CsrWeight, got float values; call .quantize() first")
        return cls(weight.to_dense(dequantize=False), weight.scale)

    def to_csr(self) -> CsrWeight:
        """Return the same integers without the zeros."""
        return CsrWeight.from_dense(self.q, scale=self.scale)

    def to(self, device: torch.device | str) -> Int8Weight:
        """Return the weight on another device."""
        return Int8Weight(self.q.to(device), self.scale.to(device))
