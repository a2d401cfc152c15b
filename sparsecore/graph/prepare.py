"""From a model to graphs of fused layers that are ready to be chosen."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from sparsecore.calls import ExampleInputs
from sparsecore.graph.capture import Captured, capture
from sparsecore.graph.copy import copy_graph
from sparsecore.graph.fuse import fuse_layers, replace_between
from sparsecore.graph.lower import lower
from sparsecore.nn.dense import ActivatedLayer, ChannelsLastConv2d, DenseConv2d, DenseLinear, PackedLinear

# Dense layers, and PyTorch's fastest form of each.
_FASTEST: dict[type[ActivatedLayer], type[ActivatedLayer]] = {
    DenseConv2d: ChannelsLastConv2d,
    DenseLinear: PackedLinear,
}


@dataclass(frozen=True)
class Prepared:
    """Two graphs of one model, with the same layers; parameters are shared.

    Attributes:
        own: what runs between layers keeps to the memory layout of our kernels, ``[batch, C, H, W]``.
        dense: all is PyTorch's, in the layout of its dense kernels, channels-last.
    """

    own: Captured
    dense: Captured


def prepare(model: nn.Module, example_inputs: ExampleInputs) -> Prepared:
    """Capture an eval model and fuse its layers.

    Args:
        model: shares its parameters with the graphs.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments.

    Raises:
        UnsupportedError: the model cannot be captured.
    """
    captured = capture(model, example_inputs)
    lower(captured.module, model)
    fuse_layers(captured.module)
    dense = _in_channels_last(captured)
    replace_between(captured.module)
    _let_views_copy(captured.module)
    return Prepared(captured, dense)


def _in_channels_last(captured: Captured) -> Captured:
    """A copy of a fused graph with channels-last convolutions, and weights packed for PyTorch's kernels."""
    twin = copy_graph(captured.module)
    _let_views_copy(twin)
    for node in twin.graph.nodes:
        layer = twin.get_submodule(str(node.target)) if node.op == "call_module" else None
        if type(layer) in _FASTEST:
            assert isinstance(layer, ActivatedLayer)
            packed = _FASTEST[type(layer)].from_dense(layer, layer.activation)
            twin.set_submodule(str(node.target), packed.eval())
    twin.recompile()
    return replace(captured, module=twin, layout="channels_last")


def _let_views_copy(module: fx.GraphModule) -> None:
    """What was row-major at capture may not be any more, if another operation makes it."""
    for node in module.graph.nodes:
        if node.target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default
    module.recompile()
