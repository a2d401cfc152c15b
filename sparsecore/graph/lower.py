"""From ATen operations to layers and operations of ours: what every network needs, before anything is chosen."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsecore.nn import CompressedModule
from sparsecore.nn.dense import DenseLayer, dense_layer

aten = torch.ops.aten

# Copies and markers: without side effects in the graph, they are their input.
_NO_OPERATIONS = {aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default}


def lower(module: fx.GraphModule, model: nn.Module) -> None:
    """Turn products with weights into layers, in place: ``call_module`` nodes under the layers' names in the model.

    Args:
        module: a captured graph.
        model: what it was captured from; its compressed layers are put back as they are.
    """
    _remove_no_operations(module.graph)
    _fold_constants(module)
    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        layer, name, x = _compressed_layer(module, model, node) or _dense_layer(module, node) or (None, "", None)
        if layer is not None and x is not None:
            _replace(module, node, _place(module, name, layer, node.name), (x,))
    clean(module)


def clean(module: fx.GraphModule) -> None:
    """Drop what nothing uses any more: nodes, parameters and modules."""
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    called = {str(node.target) for node in module.graph.nodes if node.op == "call_module"}
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for prefix, owner in module.named_modules():
        if called & {".".join(prefix.split(".")[:end]) for end in range(1, prefix.count(".") + 2)}:
            continue  # a layer, or a part of one
        for leaf in (*owner._parameters, *owner._buffers):
            if f"{prefix}.{leaf}".lstrip(".") not in read:
                delattr(owner, leaf)
    module.graph.lint()
    module.recompile()


def layer_of(module: fx.GraphModule, node: Any) -> nn.Module | None:
    """The layer that a node calls, if it calls one."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        return module.get_submodule(str(node.target))
    return None


def constant_of(module: fx.GraphModule, node: Any) -> Tensor | None:
    """The parameter or buffer that a node stands for."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value: Any = module
    for part in str(node.target).split("."):
        value = getattr(value, part, None)
    return value if isinstance(value, Tensor) else None


def _remove_no_operations(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.target not in _NO_OPERATIONS or node.kwargs.get("memory_format") not in (None, torch.preserve_format):
            continue
        source = node.args[0]
        if source.op == "placeholder" and any(user.op == "output" for user in node.users):
            continue  # a caller must not get its own tensor back
        node.replace_all_uses_with(source)
        graph.erase_node(node)


def _fold_constants(module: fx.GraphModule) -> None:
    """Compute now what depends on parameters alone, such as a transposed weight."""
    for node in list(module.graph.nodes):
        if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor):
            continue
        inputs = [constant_of(module, source) for source in node.all_input_nodes]
        if not inputs or any(value is None for value in inputs):
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), partial(constant_of, module))
        with torch.no_grad():
            value = node.target(*args, **kwargs)
        name = f"_constant_{node.name}"
        module.register_buffer(name, value)
        with module.graph.inserting_before(node):
            folded = module.graph.get_attr(name)
        folded.meta.update(node.meta)
        node.replace_all_uses_with(folded)
        module.graph.erase_node(node)


Found = tuple[nn.Module, str, fx.Node]


def _compressed_layer(module: fx.GraphModule, model: nn.Module, node: fx.Node) -> Found | None:
    """The compressed layer of the model that a node ran in: its operation takes the layer's own buffers."""
    if getattr(node.target, "namespace", "") != "sparsecore":
        return None
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            name = str(source.target).rpartition(".")[0]
            layer = model.get_submodule(name)
            x = node.args[0]
            if isinstance(layer, CompressedModule) and isinstance(x, fx.Node):
                return layer, name, x
    return None


def _dense_layer(module: fx.GraphModule, node: fx.Node) -> Found | None:
    make = _LAYERS.get(node.target)
    return None if make is None else make(module, node)


def _linear(module: fx.GraphModule, node: fx.Node) -> Found | None:
    x, weight, bias = _arguments(node, x=None, weight=None, bias=None)
    return _make_linear(module, x, weight, bias, transposed=False)


def _addmm(module: fx.GraphModule, node: fx.Node) -> Found | None:
    bias, x, weight = _arguments(node, bias=None, x=None, weight=None)
    scales = {name: node.kwargs.get(name, 1) for name in ("alpha", "beta")}
    if set(scales.values()) != {1}:
        return None
    return _make_linear(module, x, weight, bias, transposed=True)


def _matmul(module: fx.GraphModule, node: fx.Node) -> Found | None:
    x, weight = _arguments(node, x=None, weight=None)
    return _make_linear(module, x, weight, None, transposed=True)


