"""Fewer passes over memory: BatchNorm, residuals and activations go into the layer before them; what is left between
layers becomes operations that run in the layers' layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from sparsecore.formats.check import FLOAT_DTYPES
from sparsecore.graph.lower import clean, constant_of, first_output, layer_of
from sparsecore.nn import CompressedModule
from sparsecore.nn.dense import DenseConv2d, DenseLayer, DenseLinear

aten = torch.ops.aten
ours = torch.ops.sparsecore


def fuse_layers(module: fx.GraphModule) -> None:
    """Fuse into the layers of a lowered graph, in place; the outputs differ by rounding alone."""
    fold_batchnorms(module)
    fuse_residuals(module)
    fuse_activations(module)
    clean(module)


def replace_between(module: fx.GraphModule) -> None:
    """Let operations of ours do what runs between layers in their memory layout, in place."""
    _replace_batchnorms(module)
    _replace_elementwise(module)
    _replace_activations(module)
    _replace_pooling(module)
    clean(module)


# --- BatchNorm ---

_NORMS = {aten._native_batch_norm_legit_no_training.default}


def fold_batchnorms(module: fx.GraphModule) -> None:
    """Fold BatchNorms into the layers before them."""
    calls = calls_of(module)
    for node, output, x, norm in list(_batchnorms(module)):
        layer = layer_of(module, x)
        if isinstance(layer, DenseLayer) and len(x.users) == 1 and calls[x.target] == 1 and _folds(layer, x):
            _fold(layer, norm)
            _substitute(output, x)
            module.graph.erase_node(node)


def _batchnorms(module: fx.GraphModule) -> Iterator[tuple[fx.Node, fx.Node, fx.Node, tuple[Any, ...]]]:
    """Each BatchNorm: its node, the node of its output, its input, and mean, variance, eps, weight and bias."""
    for node in [node for node in module.graph.nodes if node.target in _NORMS]:
        x, *parameters, _, eps = node.args
        weight, bias, mean, var = (constant_of(module, parameter) for parameter in parameters)
        output = first_output(node)
        if output is not None and mean is not None and var is not None:
            yield node, output, x, (mean, var, eps, weight, bias)


def _folds(layer: DenseLayer, node: fx.Node) -> bool:
    # Linear puts its features last and BatchNorm takes them from dimension 1: the same for a matrix only.
    return (
        len(node.args) == 1
        and layer.activation == "none"
        and (isinstance(layer, DenseConv2d) or node.meta["val"].dim() == 2)
    )


def _fold(layer: Any, norm: tuple[Any, ...]) -> None:
    fuse_weights = fuse_linear_bn_weights if isinstance(layer, DenseLinear) else fuse_conv_bn_weights
    mean, var, eps, weight, bias = norm
    weight = torch.ones_like(mean) if weight is None else weight
    bias = torch.zeros_like(mean) if bias is None else bias
    with torch.no_grad():
        layer.weight, layer.bias = fuse_weights(layer.weight, layer.bias, mean, var, eps, weight, bias)


# --- residuals and activations ---


def fuse_residuals(module: fx.GraphModule) -> None:
    """Let layers add what is added to their output."""
    calls = calls_of(module)
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    for node in [node for node in module.graph.nodes if _is_plain_add(node)]:
        # The one that is made last: the other exists by then, or nearly so.
        for x, other in sorted(zip(node.args, reversed(node.args), strict=True), key=lambda pair: -order[pair[0]]):
            if x is other or not _can_finish(module, x, calls) or len(x.args) != 1:
                continue
            with module.graph.inserting_before(node):
                call = module.graph.call_module(x.target, (*x.args, other))
            order[call] = order[node]
            _substitute(node, call)
            module.graph.erase_node(x)
            break


def fuse_activations(module: fx.GraphModule) -> None:
    """Let layers apply the activation that follows them."""
    calls = calls_of(module)
    for node in list(module.graph.nodes):
        name = activation_of(node)
        if name and _can_finish(module, node.args[0], calls):
            layer_of(module, node.args[0]).activation = name  # type: ignore[union-attr]
            _substitute(node, node.args[0])


_ACTIVATIONS: dict[Any, str] = {
    aten.relu.default: "relu",
    aten.relu6.default: "relu6",
    aten.silu.default: "silu",
    aten.hardswish.default: "hardswish",
    aten.sigmoid.default: "sigmoid",
    aten.hardsigmoid.default: "hardsigmoid",
}


def activation_of(node: fx.Node) -> str:
    """The activation that a node is; empty if it is none of ours."""
    if node.target in _ACTIVATIONS:
        return _ACTIVATIONS[node.target]
    if node.target is aten.gelu.default and node.kwargs.get("approximate", "none") == "none" and len(node.args) == 1:
        return "gelu"
    if node.target is aten.hardtanh.default and tuple(node.args[1:]) == (0.0, 6.0) and not node.kwargs:
        return "relu6"
    return ""


def _can_finish(module: fx.GraphModule, node: Any, calls: Counter[Any]) -> bool:
    """Whether a node is a layer's only call, read by one other node, that does nothing to its sums yet."""
    layer = layer_of(module, node)
    return (
        isinstance(layer, DenseLayer | CompressedModule)
        and layer.activation == "none"
        and getattr(layer, "y_scale", None) is None
        and calls[node.target] == 1
        and len(node.users) == 1
    )


def _is_plain_add(node: fx.Node) -> bool:
    if node.target is not aten.add.Tensor or node.kwargs or len(node.args) != 2:
        return False
    first, second = (getattr(x, "meta", {}).get("val") for x in node.args)
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return False
    return first.shape == second.shape and first.dtype == second.dtype


# --- what is left between layers ---


