"""Int4Weight: a weight of 4 bits without its zeros, with a scale for each group of columns of a row."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparsecore.errors import FormatError
from sparsecore.formats.bit_fields import check_row_bits, num_field_bytes, pack_row_bits, unpack_row_bits
from sparsecore.formats.check import (
    FLOAT_DTYPES,
    as_matrix,
    check_finite,
    check_same_device,
    check_shape,
    check_tensor,
)
from sparsecore.quantize.groups import (
    GROUP_SIZE,
    check_group_size,
    dequantize_groups,
    num_groups,
    quantize_groups,
)


@dataclass(frozen=True, eq=False)
class Int4Weight:
    """A weight ``[N, K]`` as integers of -8 to 7, ``real[n, k] = scale[n, k // group_size] * q[n, k]``; validated.

    Zeros take a bit each, other integers 4 more.

    Args:
        nonzero: ``[N, ceil(K / 8)]`` uint8. Bit k % 8 of byte k // 8 belongs to column k and is set where the integer
            is not zero; bits past K are 0.
        values: ``[ceil(nnz / 2)]`` uint8: the integers that are not zero, row by row, two in a byte, the first one in
            its low half; what is left of the last byte is 0.
        scale: ``[N, ceil(K / group_size)]`` float32, positive.
        shape: ``(N, K)``.
        group_size: columns that share a scale: a multiple of 16, at most 2048.

    Raises:
        FormatError: a tensor has the wrong type, size or content.

    Example:
        >>> weight = Int4Weight.from_dense(torch.tensor([[7.0, 0.0, -1.0]]))
        >>> weight.integers().tolist(), weight.scale.tolist(), weight.values.tolist()
        ([[7, 0, -1]], [[1.0]], [247])
    """

    nonzero: Tensor
    values: Tensor
    scale: Tensor
    shape: tuple[int, int]
    group_size: int

    def __post_init__(self) -> None:
        shape, group_size = check_shape(self.shape), check_group_size(self.group_size)
        nonzero = check_row_bits("nonzero", self.nonzero, shape)
        nnz = int(unpack_row_bits(nonzero, shape[1]).sum())
        tensors = {
            "nonzero": nonzero,
            "values": check_tensor("values", self.values, (torch.uint8,), (num_field_bytes(nnz, 4),)),
            "scale": check_tensor("scale", self.scale, (torch.float32,), (shape[0], num_groups(shape[1], group_size))),
        }
        check_same_device(tensors)
        if not bool((torch.isfinite(tensors["scale"]) & (tensors["scale"] > 0)).all()):
            raise FormatError("expected every scale finite and above 0; quantize the weight again")
        halves = _unpack_halves(tensors["values"])
        if bool((halves[:nnz] == 0).any()) or bool(halves[nnz:].any()):
            raise FormatError("expected an integer that is not 0 for every bit of nonzero, and nothing behind them")
        for name, checked in {**tensors, "shape": shape}.items():
            object.__setattr__(self, name, checked)

    @property
    def nbytes(self) -> int:
        """Bytes in memory of all tensors together."""
        return self.nonzero.nbytes + self.values.nbytes + self.scale.nbytes

    @property
    def dtype(self) -> torch.dtype:
        """Type of the stored values."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device

    @classmethod
    def from_dense(cls, weight: Tensor, group_size: int = GROUP_SIZE, scales: str = "mse") -> Int4Weight:
        """Quantize symmetrically per row and group of columns, to integers of -7 to 7; zero stays exactly zero.

        Args:
            weight: ``[N, ...]``, flattened to ``[N, K]``; float32, float16 or bfloat16, finite.
            group_size: columns that share a scale: a multiple of 16, at most 2048. The kernels for few rows of
                activations want a multiple of 256.
            scales: ``"minmax"``, absmax / 7 of the group, or ``"mse"``, the share of it with the least squared error.

        Raises:
            FormatError: wrong type or shape, or a value is NaN or infinite.
            ValueError: there are no such scales.
        """
        matrix = check_finite(as_matrix(weight, FLOAT_DTYPES)).float()
        q, scale = quantize_groups(matrix, check_group_size(group_size), bits=4, scales=scales)
        return cls.from_integers(q, scale, group_size)

    @classmethod
    def from_integers(cls, q: Tensor, scale: Tensor, group_size: int) -> Int4Weight:
        """Take the integers as they are.

        Args:
            q: ``[N, K]`` int8, of -8 to 7.
            scale: ``[N, ceil(K / group_size)]`` float32, positive.
            group_size: columns that share a scale.

        Raises:
            FormatError: a tensor has the wrong type, size or content.
        """
        q = check_tensor("q", q, (torch.int8,), (None, None))
        if bool(((q < -8) | (q > 7)).any()):
            raise FormatError("expected integers of -8 to 7")
        kept = q != 0
        return cls(pack_row_bits(kept), _pack_halves(q[kept]), scale, (q.shape[0], q.shape[1]), group_size)

    def integers(self) -> Tensor:
        """Return the integers, ``[N, K]`` int8."""
        kept = unpack_row_bits(self.nonzero, self.shape[1])
        q = torch.zeros(self.shape, dtype=torch.int8, device=self.device)
        halves = _unpack_halves(self.values)[: int(kept.sum())]
        q[kept] = ((halves ^ 8).to(torch.int8) - 8).to(torch.int8)
        return q

    def to_dense(self) -> Tensor:
        """Return the float32 matrix ``[N, K]`` the integers stand for."""
        return dequantize_groups(self.integers(), self.scale, self.group_size)

    def to(self, device: torch.device | str) -> Int4Weight:
        """Return the weight on another device."""
        return replace(
            self, nonzero=self.nonzero.to(device), values=self.values.to(device), scale=self.scale.to(device)
        )


def _pack_halves(numbers: Tensor) -> Tensor:
    """Two numbers of 4 bits in a byte, the first one in its low half."""
    low = torch.nn.functional.pad(numbers, (0, numbers.numel() % 2)).view(torch.uint8) & 15
    return low[::2] | low[1::2] << 4


def _unpack_halves(packed: Tensor) -> Tensor:
    return torch.stack((packed & 15, packed >> 4), 1).flatten()
