"""A report of a whole model with made-up times."""

from __future__ import annotations

from typing import Any

import pytest

from sparsecore.bench.timing import Timing
from sparsecore.bench.whole_models.compare import compare
from sparsecore.bench.whole_models.run import SCHEMA


def candidate(library: str, name: str, us: float | None, **changes: Any) -> dict[str, Any]:
    """A candidate of a cell; without a time it did not finish."""
    row: dict[str, Any] = {"library": library, "name": name, "dtype": "float32", "sparse": False, "note": ""}
    row |= {"weight_bytes": None, "error": 1e-6, "wrong": False}
    if us is not None:
        row |= {"us": Timing((us,)).to_dict(), "first_us": Timing((us + 50,)).to_dict()}
    return row | changes


def cell(batch: int, threads: int, zeros: float, ours_us: float) -> dict[str, Any]:
    return {
        "batch": batch,
        "threads": threads,
        "sparsity": zeros,
        "zeros": zeros,
        "pruned": "3 layers pruned" if zeros else "nothing pruned",
        "input": [batch, 3, 8, 8],
        "fma_gflops": 80.0,
        "candidates": [
            candidate("sparsecore", "compiled", ours_us, sparse=True),
            candidate("PyTorch eager", "dense", 4000.0),
            candidate("PyTorch eager", "dense, channels last", 3000.0),
            candidate("ONNX Runtime", "dense", 2000.0),
            candidate("ONNX Runtime", "int8", 1500.0, dtype="int8", error=0.02),
            candidate("OpenVINO", "dense", 1.0, wrong=True, error=0.9),
            candidate("OpenVINO", "int8", None, dtype="int8"),
        ],
        "failures": ["OpenVINO dense: the output is wrong (error 9.0e-01); not timed"] if zeros else [],
    }


@pytest.fixture
def model_report() -> dict[str, Any]:
    """Two shares of zeros on one and on two threads."""
    cells = [cell(1, threads, zeros, us) for threads in (1, 2) for zeros, us in ((0.0, 2500.0), (0.9, 800.0))]
    return {
        "schema": SCHEMA,
        "machine": {"cpu": "Some CPU", "isa": "avx2", "threads": [1, 2], "commit": None, "date": "today"},
        "versions": {"sparsecore": {"sparsecore": "0.1.0"}},
        "missing": ["OpenVINO is not installed: pip install it"],
        "model": "folder/my net",
        "parameters": 12_345,
        "rounds": 7,
        "complete": True,
        "cells": cells,
        "summary": [compare(row).summary() for row in cells],
    }
