"""BinaryWeight and TernaryWeight, of one magnitude per row and sign; PlanesWeight, their bits as kernels take them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecore.errors import FormatError
from sparsecore.formats.bit_fields import check_row_bits, pack_row_bits, unpack_row_bits
from sparsecore.formats.check import (
    FLOAT_DTYPES,
    as_matrix,
    check_same_device,
    check_scale,
    check_shape,
)

# Rows of a block and columns of a word: as in csrc's views.h.
BLOCK_ROWS = 16
WORD_BITS = 32
# Rows that are looked at first: a weight that is neither binary nor ternary shows it there.
FEW_ROWS = 4


@dataclass(frozen=True, eq=False)
class BinaryWeight:
    """A weight ``[N, K]`` of two numbers per row, ``-scale[n]`` and ``+scale[n]``, in a bit each; validated.

    Args:
        sign: ``[N, ceil(K / 8)]`` uint8. Bit k % 8 of byte k // 8 belongs to column k and is set where the weight is
            negative; bits past K are 0.
        scale: ``[N]`` float32, positive.
        shape: ``(N, K)``.

    Raises:
        FormatError: a tensor has the wrong type, size or content.

    Example:
        >>> weight = BinaryWeight.from_dense(torch.tensor([[0.5, -0.5, -0.5]]))
        >>> weight.sign.tolist(), weight.scale.tolist()
        ([[6]], [0.5])
    """

    sign: Tensor
    scale: Tensor
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        shape = check_shape(self.shape)
        sign, scale = check_row_bits("sign", self.sign, shape), check_scale(self.scale, shape[0])
        check_same_device({"sign": sign, "scale": scale})
        for name, checked in (("sign", sign), ("scale", scale), ("shape", shape)):
            object.__setattr__(self, name, checked)

    @property
    def nbytes(self) -> int:
        """Bytes in memory of both tensors together."""
        return self.sign.nbytes + self.scale.nbytes

    @property
    def device(self) -> torch.device:
        return self.sign.device

    @classmethod
    def from_dense(cls, weight: Tensor) -> BinaryWeight:
        """Take the signs of a weight that has one magnitude in each row; ``to_dense()`` gives it back exactly.

        Args:
            weight: ``[N, ...]``, flattened to ``[N, K]``; float32, float16 or bfloat16.

        Raises:
            FormatError: wrong type or shape, or a row has another magnitude, a zero, NaN or infinity.
        """
        matrix = as_matrix(weight, FLOAT_DTYPES).float()
        if len(matrix) > FEW_ROWS:
            cls.from_dense(matrix[:FEW_ROWS])
        scale = matrix[:, 0].abs() if matrix.shape[1] else matrix.new_ones(len(matrix))
        good = (matrix.abs() == scale[:, None]).all(1) & (scale > 0) & torch.isfinite(scale)
        if not bool(good.all()):
            raise FormatError(
                f"expected rows of +s and -s, got other numbers in row {int(good.int().argmin())}; "
                "train the weight with BinaryConnect first, or take TernaryWeight for zeros"
            )
        return cls(pack_row_bits(matrix < 0), scale, (matrix.shape[0], matrix.shape[1]))

    def to_dense(self) -> Tensor:
        """Return the float32 matrix ``[N, K]``."""
        scale = self.scale[:, None]
        return torch.where(unpack_row_bits(self.sign, self.shape[1]), -scale, scale)


@dataclass(frozen=True, eq=False)
class TernaryWeight:
    """A weight ``[N, K]`` of three numbers per row, ``-negative_scale[n]``, 0 and ``+positive_scale[n]``; validated.

    A zero contributes nothing: 0 * NaN is skipped.

    Args:
        nonzero: ``[N, ceil(K / 8)]`` uint8. Bit k % 8 of byte k // 8 belongs to column k and is set where the weight is
            not zero; bits past K are 0.
        sign: as nonzero; set where the weight is negative.
        positive_scale: ``[N]`` float32, positive; any in a row without positive numbers.
        negative_scale: ``[N]`` float32, positive; any in a row without negative numbers.
        shape: ``(N, K)``.

    Raises:
        FormatError: a tensor has the wrong type, size or content.

    Example:
        >>> weight = TernaryWeight.from_dense(torch.tensor([[0.5, 0, -0.25, 0.5]]))
        >>> weight.nonzero.tolist(), weight.sign.tolist()
        ([[13]], [[4]])
        >>> weight.positive_scale.tolist(), weight.negative_scale.tolist()
        ([0.5], [0.25])
    """

    nonzero: Tensor
    sign: Tensor
    positive_scale: Tensor
    negative_scale: Tensor
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        shape = check_shape(self.shape)
        tensors = {
            "nonzero": check_row_bits("nonzero", self.nonzero, shape),
            "sign": check_row_bits("sign", self.sign, shape),
            "positive_scale": check_scale(self.positive_scale, shape[0]),
            "negative_scale": check_scale(self.negative_scale, shape[0]),
        }
        check_same_device(tensors)
        if bool((tensors["sign"] & ~tensors["nonzero"]).any()):
            raise FormatError("expected a sign only where the weight is not zero; make it with from_dense()")
        for name, tensor in tensors.items():
            object.__setattr__(self, name, tensor)
        object.__setattr__(self, "shape", shape)

    @property
    def nbytes(self) -> int:
        """Bytes in memory of all tensors together."""
        return self.nonzero.nbytes + self.sign.nbytes + self.positive_scale.nbytes + self.negative_scale.nbytes

    @property
    def device(self) -> torch.device:
        return self.sign.device

    @classmethod
    def from_dense(cls, weight: Tensor) -> TernaryWeight:
        """Take the signs of a weight that has one magnitude per row and sign; ``to_dense()`` gives it back exactly.

        Args:
            weight: ``[N, ...]``, flattened to ``[N, K]``; float32, float16 or bfloat16. -0.0 is zero.

        Returns:
            The weight; a row without positive (negative) numbers has positive_scale (negative_scale) 1.

        Raises:
            FormatError: wrong type or shape, or a row has two magnitudes of a sign, NaN or infinity.
        """
        matrix = as_matrix(weight, FLOAT_DTYPES).float()
        if len(matrix) > FEW_ROWS:
            cls.from_dense(matrix[:FEW_ROWS])
        positive, negative = matrix > 0, matrix < 0
        positive_scale, negative_scale = _one_scale(matrix, positive), _one_scale(-matrix, negative)
        shape = (matrix.shape[0], matrix.shape[1])
        fits = matrix == _ternary(positive, negative, positive_scale, negative_scale)
        good = fits.all(1) & torch.isfinite(positive_scale) & torch.isfinite(negative_scale)
        if not bool(good.all()):
            raise FormatError(
                f"expected rows of -a, 0 and +b, got other numbers in row {int(good.int().argmin())}; "
                "train the weight to be ternary first"
            )
        return cls(pack_row_bits(positive | negative), pack_row_bits(negative), positive_scale, negative_scale, shape)

    def to_dense(self) -> Tensor:
        """Return the float32 matrix ``[N, K]``."""
        negative = unpack_row_bits(self.sign, self.shape[1])
        positive = unpack_row_bits(self.nonzero, self.shape[1]) & ~negative
        return _ternary(positive, negative, self.positive_scale, self.negative_scale)


@dataclass(frozen=True, eq=False)
class PlanesWeight:
    """A binary or ternary weight in the order of kernels (csrc's views.h). Private to them; files hold the others.

    Attributes:
        words: int32 ``[blocks of 16 rows, words of 32 columns, planes, 16]``; one plane, the signs, or two, of the
            positive and of the negative entries. Kernels take any bits.
        scale: float32 ``[planes, 16 * blocks]``, what a set bit of a plane stands for; in one plane the magnitude.
        shape: ``(N, K)``.
    """

    words: Tensor
    scale: Tensor
    shape: tuple[int, int]

    @classmethod
    def pack(cls, weight: BinaryWeight | TernaryWeight) -> PlanesWeight:
        """Pack a weight; ``unpack()`` gives it back exactly.

        Example:
            >>> packed = PlanesWeight.pack(BinaryWeight.from_dense(torch.tensor([[2.0, -2.0], [-1.0, -1.0]])))
            >>> packed.words.shape, packed.words[0, 0, 0, :2].tolist(), packed.scale[0, :2].tolist()
            (torch.Size([1, 1, 1, 16]), [2, 3], [2.0, 1.0])
        """
        if isinstance(weight, BinaryWeight):
            planes, scales = [weight.sign], [weight.scale]
        else:
            planes = [weight.nonzero & ~weight.sign, weight.sign]
            scales = [weight.positive_scale, -weight.negative_scale]
        N, K = weight.shape
        blocks, words = -(-N // BLOCK_ROWS), -(-K // WORD_BITS)
        padded = planes[0].new_zeros(len(planes), blocks * BLOCK_ROWS, words * WORD_BITS // 8)
        scale = scales[0].new_zeros(len(planes), blocks * BLOCK_ROWS)
        for p, (plane, of_rows) in enumerate(zip(planes, scales, strict=True)):
            padded[p, :N, : plane.shape[1]] = plane
            scale[p, :N] = of_rows
        by_rows = padded.view(len(planes), blocks, BLOCK_ROWS, words, WORD_BITS // 8).view(torch.int32)[..., 0]
        return cls(by_rows.permute(1, 3, 0, 2).contiguous(), scale, weight.shape)

    def unpack(self) -> BinaryWeight | TernaryWeight:
        """Return the stored weight."""
        N, K = self.shape
        by_rows = self.words.permute(2, 0, 3, 1)[..., None].contiguous().view(torch.uint8)
        planes = by_rows.flatten(3).flatten(1, 2)[:, :N, : -(-K // 8)]
        scale = self.scale[:, :N]
        if len(planes) == 1:
            return BinaryWeight(planes[0], scale[0], self.shape)
        return TernaryWeight(planes[0] | planes[1], planes[1], scale[0], -scale[1], self.shape)

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """The arrays in the order in which operations take them."""
        return self.words, self.scale

    @property
    def nbytes(self) -> int:
        """Bytes in memory of both arrays together."""
        return self.words.nbytes + self.scale.nbytes


def _one_scale(matrix: Tensor, where: Tensor) -> Tensor:
    """The largest number of each row there, 1 if there is none."""
    if not matrix.shape[1]:
        return matrix.new_ones(len(matrix))
    return torch.where(where.any(1), matrix.masked_fill(~where, 0.0).amax(1), 1.0)


def _ternary(positive: Tensor, negative: Tensor, positive_scale: Tensor, negative_scale: Tensor) -> Tensor:
    zero = positive_scale.new_zeros(())
    return torch.where(positive, positive_scale[:, None], torch.where(negative, -negative_scale[:, None], zero))
