"""CsrWeight: a sparse weight matrix in compressed row order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsecore._native import raw
from sparsecore.errors import FormatError, require_extra
from sparsecore.formats.check import (
    FLOAT_DTYPES,
    MAX_INT32,
    as_matrix,
    check_finite,
    check_same_device,
    check_scale,
    check_shape,
    check_tensor,
    type_name,
)
from sparsecore.quantize.affine import quantize_symmetric, symmetric_scale

if TYPE_CHECKING:
    from scipy.sparse import csr_array

VALUE_DTYPES = (*FLOAT_DTYPES, torch.int8)


@dataclass(frozen=True, eq=False)
class CsrWeight:
    """A weight matrix ``[N, K]`` that stores some of its entries, row by row; validated when built.

        [ 5 . 7 ]   row_ptr 0 2 2 3    row n is entries row_ptr[n] .. row_ptr[n + 1]
        [ . . . ]   col_idx 0 2 1      strictly ascending inside a row
        [ . 9 . ]   values  5 7 9      int8: real = scale[n] * value

    A missing entry contributes nothing, whatever the activation (0 * NaN is skipped).

    Args:
        row_ptr: ``[N + 1]`` int32, rising from 0 to nnz.
        col_idx: ``[nnz]`` int32 in ``[0, K)``.
        values: ``[nnz]`` float32, float16, bfloat16 or int8.
        shape: ``(N, K)``.
        scale: ``[N]`` float32, positive; given exactly when values are int8.

    Raises:
        FormatError: an array has the wrong type, size or content.

    Example:
        >>> weight = CsrWeight.from_dense(torch.tensor([[5.0, 0, 7], [0, 0, 0], [0, 9, 0]]))
        >>> weight.col_idx.tolist()
        [0, 2, 1]
    """

    row_ptr: Tensor
    col_idx: Tensor
    values: Tensor
    shape: tuple[int, int]
    scale: Tensor | None = None

    def __post_init__(self) -> None:
        rows, cols = check_shape(self.shape)
        row_ptr = check_tensor("row_ptr", self.row_ptr, (torch.int32,), (rows + 1,))
        values = check_tensor("values", self.values, VALUE_DTYPES, (None,))
        col_idx = check_tensor("col_idx", self.col_idx, (torch.int32,), (values.numel(),))
        is_int8 = values.dtype == torch.int8
        if is_int8 != (self.scale is not None):
            raise FormatError(
                "expected a scale exactly with int8 values, "
                f"got {type_name(values)} values {'without' if is_int8 else 'with'} one"
            )
        scale = check_scale(self.scale, rows) if is_int8 else None
        tensors = {"row_ptr": row_ptr, "col_idx": col_idx, "values": values}
        check_same_device(tensors if scale is None else tensors | {"scale": scale})
        _check_indices(row_ptr, col_idx, cols)
        for name, checked in (*tensors.items(), ("scale", scale), ("shape", (rows, cols))):
            object.__setattr__(self, name, checked)

    def __repr__(self) -> str:
        N, K = self.shape
        return f"CsrWeight({N}x{K}, nnz={self.nnz}, sparsity={self.sparsity:.3f}, {type_name(self.values)})"

    @property
    def nnz(self) -> int:
        """Stored entries, also those whose value is zero."""
        return self.values.numel()

    @property
    def density(self) -> float:
        """nnz / (N * K); 0 for an empty matrix."""
        return self.nnz / max(self.shape[0] * self.shape[1], 1)

    @property
    def sparsity(self) -> float:
        return 1.0 - self.density

    @property
    def nbytes(self) -> int:
        """Bytes in memory of all arrays together."""
        tensors = (self.row_ptr, self.col_idx, self.values, self.scale)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the stored values."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device

    @classmethod
    def from_dense(cls, weight: Tensor, mask: Tensor | None = None, *, scale: Tensor | None = None) -> CsrWeight:
        """Keep the entries of a dense weight that are not zero, or those of a mask.

        Args:
            weight: ``[N, ...]``, flattened to ``[N, K]``; float32, float16, bfloat16, or int8.
            mask: bool, shape of ``weight``; True keeps the entry, also a zero. None keeps every
                value that is not zero, NaN included (-0.0 is zero).
            scale: ``[N]`` float32, for int8 only.

        Returns:
            The packed weight on ``weight.device``; ``to_dense()`` gives the matrix back exactly.

        Raises:
            FormatError: wrong type or shape.
            RuntimeError: 2^31 or more entries to keep.
        """
        matrix = as_matrix(weight, VALUE_DTYPES)
        if mask is not None:
            mask = check_tensor("mask", mask, (torch.bool,), weight.shape).flatten(1).cpu()
        packed = raw.pack_csr(matrix.cpu().contiguous(), mask)
        row_ptr, col_idx, values = (tensor.to(matrix.device) for tensor in packed)
        return cls(row_ptr, col_idx, values, (matrix.shape[0], matrix.shape[1]), scale)

    def to_dense(self, *, dequantize: bool = True) -> Tensor:
        """Return the matrix ``[N, K]`` with zeros where nothing is stored.

        Args:
            dequantize: turn int8 values into float32 by their scale; False gives the int8 values.
        """
        values = self._real_values() if dequantize else self.values
        arrays = (tensor.cpu() for tensor in (self.row_ptr, self.col_idx, values))
        dense: Tensor = raw.unpack_csr(*arrays, self.shape[1])
        return dense.to(self.device)

    @classmethod
    def from_scipy(cls, matrix: Any, dtype: torch.dtype | None = None, *, scale: Tensor | None = None) -> CsrWeight:
        """Copy a SciPy sparse matrix of any layout; entries are sorted, duplicates added up.

        Args:
            matrix: ``[N, K]`` scipy.sparse array or matrix; explicit zeros stay stored.
            dtype: type of float values; None is float32. int8 stays int8.
            scale: ``[N]`` float32, for int8 only.
        """
        if not hasattr(matrix, "tocsr"):
            raise FormatError(f"expected a scipy.sparse matrix, got {type_name(matrix)}; arrays: from_dense()")
        _check_scipy(matrix)
        is_int8 = str(matrix.dtype) == "int8"
        # Duplicates add up while converting, in int32 so that they cannot wrap around unseen.
        csr = matrix.astype("int32").tocsr() if is_int8 else matrix.tocsr()
        if not csr.has_canonical_format:
            csr = csr.copy()
            csr.sum_duplicates()
        values = torch.tensor(csr.data)
        if is_int8 and values.numel() and bool((values != values.to(torch.int8)).any()):
            raise FormatError("expected duplicates of an int8 matrix to add up inside [-128, 127]")
        return cls(
            row_ptr=_to_int32(torch.tensor(csr.indptr)),
            col_idx=_to_int32(torch.tensor(csr.indices)),
            values=values.to(torch.int8) if is_int8 else _to_float(values, dtype or torch.float32),
            shape=(int(csr.shape[0]), int(csr.shape[1])),
            scale=scale,
        )

    def to_scipy(self, *, dequantize: bool = True) -> csr_array:
        """Return a ``scipy.sparse.csr_array``; 16-bit floats, which SciPy lacks, as float32."""
        sparse = require_extra("scipy.sparse", "peers")
        values = self._real_values() if dequantize else self.values
        values = values if values.dtype == torch.int8 else values.float()
        arrays = [tensor.cpu().numpy().copy() for tensor in (values, self.col_idx, self.row_ptr)]
        return sparse.csr_array(tuple(arrays), shape=self.shape)

    @classmethod
    def from_torch(cls, matrix: Tensor, *, scale: Tensor | None = None) -> CsrWeight:
        """Copy a 2-D torch.sparse_csr tensor; float64 is rounded to float32, int8 needs scale."""
        if not isinstance(matrix, Tensor) or matrix.layout != torch.sparse_csr or matrix.dim() != 2:
            came = getattr(matrix, "layout", type_name(matrix))
            raise FormatError(f"expected a 2-D torch.sparse_csr tensor, got {came}; use .to_sparse_csr()")
        values = matrix.values().clone()
        return cls(
            row_ptr=_to_int32(matrix.crow_indices().clone()),
            col_idx=_to_int32(matrix.col_indices().clone()),
            values=values if values.dtype in VALUE_DTYPES else _to_float(values, torch.float32),
            shape=(matrix.shape[0], matrix.shape[1]),
            scale=scale,
        )

    def to_torch(self, *, dequantize: bool = True) -> Tensor:
        """Return a torch.sparse_csr tensor with int32 indices."""
        values = self._real_values() if dequantize else self.values
        return torch.sparse_csr_tensor(
            self.row_ptr.clone(),
            self.col_idx.clone(),
            values.clone(),
            self.shape,
            check_invariants=False,
        )

    def transpose(self) -> CsrWeight:
        """Return the matrix ``[K, N]``; int8, which has one scale per row, is refused."""
        if self.scale is not None:
            raise FormatError("expected float values to transpose, got int8; use .to(dtype) first")
        arrays = (tensor.cpu() for tensor in (self.row_ptr, self.col_idx, self.values))
        transposed = raw.transpose_csr(*arrays, self.shape[1])
        row_ptr, col_idx, values = (tensor.to(self.device) for tensor in transposed)
        return CsrWeight(row_ptr, col_idx, values, (self.shape[1], self.shape[0]))

    def quantize(self) -> CsrWeight:
        """Return int8 values, symmetric per row (scale = absmax / 127), of the same entries.

        Raises:
            FormatError: a value is NaN or infinite.
        """
        if self.scale is not None:
            return self
        values, rows = check_finite(self.values).float(), self._row_idx()
        absmax = values.new_zeros(self.shape[0]).scatter_reduce(0, rows, values.abs(), "amax")
        scale = symmetric_scale(absmax)
        return replace(self, values=quantize_symmetric(values, scale[rows]), scale=scale)

    def to(self, target: torch.device | str | torch.dtype) -> CsrWeight:
        """Return the weight on another device, or with values of another type."""
        if isinstance(target, torch.dtype):
            if target == torch.int8:
                return self.quantize()
            return replace(self, values=self._real_values().to(target), scale=None)
        row_ptr, col_idx, values = (tensor.to(target) for tensor in (self.row_ptr, self.col_idx, self.values))
        scale = None if self.scale is None else self.scale.to(target)
        return CsrWeight(row_ptr, col_idx, values, self.shape, scale)

    def _row_idx(self) -> Tensor:
        """Row of every stored entry, int64."""
        rows = torch.arange(self.shape[0], device=self.device)
        return rows.repeat_interleave(self.row_ptr.diff().long(), output_size=self.nnz)

    def _real_values(self) -> Tensor:
        if self.scale is None:
            return self.values
        return self.values.float() * self.scale[self._row_idx()]


def _check_indices(row_ptr: Tensor, col_idx: Tensor, cols: int) -> None:
    """Every check is one pass over an array, so that loading stays linear in nnz."""
    nnz = col_idx.numel()
    if nnz > MAX_INT32:
        raise FormatError(f"expected fewer than 2^31 entries, got {nnz}; split the weight")
    first, last = int(row_ptr[0]), int(row_ptr[-1])
    if first != 0 or last != nnz:
        raise FormatError(f"expected row_ptr to go from 0 to nnz={nnz}, got {first} to {last}")
    if bool((row_ptr[1:] < row_ptr[:-1]).any()):
        raise FormatError("expected row_ptr never to fall; rebuild it as the running sum of entries per row")
    if nnz == 0:
        return
    low, high = (int(bound) for bound in col_idx.aminmax())
    if low < 0 or high >= cols:
        raise FormatError(f"expected col_idx in [0, {cols}), got values from {low} to {high}")
    rises = col_idx[1:] > col_idx[:-1]
    row_starts = row_ptr[(row_ptr > 0) & (row_ptr < nnz)].long()
    rises[row_starts - 1] = True  # from one row to the next it may fall
    if not bool(rises.all()):
        raise FormatError("expected col_idx strictly ascending inside a row; sort each row and add up duplicates")


def _to_int32(index: Tensor) -> Tensor:
    # Clamped, not wrapped around: a too large index stays too large, and validation finds it.
    return index.clamp(-1, MAX_INT32).to(torch.int32) if index.dtype == torch.int64 else index


def _to_float(values: Tensor, dtype: torch.dtype) -> Tensor:
    if not values.is_floating_point():
        raise FormatError(f"expected float or int8 values, got {type_name(values)}; convert them to float32")
    return values.to(dtype)


def _check_scipy(matrix: Any) -> None:
    """SciPy converts between layouts without looking at indices, and out of range it writes where they point."""
    try:
        if hasattr(matrix, "check_format"):
            matrix.check_format(full_check=True)
        elif matrix.format == "coo":
            matrix._check()
    except (ValueError, TypeError, IndexError) as error:
        raise FormatError(f"expected a valid scipy.sparse matrix, got one with: {error}") from error
