"""Copies of models and of graphs."""

from __future__ import annotations

import copy

from torch import Tensor, fx, nn


def copy_model(model: nn.Module) -> nn.Module:
    """Deep-copy a module, also one with computed tensors among its attributes.

    torch.nn.utils.prune leaves ``weight`` as the product of weight_orig and its mask, which torch refuses to copy
    because it has a history; here it is copied as plain numbers.
    """
    memo: dict[int, object] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)


def copy_graph(module: fx.GraphModule) -> fx.GraphModule:
    """Copy a graph; its layers and parameters are shared, and can be replaced in the copy."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    return fx.GraphModule(module, graph)
