"""Linear layers whose int8 products are PyTorch's, to be measured beside ours on a GPU."""

from __future__ import annotations

from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from sparsecore.errors import UnsupportedError
from sparsecore.formats import Int8Weight
from sparsecore.nn.dense import DenseLayer, activate
from sparsecore.nn.int8_linear import Int8Linear

# What torch._int_mm asks for on a GPU: more rows of x than this, and a multiple of N and K.
INT_MM_ROWS, INT_MM_MULTIPLE = 16, 8
INT8_MAX = 127
# Rows whose largest value is below 127 times the smallest normal number count as zero, as in our kernels.
LEAST_MAXIMUM = INT8_MAX * torch.finfo(torch.float32).tiny
Layer = TypeVar("Layer", bound="TorchInt8Linear")


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round activations to int8 with a scale for each row, 1/127 of its largest absolute value.

    Args:
        x: ``[..., K]`` float.

    Returns:
        int8 ``[..., K]``, and float32 ``[..., 1]``: 1 for a row of zeros, NaN for one with NaN or infinity.

    Example:
        >>> quantize_rows(torch.tensor([[1.0, -2.0, 0.0]]))[0].tolist()
        [[64, -127, 0]]
    """
    wide = x.float()
    largest = wide.abs().amax(-1, keepdim=True) if x.shape[-1] else wide.new_zeros(*x.shape[:-1], 1)
    scale = torch.where(largest < LEAST_MAXIMUM, 1.0, largest / INT8_MAX)
    scale = torch.where(scale.isfinite(), scale, torch.nan)
    return (wide * scale.reciprocal()).round().clamp(-INT8_MAX, INT8_MAX).nan_to_num(0).to(torch.int8), scale


class TorchInt8Linear(nn.Module):
    """A dense int8 weight by int8 activations, each row with its own scale, in ``torch._int_mm``; for many rows.

    Attributes:
        weight: ``[N, K]`` int8.
        scale: ``[N]`` float32.

    Example:
        >>> TorchInt8Linear.from_dense(nn.Linear(16, 8))(torch.randn(17, 16)).shape
        torch.Size([17, 8])
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Int8Weight, bias: Tensor | None, activation: str = "none") -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.activation = activation
        self.register_buffer("weight", weight.q)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("bias", None if bias is None else bias.detach())

    @classmethod
    def from_dense(cls: type[Layer], dense: nn.Linear) -> Layer:
        """Make the layer from its dense form, which stays as it is.

        Raises:
            UnsupportedError: PyTorch's kernels do not take a weight of this size or dtype here.
            FormatError: a weight is NaN or infinite.
        """
        cls._check(dense.weight)
        activation = dense.activation if isinstance(dense, DenseLayer) else "none"
        return cls(Int8Weight.from_dense(dense.weight.detach()), dense.bias, activation).train(dense.training)

    @classmethod
    def _check(cls, weight: Tensor) -> None:
        """Refuse a weight that PyTorch's kernels do not take."""
        if any(size == 0 or size % INT_MM_MULTIPLE for size in weight.shape):
            raise UnsupportedError(f"expected N and K of multiples of {INT_MM_MULTIPLE}, got {list(weight.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        """Do the layer on ``x [..., K]``."""
        rows, x_scale = quantize_rows(x.reshape(-1, self.in_features))
        y = torch._int_mm(rows, self.weight.T).float() * (x_scale * self.scale)
        y = y if self.bias is None else y + self.bias
        return activate(y, self.activation).to(x.dtype).view(*x.shape[:-1], self.out_features)

    def to_stored(self) -> Int8Linear:
        """Return the same weight in the layer that files hold, which runs anywhere."""
        return Int8Linear(Int8Weight(self.weight, self.scale), self.bias, activation=self.activation)


class TorchInt8WeightLinear(TorchInt8Linear):
    """A dense int8 weight by bfloat16 activations, in PyTorch's product for such weights; for few rows.

    Example:
        >>> layer = TorchInt8WeightLinear.from_dense(nn.Linear(32, 16).bfloat16())
        >>> layer(torch.randn(3, 32).bfloat16()).shape
        torch.Size([3, 16])
    """

    @classmethod
    def _check(cls, weight: Tensor) -> None:
        if weight.dtype != torch.bfloat16:
            raise UnsupportedError(f"expected a bfloat16 weight, got {weight.dtype}")
        key = weight.device.type.upper()
        if not torch._C._dispatch_has_kernel_for_dispatch_key("aten::_weight_int8pack_mm", key):
            raise UnsupportedError(f"this PyTorch has no product with int8 weights on {weight.device}")

    def forward(self, x: Tensor) -> Tensor:
        """Do the layer on ``x [..., K]`` bfloat16."""
        rows = x.reshape(-1, self.in_features)
        y = cast(Tensor, torch.ops.aten._weight_int8pack_mm(rows, self.weight, self.scale.to(x.dtype)))
        y = y if self.bias is None else y + self.bias
        return activate(y, self.activation).view(*x.shape[:-1], self.out_features)
