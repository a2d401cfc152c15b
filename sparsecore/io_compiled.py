"""What a file says of a compiled model beside its tensors, and how the graph comes back from it.

The graph itself is not in the file: it is captured anew from the model, for the inputs that the file describes. Then
it has to have the layers that the file lists, called in the same way. bundle.py's ``compiled`` is a JSON object:

    layout  "own", or "channels_last" for PyTorch's dense kernels
    inputs  arguments: a list of positional or an object of keyword ones, each {"dtype", "shape"} of a tensor or
            {"value"} of a constant; a size in a shape is a number, or the name of one that is free
    free    object: name of a free size -> [least, most, size at capture]
    layers  object: name of each layer in the graph -> {"activation", "calls"}, for each call the number of its inputs
"""

from __future__ import annotations

import keyword
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from sparsecore.bundle import Bundle
from sparsecore.calls import ExampleInputs
from sparsecore.errors import BundleError, UnsupportedError
from sparsecore.graph import copy_model
from sparsecore.graph.capture import MAX_SIZE, Captured, Dimension, Input
from sparsecore.graph.compiled import CompiledModule
from sparsecore.graph.prepare import prepare
from sparsecore.nn import CompressedModule
from sparsecore.nn.dense import dense_layer
from sparsecore.prune import fold_torch_pruning

WRONG_MODEL = "model_fn must build the model that was compressed, and one that was cut is saved with its edits"

# Where a CompiledModule has its graph.
_GRAPH = "graph_module"
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool),
        *(torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64),
    )
}
# Of what a file can ask for.
MOST_ARGUMENTS = 64
MOST_DIMENSIONS = 16
MOST_NUMEL = 2**28  # of all inputs together
MOST_NAME = 200

_Inputs = tuple[Input, ...] | dict[str, Input]


def describe(compiled: CompiledModule) -> dict[str, Any]:
    """Return what ``rebuild()`` needs, ready for JSON.

    Raises:
        UnsupportedError: an argument is neither a tensor nor a plain constant, or the inputs are too large.
    """
    captured = compiled.captured()
    free = {d.size: d for entry in captured.inputs for d in entry.shape if isinstance(d.size, str)}
    described = {
        "layout": captured.layout,
        "inputs": _describe_inputs(captured),
        "free": {name: [d.least, d.most, d.example] for name, d in free.items()},
        "layers": _describe_layers(captured.module),
    }
    try:
        _parse(described)
    except BundleError as error:
        raise UnsupportedError(f"the model's arguments cannot be saved: {error}") from error
    return described


def rebuild(model: nn.Module, content: Bundle) -> CompiledModule:
    """Capture a model in the form of the compiled one that a file holds.

    Args:
        model: the dense model; it stays as it is.
        content: of a compiled model.

    Returns:
        The compiled model with the layers and tensors of ``model``; those of the file have places in it.

    Raises:
        BundleError: the file says what cannot be, or ``model`` is another one.
    """
    stated = content.compiled or {}
    inputs = _parse(stated)
    captured = _capture(model, _example(inputs), stated["layout"])
    _check_layers(_describe_layers(captured.module), stated["layers"])
    _put_dense_layers(captured.module, content.modules)
    return CompiledModule(replace(captured, inputs=_as_stated(captured.inputs, _entries(inputs))))


def _capture(model: nn.Module, example: ExampleInputs, layout: str) -> Captured:
    """The graph of a copy, prepared as compile() does it."""
    copied = copy_model(model).eval()
    fold_torch_pruning(copied)
    try:
        prepared = prepare(copied, example)
    except UnsupportedError as error:
        raise BundleError(f"the model cannot be captured as it was ({error}); {WRONG_MODEL}") from error
    return prepared.own if layout == "own" else prepared.dense


# --- layers ---


def _describe_layers(module: fx.GraphModule) -> dict[str, dict[str, Any]]:
    layers: dict[str, dict[str, Any]] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            name = str(node.target)
            activation = module.get_submodule(name).activation
            layers.setdefault(name, {"activation": activation, "calls": []})["calls"].append(len(node.args))
    return layers


def _check_layers(found: Mapping[str, Any], stated: Mapping[str, Any]) -> None:
    for name in sorted(found.keys() | stated.keys()):
        if found.get(name) != stated.get(name):
            raise BundleError(f"expected layer {name!r} as {stated.get(name)}, got {found.get(name)}; {WRONG_MODEL}")


def _put_dense_layers(module: fx.GraphModule, stored: Mapping[str, Any]) -> None:
    """Make the layers dense that the model has compressed and the file has not."""
    for name in _describe_layers(module):
        layer = module.get_submodule(name)
        if isinstance(layer, CompressedModule) and f"{_GRAPH}.{name}" not in stored:
            module.set_submodule(name, dense_layer(layer.to_dense_module(), layer.activation).eval())


# --- inputs ---


def _is_scalar(value: object) -> bool:
    if type(value) is float:
        return math.isfinite(value)
    return value is None or type(value) in (bool, str) or (type(value) is int and abs(value) <= MAX_SIZE)


def _describe_inputs(captured: Captured) -> list[Any] | dict[str, Any]:
    args, kwargs = captured.in_spec.unflatten(captured.inputs)
    if args and kwargs:
        raise UnsupportedError("expected positional or keyword arguments, got both; compile with one of them to save")
    if kwargs:
        return {name: _describe_input(entry) for name, entry in kwargs.items()}
    return [_describe_input(entry) for entry in args]


def _describe_input(entry: object) -> dict[str, Any]:
    if not isinstance(entry, Input) or (entry.dtype is None and not _is_scalar(entry.value)):
        came = type(entry.value if isinstance(entry, Input) else entry).__name__
        raise UnsupportedError(
            f"expected arguments that are tensors, numbers, text or None in a compiled model to save, got a {came}"
        )
    if entry.dtype is None:
        return {"value": entry.value}
    return {"dtype": str(entry.dtype).removeprefix("torch."), "shape": [d.size for d in entry.shape]}