def _replace_elementwise(module: fx.GraphModule) -> None:
    """Additions and gates of images ``[batch, C, H, W]``: one pass over memory, with an activation if one follows."""
    for node in list(module.graph.nodes):
        if _is_plain_add(node) and _is_image(node.args[0]):
            x, other = node.args
            _scale_shift(module, node, x, None, None, other)
        elif node.target is aten.mul.Tensor and len(node.args) == 2:
            for x, gate in (node.args, tuple(reversed(node.args))):
                if _is_image(x) and _is_gate(gate, x):
                    with module.graph.inserting_before(node):
                        matrix = module.graph.call_function(aten.flatten.using_ints, (gate, 1))
                    matrix.meta["val"] = gate.meta["val"].flatten(1)
                    _scale_shift(module, node, x, matrix, None, None)
                    break


def _replace_batchnorms(module: fx.GraphModule) -> None:
    """One multiply-add per number for the BatchNorms that no layer takes."""
    for node, output, x, (mean, var, eps, weight, bias) in list(_batchnorms(module)):
        if x.meta["val"].dim() >= 2 and x.meta["val"].dtype in FLOAT_DTYPES:
            scale = torch.rsqrt(var.float() + eps) * (1.0 if weight is None else weight.float())
            shift = (0.0 if bias is None else bias.float()) - mean.float() * scale
            constants = (_add_constant(module, node, "scale", scale), _add_constant(module, node, "shift", shift))
            _scale_shift(module, output, x, *constants, None)


def _replace_activations(module: fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        name = activation_of(node)
        if not name:
            continue
        x = node.args[0]
        if x.target is ours.scale_shift.default and x.args[4] == "none" and len(x.users) == 1:
            x.update_arg(4, name)
            _substitute(node, x)
        elif _is_image(x):
            _scale_shift(module, node, x, None, None, None, name)


def _is_image(node: Any) -> bool:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(value, Tensor) and value.dim() == 4 and value.dtype in FLOAT_DTYPES


def _is_gate(node: Any, x: fx.Node) -> bool:
    """Whether a node is a float32 number per image and channel of x."""
    return (
        _is_image(node)
        and node.meta["val"].dtype == torch.float32
        and node.meta["val"].shape == (*x.meta["val"].shape[:2], 1, 1)
    )


def _scale_shift(
    module: fx.GraphModule, node: fx.Node, x: Any, scale: Any, shift: Any, residual: Any, activation: str = "none"
) -> None:
    """Put ``activation(x * scale + shift + residual)`` in the place of a node."""
    with module.graph.inserting_before(node):
        call = module.graph.call_function(ours.scale_shift.default, (x, scale, shift, residual, activation, ""))
    _substitute(node, call)


def _replace_pooling(module: fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        make = _POOLING.get(node.target)
        if make is None or not node.args or not _is_image(node.args[0]):
            continue
        call = make(node)
        if call is None:
            continue
        operation, args = call
        with module.graph.inserting_before(node):
            pooled = module.graph.call_function(operation, args)
            if node.meta["val"].dim() == 2:  # mean without keepdim
                pooled.meta["val"] = node.meta["val"][:, :, None, None]
                pooled = module.graph.call_function(aten.flatten.using_ints, (pooled, 1))
        _substitute(node, pooled)


def _max_pool(node: fx.Node) -> Any:
    x, kernel, stride, padding, dilation, ceil_mode = _with_defaults(node, None, None, [], 0, 1, False)
    kernel = _pair(kernel)
    settings = (kernel, _pair(stride) or kernel, _pair(padding), _pair(dilation), ceil_mode)
    return ours.max_pool2d.default, (x, *settings, "")


def _avg_pool(node: fx.Node) -> Any:
    x, kernel, stride, padding, ceil_mode, count_padding, divisor = _with_defaults(
        node, None, None, [], 0, False, True, None
    )
    kernel = _pair(kernel)
    settings = (kernel, _pair(stride) or kernel, _pair(padding), ceil_mode, count_padding, divisor or 0)
    return ours.avg_pool2d.default, (x, *settings, "")


def _global_pool(node: fx.Node) -> Any:
    if _pair(node.args[1]) != [1, 1]:
        return None
    return ours.global_avg_pool2d.default, (node.args[0], "")


def _mean(node: fx.Node) -> Any:
    dims = node.args[1] if len(node.args) > 1 else None
    if node.kwargs or not isinstance(dims, list | tuple) or sorted(d % 4 for d in dims) != [2, 3]:
        return None
    return ours.global_avg_pool2d.default, (node.args[0], "")


_POOLING: dict[Any, Any] = {
    aten.max_pool2d.default: _max_pool,
    aten.avg_pool2d.default: _avg_pool,
    aten.adaptive_avg_pool2d.default: _global_pool,
    aten.mean.dim: _mean,
}


# --- shared ---


def _with_defaults(node: fx.Node, *defaults: Any) -> tuple[Any, ...]:
    return (*node.args, *defaults[len(node.args) :])


def _pair(value: Any) -> list[int]:
    if isinstance(value, int):
        return [value, value]
    return list(value) * (2 // len(value)) if value else []


def calls_of(module: fx.GraphModule) -> Counter[Any]:
    """How often each module is called."""
    return Counter(node.target for node in module.graph.nodes if node.op == "call_module")


def _substitute(node: fx.Node, new: fx.Node) -> None:
    """Put a node in the place of another one, with its form."""
    new.meta.update(node.meta)
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)


def _add_constant(module: fx.GraphModule, node: fx.Node, name: str, value: Tensor) -> fx.Node:
    full_name = f"_{node.name}_{name}"
    module.register_buffer(full_name, value.detach())
    with module.graph.inserting_before(node):
        constant = module.graph.get_attr(full_name)
    constant.meta["val"] = value
    return constant
