"""Linear layers over the float storages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from sparsecore._native import raw
from sparsecore.formats import CsrWeight
from sparsecore.formats.panel import TILE_COLUMNS, fit_panel_cols, tile_floats
from sparsecore.nn.base import CompressedModule, Layer, WeightFormat
from sparsecore.nn.gpu_storage import DeltaStorage, FragmentInt4Storage, FragmentStorage, GpuStorage
from sparsecore.nn.storage import (
    BitmapStorage,
    BlockStorage,
    CodebookStorage,
    CsrStorage,
    JitStorage,
    PanelStorage,
)


class LinearGeometry(CompressedModule):
    """``x [..., in_features] -> [..., out_features]``"""

    dense_type = nn.Linear

    def __init__(self, weight: WeightFormat, bias: Tensor | None = None, **options: Any) -> None:
        super().__init__(weight, bias, **options)
        self.out_features, self.in_features = weight.shape

    def _check_input(self, x: Tensor) -> None:
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise RuntimeError(f"expected x [..., {self.in_features}], got {list(x.shape)}")

    def to_dense_module(self) -> nn.Linear:
        """Return the nn.Linear with the (dequantized) weight, without the activation."""
        dense = nn.Linear(self.in_features, self.out_features, device="meta")
        self._fill_dense(dense)
        return dense

    def extra_repr(self) -> str:
        features = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{features}, {self._settings_repr()}"


class CsrLinear(LinearGeometry, CsrStorage):
    """What SparseLinear and its forms for GPUs share: moving a layer makes it the class that runs there."""

    runs_on_cuda: ClassVar[bool] = True

    def _apply(self: Layer, fn: Any, recurse: bool = True) -> Layer:
        assert isinstance(self, CsrLinear)
        dtype, was_on_gpu = self._values_dtype(), any(tensor.is_cuda for tensor in self.buffers())
        target = fn(torch.empty(0, dtype=dtype))
        self._check_device(target.device)
        is_packed = isinstance(self, GpuStorage)
        if is_packed and (target.device.type == "cpu" or target.dtype != dtype):
            self._become(SparseLinear)
        super()._apply(fn, recurse)
        # One that is there already is CSR by choice.
        is_new = target.device.type == "cuda" and not (was_on_gpu and target.dtype == dtype)
        if type(self) is SparseLinear and is_new:
            weight = self.weight_format
            assert isinstance(weight, CsrWeight)
            self._become(gpu_class(weight))
        return self

    def _become(self, kind: type[CsrLinear]) -> None:
        """Hold the weight as another class does; what else the layer has stays."""
        if kind is type(self):
            return
        weight = self.weight_format
        for name in self.buffer_names if type(self) is SparseLinear else cast(GpuStorage, self).packed_names:
            del self._buffers[name]
        self.__class__ = kind
        self._hold(weight)


class SparseLinear(CsrLinear):
    """A linear layer with a float CSR weight: ``y = activation(x @ weight^T + bias)``.

    Moved to a GPU, a layer with float16 or bfloat16 values becomes a FragmentLinear or a DeltaLinear, which hold the
    weight as its kernels take it; moved back, a SparseLinear again. Float32 values stay CSR there.

    Example:
        >>> import torch
        >>> layer = SparseLinear.from_dense(nn.Linear(8, 4), activation="relu")
        >>> layer(torch.randn(2, 3, 8)).shape
        torch.Size([2, 3, 4])
    """

    def _run(self, x: Tensor, residual: Tensor | None) -> Tensor:
        settings = (residual, self.activation, "rows", self.kernel)
        return cast(Tensor, raw.spmm_csr(x, *self._arguments(), *settings))


class BlockLinear(SparseLinear, BlockStorage):
    """SparseLinear for a weight that was pruned in blocks of 4 or 8 rows; the outputs are equal.

    Example:
        >>> import torch
        >>> layer = BlockLinear.from_dense(nn.Linear(8, 4))
        >>> layer(torch.randn(2, 3, 8)).shape
        torch.Size([2, 3, 4])
    """

    runs_on_cuda: ClassVar[bool] = False


class PanelLinear(LinearGeometry, PanelStorage):
    """SparseLinear packed for many rows of activations; the outputs are equal.

    Example:
        >>> import torch
        >>> layer = PanelLinear.from_dense(nn.Linear(8, 4))
        >>> layer(torch.randn(2, 3, 8)).shape
        torch.Size([2, 3, 4])
    """

    def __init__(
        self,
        weight: WeightFormat,
        bias: Tensor | None = None,
        *,
        panel_cols: int | None = None,
        **options: Any,
    ) -> None:
        panel_cols = panel_cols or fit_panel_cols(TILE_COLUMNS)
        super().__init__(weight, bias, panel_cols=panel_cols, **options)

    @classmethod
    def fit(cls, dense: nn.Module, input_shape: Sequence[int]) -> dict[str, int]:
        """Return the options of ``from_dense()`` that suit inputs of a shape."""
        return {"panel_cols": fit_panel_cols(tile_floats(math.prod(input_shape[:-1])))}

    def _run(self, x: Tensor, residual: Tensor | None) -> Tensor:
        return cast(Tensor, raw.spmm_panel(x, *self._arguments(), residual, self.activation, "rows", self.kernel))


class JitLinear(LinearGeometry, JitStorage):
    """SparseLinear as machine code, for many rows of activations; the outputs are equal.

    Example:
        >>> import torch
        >>> layer = JitLinear.from_dense(nn.Linear(8, 4))
        >>> layer(torch.randn(2, 3, 8)).shape
        torch.Size([2, 3, 4])
    """

    def _run(self, x: Tensor, residual: Tensor | None) -> Tensor:
        return cast(Tensor, raw.spmm_jit(x, *self._arguments(), residual, self.activation, "rows", self.kernel))


class BitmapLinear(LinearGeometry, BitmapStorage):
    """SparseLinear packed in the fewest bytes, for few rows of activations; 16-bit values stay 16 bits wide.

    Example:
        >>> import torch
        >>> layer = BitmapLinear.from_dense(nn.Linear(8, 4))
        >>> layer(torch.randn(2, 3, 8)).shape
        torch.Size([2, 3, 4])
    """

    def _run(self, x: Tensor, residual: Tensor | None) -> Tensor:
        return cast(Tensor, raw.spmm_bitmap(x, *self._arguments(), residual, self.activation, self.kernel))


class FragmentLinear(CsrLinear, FragmentStorage):
    """SparseLinear on a GPU's tensor cores, for float16 or bfloat16 weights.

    What ``SparseLinear.to("cuda")`` becomes. For many rows of activations it expands the weight and multiplies
    densely, which saves memory and no time. NaN or infinity in a row of x reaches all outputs of that row.

    Example:
        >>> layer = FragmentLinear.from_dense(nn.Linear(8, 4).half())
        >>> layer.weight_format.shape
        (4, 8)
    """

    def _run(self, x: Tensor, residual: Tensor | None) -> Tensor:
        return self._multiply(x, residual, self.activation)


class FragmentInt4Linear(CsrLinear, FragmentInt4Storage):
    """FragmentLinear with a weight that is rounded to 4 bits, which has a scale for each row and 64 columns.

    Moved to a CPU, it becomes a SparseLinear with the rounded values; casts to other dtypes leave the weight as it is.

    Example:
        >>> layer = FragmentInt4Linear.from_dense(nn.Linear(8, 4))
        >>> layer.weight_format.shape
        (4, 8)
    """

    def _run(self, x: Tensor, residual: Tensor | None) -> Tensor:
        return self._multiply(x, residual, self.activation)


class DeltaLinear(CsrLinear, DeltaStorage):
    """SparseLinear on a GPU for float16 or bfloat16 weights of which 85% and more are zeros.

    What ``SparseLinear.to("cuda")`` becomes then. Its time goes with what is stored, for up to 8 rows of activations;
    for many it expands the weight and multiplies densely.

    Example:
        >>> layer = DeltaLinear.from_dense(nn.Linear(8, 4).half())
        >>> layer.weight_format.shape
        (4, 8)
    """

    def _run(self, x: Tensor, residual: Tensor | None) -> Tensor:
        return self._multiply(x, residual, self.activation)


# From this share of zeros on, work in proportion to what is stored beats expanding to dense fragments (prediction).
DELTA_SPARSITY = 0.85


def gpu_class(weight: CsrWeight) -> type[CsrLinear]:
    """Return the class of a layer that holds such a weight on a GPU."""
    if weight.dtype not in (torch.float16, torch.bfloat16):
        return SparseLinear
    return DeltaLinear if weight.sparsity >= DELTA_SPARSITY else FragmentLinear


class CodebookLinear(LinearGeometry, CodebookStorage):
    """A linear layer with at most 256 different weights, which runs straight from its codes and relative positions.

    Sums are those of SparseLinear up to their order; columns of the weight whose activations are zero are skipped.

    Reference:
        Han et al., EIE: Efficient Inference Engine on Compressed Deep Neural Network, ISCA 2016.

    Example:
        >>> import torch
        >>> dense = nn.Linear(8, 4)
        >>> dense.weight.data = torch.randint(-2, 3, (4, 8)) * 0.5
        >>> CodebookLinear.from_dense(dense)(torch.randn(2, 3, 8)).shape
        torch.Size([2, 3, 4])
    """

    def _run(self, x: Tensor, residual: Tensor | None) -> Tensor:
        return cast(Tensor, raw.spmm_codebook(x, *self._arguments(), residual, self.activation, self.kernel))

    def extra_repr(self) -> str:
        _, _, num_entries, bits, gap_bits, _ = self.packed_sizes
        return f"{super().extra_repr()}, entries={num_entries}, bits={bits}, gap_bits={gap_bits}"