def _make_linear(module: fx.GraphModule, x: Any, weight: Any, bias: Any, *, transposed: bool) -> Found | None:
    """A linear layer for ``x @ weight^T + bias``, or without the ``^T`` if transposed."""
    matrix, offset = constant_of(module, weight), constant_of(module, bias)
    fits_bias = bias is None or (offset is not None and offset.dim() == 1)
    if matrix is None or matrix.dim() != 2 or not isinstance(x, fx.Node) or not fits_bias:
        return None
    if transposed:
        matrix = nn.Parameter(matrix.t().contiguous(), requires_grad=False)
    N, K = matrix.shape
    if offset is not None and offset.shape != (N,):
        return None
    layer = nn.Linear(K, N, bias=offset is not None, device="meta")
    return dense_layer(_with_parameters(layer, matrix, offset)), _name_of(weight, bias), x


def _conv2d(module: fx.GraphModule, node: fx.Node) -> Found | None:
    x, weight, bias, stride, padding, dilation, groups = _arguments(
        node, x=None, weight=None, bias=None, stride=1, padding=0, dilation=1, groups=1
    )
    filters, offset = constant_of(module, weight), constant_of(module, bias)
    if filters is None or not isinstance(x, fx.Node) or (bias is not None and offset is None):
        return None
    settings = {"stride": _pair(stride), "padding": _pair(padding), "dilation": _pair(dilation), "groups": groups}
    N, C, kernel_h, kernel_w = filters.shape
    layer = nn.Conv2d(C * groups, N, (kernel_h, kernel_w), bias=offset is not None, device="meta", **settings)
    return dense_layer(_with_parameters(layer, filters, offset)), _name_of(weight, bias), x


_LAYERS: dict[Any, Callable[[fx.GraphModule, fx.Node], Found | None]] = {
    aten.linear.default: _linear,
    aten.addmm.default: _addmm,
    aten.mm.default: _matmul,
    aten.matmul.default: _matmul,
    aten.conv2d.default: _conv2d,
    aten.conv2d.padding: _conv2d,
}


def _arguments(node: fx.Node, **defaults: Any) -> tuple[Any, ...]:
    """Arguments of a node in the order of defaults; export gives tensors by position."""
    given = dict(zip(defaults, node.args, strict=False)) | dict(node.kwargs)
    return tuple(given.get(name, default) for name, default in defaults.items())


def _pair(value: Any) -> Any:
    if isinstance(value, str | int):
        return value
    return tuple(value) * (2 // len(value))


def _name_of(weight: fx.Node, bias: fx.Node | None) -> str:
    """The weight's name; a weight that several layers share has one name only, and the bias tells which layer it is."""
    name, (holder, _, attribute) = str(weight.target), str(getattr(bias, "target", "")).rpartition(".")
    return f"{holder}.weight" if attribute == "bias" and name.endswith(".weight") else name


def _with_parameters(layer: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer.weight = _as_parameter(weight)
    layer.bias = None if bias is None else _as_parameter(bias)
    return layer.eval()


def _as_parameter(tensor: Tensor) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)


def _place(module: fx.GraphModule, name: str, layer: nn.Module, fallback: str) -> str:
    """Put a layer where its weight was; return the name.

    A module that also holds something else keeps it: its product becomes a child of it, under the node's name.
    """
    if isinstance(layer, CompressedModule):
        module.set_submodule(name, layer)
        return name
    holder_name, _, attribute = name.rpartition(".")
    holder = module.get_submodule(holder_name)
    if isinstance(holder, DenseLayer) and _is_same(holder, layer):
        return holder_name  # a layer that is called twice
    own = {*dict(holder.named_parameters(recurse=False)), *dict(holder.named_buffers(recurse=False))}
    # Other nodes may read what it holds.
    is_its_own = all(getattr(holder, leaf) is getattr(layer, leaf, None) for leaf in own)
    is_free = holder_name and attribute == "weight" and is_its_own and not list(holder.children())
    if isinstance(holder, DenseLayer):  # its weight in another product: beside it
        holder_name = f"{holder_name}_{fallback}"
    elif not is_free:
        holder_name = f"{holder_name}.{fallback}".lstrip(".")
    module.set_submodule(holder_name, layer)
    return holder_name


def _is_same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and a.weight is b.weight and a.bias is b.bias and a.extra_repr() == b.extra_repr()


def _replace(module: fx.GraphModule, node: fx.Node, name: str, args: Sequence[Any]) -> fx.Node:
    with module.graph.inserting_before(node):
        call = module.graph.call_module(name, tuple(args))
    call.meta.update(node.meta)
    node.replace_all_uses_with(call)
    module.graph.erase_node(node)
    return call


def first_output(node: fx.Node) -> fx.Node | None:
    """The node that takes the first of several outputs, if nothing takes another one."""
    users = list(node.users)
    is_first = len(users) == 1 and users[0].target is operator.getitem and users[0].args[1] == 0
    return users[0] if is_first else None
