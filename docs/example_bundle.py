"""Writes the example of formats.md: one sparse layer in a file, byte by byte.

``python docs/example_bundle.py`` prints what stands in formats.md; a test compares the two.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

import sparsecore as sc

LENGTH_BYTES = 8
METADATA = "__metadata__"
BYTES_PER_LINE = 16


def save_example(path: Path) -> None:
    """Save a model of one layer, whose weight is the matrix of CsrWeight's docstring."""
    linear = nn.Linear(3, 3)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[5.0, 0, 7], [0, 0, 0], [0, 9, 0]]))
        linear.bias.copy_(torch.tensor([1.0, 2, 3]))
    sc.save(nn.Sequential(sc.nn.SparseLinear.from_dense(linear)).eval(), path)


def describe(content: bytes) -> str:
    """Show a file: length of the header, header with keys in order, tensors as bytes from the start of the file."""
    start = LENGTH_BYTES + int.from_bytes(content[:LENGTH_BYTES], "little")
    header = json.loads(content[LENGTH_BYTES:start])
    lines = [f"{0:04x}  {content[:LENGTH_BYTES].hex(' ')}", *_header_lines(header)]
    tensors = {name: entry for name, entry in header.items() if name != METADATA}
    for name, entry in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = (start + offset for offset in entry["data_offsets"])
        for place in range(begin, end, BYTES_PER_LINE):
            data = content[place : min(place + BYTES_PER_LINE, end)].hex(" ")
            lines.append(f"{place:04x}  {data:{3 * BYTES_PER_LINE}} {name if place == begin else ''}".rstrip())
    return "\n".join(lines)


def _header_lines(header: dict[str, dict[str, str]]) -> Iterator[str]:
    metadata = ",\n          ".join(f'"{key}": {json.dumps(value)}' for key, value in sorted(header[METADATA].items()))
    entries = [f'"{METADATA}": {{\n          {metadata}}}']
    entries += [f'"{name}": {json.dumps(entry)}' for name, entry in sorted(header.items()) if name != METADATA]
    yield f"{LENGTH_BYTES:04x}  {{" + ",\n       ".join(entries) + "}"


def main() -> None:
    """Print the example."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "example.safetensors"
        save_example(path)
        print(describe(path.read_bytes()))


if __name__ == "__main__":
    main()
