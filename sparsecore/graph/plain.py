"""The way back from a compiled model: a module of PyTorch's own layers and operations."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sparsecore.graph.capture import Captured
from sparsecore.graph.compiled import CompiledModule
from sparsecore.graph.copy import copy_graph
from sparsecore.nn import CompressedModule, DepthwiseConv2d
from sparsecore.nn.dense import DenseLayer, activate, dense_layer, plain_layer

ours = torch.ops.sparsecore


def plain_module(compiled: CompiledModule) -> nn.Module:
    """Return a compiled model with dense layers, which every library that takes PyTorch's models can run or export.

    Args:
        compiled: stays as it is; uncompressed parameters are shared with it.

    Returns:
        A module in eval mode that is called like the compiled one. Its outputs differ by rounding alone.

    Example:
        >>> from sparsecore import compile
        >>> fast = compile(nn.Sequential(nn.Linear(8, 4), nn.ReLU()).eval(), torch.randn(2, 8))
        >>> plain_module(fast)(torch.randn(3, 8)).shape
        torch.Size([3, 4])
    """
    return _PlainModule(compiled.captured()).eval()


class _PlainModule(nn.Module):
    """A graph that is called like the model it came from; checks of inputs are left out."""

    def __init__(self, captured: Captured) -> None:
        super().__init__()
        self.graph_module = _plain_graph(captured.module)
        self._out_spec = captured.out_spec

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        return pytree.tree_unflatten(list(self.graph_module(*tensors)), self._out_spec)


def _plain_graph(module: fx.GraphModule) -> fx.GraphModule:
    plain = copy_graph(module)
    for node in plain.graph.nodes:
        if node.op == "call_module":
            name = str(node.target)
            plain.set_submodule(name, _dense(plain.get_submodule(name), node.meta["val"].dtype))
        elif node.target in _FUNCTIONS:
            node.target = _FUNCTIONS[node.target]
    plain.recompile()
    return plain


def _dense(layer: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The dense layer for activations of a dtype: compressed ones may have a wider weight."""
    if isinstance(layer, CompressedModule):
        return dense_layer(layer.to_dense_module().to(dtype), layer.activation)
    if isinstance(layer, DepthwiseConv2d):
        return dense_layer(layer.to_dense_module(), layer.activation)
    assert isinstance(layer, DenseLayer)
    return dense_layer(plain_layer(layer), layer.activation)


# --- our operations in terms of PyTorch's, with the same arguments ---


def _scale_shift(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, residual: Tensor | None, activation: str, kernel: str
) -> Tensor:
    y = x.float()
    if scale is not None:
        y = y * _per_channel(scale, x)
    if shift is not None:
        y = y + _per_channel(shift, x)
    if residual is not None:
        y = y + residual
    return activate(y, activation).to(x.dtype)


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """``[C]`` or ``[batch, C]`` beside ``[batch, C, ...]``."""
    return values.reshape(*values.shape, *[1] * (x.dim() - 2))


def _max_pool2d(x: Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil: bool, _: str) -> Tensor:
    return F.max_pool2d(x, kernel_size, stride, padding, dilation, ceil)


def _avg_pool2d(
    x: Tensor, kernel_size: Any, stride: Any, padding: Any, ceil: bool, count_padding: bool, divisor: int, _: str
) -> Tensor:
    return F.avg_pool2d(x, kernel_size, stride, padding, ceil, count_padding, divisor or None)


def _global_avg_pool2d(x: Tensor, _: str) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1)


_FUNCTIONS: dict[Any, Any] = {
    ours.scale_shift.default: _scale_shift,
    ours.max_pool2d.default: _max_pool2d,
    ours.avg_pool2d.default: _avg_pool2d,
    ours.global_avg_pool2d.default: _global_avg_pool2d,
}
