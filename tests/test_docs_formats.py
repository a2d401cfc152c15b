"""docs/formats.md says what the code writes: its example, and a reader made from its words alone."""

from __future__ import annotations

import hashlib
import json
import math
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import fit_
from numpy.typing import NDArray
from torch import nn

import sparsecore as sc
from sparsecore.io import CLASSES

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "formats.md").read_text(encoding="utf-8")
TYPES = {
    "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "I32": np.dtype("<i4"), "I8": np.dtype("i1"), "U8": np.dtype("u1"),
}  # fmt: skip
TORCH_NAMES = {
    "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I32": "int32", "I8": "int8", "I64": "int64", "U8": "uint8",
}  # fmt: skip


def read(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and tensors' bytes."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:start]), content[start:]


def array(header: dict[str, Any], data: bytes, name: str) -> NDArray[Any]:
    entry = header[name]
    begin, end = entry["data_offsets"]
    if entry["dtype"] == "BF16":
        return (np.frombuffer(data[begin:end], "<u2").astype("<u4") << 16).view("<f4").reshape(entry["shape"])
    return np.frombuffer(data[begin:end], TYPES[entry["dtype"]]).reshape(entry["shape"])


def dense(header: dict[str, Any], data: bytes, layer: str) -> NDArray[Any]:
    """The real weight [N, K] of a compressed layer."""
    entry = json.loads(header["__metadata__"]["modules"])[layer]
    if "same_as" in entry:
        return dense(header, data, entry["same_as"])
    if f"{layer}.codebook" in header:
        codebook, codes, gaps, sizes = (
            array(header, data, f"{layer}.{name}") for name in ("codebook", "codes", "gaps", "sizes")
        )
        bits, gap_bits, count = (int(size) for size in sizes)
        shape = entry["config"]["weight_shape"]
        return from_entries(codebook, fields(codes, bits, count), fields(gaps, gap_bits, count), shape)
    if f"{layer}.group_size" in header:
        names = ("nonzero", "values", "scale", "group_size")
        return of_groups(*(array(header, data, f"{layer}.{name}") for name in names), entry["config"]["weight_shape"])
    names = ("row_ptr", "col_idx", "values", "q", "scale", "nonzero", "sign", "positive_scale", "negative_scale")
    tensors = {name: array(header, data, f"{layer}.{name}") for name in names if f"{layer}.{name}" in header}
    if "sign" in tensors:
        return signed(tensors, entry["config"]["weight_shape"])
    scale = tensors.get("scale", np.float32(1)) * np.ones(entry["config"]["weight_shape"][0], np.float32)
    if "q" in tensors:
        return scale[:, None] * tensors["q"]
    weight = np.zeros(entry["config"]["weight_shape"], np.float32)
    row_ptr = tensors["row_ptr"]
    for n in range(len(weight)):
        for i in range(row_ptr[n], row_ptr[n + 1]):
            weight[n, tensors["col_idx"][i]] = scale[n] * np.float32(tensors["values"][i])
    return weight


def of_groups(
    nonzero: NDArray[Any], values: NDArray[Any], scale: NDArray[Any], group_size: NDArray[Any], shape: list[int]
) -> NDArray[np.float32]:
    weight = np.zeros(shape, np.float32)
    i = 0
    for n in range(shape[0]):
        for k in range(shape[1]):
            if nonzero[n, k // 8] >> k % 8 & 1:
                half = int(values[i // 2]) >> 4 * (i % 2) & 15
                weight[n, k] = scale[n, k // int(group_size[0])] * np.float32(half - 16 if half > 7 else half)
                i += 1
    assert len(values) == (i + 1) // 2
    return weight


def fields(packed: NDArray[np.uint8], bits: int, count: int) -> list[int]:
    number = int.from_bytes(packed.tobytes(), "little")
    return [number >> (i * bits) & (2**bits - 1) for i in range(count)]


def from_entries(
    codebook: NDArray[np.float32], codes: list[int], gaps: list[int], shape: list[int]
) -> NDArray[np.float32]:
    weight = np.zeros(shape, np.float32)
    position = -1
    for code, gap in zip(codes, gaps, strict=True):
        position += 1 + gap
        if codebook[code] != 0:
            weight[position % shape[0], position // shape[0]] = codebook[code]
    return weight


def huffman(lengths: list[int], stream: NDArray[np.uint8], count: int) -> list[int]:
    symbols = sorted((length, symbol) for symbol, length in enumerate(lengths) if length)
    if len(symbols) == 1:
        assert len(stream) == 0
        return [symbols[0][1]] * count
    codes, code, before = {}, -1, 0
    for length, symbol in symbols:
        code = (code + 1) << (length - before)
        codes[f"{code:0{length}b}"], before = symbol, length
    bits = "".join(f"{byte:08b}"[::-1] for byte in stream)
    decoded, begin = [], 0
    while len(decoded) < count:
        end = next(end for end in range(begin + 1, begin + 16) if bits[begin:end] in codes)
        decoded.append(codes[bits[begin:end]])
        begin = end
    assert set(bits[begin:]) <= {"0"}
    assert len(bits) - begin < 8
    return decoded


def from_record(record: NDArray[np.uint8], shape: list[int]) -> NDArray[np.float32]:
    """The matrix [N, K] of a compressed weight."""
    flags, bits, gap_bits, zero = (int(byte) for byte in record[:4])
    values, count, code_bytes = (int(number) for number in record[4:16].view("<u4"))
    assert zero == 0
    at = 16

    def take(size: int) -> NDArray[np.uint8]:
        nonlocal at
        at += size
        return record[at - size : at]

    codebook = take(4 * values).view("<f4")
    code_lengths = fields(take((values + 1) // 2), 4, values) if flags & 1 else None
    gap_lengths = fields(take((2**gap_bits + 1) // 2), 4, 2**gap_bits) if flags & 2 else None
    codes, gaps = take(code_bytes), record[at:]
    return from_entries(
        codebook,
        fields(codes, bits, count) if code_lengths is None else huffman(code_lengths, codes, count),
        fields(gaps, gap_bits, count) if gap_lengths is None else huffman(gap_lengths, gaps, count),
        [shape[0], math.prod(shape[1:])],
    )


def signed(tensors: dict[str, NDArray[Any]], shape: list[int]) -> NDArray[Any]:
    """A binary or ternary weight."""
    weight = np.zeros(shape, np.float32)
    for n in range(shape[0]):
        for k in range(shape[1]):
            negative = tensors["sign"][n, k // 8] >> k % 8 & 1
            if "scale" in tensors:
                weight[n, k] = -tensors["scale"][n] if negative else tensors["scale"][n]
            elif tensors["nonzero"][n, k // 8] >> k % 8 & 1:
                weight[n, k] = -tensors["negative_scale"][n] if negative else tensors["positive_scale"][n]
    return weight


def digest(header: dict[str, Any], data: bytes) -> str:
    sha256 = hashlib.sha256()
    metadata = header["__metadata__"]
    for key in sorted(metadata.keys() - {"sha256"}):
        sha256.update(f"[{json.dumps(key)}, {json.dumps(metadata[key])}]\n".encode("ascii"))
    for name in sorted(header.keys() - {"__metadata__"}):
        entry = header[name]
        line = f"[{json.dumps(name)}, {json.dumps(TORCH_NAMES[entry['dtype']])}, {json.dumps(entry['shape'])}]\n"
        sha256.update(line.encode("ascii"))
        sha256.update(data[slice(*entry["data_offsets"])])
    return sha256.hexdigest()


def test_the_example_is_what_the_code_writes(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(DOCS / "example_bundle.py"), run_name="__main__")
    assert f"```\n{capsys.readouterr().out}```" in TEXT


def zeroed(layer: nn.Module) -> Any:
    """About half of the weight's entries zero, in blocks of four rows."""
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    weight.data *= (torch.rand(weight.shape[0] // 4, *weight.shape[1:]) < 0.5).repeat_interleave(4, 0)
    return layer


@pytest.mark.parametrize("name", CLASSES)
def test_a_reader_made_from_the_text_reads_every_class(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    conv = name.endswith("Conv2d")
    layer = zeroed(nn.Conv2d(3, 8, (2, 3), stride=(2, 1), padding=1) if conv else nn.Linear(11, 8))
    layer = fit_(CLASSES[name], layer)
    compressed = CLASSES[name].from_dense(layer)
    model = nn.Sequential(compressed, nn.BatchNorm2d(8) if conv else nn.Identity(), compressed)
    sc.save(model, tmp_path / "model.safetensors")
    header, data = read(tmp_path / "model.safetensors")
    assert digest(header, data) == header["__metadata__"]["sha256"]
    expected = compressed.weight.flatten(1).numpy()
    np.testing.assert_array_equal(dense(header, data, "0"), expected)
    np.testing.assert_array_equal(dense(header, data, "2"), expected)
    np.testing.assert_array_equal(array(header, data, "0.bias"), compressed.bias.detach().numpy())
    if "Int8" not in name and "Int4" not in name:
        np.testing.assert_array_equal(expected, layer.weight.detach().flatten(1).numpy())
    offsets = sorted(entry["data_offsets"] for key, entry in header.items() if key != "__metadata__")
    assert [begin for begin, _ in offsets] == [0, *(end for _, end in offsets[:-1])]  # no gaps
    assert offsets[-1][1] == len(data)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_values(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = zeroed(nn.Linear(9, 4)).to(dtype)
    sc.save(nn.Sequential(sc.nn.SparseLinear.from_dense(layer)), tmp_path / "model.safetensors")
    header, data = read(tmp_path / "model.safetensors")
    assert digest(header, data) == header["__metadata__"]["sha256"]
    np.testing.assert_array_equal(dense(header, data, "0"), layer.weight.detach().float().numpy())


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_and_setting_is_in_the_text(name: str) -> None:
    assert f"`{name}`" in TEXT
    assert all(f"`{keyword}`" in TEXT for keyword in CLASSES[name].all_keywords())
    assert all(f"`{tensor}`" in TEXT for tensor in CLASSES[name].buffer_names)


def test_every_metadata_key_is_in_the_text(tmp_path: Path) -> None:
    sc.save(nn.Linear(2, 2), tmp_path / "model.safetensors")
    metadata = read(tmp_path / "model.safetensors")[0]["__metadata__"]
    assert all(f"| `{key}` |" in TEXT for key in metadata)


def test_compiled_models_are_in_the_text(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 8, 1)).eval()
    fast = sc.compile(model, torch.randn(1, 4, 5, 5), policy={"0": "depthwise", "2": "csr"}, cache=False)
    sc.save(fast, tmp_path / "model.safetensors")
    header, data = read(tmp_path / "model.safetensors")
    metadata = header["__metadata__"]
    assert digest(header, data) == metadata["sha256"]
    assert all(f"| `{key}` |" in TEXT for key in (*metadata, *json.loads(metadata["compiled"])))
    modules = json.loads(metadata["modules"])
    assert {f"graph_module.{name}" for name in json.loads(metadata["compiled"])["layers"]} == modules.keys()
    depthwise = modules["graph_module.0"]
    assert f"`{depthwise['class']}`" in TEXT
    assert all(f"`{key}`" in TEXT for key in depthwise["config"])
    np.testing.assert_array_equal(array(header, data, "graph_module.0.weight"), model[0].weight.detach().numpy())
    expected = model[2].weight.detach().flatten(1).numpy()
    np.testing.assert_array_equal(dense(header, data, "graph_module.2"), expected)


@pytest.mark.parametrize("use_huffman", [False, True])
def test_a_reader_made_from_the_text_reads_compressed_weights(use_huffman: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 40, 3), nn.Flatten(), nn.Linear(70, 50), nn.Linear(9, 5), nn.Linear(2, 2))
    for index, values, density in ((0, 15, 0.9), (2, 40, 0.02), (3, 1, 1.0), (4, 1, 0.0)):
        weight = model[index].weight.data
        weight.copy_(torch.randn(values)[torch.randint(0, values, weight.shape)] * (torch.rand_like(weight) < density))
    sc.save_compressed(model, tmp_path / "model.safetensors", gap_bits={"2.weight": 3}, huffman=use_huffman)
    header, data = read(tmp_path / "model.safetensors")
    metadata = header["__metadata__"]
    assert digest(header, data) == metadata["sha256"]
    assert all(f"`{key}`" in TEXT for key in metadata)
    shapes = json.loads(metadata["weights"])
    assert len(shapes) == 4
    for name, shape in shapes.items():
        weight = model.get_parameter(name).detach().flatten(1).numpy()
        np.testing.assert_array_equal(from_record(array(header, data, name), shape), weight)
        assert use_huffman or array(header, data, name)[0] == 0
    assert array(header, data, "2.weight")[0] == (3 if use_huffman else 0)
