"""Cells of a report with made-up times."""

from __future__ import annotations

from typing import Any

from sparsecore.bench.kernels.layers import LAYERS, Layer
from sparsecore.bench.timing import Timing


def candidate(library: str, name: str, us: float | None, **changes: Any) -> dict[str, Any]:
    """A candidate of a cell; without a time it did not finish."""
    row: dict[str, Any] = {"library": library, "name": name, "dtype": "float32", "sparse": False}
    row |= {"note": "", "error": 1e-7, "wrong": False}
    if us is not None:
        times = {"us": Timing((us,)).to_dict(), "first_us": Timing((us + 50,)).to_dict()}
        row |= times | {"share_of_peak": 10 / us}
    return row | changes


def int8_cell(sparsity: float = 0.9, layer: Layer = LAYERS[0], **changes: Any) -> dict[str, Any]:
    """A cell like `cell`, where our dense int8 takes 96 us, and lookup int8 as the fastest of ours 40."""
    made = cell(50, sparsity, layer, nnz=round((1 - sparsity) * layer.N * layer.K))
    made["candidates"] += [
        candidate("sparsecore", "int8", 96, dtype="int8", weight_bytes=192_000),
        candidate("sparsecore", "lookup int8", 40, dtype="int8", sparse=True, weight_bytes=80_000),
        candidate("openvino", "int8", 62, dtype="int8"),
    ]
    return made | changes


def cell(ours_us: float = 50, sparsity: float = 0.9, layer: Layer = LAYERS[0], **changes: Any) -> dict[str, Any]:
    """A cell where dense takes 100 us, and int8 80."""
    made = {
        "layer": layer.describe(),
        "sparsity": sparsity,
        "nnz": 1000,
        "fma_gflops": 100.0,
        "candidates": [
            candidate("sparsecore", "dense", 110),
            candidate("sparsecore", "panel", ours_us, sparse=True),
            candidate("torch", "dense", 100),
            candidate("onnxruntime", "int8", 80, dtype="int8"),
        ],
        "failures": [],
    }
    return made | changes
