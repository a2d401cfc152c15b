"""Saving and loading compressed and compiled models; bundle.py describes the file byte by byte."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsecore import bundle
from sparsecore import nn as compressed
from sparsecore._native import _C
from sparsecore.bundle import Bundle
from sparsecore.errors import BundleError, UnsupportedError, require_module
from sparsecore.graph.compiled import CompiledModule
from sparsecore.io_compiled import WRONG_MODEL, describe, rebuild
from sparsecore.nn import CompressedModule, DepthwiseConv2d
from sparsecore.nn.conv import resolve_padding
from sparsecore.prune.structured.edits import Edits
from sparsecore.prune.structured.resrep import Compactor
from sparsecore.quantize.simulated import SIMULATED

#: The layers on compressed weights, by the names that a file has for them.
CLASSES: dict[str, type[CompressedModule]] = {
    "BinaryConv2d": compressed.BinaryConv2d,
    "BinaryLinear": compressed.BinaryLinear,
    "BitmapInt8Linear": compressed.BitmapInt8Linear,
    "BitmapLinear": compressed.BitmapLinear,
    "BlockConv2d": compressed.BlockConv2d,
    "BlockLinear": compressed.BlockLinear,
    "CodebookLinear": compressed.CodebookLinear,
    "SparseLinear": compressed.SparseLinear,
    "JitConv2d": compressed.JitConv2d,
    "JitLinear": compressed.JitLinear,
    "PanelConv2d": compressed.PanelConv2d,
    "PanelLinear": compressed.PanelLinear,
    "SparseConv2d": compressed.SparseConv2d,
    "Int8Linear": compressed.Int8Linear,
    "Int8Conv2d": compressed.Int8Conv2d,
    "SparseInt4Linear": compressed.SparseInt4Linear,
    "SparseInt8Linear": compressed.SparseInt8Linear,
    "SparseInt8Conv2d": compressed.SparseInt8Conv2d,
    "TernaryConv2d": compressed.TernaryConv2d,
    "TernaryLinear": compressed.TernaryLinear,
}

StoredLayer = CompressedModule | DepthwiseConv2d
# The only classes a file can name.
_STORED_CLASSES: dict[str, type[StoredLayer]] = {**CLASSES, "DepthwiseConv2d": DepthwiseConv2d}
# Forms for GPUs, whose files hold what runs anywhere.
_STORED_AS: dict[type[StoredLayer], type[StoredLayer]] = {
    compressed.DeltaLinear: compressed.SparseLinear,
    compressed.FragmentLinear: compressed.SparseLinear,
    compressed.FragmentInt4Linear: compressed.SparseLinear,
    compressed.RowsInt8Linear: compressed.Int8Linear,
    compressed.FragmentInt8Linear: compressed.SparseInt8Linear,
    compressed.FragmentWeightOnlyLinear: compressed.SparseInt8Linear,
    compressed.DeltaWeightOnlyLinear: compressed.SparseInt8Linear,
}

# Layers whose kernels are PyTorch's, for GPUs: files hold another layer with the same weight.
_BY_PYTORCH = (compressed.SemiStructuredLinear, compressed.TorchInt8Linear, compressed.TorchInt4WeightLinear)

# Layers that are there while a model trains, and how the model becomes one that can be saved.
_IN_TRAINING: dict[type[nn.Module], str] = {
    **dict.fromkeys(SIMULATED.values(), "convert_qat() makes its layers int8, fold_qat() plain"),
    Compactor: "ResRep.merge() ends it",
}

# What such a layer has in common with the dense one in its place.
_LINEAR_SHAPE = ("in_features", "out_features")
_CONV2D_SHAPE = ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups")


def save(model: nn.Module, path: str | os.PathLike[str], *, edits: Edits | None = None) -> None:
    """Write a model with compressed layers, or a compiled one, to one file, atomically.

    Args:
        model: any module, or what ``compile()`` returned. What is not compressed is stored as in its ``state_dict()``.
        path: the file, by convention ``*.safetensors``; one that exists is replaced.
        edits: all that was cut out of the model since ``model_fn`` of :func:`load` built it, as ``cut()`` and
            ``prune_channels()`` returned it; of several cuts ``first.then(second)``.

    Raises:
        UnsupportedError: layers of the model are in training, from ``prepare_qat()`` and the like; the state is not
            all dense tensors; a compiled model is a part of another one, or has arguments that are neither tensors nor
            constants.

    Example:
        >>> import tempfile
        >>> model = nn.Sequential(compressed.SparseLinear.from_dense(nn.Linear(4, 2)))
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save(model, path)
        >>> load(path, lambda: nn.Sequential(nn.Linear(4, 2)))
        Sequential(
          (0): SparseLinear(in_features=4, out_features=2, nnz=8, sparsity=0.000, bias=True)
        )
    """
    require_module(model)
    for name, module in model.named_modules():
        if way_out := _IN_TRAINING.get(type(module)):
            raise UnsupportedError(
                f"expected a model whose training is over, got {type(module).__name__} {name}: {way_out}; to go on "
                "training later save model.state_dict() by torch.save()"
            )
    write_as_it_is(model, path, edits)


def write_as_it_is(model: nn.Module, path: str | os.PathLike[str], edits: Edits | None = None) -> None:
    """Do as ``save()``, also with layers in training, which ``load()`` does not know."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, module in modules.items():
        if name and isinstance(module, CompiledModule):
            raise UnsupportedError(f"expected a compiled model that is saved alone, got one inside another, {name}")
    made_of: dict[nn.Module, nn.Module] = {
        module: module.to_stored() for module in modules.values() if isinstance(module, _BY_PYTORCH)
    }
    forms = modules | {name: made_of[module] for name, module in modules.items() if module in made_of}
    layers = {name: form for name, form in forms.items() if isinstance(form, StoredLayer)}
    plain = {name: form for name, form in forms.items() if form is not modules[name] and name not in layers}
    tensors = _outside(layers | plain, model.state_dict())
    for name, form in plain.items():
        tensors |= {_join(name, leaf): tensor for leaf, tensor in form.state_dict().items()}
    for name, tensor in tensors.items():
        is_dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided
        if not is_dense or name.endswith("_extra_state"):
            raise UnsupportedError(f"expected a dense tensor, got {type(tensor).__name__} {name}")
    entries: dict[str, dict[str, Any]] = {}
    first_names: dict[StoredLayer, str] = {}
    for name, layer in layers.items():
        tensors |= {_join(name, leaf): tensor for leaf, tensor in layer.tensors().items()}
        first = first_names.setdefault(layer, name)
        stored = _STORED_AS.get(type(layer), type(layer))
        kind = stored.__name__
        if _STORED_CLASSES.get(kind) is not stored:
            raise UnsupportedError(f"expected one of {', '.join(_STORED_CLASSES)}, got {kind} {name}")
        is_first = first == name
        entries[name] = {"class": kind, "config": layer.config()} if is_first else {"same_as": first}
    identities = [name for name, module in modules.items() if type(module) is nn.Identity]
    training = [name for name, module in modules.items() if module.training]
    compiled = describe(model) if isinstance(model, CompiledModule) else None
    bundle.write(
        Path(path), Bundle(tensors, entries, identities, training, compiled, edits.to_dict() if edits else None)
    )


