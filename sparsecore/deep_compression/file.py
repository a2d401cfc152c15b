"""Saving and loading the file of Deep Compression.

One safetensors file like a bundle's (``bundle.py``), with other metadata:

    format     "sparsecore-deep-compression"
    version    "1"
    weights    JSON object: name of each compressed weight -> its shape. The tensor of that name is a record of bytes
               (``record.py``) of the weight as a matrix, flattened from dimension 1
    aliases    JSON object: tensor -> the stored tensor that it shares memory with (tied weights)
    sha256     as in a bundle

All other tensors of ``model.state_dict()`` are stored as they are.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsecore import bundle
from sparsecore.atomic import require_place
from sparsecore.deep_compression.record import pack_best, read_record, write_record
from sparsecore.deep_compression.report import CompressedReport, WeightBytes
from sparsecore.errors import BundleError, FormatError, UnsupportedError, require_extra, require_module
from sparsecore.formats import CodebookWeight
from sparsecore.formats.check import FLOAT_DTYPES
from sparsecore.formats.codebook import MAX_BITS, find_entries
from sparsecore.io import built
from sparsecore.io_compiled import WRONG_MODEL
from sparsecore.nn import CodebookLinear, CompressedModule, put_layer
from sparsecore.prune.weights import PrunableWeight, Selector, prunable_weights

FORMAT = "sparsecore-deep-compression"
VERSION = "1"
ZSTD_LEVEL = 19


def save_compressed(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    gap_bits: int | Mapping[str, int] | None = None,
    huffman: bool = True,
    exclude: Selector | Iterable[Selector] = (),
    compare_zstd: bool = False,
) -> CompressedReport:
    """Write a pruned model whose layers share their weights to one small file, atomically.

    Compressed are the weights that ``prune()`` prunes: a codebook, and for each weight that is not zero a code and the
    distance to the one before, Huffman coded. The rest is stored as it is.

    Args:
        model: A model of torch.nn layers, each with at most 256 different weights beside zero.
        path: The file; one that exists is replaced.
        gap_bits: Of a distance, 1 to 8, for all weights or by the weight's name; None takes what makes the file
            smallest, weight by weight. Longer distances take fillers.
        huffman: False leaves codes and distances in fields of equal width.
        exclude: Weights and modules to store as they are, by name, fnmatch pattern or module type.
        compare_zstd: Also compress codes and distances with zstd, which needs ``zstandard``, for the report.

    Returns:
        Where the bytes of the file are.

    Raises:
        FormatError: A weight has too many different values, or is NaN or infinite.
        UnsupportedError: The model has layers on compressed weights already, or tensors that cannot be stored.
        ValueError: A name means nothing in the model, or ``gap_bits`` is out of range.
        TypeError: The model is no module.
        OSError: The file cannot be written: its folder is missing, it is a folder itself, or not writable.

    Reference:
        Han, Mao and Dally, Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and
        Huffman Coding, ICLR 2016.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> model = nn.Sequential(nn.Linear(64, 32, bias=False))
        >>> model[0].weight.data = torch.randint(-7, 8, (32, 64)) * 0.1
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> report = save_compressed(model, path)
        >>> report.file_bytes == path.stat().st_size
        True
        >>> again = load_compressed(path, lambda: nn.Sequential(nn.Linear(64, 32, bias=False)))
        >>> torch.equal(again[0].weight, model[0].weight)
        True
    """
    path = Path(path)
    require_module(model)
    require_place(path)
    weights = _weights(model, exclude)
    widths = _widths(weights, gap_bits)
    tensors, aliases = bundle.stored_once(_state(model))
    dense_bytes = sum(tensor.nbytes for tensor in tensors.values())
    rows, records, shapes = [], {}, {}
    for name, weight in weights.items():
        if name not in tensors:  # another name of one that is there
            continue
        codebook = _codebook_weight(name, weight, widths[name], huffman)
        records[name], row = _compress(name, weight.stored.shape, codebook, huffman, compare_zstd)
        shapes[name] = list(weight.stored.shape)
        rows.append(row)
    others = {name: bundle.plain(tensor) for name, tensor in tensors.items() if name not in records}
    fields = {"weights": shapes, "aliases": aliases}
    metadata = {name: json.dumps(value, sort_keys=True) for name, value in fields.items()}
    bundle.write_tensors(path, others | records, metadata | {"format": FORMAT, "version": VERSION})
    other_bytes = sum(tensor.nbytes for tensor in others.values())
    return CompressedReport(tuple(rows), other_bytes, bundle.header_bytes(path), dense_bytes)


def load_compressed(
    path: str | os.PathLike[str], model_fn: Callable[[], nn.Module], *, run_compressed: bool = False
) -> nn.Module:
    """Read a model that ``save_compressed()`` wrote, with exactly its weights.

    Args:
        path: The file. It is validated, and nothing in it is executed.
        model_fn: Builds the model, with any weights.
        run_compressed: Put a CodebookLinear, which runs from the codes, in the place of every nn.Linear whose weight
            is compressed in the file; otherwise all weights are dense again.

    Returns:
        What model_fn built, filled in place, in its own dtypes and training mode.

    Raises:
        BundleError: Not such a file, another version, damaged, or of another model. What model_fn built is unchanged
            then.
        FileNotFoundError: There is no such file.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> model = nn.Sequential(nn.Linear(64, 32))
        >>> model[0].weight.data = torch.randint(-7, 8, (32, 64)) * 0.1
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> report = save_compressed(model, path)
        >>> fast = load_compressed(path, lambda: nn.Sequential(nn.Linear(64, 32)), run_compressed=True)
        >>> type(fast[0]).__name__
        'CodebookLinear'
    """
    path = Path(path)
    try:
        tensors, metadata = bundle.read_tensors(path, FORMAT, VERSION, "sparsecore.save_compressed()")
        shapes = bundle.parse(metadata, "weights", _are_shapes)
        codebooks = {name: _read_weight(name, tensors, tuple(shape)) for name, shape in shapes.items()}
        tensors |= {name: weight.to_dense().view(shapes[name]) for name, weight in codebooks.items()}
        aliases = bundle.parse(metadata, "aliases", bundle.is_object_of(str))
        model = built(model_fn)
        codebooks |= {name: codebooks[target] for name, target in aliases.items() if target in codebooks}
        if run_compressed:
            _require_layer_dtypes(_coded_linears(model, codebooks))
        _fill(model, bundle.resolve_aliases(tensors, aliases))
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error.__cause__
    return _run_from_codes(model, codebooks) if run_compressed else model


# --- saving ---


def _weights(model: nn.Module, exclude: Selector | Iterable[Selector]) -> dict[str, PrunableWeight]:
    for name, module in model.named_modules():
        if isinstance(module, CompressedModule):
            raise UnsupportedError(
                f"expected a model of torch.nn layers, got {type(module).__name__} {name}; sparsecore.save() stores it"
            )
    weights = {name: weight for weight in prunable_weights(model, exclude) for name in weight.names}
    for name, weight in weights.items():
        if weight.torch_mask is not None:
            raise UnsupportedError(
                f"expected plain weights, got {name} masked by torch.nn.utils.prune; call "
                "sparsecore.prune.fold_torch_pruning(model) first"
            )
    return weights


def _widths(weights: Mapping[str, PrunableWeight], gap_bits: int | Mapping[str, int] | None) -> dict[str, int | None]:
    for width in gap_bits.values() if isinstance(gap_bits, Mapping) else [gap_bits]:
        if width is not None and (type(width) is not int or not 1 <= width <= MAX_BITS):
            raise ValueError(f"gap_bits: expected 1 to {MAX_BITS}, or None, got {width!r}")
    if not isinstance(gap_bits, Mapping):
        return dict.fromkeys(weights, gap_bits)
    if unknown := gap_bits.keys() - weights.keys():
        raise ValueError(f"gap_bits: expected names of compressed weights, got {sorted(unknown)}")
    return {name: gap_bits.get(name) for name in weights}


def _state(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or name.endswith("_extra_state"):
            raise UnsupportedError(f"expected a dense tensor, got {type(tensor).__name__} {name}")
    return state


def _codebook_weight(name: str, weight: PrunableWeight, gap_bits: int | None, huffman: bool) -> CodebookWeight:
    try:
        return pack_best(find_entries(weight.stored.detach().cpu()), gap_bits, huffman)
    except FormatError as error:
        raise FormatError(f"{name}: {error}, or leave it out by exclude={name!r}") from None


def _compress(
    name: str, shape: torch.Size, weight: CodebookWeight, huffman: bool, compare_zstd: bool
) -> tuple[Tensor, WeightBytes]:
    record, used = write_record(weight, huffman)
    row = WeightBytes(
        name,
        tuple(shape),
        shape.numel(),
        weight.nnz,
        weight.num_entries,
        weight.bits,
        weight.gap_bits,
        used,
        used.header + weight.nbytes,
        _zstd_bytes(weight) if compare_zstd else None,
    )
    return record, row


def _zstd_bytes(weight: CodebookWeight) -> int:
    zstd = require_extra("zstandard", "bench").ZstdCompressor(level=ZSTD_LEVEL)
    streams = (weight.unpacked_codes(), weight.unpacked_gaps())
    return weight.codebook.nbytes + sum(len(zstd.compress(stream.numpy().tobytes())) for stream in streams)


# --- loading ---


def _are_shapes(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(shape, list) and len(shape) >= 2 and all(type(size) is int and size >= 0 for size in shape)
        for shape in value.values()
    )


def _read_weight(name: str, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> CodebookWeight:
    if name not in tensors:
        raise BundleError(f"the file has no tensor {name!r}, which its metadata names")
    try:
        return read_record(tensors[name], (shape[0], math.prod(shape[1:])))
    except FormatError as error:
        raise BundleError(f"weight {name!r} is not valid: {error}") from error


def _fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into a model of exactly these, after a look at all of them."""
    expected = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    if unknown := tensors.keys() ^ expected.keys():
        raise BundleError(f"expected the tensors of the model, which differ in {sorted(unknown)[:4]}; {WRONG_MODEL}")
    for name, tensor in expected.items():
        came = tensors[name]
        if came.shape != tensor.shape or came.is_floating_point() != tensor.is_floating_point():
            raise BundleError(
                f"expected {name!r} as {tensor.dtype} {list(tensor.shape)}, "
                f"got {came.dtype} {list(came.shape)}; {WRONG_MODEL}"
            )
        if tensor.is_meta:
            raise BundleError(f"expected a model with memory to fill, got {name!r} on the meta device; use the CPU")
    model.load_state_dict(dict(tensors))


def _coded_linears(model: nn.Module, codebooks: Mapping[str, CodebookWeight]) -> dict[str, nn.Linear]:
    return {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if type(module) is nn.Linear and _weight_name(name) in codebooks
    }


def _require_layer_dtypes(linears: Mapping[str, nn.Linear]) -> None:
    for name, linear in linears.items():
        if linear.weight.dtype not in FLOAT_DTYPES:
            raise BundleError(
                f"{name}: layers run from codes in float32, bfloat16 or float16, got {linear.weight.dtype}; build the "
                "model in one of these or leave out run_compressed"
            )


def _run_from_codes(model: nn.Module, codebooks: Mapping[str, CodebookWeight]) -> nn.Module:
    linears = _coded_linears(model, codebooks)
    layers: dict[nn.Module, CodebookLinear] = {}  # a layer with several names stays one
    for name, linear in linears.items():
        if linear not in layers:
            layers[linear] = CodebookLinear(codebooks[_weight_name(name)], linear.bias)
            layers[linear].train(linear.training)
        if name == "":
            return layers[linear]
        put_layer(model, name, layers[linear])
    return model


def _weight_name(layer: str) -> str:
    return f"{layer}.weight" if layer else "weight"
