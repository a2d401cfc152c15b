"""2-D convolutions over the storages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from sparsecore._native import raw
from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.formats.block_csr import BLOCK_ROWS
from sparsecore.formats.panel import fit_panel_cols, tile_floats
from sparsecore.nn.base import CompressedModule, WeightFormat
from sparsecore.nn.storage import (
    BlockStorage,
    CsrStorage,
    Int8Storage,
    JitStorage,
    LookupStorage,
    PanelStorage,
    QuantizedStorage,
)

Pair = tuple[int, int]


class Conv2dGeometry(CompressedModule):
    """``x [B, C, H, W]`` or ``[C, H, W]`` to N channels by ``weight [N, C / groups * KH * KW]``.

    Args:
        weight: the weight.
        bias: ``[N]`` float, or None.
        kernel_size: KH and KW, or one int for both.
        stride: in pixels, like kernel_size.
        padding: pixels of zeros at each end.
        dilation: distance of filter taps in pixels.
        groups: parts that channels are split into.
        options: see CompressedModule and, for int8, QuantizedStorage.
    """

    keywords: ClassVar[tuple[str, ...]] = (
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
    )
    dense_type = nn.Conv2d

    def __init__(
        self,
        weight: WeightFormat,
        bias: Tensor | None = None,
        *,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        **options: Any,
    ) -> None:
        # Plain values, which nn.Module takes before it is set up: some storages pack the weight for them.
        self.kernel_size = as_pair("kernel_size", kernel_size, 1)
        self.stride = as_pair("stride", stride, 1)
        self.padding = as_pair("padding", padding, 0)
        self.dilation = as_pair("dilation", dilation, 1)
        self.groups = as_pair("groups", (groups, groups), 1)[0]
        self.out_channels, cols = weight.shape
        area = self.kernel_size[0] * self.kernel_size[1]
        self.in_channels = cols // area * self.groups
        if cols % area or self.out_channels % self.groups:
            raise FormatError(
                f"expected a weight [N, C * {area}], N a multiple of {self.groups} groups, got {weight.shape}"
            )
        settings = (self.kernel_size, self.stride, self.padding, self.groups)
        self.is_product = settings == ((1, 1), (1, 1), (0, 0), 1)
        super().__init__(weight, bias, **options)

    @classmethod
    def _geometry(cls, dense: nn.Module) -> dict[str, Any]:
        assert isinstance(dense, nn.Conv2d)
        settings = {name: getattr(dense, name) for name in Conv2dGeometry.keywords}
        return settings | {"padding": resolve_padding(dense)}

    def _check_input(self, x: Tensor) -> None:
        if x.dim() not in (3, 4) or x.shape[-3] != self.in_channels:
            raise RuntimeError(f"expected x [B, {self.in_channels}, H, W], got {list(x.shape)}")

    def _run(self, x: Tensor, residual: Tensor | None) -> Tensor:
        if x.dim() == 4:
            return self._convolve(x, residual)
        return self._convolve(x[None], None if residual is None else residual[None])[0]

    def _convolve(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Do the layer on ``[B, C, H, W]``."""
        raise NotImplementedError

    def to_dense_module(self) -> nn.Conv2d:
        """Return the nn.Conv2d with the (dequantized) weight, without the activation."""
        settings = {name: getattr(self, name) for name in Conv2dGeometry.keywords}
        dense = nn.Conv2d(self.in_channels, self.out_channels, device="meta", **settings)
        self._fill_dense(dense)
        return dense

    def extra_repr(self) -> str:
        usual = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
        shown = [
            f"{name}={getattr(self, name)}"
            for name in Conv2dGeometry.keywords
            if getattr(self, name) != usual.get(name)
        ]
        channels = (str(self.in_channels), str(self.out_channels))
        return ", ".join((*channels, *shown, self._settings_repr()))


class SparseConv2d(Conv2dGeometry, CsrStorage):
    """A convolution with a float CSR weight, run directly, or as a matrix product if a plain 1x1.

    Example:
        >>> layer = SparseConv2d.from_dense(nn.Conv2d(3, 8, 3, padding="same"))
        >>> layer(torch.randn(2, 3, 5, 5)).shape
        torch.Size([2, 8, 5, 5])
    """

    def _convolve(self, x: Tensor, residual: Tensor | None) -> Tensor:
        arguments = self._arguments()
        if self.is_product:
            y = raw.spmm_csr(x, *arguments, residual, self.activation, "columns", self.kernel)
        else:
            settings = tuple(getattr(self, name) for name in Conv2dGeometry.keywords)
            y = raw.conv2d_csr(x, *arguments, residual, *settings, self.activation, self.kernel)
        return cast(Tensor, y)


