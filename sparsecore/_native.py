"""Loads the native libraries: sparsecore._C, and sparsecore._ops into torch.ops.sparsecore."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch.utils._python_dispatch import _disable_current_modes

from sparsecore.errors import SparsecoreError

_PACKAGE = Path(__file__).parent


def _load() -> ModuleType:
    library = _PACKAGE / "_ops.so"
    try:
        from sparsecore import _C

        torch.ops.load_library(library)
    except (ImportError, OSError) as error:
        if "SPARSECORE_ISA" in str(error):  # the libraries are there, the variable is wrong
            raise SparsecoreError(str(error)) from None
        raise SparsecoreError(
            f"expected the built libraries in {_PACKAGE}, got: {error}; "
            "build them with `pip install --no-build-isolation .`, with the torch that is used here"
        ) from error
    return _C


_C = _load()
raw = torch.ops.sparsecore


def release(operation: Callable[[int], None], number: int) -> None:
    """Free what an operation knows by a number: the garbage collector may do it while torch traces something else."""
    if sys.is_finalizing():  # modules are half gone, and the memory goes with the process
        return
    with _disable_current_modes():
        operation(number)


def has_cuda_kernels() -> bool:
    """Whether this build runs on CUDA tensors."""
    return bool(_C.build_info()["cuda"])
