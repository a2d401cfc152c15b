"""int8 from layer to layer: what only layers with one static scale read is written as the bytes that they take."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from sparsecore.graph.fuse import calls_of
from sparsecore.graph.lower import layer_of
from sparsecore.nn.storage import QuantizedStorage


def pass_int8_on(module: fx.GraphModule) -> None:
    """Give layers the ``y_scale`` of the layers that read them, in place.

    Those then take the integers that they would have rounded to themselves: a quarter of the bytes between layers, and
    outputs that are bit-identical.

    Args:
        module: a graph of chosen layers.
    """
    calls = calls_of(module)
    for node in module.graph.nodes:
        layer = layer_of(module, node)
        if not isinstance(layer, QuantizedStorage) or layer.y_scale is not None:
            continue
        # A residual is added to float outputs, and an int8 input makes float32 ones.
        if len(node.args) == 1 and calls[node.target] == 1 and node.meta["val"].dtype == torch.float32:
            wanted = {_input_scale(module, node, user) for user in node.users}
            if len(wanted) == 1 and (scale := wanted.pop()) is not None:
                layer.y_scale, layer.y_zero_point = scale


def _input_scale(module: fx.GraphModule, node: fx.Node, user: fx.Node) -> Any:
    """The scale and zero point with which a user rounds a node; None if it reads it in another way."""
    layer = layer_of(module, user)
    if not isinstance(layer, QuantizedStorage) or user.args[0] is not node or node in user.args[1:]:
        return None
    if layer.x_scale is None or layer.x_channel_scale is not None:
        return None
    return layer.x_scale, layer.x_zero_point