def built(model_fn: Callable[[], nn.Module]) -> nn.Module:
    """Return the model that a function builds.

    Raises:
        TypeError: It is no function, or returns something else.
    """
    if isinstance(model_fn, nn.Module) or not callable(model_fn):
        raise TypeError(f"expected a function that builds the model, got {type(model_fn).__name__}")
    model = model_fn()
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected model_fn to return a torch.nn.Module, got {type(model).__name__}")
    return model


def load(path: str | os.PathLike[str], model_fn: Callable[[], nn.Module]) -> nn.Module:
    """Read a model that ``save()`` wrote; its outputs are exactly those of the saved one.

    Args:
        path: the file. It is validated, and nothing in it is executed.
        model_fn: builds the dense model as it was before it was cut or compressed, with any weights. If the file
            holds a compiled model: as it was given to ``compile()``, of the same dtype.

    Returns:
        What model_fn built, with layers replaced and tensors filled in, on the CPU; or a CompiledModule of it. A
        kernel that was chosen by name and is not available here is left to choose again.

    Raises:
        BundleError: not such a file, another version, damaged, or of another model. What model_fn
            built is unchanged then, but may be cut.
    """
    path = Path(path)
    try:
        content = bundle.read(path)
        model = built(model_fn)
        if content.edits is not None:
            Edits.from_dict(content.edits).apply(model)
        if content.compiled is None:
            return _fill(model, content)
        return _fill(rebuild(model, content), content).requires_grad_(False)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error.__cause__


