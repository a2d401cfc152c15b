"""Comparison to the bit, and of what different numbers of threads give."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def equal_bits(got: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether dtypes, shapes and bits are the same; -0.0 is not 0.0, and NaN is itself."""
    return all(
        (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(_bytes(a), _bytes(b))
        for a, b in zip(got, expected, strict=True)
    )


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def assert_same_on_any_number_of_threads(run: Callable[[], Sequence[Tensor]]) -> None:
    torch.set_num_threads(1)
    expected = run()
    for count in (2, 3, 7):
        torch.set_num_threads(count)
        assert equal_bits(run(), expected), f"{count} threads"
