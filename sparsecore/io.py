"""Bundles: a compressed model in one safetensors file, never pickle.

The file is a safetensors file: 8 bytes little-endian length of the header, the header in JSON, and the tensors' bytes,
each at the offsets the header gives. Any safetensors reader opens it. The tensors are ``model.state_dict()``, except that
a compressed layer ``fc`` has exactly the tensors of its format, ``fc.row_ptr`` and so on, and ``fc.bias``. What else is
needed stands in the header's ``__metadata__``, all values being strings:

    format         "sparsecore-bundle"
    version        "1"
    modules        JSON object: name -> {"class", "config"} of a compressed layer, or {"same_as": name} if it is shared
    identities     JSON list: names of nn.Identity layers (what folding leaves of BatchNorm)
    aliases        JSON object: tensor -> the stored tensor it shares memory with (tied weights)
    channels_last  JSON list: 4-d tensors to bring into that memory format, which decides how torch rounds
    training       JSON list: names of modules in training mode
    sha256         hex digest over all of it: for each metadata key but this one, sorted, the JSON list [key, value];
                   for each tensor, sorted by name, the JSON list [name, dtype, shape] and then its bytes; the lists
                   in UTF-8 and each ended by a newline

The digest finds damage, not intent: whoever changes a file can compute it anew. So everything read is also validated.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sparsecore import nn as compressed
from sparsecore.errors import BundleError, UnsupportedError
from sparsecore.nn import CompressedModule
from sparsecore.nn.conv import resolve_padding

FORMAT = "sparsecore-bundle"
VERSION = "1"

#: The only classes a file can name.
CLASSES: dict[str, type[CompressedModule]] = {
    cls.__name__: cls
    for cls in (
        compressed.SparseLinear,
        compressed.SparseConv2d,
        compressed.Int8Linear,
        compressed.Int8Conv2d,
        compressed.SparseInt8Linear,
        compressed.SparseInt8Conv2d,
    )
}

SHAPE = (
    "in_features",
    "out_features",
    "in_channels",
    "out_channels",
    *compressed.SparseConv2d.keywords,
)


@dataclass(frozen=True)
class Description:
    """The metadata that is JSON: see the module's documentation."""

    modules: dict[str, dict[str, Any]]
    identities: list[str]
    aliases: dict[str, str]
    channels_last: list[str]
    training: list[str]

    def to_metadata(self) -> dict[str, str]:
        return {name: json.dumps(value, sort_keys=True) for name, value in asdict(self).items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Description:
        """Parse, and check every type that the loader relies on."""
        values = {}
        for field in fields(cls):
            try:
                values[field.name] = json.loads(metadata[field.name])
            except (KeyError, ValueError, RecursionError) as error:
                raise BundleError(f"metadata {field.name!r} is missing or not JSON") from error
        is_valid = (
            all(isinstance(values[name], dict) for name in ("modules", "aliases"))
            and all(isinstance(entry, dict) for entry in values["modules"].values())
            and all(
                isinstance(values[name], list)
                for name in ("identities", "channels_last", "training")
            )
            and all(
                isinstance(name, str)
                for key in ("identities", "channels_last", "training")
                for name in values[key]
            )
            and all(isinstance(name, str) for name in values["aliases"].values())
        )
        if not is_valid:
            raise BundleError("metadata has values of another type than this format's")
        return cls(**values)


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model with compressed layers to one file, atomically: a reader sees the old file or the new one.

    Args:
        model: any module; what is not compressed is stored like its ``state_dict()``.
        path: the file, by convention ``*.safetensors``. An existing one is replaced.

    Raises:
        UnsupportedError: the state is not all dense tensors.

    Example:
        >>> import tempfile
        >>> model = nn.Sequential(compressed.SparseLinear.from_dense(nn.Linear(4, 2)))
        >>> file = Path(tempfile.mkdtemp()) / "m.safetensors"
        >>> save(model, file)
        >>> load(file, lambda: nn.Sequential(nn.Linear(4, 2)))
        Sequential(
          (0): SparseLinear(in_features=4, out_features=2, nnz=8, sparsity=0.000, bias=True)
        )
    """
    names = dict(model.named_modules(remove_duplicate=False))
    first_names: dict[nn.Module, str] = {}
    modules: dict[str, dict[str, Any]] = {}
    for name, module in names.items():
        if isinstance(module, CompressedModule):
            first = first_names.setdefault(module, name)
            is_first = first == name
            modules[name] = (
                {"class": type(module).__name__, "config": module.config()}
                if is_first
                else {"same_as": first}
            )
    if unknown := {entry["class"] for entry in modules.values() if "class" in entry} - set(CLASSES):
        raise UnsupportedError(
            f"expected compressed layers of {', '.join(CLASSES)}, got {', '.join(unknown)}"
        )
    tensors, aliases = _stored_once(_state(model, names, modules))
    description = Description(
        modules=modules,
        identities=[name for name, module in names.items() if type(module) is nn.Identity],
        aliases=aliases,
        channels_last=[name for name, tensor in tensors.items() if _is_channels_last(tensor)],
        training=[name for name, module in names.items() if module.training],
    )
    stored = {name: _plain(tensor) for name, tensor in tensors.items()}
    metadata = {"format": FORMAT, "version": VERSION, **description.to_metadata()}
    metadata["sha256"] = _digest(metadata, stored)
    _write(Path(path), stored, metadata)


def load(path: str | os.PathLike[str], model_fn: Callable[[], nn.Module]) -> nn.Module:
    """Read a model that ``save()`` wrote; its outputs are exactly those of the saved one.

    Args:
        path: the file; it is validated and never executed.
        model_fn: builds the dense model as it was before compression, with any weights.

    Returns:
        What model_fn built, with its layers replaced and its tensors filled.

    Raises:
        BundleError: not such a file, another version, damaged, or made from another model. Nothing is changed.
    """
    path = Path(path)
    try:
        tensors, description = _read(path)
        return _fill(model_fn(), tensors, description)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error.__cause__


# --- writing ---


def _state(
    model: nn.Module, names: Mapping[str, nn.Module], modules: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The tensors of all modules, those of compressed layers being exactly their format's."""
    state = _outside({name: names[name] for name in modules}, model.state_dict())
    for name in modules:
        module = names[name]
        assert isinstance(module, CompressedModule)
        state |= {_key(name, leaf): tensor for leaf, tensor in module.tensors().items()}
    for name, value in state.items():
        if (
            not isinstance(value, Tensor)
            or value.layout != torch.strided
            or name.endswith("_extra_state")
        ):
            raise UnsupportedError(
                f"expected a dense tensor in the state, got {type(value).__name__} for {name}"
            )
    return state


def _stored_once(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Split the tensors into those to store and the names that mean one of them."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first_names: dict[tuple[object, ...], str] = {}
    for name, tensor in state.items():
        memory = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        first = first_names.setdefault(memory, name) if tensor.numel() else name
        if first == name:
            tensors[name] = tensor
        else:
            aliases[name] = first
    return tensors, aliases


def _is_channels_last(tensor: Tensor) -> bool:
    return (
        tensor.dim() == 4
        and not tensor.is_contiguous()
        and tensor.is_contiguous(memory_format=torch.channels_last)
    )


def _plain(tensor: Tensor) -> Tensor:
    """On the CPU, contiguous, alone in its memory: what safetensors takes."""
    plain = tensor.detach().cpu().contiguous()
    return plain if plain.untyped_storage().nbytes() == plain.nbytes else plain.clone()


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(tensors, temporary, metadata=metadata)
        temporary.chmod(mode)  # safetensors writes files that only the owner can read
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    sha256 = hashlib.sha256()

    def line(*values: object) -> None:
        sha256.update(json.dumps(values).encode() + b"\n")

    for key in sorted(metadata.keys() - {"sha256"}):
        line(key, metadata[key])
    for name in sorted(tensors):
        tensor = tensors[name]
        line(name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape))
        sha256.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return sha256.hexdigest()


# --- reading ---


def _read(path: Path) -> tuple[dict[str, Tensor], Description]:
    """Return what the file holds, proven undamaged."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise BundleError(
                    "expected a file written by sparsecore.save(), got another safetensors file"
                )
            if metadata.get("version") != VERSION:
                raise BundleError(
                    f"expected bundle version {VERSION}, got {metadata.get('version')!r}; "
                    "use the sparsecore release that wrote it"
                )
            # Cloned: the originals are mapped from the file, and would change with it after the check.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise BundleError(
            f"expected a complete safetensors file ({error}); copy or save it again"
        ) from error
    if _digest(metadata, tensors) != metadata.get("sha256"):
        raise BundleError("the checksum does not match, the file is damaged; copy or save it again")
    return tensors, Description.from_metadata(metadata)


def _fill(model: nn.Module, tensors: dict[str, Tensor], description: Description) -> nn.Module:
    """Everything is checked against the model first, and changed after."""
    modules = dict(model.named_modules(remove_duplicate=False))
    listed = (*description.modules, *description.identities, *description.training)
    if unknown := [name for name in listed if name not in modules]:
        raise BundleError(
            f"the model has no module {unknown[0]!r}; model_fn must build the model that was compressed"
        )
    for name in description.channels_last:
        if name not in tensors or tensors[name].dim() != 4:
            raise BundleError(
                f"expected {name!r}, which is listed as channels_last, to be a 4-d tensor"
            )
        tensors[name] = tensors[name].contiguous(memory_format=torch.channels_last)
    for name, target in description.aliases.items():
        if name in tensors or target not in tensors:
            raise BundleError(
                f"expected {name!r} to be an alias of a stored tensor, got {target!r}"
            )
    state = tensors | {name: tensors[target] for name, target in description.aliases.items()}

    layers = _layers(modules, state, description.modules)
    folded = {
        name: nn.Identity()
        for name in description.identities
        if type(modules[name]) is not nn.Identity
    }
    rest = _outside(layers, state)
    _check_fits(rest, _outside(layers | folded, model.state_dict()), modules)

    for name, layer in (layers | folded).items():
        if not name:
            model = layer
        else:
            model.set_submodule(name, layer)
    for name in sorted(
        rest, key=lambda name: name in description.aliases
    ):  # what aliases mean comes first
        target = description.aliases.get(name)
        _assign(model, name, rest[name] if target is None else _tensor_of(model, target))
    training = set(description.training)
    for name, module in model.named_modules(remove_duplicate=False):
        module.training = name in training
    return model


def _layers(
    modules: Mapping[str, nn.Module],
    state: Mapping[str, Tensor],
    entries: Mapping[str, dict[str, Any]],
) -> dict[str, nn.Module]:
    """Build the compressed layers, each fitting the dense one in its place."""
    kernels = _available_kernels()
    layers: dict[str, nn.Module] = {}
    for name, entry in sorted(entries.items(), key=lambda item: "same_as" in item[1]):
        if "same_as" in entry:
            if entry["same_as"] not in layers:
                raise BundleError(
                    f"expected {name!r} to be the same as another layer, got {entry['same_as']!r}"
                )
            layers[name] = layers[entry["same_as"]]
            continue
        cls, config = CLASSES.get(str(entry.get("class"))), entry.get("config")
        if cls is None or not isinstance(config, dict):
            raise BundleError(
                f"expected {name!r} to be one of {', '.join(CLASSES)}, got {entry.get('class')!r}"
            )
        if config.get("kernel") not in kernels:  # chosen on a machine with another instruction set
            config["kernel"] = ""
        prefix = _key(name, "")
        tensors = {
            key.removeprefix(prefix): tensor
            for key, tensor in state.items()
            if key.startswith(prefix)
        }
        try:
            layer = cls.from_config(config, tensors)
            found, expected = _shape_of(layer), _shape_of(modules[name])
        except (ValueError, TypeError, UnsupportedError) as error:
            raise BundleError(f"layer {name!r}: {error}") from error
        if stray := set(tensors) - set(layer.tensors()):
            raise BundleError(
                f"layer {name!r} has tensors that a {cls.__name__} lacks: {sorted(stray)}"
            )
        if found != expected:
            raise BundleError(f"layer {name!r} has the shape {found}, and in the model {expected}")
        layers[name] = layer
    return layers


def _shape_of(module: nn.Module) -> dict[str, Any]:
    """What a layer and its compressed form have in common."""
    shape = {name: getattr(module, name) for name in SHAPE if hasattr(module, name)}
    return shape | {"padding": resolve_padding(module)} if isinstance(module, nn.Conv2d) else shape


def _available_kernels() -> set[str]:
    from sparsecore import _C

    return {kernel["name"] for kernel in _C.kernels() if kernel["available"]}


def _check_fits(
    found: Mapping[str, Tensor], expected: Mapping[str, Any], modules: Mapping[str, nn.Module]
) -> None:
    """The plain tensors are those of the model, and the biases that folding gave its layers."""
    for name in found.keys() - expected.keys():
        owner, leaf = modules.get(_owner(name)), name.rpartition(".")[2]
        is_new_bias = (
            leaf == "bias" and isinstance(owner, nn.Linear | nn.Conv2d) and owner.bias is None
        )
        if not is_new_bias or found[name].shape != owner.weight.shape[:1]:
            raise BundleError(
                f"the model has no tensor {name!r}; model_fn must build the model that was compressed"
            )
    for name, tensor in expected.items():
        if name not in found:
            raise BundleError(
                f"the file has no tensor {name!r}; model_fn must build the model that was compressed"
            )
        same_kind = found[name].dtype == tensor.dtype or (
            found[name].is_floating_point() and tensor.is_floating_point()
        )
        if found[name].shape != tensor.shape or not same_kind:
            raise BundleError(
                f"expected {name!r} to be {tensor.dtype} {list(tensor.shape)} as in the model, "
                f"got {found[name].dtype} {list(found[name].shape)}"
            )


# --- names ---


def _key(module: str, tensor: str) -> str:
    return f"{module}.{tensor}" if module else tensor


def _owner(key: str) -> str:
    return key.rpartition(".")[0]


def _outside(layers: Mapping[str, nn.Module], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that are not inside one of these modules."""
    prefixes = tuple(_key(name, "") for name in layers)
    return {name: tensor for name, tensor in state.items() if not name.startswith(prefixes)}


def _tensor_of(model: nn.Module, key: str) -> Tensor:
    module, _, leaf = key.rpartition(".")
    tensor = getattr(model.get_submodule(module), leaf)
    assert isinstance(tensor, Tensor)
    return tensor


def _assign(model: nn.Module, key: str, tensor: Tensor) -> None:
    """Put a tensor in its place; a parameter given is shared, a plain tensor becomes a new one."""
    module, leaf = model.get_submodule(_owner(key)), key.rpartition(".")[2]
    if leaf in module._buffers:
        module._buffers[leaf] = tensor.detach()
    elif isinstance(tensor, nn.Parameter):
        module.register_parameter(leaf, tensor)
    else:
        like = getattr(module, leaf) if getattr(module, leaf) is not None else module.weight
        module.register_parameter(leaf, nn.Parameter(tensor, requires_grad=like.requires_grad))
