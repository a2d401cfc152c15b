"""The processes of a run: one alone, or those that torchrun started."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sparsecore.errors import SparsecoreError

Result = TypeVar("Result")


class Ranks:
    """This process among those that train together.

    Args:
        alone: Whether to leave out the others, even if there are some.

    Attributes:
        rank: Number of this process.
        count: How many there are.
    """

    def __init__(self, *, alone: bool = False) -> None:
        together = not alone and dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.count = dist.get_world_size() if together else 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and tells progress."""
        return self.rank == 0

    def from_first(self, work: Callable[[], Result]) -> Result:
        """Do something in the first process alone, and return its result in all of them; its errors too.

        Args:
            work: Returns what JSON has, or other plain objects.
        """
        if self.count == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.is_first:
            try:
                outcome[0] = work()
            except (SparsecoreError, ValueError, TypeError, OSError) as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, 0)
        if outcome[1] is not None:
            raise outcome[1]
        result: Result = outcome[0]
        return result

    def gathered(self, value: Result) -> list[Result]:
        """Return the values of all processes in all of them."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def require_same(self, digest: str, what: str) -> None:
        """Raise SparsecoreError everywhere if a digest differs between processes."""
        digests = self.gathered(digest)
        if len(set(digests)) > 1:
            held = ", ".join(f"{found[:8]} on rank {rank}" for rank, found in enumerate(digests))
            raise SparsecoreError(
                f"expected the same {what} in every process, got {held}; use nothing in data, loss or criteria that "
                "differs from process to process but the samples themselves"
            )

    @torch.no_grad()
    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Add tensors up over all processes, in place; the sum is the same to the last bit in each."""
        if self.count == 1:
            return
        kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        for together in kinds.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in together])
            # Summed up in one process and sent back: an all-reduce does not promise equal bits.
            dist.reduce(flat, 0)
            dist.broadcast(flat, 0)
            for tensor, part in zip(together, flat.split([tensor.numel() for tensor in together]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Give all processes the first one's values, in place."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor.data, 0)