def _parse(stated: Mapping[str, Any]) -> _Inputs:
    """The inputs that a file states; what else it states is compared later with what is found."""
    _expect(stated.keys() == {"layout", "inputs", "free", "layers"}, "layout, inputs, free and layers")
    _expect(stated["layout"] in ("own", "channels_last"), "a known layout")
    _expect(isinstance(stated["layers"], dict), "layers as an object")
    inputs = _parse_inputs(stated["inputs"], _parse_free(stated["free"]))
    numel = sum(math.prod(_example_shape(entry)) for entry in _entries(inputs) if entry.dtype is not None)
    _expect(numel <= MOST_NUMEL, f"inputs of at most {MOST_NUMEL} numbers")
    return inputs


def _parse_free(stated: Any) -> dict[str, Dimension]:
    _expect(isinstance(stated, dict) and len(stated) <= MOST_ARGUMENTS, "free sizes as an object")
    free = {}
    for name, bounds in stated.items():
        _expect(0 < len(name) <= MOST_NAME, "short names of free sizes")
        is_valid = isinstance(bounds, list) and len(bounds) == 3 and all(type(bound) is int for bound in bounds)
        _expect(is_valid, "least, most and an example of a free size")
        least, most, example = bounds
        _expect(0 <= least <= example <= most <= MAX_SIZE, "bounds of a free size around its example")
        free[name] = Dimension(name, least, most, example)
    return free


def _parse_inputs(stated: Any, free: Mapping[str, Dimension]) -> _Inputs:
    _expect(isinstance(stated, list | dict) and len(stated) <= MOST_ARGUMENTS, "a few inputs as a list or an object")
    if isinstance(stated, list):
        return tuple(_parse_input(f"argument {i}", entry, free) for i, entry in enumerate(stated))
    for name in stated:
        # A name becomes a part of code that torch generates.
        is_plain = name.isascii() and name.isidentifier() and not keyword.iskeyword(name)
        _expect(is_plain and len(name) <= MOST_NAME, "names of keyword arguments")
    return {name: _parse_input(name, entry, free) for name, entry in stated.items()}


def _parse_input(name: str, stated: Any, free: Mapping[str, Dimension]) -> Input:
    _expect(isinstance(stated, dict), "inputs as objects")
    if stated.keys() == {"value"}:
        _expect(_is_scalar(stated["value"]), "a number, text, true, false or null as a constant")
        return Input(name, None, value=stated["value"])
    _expect(stated.keys() == {"dtype", "shape"}, "dtype and shape, or value, of an input")
    dtype, shape = stated["dtype"], stated["shape"]
    _expect(isinstance(dtype, str) and dtype in _DTYPES, f"one of {', '.join(_DTYPES)}")
    _expect(isinstance(shape, list) and len(shape) <= MOST_DIMENSIONS, "a shape of few dimensions")
    return Input(name, _DTYPES[dtype], tuple(_parse_size(size, free) for size in shape))


def _parse_size(stated: Any, free: Mapping[str, Dimension]) -> Dimension:
    if isinstance(stated, str):
        _expect(stated in free, "free sizes that are described")
        return free[stated]
    _expect(type(stated) is int and 0 <= stated <= MAX_SIZE, "sizes as numbers or names")
    return Dimension(stated)


def _entries(inputs: _Inputs) -> tuple[Input, ...]:
    return tuple(inputs.values()) if isinstance(inputs, dict) else inputs


def _example(inputs: _Inputs) -> ExampleInputs:
    """Inputs as they were at capture; their numbers are not read."""
    if isinstance(inputs, dict):
        return {name: _example_of(entry) for name, entry in inputs.items()}
    return tuple(_example_of(entry) for entry in inputs)


def _example_of(entry: Input) -> Any:
    return entry.value if entry.dtype is None else torch.empty(_example_shape(entry), dtype=entry.dtype)


def _example_shape(entry: Input) -> list[int]:
    return [d.size if isinstance(d.size, int) else d.example for d in entry.shape]


def _as_stated(captured: tuple[Input, ...], stated: tuple[Input, ...]) -> tuple[Input, ...]:
    """The graph's inputs with the bounds of the file, which must not be wider."""
    if len(captured) != len(stated):
        raise BundleError(f"expected {len(stated)} inputs, got {len(captured)}; {WRONG_MODEL}")
    names: dict[str, str] = {}  # of free sizes, in the graph and in the file
    for ours, its in zip(captured, stated, strict=True):
        fits = ours.dtype == its.dtype and len(ours.shape) == len(its.shape)
        if not fits or not all(_holds(a, b, names) for a, b in zip(ours.shape, its.shape, strict=True)):
            raise BundleError(f"the model does not take {its.name} as the file says; {WRONG_MODEL}")
    return tuple(replace(its, name=ours.name) for ours, its in zip(captured, stated, strict=True))


def _holds(captured: Dimension, stated: Dimension, names: dict[str, str]) -> bool:
    """Whether a graph takes every size that a file allows."""
    if isinstance(stated.size, int):
        return captured.size == stated.size or isinstance(captured.size, str)
    if isinstance(captured.size, int):
        return False
    # compile() tries whether a least size of 2 is just torch.export's: see capture.Dimension.
    least = 1 if captured.least == 2 else captured.least
    is_within = least <= stated.least and stated.most <= captured.most
    return is_within and names.setdefault(captured.size, stated.size) == stated.size


def _expect(is_valid: bool, what: str) -> None:
    if not is_valid:
        raise BundleError(f"expected {what} in the metadata 'compiled'")
