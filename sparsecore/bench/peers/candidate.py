"""What a library offers for one problem."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

FLOAT32 = "float32"
INT8 = "int8"
INT4 = "int4"  # weights; the activations may have more bits


@dataclass(frozen=True)
class Candidate:
    """One way to compute a layer or a model, ready to be timed.

    Attributes:
        call: What is timed.
        output: Computes it once more and returns float32 of ``problem.output_shape``; not timed.
        dtype: Numeric type of the multiplications, ``FLOAT32``, ``INT8`` or ``INT4``.
        sparse: Leaves zeros of the weight out.
        note: Layout and anything else that a reader must know to compare it.
        weight_bytes: What the packed weight takes in memory, scales and indices included; None where nobody says.
    """

    call: Callable[[], object]
    output: Callable[[], NDArray[Any]]
    dtype: str = FLOAT32
    sparse: bool = False
    note: str = ""
    weight_bytes: int | None = None

    def describe(self) -> dict[str, Any]:
        """Everything but the calls, for JSON."""
        return {
            "dtype": self.dtype,
            "sparse": self.sparse,
            "note": self.note,
            "weight_bytes": self.weight_bytes,
        }


Builders: TypeAlias = Mapping[str, Callable[[], Candidate]]


def call_into(buffer: NDArray[Any], call: Callable[[], object]) -> NDArray[Any]:
    """Return what a call writes into a buffer of its own; what stood there before cannot pass for a result."""
    buffer.fill(np.nan if buffer.dtype.kind == "f" else 0)
    call()
    return buffer
