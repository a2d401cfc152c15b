"""What enters a block on every calibration sample, kept in a file, so that memory holds one sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from sparsecore.atomic import replacing
from sparsecore.errors import ModelError, UnsupportedError


@dataclass(frozen=True)
class Activations(Sequence[Tensor]):
    """Hidden states ``[1, length, features]`` of every sample, read from a file when asked for.

    Attributes:
        path: The raw numbers, sample after sample.
        num_samples: How many.
        shape: Of one sample.
        dtype: Floating point.
    """

    path: Path
    num_samples: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def write(self, states: Iterable[Tensor]) -> None:
        """Write the states of all samples, atomically.

        Raises:
            UnsupportedError: A state has another shape or type.
        """
        with replacing(self.path) as new, new.open("wb") as file:
            for state in states:
                if tuple(state.shape) != self.shape or state.dtype != self.dtype:
                    raise UnsupportedError(
                        f"expected hidden states {list(self.shape)} {self.dtype} from every block, got "
                        f"{list(state.shape)} {state.dtype}"
                    )
                file.write(_bytes(state.contiguous()))

    def require_complete(self) -> None:
        """Raise ModelError unless the file is there, as long as it must be."""
        expected = self.num_samples * torch.empty(self.shape, device="meta").numel() * self.dtype.itemsize
        found = self.path.stat().st_size if self.path.is_file() else 0
        if found != expected:
            raise ModelError(
                f"cannot continue: expected {expected} bytes in {self.path}, got {found}; delete the folder of the "
                "output and begin again"
            )

    def __len__(self) -> int:
        return self.num_samples

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...

    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"expected a sample below {len(self)}, got {index}")
        state = torch.empty(self.shape, dtype=self.dtype)
        into = _bytes(state)
        with self.path.open("rb") as file:
            file.seek(index % len(self) * len(into))
            file.readinto(into)
        return state

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))


def _bytes(tensor: Tensor) -> memoryview:
    """A view of the memory of a contiguous tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
