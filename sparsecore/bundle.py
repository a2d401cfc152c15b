"""The file of a compressed model: one safetensors file, never pickle.

Any safetensors reader opens it: 8 bytes little-endian length of the header, the header in JSON,
then the bytes of the tensors at the offsets that the header gives. They are those of
``model.state_dict()``, except that a compressed layer ``fc`` has exactly those of its format,
``fc.row_ptr`` and so on, and ``fc.bias``. What else is needed stands in the header's
``__metadata__``, whose values are strings:

    format         "sparsecore-bundle"
    version        "1"
    modules        JSON object: the name of each compressed layer -> {"class", "config"}, or
                   {"same_as": name} of a layer that has several names
    identities     JSON list: names of nn.Identity modules (what folding leaves of BatchNorm)
    training       JSON list: names of modules in training mode
    aliases        JSON object: tensor -> the stored tensor it shares memory with (tied weights)
    channels_last  JSON list: 4-d tensors in that memory format, on which torch's rounding depends
    compiled       JSON object: how a model of compile() is called and what its graph is, see io_compiled.py; absent
                   for other models
    edits          JSON object: what was cut out of the model's tensors, see prune/structured/edits.py; absent for a
                   model that was not cut
    sha256         hex digest over lines and tensors: for each other metadata key, sorted, the JSON
                   list [key, value]; for each tensor, sorted by name, the JSON list [name, dtype,
                   shape], and its bytes. Lines are ASCII and end with a newline.

The digest finds damage, not intent: who changes a file can compute it anew. So what is read here is
no more than well-formed, and io.py validates what it means.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsecore.atomic import replacing
from sparsecore.errors import BundleError

FORMAT = "sparsecore-bundle"
VERSION = "1"
# By the format in a file's metadata.
_READERS = {FORMAT: "sparsecore.load()", "sparsecore-deep-compression": "sparsecore.load_compressed()"}


@dataclass(frozen=True)
class Bundle:
    """What a file holds.

    Attributes:
        tensors: all tensors by name; tied ones are the same object.
        modules: see above, like identities and training.
        compiled: see above; None for a model that is not compiled.
        edits: see above; None for a model that was not cut.
    """

    tensors: dict[str, Tensor]
    modules: dict[str, dict[str, Any]]
    identities: list[str]
    training: list[str]
    compiled: dict[str, Any] | None = None
    edits: dict[str, Any] | None = None


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def is_object_of(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(isinstance(entry, kind) for entry in value.values())


_JSON_FIELDS: dict[str, Callable[[Any], bool]] = {
    "modules": is_object_of(dict),
    "identities": _is_names,
    "training": _is_names,
    "aliases": is_object_of(str),
    "channels_last": _is_names,
    "compiled": lambda value: isinstance(value, dict),
    "edits": lambda value: isinstance(value, dict),
}
_OPTIONAL_FIELDS = ("compiled", "edits")


def write(path: Path, bundle: Bundle) -> None:
    """Write a file atomically: a reader sees the old file or the new one."""
    tensors, aliases = stored_once(bundle.tensors)
    described: dict[str, Any] = {
        "modules": bundle.modules,
        "identities": bundle.identities,
        "training": bundle.training,
        "aliases": aliases,
        "channels_last": [name for name, tensor in tensors.items() if _is_channels_last(tensor)],
    }
    optional = {name: getattr(bundle, name) for name in _OPTIONAL_FIELDS}
    described |= {name: value for name, value in optional.items() if value is not None}
    stored = {name: plain(tensor) for name, tensor in tensors.items()}
    metadata = {name: json.dumps(value, sort_keys=True) for name, value in described.items()}
    write_tensors(path, stored, metadata | {"format": FORMAT, "version": VERSION})


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically, with a digest of it all in its metadata.

    Args:
        path: Replaced if it exists.
        tensors: On the CPU, contiguous, and each alone in its memory.
        metadata: With a format and its version.
    """
    with replacing(path) as new:
        save_file(dict(tensors), new, metadata={**metadata, "sha256": _digest(metadata, tensors)})


