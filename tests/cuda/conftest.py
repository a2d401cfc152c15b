"""Tests that need a GPU; without one, or without CUDA kernels, they are skipped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparsecore._native import has_cuda_kernels

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = "no GPU" if not torch.cuda.is_available() else "no CUDA kernels" if not has_cuda_kernels() else None
    for item in items:
        if missing is not None and HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=missing))