class BlockConv2d(SparseConv2d, BlockStorage):
    """SparseConv2d for a weight that was pruned in blocks of 4 or 8 rows; the outputs are equal.

    Example:
        >>> layer = BlockConv2d.from_dense(nn.Conv2d(3, 8, 3, padding="same"))
        >>> layer(torch.randn(2, 3, 5, 5)).shape
        torch.Size([2, 8, 5, 5])
    """

    def __init__(
        self,
        weight: WeightFormat,
        bias: Tensor | None = None,
        *,
        block_rows: int = BLOCK_ROWS[0],
        groups: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(weight, bias, groups=groups, block_rows=block_rows, **options)
        if self.out_channels // self.groups % block_rows:
            raise UnsupportedError(
                f"expected groups of whole blocks of {block_rows} rows, got {self.out_channels} rows in {groups} "
                f"groups; use SparseConv2d"
            )


class PanelConv2d(Conv2dGeometry, PanelStorage):
    """SparseConv2d packed for the panel kernels; the outputs are equal. One group only.

    Example:
        >>> layer = PanelConv2d.from_dense(nn.Conv2d(3, 8, 3, padding="same"))
        >>> layer(torch.randn(2, 3, 5, 5)).shape
        torch.Size([2, 8, 5, 5])
    """

    def __init__(
        self,
        weight: WeightFormat,
        bias: Tensor | None = None,
        *,
        kernel_size: int | Pair,
        panel_cols: int | None = None,
        groups: int = 1,
        **options: Any,
    ) -> None:
        check_one_group(groups)
        if panel_cols is None:
            panel_cols = _fit_panel_cols(as_pair("kernel_size", kernel_size, 1), TYPICAL_PLANE)
        super().__init__(weight, bias, kernel_size=kernel_size, panel_cols=panel_cols, **options)

    @classmethod
    def fit(cls, dense: nn.Module, input_shape: Sequence[int]) -> dict[str, int]:
        """Return the options of ``from_dense()`` that suit inputs of a shape."""
        assert isinstance(dense, nn.Conv2d)
        kernel_h, kernel_w = dense.kernel_size
        if kernel_h == kernel_w == 1:
            pixels = math.prod(input_shape[-2:]) // math.prod(dense.stride) * math.prod(input_shape[:-3])
            return {"panel_cols": fit_panel_cols(tile_floats(pixels))}
        # A strip holds its pixels and the rows below that a filter reaches, once per column of the filter.
        rows_below = (kernel_h - 1) * dense.dilation[0] // dense.stride[0]
        width = input_shape[-1] // dense.stride[1]
        row_phases = min(dense.stride[0], kernel_h)
        return {"panel_cols": _fit_panel_cols((kernel_h, kernel_w), row_phases * (STRIP_PIXELS + rows_below * width))}

    def _convolve(self, x: Tensor, residual: Tensor | None) -> Tensor:
        arguments = self._arguments()
        if self.is_product:
            y = raw.spmm_panel(x, *arguments, residual, self.activation, "columns", self.kernel)
        else:
            settings = (self.kernel_size, self.stride, self.padding, self.dilation)
            y = raw.conv2d_panel(x, *arguments, residual, *settings, self.activation, self.kernel)
        return cast(Tensor, y)


class JitConv2d(Conv2dGeometry, JitStorage):
    """SparseConv2d as machine code; the outputs are equal. One group only.

    Example:
        >>> layer = JitConv2d.from_dense(nn.Conv2d(3, 8, 3, padding="same"))
        >>> layer(torch.randn(2, 3, 5, 5)).shape
        torch.Size([2, 8, 5, 5])
    """

    def __init__(self, weight: WeightFormat, bias: Tensor | None = None, *, groups: int = 1, **options: Any) -> None:
        check_one_group(groups)
        super().__init__(weight, bias, **options)

    def _filter(self) -> Sequence[int]:
        return self.kernel_size

    def _convolve(self, x: Tensor, residual: Tensor | None) -> Tensor:
        arguments = self._arguments()
        if self.is_product:
            y = raw.spmm_jit(x, *arguments, residual, self.activation, "columns", self.kernel)
        else:
            settings = (self.kernel_size, self.stride, self.padding, self.dilation)
            y = raw.conv2d_jit(x, *arguments, residual, *settings, self.activation, self.kernel)
        return cast(Tensor, y)


class QuantizedConv2d(Conv2dGeometry, QuantizedStorage):
    """What the int8 convolutions share. Channels-last inputs are read as they are and give channels-last outputs."""

    packed_filter: dict[str, int]

    def __init__(
        self,
        weight: WeightFormat,
        bias: Tensor | None = None,
        *,
        kernel_size: int | Pair,
        dilation: int | Pair = 1,
        groups: int = 1,
        **options: Any,
    ) -> None:
        (kernel_h, kernel_w), spread = as_pair("kernel_size", kernel_size, 1), as_pair("dilation", dilation, 1)
        # Pixels of a row of the filter lie side by side unless dilation or the channels of other groups part them.
        segments = kernel_h if groups == 1 and spread[1] == 1 else kernel_h * kernel_w
        # Before nn.Module is set up: _pack() needs it.
        self.__dict__["packed_filter"] = {"taps": kernel_h * kernel_w, "segments": segments, "groups": groups}
        super().__init__(weight, bias, kernel_size=kernel_size, dilation=dilation, groups=groups, **options)

    def _packing_settings(self) -> dict[str, Any]:
        return {**super()._packing_settings(), **self.packed_filter}

    def _num_channels(self) -> int:
        return self.weight_shape[1] // self.packed_filter["taps"] * self.packed_filter["groups"]

    def _convolve(self, x: Tensor, residual: Tensor | None) -> Tensor:
        settings = (self.kernel_size, self.stride, self.padding, self.dilation)
        return cast(Tensor, raw.conv2d_int8(x, *self._arguments(residual), *settings, *self._output_arguments()))


class Int8Conv2d(QuantizedConv2d, Int8Storage):
    """A convolution with a dense int8 weight; activations are quantized on the way in.

    Example:
        >>> Int8Conv2d.from_dense(nn.Conv2d(3, 8, 3, stride=2))
        Int8Conv2d(3, 8, kernel_size=(3, 3), stride=(2, 2), bias=True)
    """


class SparseInt8Conv2d(QuantizedConv2d, LookupStorage):
    """A convolution with an int8 weight without its zeros, run by table lookup; the outputs equal Int8Conv2d's.

    Example:
        >>> int8 = Int8Conv2d.from_dense(nn.Conv2d(3, 8, 3))
        >>> x = torch.randn(2, 3, 5, 5)
        >>> torch.equal(SparseInt8Conv2d.from_int8(int8)(x), int8(x))
        True
    """


# Output pixels of a strip: more than the columns of a matrix product, since more of them share the rows below.
STRIP_PIXELS = 128
# Floats per channel and column of the filter where the input's shape is not known: two rows of 28 below.
TYPICAL_PLANE = STRIP_PIXELS + 2 * 28


def _fit_panel_cols(kernel_size: Pair, plane_floats: int) -> int:
    """Columns of a panel for a filter: whole channels."""
    taps = kernel_size[0] * kernel_size[1]
    panel_cols = fit_panel_cols(plane_floats * kernel_size[1], taps)
    if panel_cols == 0:
        raise UnsupportedError(f"expected a filter of at most 255 taps, got {kernel_size}; use SparseConv2d")
    return panel_cols


def check_one_group(groups: int) -> None:
    """Refuse grouped convolutions."""
    if groups != 1:
        raise UnsupportedError(f"expected 1 group, got {groups}; use SparseConv2d")


def resolve_padding(conv: nn.Conv2d) -> Pair:
    """Return the padding of a convolution in pixels.

    Raises:
        UnsupportedError: padding that is not zeros, or "same" with one more at one end.
    """
    if conv.padding_mode != "zeros":
        raise UnsupportedError(f"expected padding with zeros, got {conv}; keep this layer dense")
    if conv.padding == "valid":
        return 0, 0
    if conv.padding == "same":
        sizes = zip(conv.kernel_size, conv.dilation, strict=True)
        height, width = (dilation * (kernel - 1) for kernel, dilation in sizes)
        if height % 2 or width % 2:
            raise UnsupportedError(f"expected as much padding at both ends, got {conv}; keep it dense")
        return height // 2, width // 2
    return as_pair("padding", conv.padding, 0)


def as_pair(name: str, value: Any, least: int) -> Pair:
    """Check a setting of one or two ints; one is meant twice."""
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or not all(type(size) is int and size >= least for size in pair):
        raise ValueError(f"expected {name} of one or two ints of at least {least}, got {value!r}")
    return pair