def _fill(model: nn.Module, content: Bundle) -> nn.Module:
    """Check everything against the model first, and change it after."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in (*content.modules, *content.identities, *content.training):
        if name not in modules:
            raise BundleError(f"the model has no module {name!r}; {WRONG_MODEL}")
    layers = _layers(modules, content)
    folded = {
        name: nn.Identity()
        for name in content.identities
        if type(modules[name]) is not nn.Identity and name not in layers
    }
    tensors = _outside(layers, content.tensors)
    _check_tensors(tensors, _outside(layers | folded, model.state_dict()), modules)

    for name, layer in (layers | folded).items():
        if name:
            compressed.put_layer(model, name, layer)
        else:
            model = layer
    _assign(model, tensors)
    training = set(content.training)
    for name, module in model.named_modules(remove_duplicate=False):
        module.training = name in training
    return model


def _layers(modules: Mapping[str, nn.Module], content: Bundle) -> dict[str, nn.Module]:
    """Build the layers that the file describes, each fitting the dense one in its place."""
    kernels = {kernel["name"] for kernel in _C.kernels() if kernel["available"]}
    layers: dict[str, nn.Module] = {}
    for name, entry in sorted(content.modules.items(), key=lambda item: "same_as" in item[1]):
        try:
            if "same_as" in entry:
                layers[name] = layers[entry["same_as"]]
            else:
                cls, config = _STORED_CLASSES[entry["class"]], dict(entry["config"])
                config["kernel"] = config["kernel"] if config["kernel"] in kernels else ""
                tensors = _inside(name, content.tensors)
                layers[name] = layer = cls.from_config(config, tensors)
                if stray := tensors.keys() - layer.tensors().keys():
                    raise ValueError(f"a {entry['class']} has no tensors {sorted(stray)}")
                _check_replaces(modules[name], layer)
        except (KeyError, TypeError, ValueError, UnsupportedError) as error:
            raise BundleError(f"layer {name!r} is not valid: {error}") from error
    return layers


def _check_replaces(dense: nn.Module, layer: nn.Module) -> None:
    is_linear = hasattr(layer, "in_features")
    shape = _LINEAR_SHAPE if is_linear else _CONV2D_SHAPE
    found = {name: getattr(layer, name) for name in shape}
    expected = {name: getattr(dense, name, None) for name in shape}
    if not is_linear:
        found["padding"] = layer.pixels_of_padding if isinstance(layer, DepthwiseConv2d) else layer.padding
        expected["padding"] = (
            resolve_padding(dense) if isinstance(dense, nn.Conv2d) else getattr(dense, "padding", None)
        )
    if found != expected:
        raise ValueError(f"expected {expected} as in the model, got {found}; {WRONG_MODEL}")


def _check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Any], modules: Mapping[str, nn.Module]) -> None:
    """The plain tensors are those of the model, and the biases that folding gave to its layers."""
    for name in found.keys() - expected.keys():
        owner, leaf = _split(name)
        layer = modules.get(owner)
        if (
            leaf != "bias"
            or not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
            or layer.bias is not None
            or found[name].shape != layer.weight.shape[:1]
        ):
            pruned = "Masks.from_model(model) makes pruning by torch.nn.utils plain before saving; "
            hint = pruned if leaf.endswith(("_orig", "_mask")) else ""
            raise BundleError(f"the model has no tensor {name!r}; {hint}{WRONG_MODEL}")
    for name, tensor in expected.items():
        if name not in found:
            raise BundleError(f"the file has no tensor {name!r}; {WRONG_MODEL}")
        came = found[name]
        both_float = came.is_floating_point() and tensor.is_floating_point()  # model.half()
        if came.shape != tensor.shape or not (came.dtype == tensor.dtype or both_float):
            raise BundleError(
                f"expected {name!r} as {tensor.dtype} {list(tensor.shape)}, "
                f"got {came.dtype} {list(came.shape)}; {WRONG_MODEL}"
            )


def _assign(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors in their places; what is one object becomes one parameter."""
    parameters: dict[int, nn.Parameter] = {}
    for name, tensor in tensors.items():
        owner, leaf = _split(name)
        module = model.get_submodule(owner)
        if leaf in module._buffers:
            module._buffers[leaf] = tensor
            continue
        before = module._parameters[leaf]
        needs_grad = before.requires_grad if before is not None else tensor.is_floating_point()
        parameter = nn.Parameter(tensor, requires_grad=needs_grad)
        module._parameters[leaf] = parameters.setdefault(id(tensor), parameter)


# --- names ---


def _join(module: str, leaf: str) -> str:
    return f"{module}.{leaf}" if module else leaf


def _split(name: str) -> tuple[str, str]:
    module, _, leaf = name.rpartition(".")
    return module, leaf


def _inside(module: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a module, by their names in it."""
    prefix = _join(module, "")
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _outside(modules: Mapping[str, nn.Module], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of all other modules."""
    prefixes = tuple(_join(name, "") for name in modules)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}
