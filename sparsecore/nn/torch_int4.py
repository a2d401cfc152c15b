"""Linear layers whose products with int4 weights are PyTorch's, to be measured beside ours on a GPU."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from sparsecore.errors import UnsupportedError
from sparsecore.formats.int4 import int4_scales, round_to_int4

# Columns that share a scale, and what PyTorch's kernels ask of N and K on any device.
GROUP = 128
MULTIPLE_OF_N, MULTIPLE_OF_K = 16, GROUP
# Tiles of 16 columns that a thread of PyTorch's CUDA kernel reads at once.
_INNER_TILES = 8
# Columns that are unpacked at once.
_UNPACKED_COLUMNS = 1024
# PyTorch's operation by device: CPUs have another order of weights.
_OPERATIONS = {"cuda": "_weight_int4pack_mm", "cpu": "_weight_int4pack_mm_for_cpu"}


class TorchInt4WeightLinear(nn.Module):
    """A dense int4 weight by bfloat16 activations, in PyTorch's product for such weights; for few rows.

    Values are -7 .. 7 times a bfloat16 scale for each row and 128 columns. The layer stays on the kind of device that
    it was made on, whose order its weight is in.

    Attributes:
        packed: the weight in PyTorch's order.
        scales: ``[K / 128, N, 2]`` bfloat16, scales and offsets, which are zero.

    Example:
        >>> layer = TorchInt4WeightLinear.from_dense(nn.Linear(128, 16).bfloat16())
        >>> layer(torch.randn(3, 128).bfloat16()).shape
        torch.Size([3, 16])
    """

    packed: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, q: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        """Take int8 values in -7 .. 7 ``[N, K]`` and their scales ``[N, K / 128]`` bfloat16."""
        super().__init__()
        self.out_features, self.in_features = q.shape
        self.register_buffer("packed", _packed(q))
        self.register_buffer("scales", torch.stack((scales.T, torch.zeros_like(scales.T)), 2).contiguous())
        self.register_buffer("bias", None if bias is None else bias.detach())

    @classmethod
    def from_dense(cls, dense: nn.Linear) -> TorchInt4WeightLinear:
        """Make the layer from its dense form, which stays as it is.

        Raises:
            UnsupportedError: PyTorch's kernels do not take a weight of this size or dtype here, or the layer has an
                activation.
            FormatError: a weight is NaN or infinite.
        """
        weight = dense.weight.detach()
        _check(weight)
        if getattr(dense, "activation", "none") != "none":
            raise UnsupportedError(f"expected a layer without an activation, got one with {dense.activation}")
        groups = weight.float().unflatten(1, (-1, GROUP))
        scales = int4_scales(groups.abs().amax(2), weight.dtype)
        q = round_to_int4(groups, scales.unsqueeze(2)).flatten(1)
        return cls(q, scales, dense.bias).train(dense.training)

    def forward(self, x: Tensor) -> Tensor:
        """Do the layer on ``x [..., K]`` bfloat16."""
        y = self._multiply(x.reshape(-1, self.in_features))
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], self.out_features)

    def to_stored(self) -> nn.Linear:
        """Return the dense layer that files hold, with the rounded weight."""
        device, dtype = self.packed.device, self.scales.dtype
        parts = []
        for columns in torch.arange(self.in_features, device=device).split(_UNPACKED_COLUMNS):
            one_hot = torch.zeros(len(columns), self.in_features, device=device, dtype=dtype)
            parts.append(self._multiply(one_hot.scatter_(1, columns.unsqueeze(1), 1)))
        dense = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        dense.weight = nn.Parameter(torch.cat(parts).T.contiguous())
        if self.bias is not None:
            dense.bias = nn.Parameter(self.bias)
        return dense.train(self.training)

    def _multiply(self, rows: Tensor) -> Tensor:
        multiply = getattr(torch.ops.aten, _OPERATIONS[self.packed.device.type])
        return cast(Tensor, multiply(rows, self.packed, GROUP, self.scales))

    def _apply(self, fn: Any, recurse: bool = True) -> TorchInt4WeightLinear:
        device = fn(torch.empty(0)).device
        if device.type != self.packed.device.type:
            raise UnsupportedError(
                f"expected a layer with PyTorch's int4 weight to stay on {self.packed.device.type}, got {device}; "
                "convert the float model there"
            )
        scales = self.scales
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.scales = scales.to(device)
        return self


def _packed(q: Tensor) -> Tensor:
    """Values as PyTorch's kernels take them: plus 8, on a GPU first two in a byte, the even column in its high half."""
    values = q.to(torch.int32) + 8
    if q.device.type == "cpu":
        return torch.ops.aten._convert_weight_to_int4pack_for_cpu(values, _INNER_TILES)
    pairs = (values[:, ::2] << 4 | values[:, 1::2]).to(torch.uint8)
    return torch.ops.aten._convert_weight_to_int4pack(pairs, _INNER_TILES)


def _check(weight: Tensor) -> None:
    """Refuse a weight that PyTorch's kernels do not take."""
    if weight.dtype != torch.bfloat16:
        raise UnsupportedError(f"expected a bfloat16 weight, got {weight.dtype}")
    N, K = weight.shape
    if N == 0 or K == 0 or N % MULTIPLE_OF_N or K % MULTIPLE_OF_K:
        raise UnsupportedError(
            f"expected N a multiple of {MULTIPLE_OF_N} and K of {MULTIPLE_OF_K}, got {list(weight.shape)}"
        )
    name = _OPERATIONS.get(weight.device.type)
    key = weight.device.type.upper()
    if name is None or not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", key):
        raise UnsupportedError(f"this PyTorch has no product with int4 weights on {weight.device}")
