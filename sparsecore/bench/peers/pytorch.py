"""PyTorch in a worker."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

# Held for the life of the process: no call pays for entering it.
_INFERENCE = torch.inference_mode()


def prepare(threads: int) -> None:
    """Set the number of threads, and record nothing for gradients."""
    torch.set_num_threads(threads)
    _INFERENCE.__enter__()


def numpy_of(y: Tensor) -> NDArray[Any]:
    """A contiguous array of its own."""
    return y.numpy().copy(order="C")