def read(path: Path) -> Bundle:
    """Read a file.

    Raises:
        BundleError: not such a file, of another version, or damaged.
    """
    tensors, metadata = read_tensors(path, FORMAT, VERSION, "sparsecore.save()")
    present = [name for name in _JSON_FIELDS if name in metadata or name not in _OPTIONAL_FIELDS]
    fields = {name: parse(metadata, name, _JSON_FIELDS[name]) for name in present}
    for name in fields["channels_last"]:
        if name not in tensors or tensors[name].dim() != 4:
            raise BundleError(f"expected a 4-d tensor {name!r}, as channels_last lists it")
        tensors[name] = tensors[name].clone(memory_format=torch.channels_last)
    tensors = resolve_aliases(tensors, fields["aliases"])
    optional = (fields.get(name) for name in _OPTIONAL_FIELDS)
    return Bundle(tensors, fields["modules"], fields["identities"], fields["training"], *optional)


def read_tensors(path: Path, format: str, version: str, writer: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what ``write_tensors()`` wrote: tensors and metadata.

    Args:
        path: The file.
        format: What its metadata must say, like version.
        version: The only one that is read.
        writer: The function that writes such files, for errors.

    Raises:
        BundleError: Not such a file, of another version, or damaged.
    """
    if path.is_dir():
        raise BundleError(f"expected a file that {writer} wrote, got a folder")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != format:
                raise BundleError(f"expected a file that {writer} wrote, got {_what_it_is(metadata)}")
            if metadata.get("version") != version:
                raise BundleError(
                    f"expected {format} version {version}, got {metadata.get('version')!r}; "
                    "load it with the sparsecore release that wrote it"
                )
            # Copied, because the originals are mapped from the file and would change with it.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise BundleError(f"not a complete safetensors file ({error}); save it again") from error
    if _digest(metadata, tensors) != metadata.get("sha256"):
        raise BundleError("the checksum does not match: the file is damaged; save it again")
    return tensors, metadata


def _what_it_is(metadata: Mapping[str, str]) -> str:
    """Name another kind of file, and what reads it."""
    reader = _READERS.get(metadata.get("format", ""))
    return f"one that {reader} reads" if reader else "other safetensors"


def header_bytes(path: Path) -> int:
    """Bytes of a safetensors file before its tensors."""
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def resolve_aliases(tensors: dict[str, Tensor], aliases: Mapping[str, str]) -> dict[str, Tensor]:
    """Add the other names of tensors.

    Raises:
        BundleError: A name is there already, or what it means is not.
    """
    for name, target in aliases.items():
        if name in tensors or target not in tensors:
            raise BundleError(f"expected {name!r} to be an alias of a stored tensor")
    return tensors | {name: tensors[target] for name, target in aliases.items()}


def parse(metadata: Mapping[str, str], name: str, is_valid: Callable[[Any], bool]) -> Any:
    """Return a JSON entry of the metadata.

    Raises:
        BundleError: It is not there, no JSON, or not valid.
    """
    try:
        value = json.loads(metadata[name])
    except (KeyError, ValueError, RecursionError) as error:
        raise BundleError(f"expected JSON in the metadata {name!r}") from error
    if not is_valid(value):
        raise BundleError(f"expected other JSON in the metadata {name!r}")
    return value


def stored_once(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Split tensors into those to store and the names that mean one of them."""
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first_names: dict[tuple[object, ...], str] = {}
    for name, tensor in tensors.items():
        memory = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        first = first_names.setdefault(memory, name) if tensor.numel() else name
        if first == name:
            stored[name] = tensor
        else:
            aliases[name] = first
    return stored, aliases


def _is_channels_last(tensor: Tensor) -> bool:
    # By strides, which torch too looks at where both formats fit: those of a 1x1 filter.
    formats = (torch.channels_last, torch.contiguous_format)
    empty = (torch.empty(tensor.shape, memory_format=f, device="meta") for f in formats)
    return tensor.dim() == 4 and [tensor.stride() == e.stride() for e in empty] == [True, False]


def plain(tensor: Tensor) -> Tensor:
    """On the CPU, contiguous, and alone in its memory: what safetensors takes."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    sha256 = hashlib.sha256()

    def line(*values: object) -> None:
        sha256.update(json.dumps(values).encode() + b"\n")

    for key in sorted(metadata.keys() - {"sha256"}):
        line(key, metadata[key])
    for name in sorted(tensors):
        tensor = tensors[name]
        line(name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape))
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()
