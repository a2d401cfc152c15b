"""4-bit weights for every kernel of this machine, and what linear_int8 must give, in exact integers."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from sparsecore import _C, ops
from sparsecore.formats import Int4Weight, PackedInt4Weight

# Lanes and columns of a table. Larger tables than 16 hold distances.
PACKINGS = [(16, 256), (16, 64), (16, 16), (8, 16), (4, 16), (4, 128)]


def random_int4(N: int, K: int, group_size: int, density: float = 0.4) -> Int4Weight:
    """All integers, -8 too; any scales."""
    q = torch.randint(-8, 8, (N, K)) * (torch.rand(N, K) < density)
    return Int4Weight.from_integers(q.to(torch.int8), torch.rand(N, -(-K // group_size)) + 0.1, group_size)


@functools.cache
def packings_of(kernel: str) -> list[tuple[int, int]]:
    """The packings that a kernel supports: an unsupported one is an error with the names of those that do."""
    weight, found = random_int4(4, 4, 256), []
    for packing in PACKINGS:
        try:
            ops.linear_int8(torch.ones(1, 4), PackedInt4Weight.pack(weight, packing=packing), kernel=kernel)
        except RuntimeError as error:
            if "expected a kernel" not in str(error):
                raise
        else:
            found.append(packing)
    return found


def variants(weight: Int4Weight) -> Iterator[tuple[PackedInt4Weight, str]]:
    """Every kernel of this machine, with a weight packed for it; first the ones that are chosen here."""
    for few_rows in (False, True):
        yield PackedInt4Weight.pack(weight, few_rows=few_rows), ""
    for row in _C.kernels():
        if row["op"] != "lookup_int4" or not row["available"]:
            continue
        packings = [packing for packing in packings_of(row["name"]) if weight.group_size % packing[1] == 0]
        assert packings or weight.group_size % 256, row["name"]
        for packing in packings:
            yield PackedInt4Weight.pack(weight, packing=packing), row["name"]


def group_sums(q: Tensor, weight: Int4Weight) -> Tensor:
    """What ops.h states before the scale of x: exact sums of groups, added by fused multiply-adds.

    Args:
        q: ``[M, K]`` float64, integers less their zero point.
        weight: ``[N, K]``.

    Returns:
        ``[M, N]`` float32.
    """
    total = torch.zeros(len(q), weight.shape[0])
    integers = weight.integers().double()
    for group, columns in enumerate(torch.arange(weight.shape[1]).split(weight.group_size)):
        sums = (q[:, columns] @ integers[:, columns].T).float().double()
        # Products of two float32 numbers are exact in float64. Their sum with a third is rounded twice, which is the
        # same as once but for about one in 2^29 of them.
        total = (sums * weight.scale[:, group].double() + total.double()).float()
    return total
