"""Patterns: which entries of a weight ``[N, K]`` are kept or removed together.

Each kind of pattern is one class; :func:`parse_pattern` reads its name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsecore.errors import FormatError
from sparsecore.prune.choose import keep_groups, keep_largest, keep_largest_by_row
from sparsecore.prune.criteria import lowest_rank, protect_best
from sparsecore.prune.weights import PrunableWeight


class Pattern(Protocol):
    """What pruning asks of a pattern; ``str()`` gives the name that :func:`parse_pattern` reads."""

    @property
    def sparsity(self) -> float | None:
        """The one share of zeros that the pattern has, None if any share will do."""

    def misfit(self, weight: PrunableWeight) -> str | None:
        """Say why the pattern cannot prune a weight; None if it can."""

    def select(self, ranks: Sequence[Tensor], sparsity: float) -> list[Tensor]:
        """Choose what stays.

        Args:
            ranks: For each weight the ranks ``[N, K]`` of :func:`~sparsecore.prune.criteria.rank`, which may be
                overwritten.
            sparsity: Share to prune of all of them together, in [0, 1).

        Returns:
            A bool mask ``[N, K]`` for each weight, True keeps the entry.
        """

    def select_by_row(self, ranks: Tensor, sparsity: float) -> Tensor:
        """Choose what stays of ``[N, K]``, each row by itself, or as many rows as the pattern ties together."""

    @property
    def num_columns(self) -> int:
        """Neighbouring columns that the pattern ties together."""

    def fits(self, kept: Tensor) -> bool:
        """Whether a bool mask ``[N, K]`` has this pattern."""


@dataclass(frozen=True)
class Blocks:
    """Blocks of ``block_rows`` neighbouring outputs and ``block_cols`` neighbouring inputs.

    Blocks start at row 0 and column 0. Where N or K is not a multiple, the last ones are smaller::

        4x1 on [6, 3]      rows 0-3   A B C
                           rows 4-5   D E F
    """

    block_rows: int
    block_cols: int

    @classmethod
    def parse(cls, text: str) -> Blocks | None:
        """Read ``"4x1"``; unstructured pruning is in blocks of one entry."""
        match = re.fullmatch(r"(\d+)x(\d+)", "1x1" if text == "unstructured" else text)
        block = cls(int(match[1]), int(match[2])) if match else None
        return block if block and min(block.block_rows, block.block_cols) > 0 else None

    def __str__(self) -> str:
        return f"{self.block_rows}x{self.block_cols}"

    @property
    def sparsity(self) -> None:
        return None

    def misfit(self, weight: PrunableWeight) -> str | None:
        N, K = weight.matrix_shape
        if self._is_larger_than(N, K):
            return f"it has N = {N} rows and K = {K} columns"
        if weight.groups > 1 and N // weight.groups % self.block_rows:
            return f"a block would cross its {weight.groups} groups of {N // weight.groups} rows"
        return None

    def select(self, ranks: Sequence[Tensor], sparsity: float) -> list[Tensor]:
        shapes = [rows.shape for rows in ranks]
        sizes = [self._sizes(N, K) for N, K in shapes] if self._is_ragged(shapes) else None
        blocks = [protect_best(self._rank_blocks(rows)) for rows in ranks]
        kept = keep_largest(blocks, sparsity, sizes)
        return [self._expand(keep, rows) & (rows > -torch.inf) for keep, rows in zip(kept, ranks, strict=True)]

    def select_by_row(self, ranks: Tensor, sparsity: float) -> Tensor:
        if self._is_ragged([ranks.shape]):
            return torch.cat([self.select([rows], sparsity)[0] for rows in ranks.split(self.block_rows)])
        keep = keep_largest_by_row(self._rank_blocks(ranks), sparsity)
        return self._expand(keep, ranks) & (ranks > -torch.inf)

    @property
    def num_columns(self) -> int:
        return self.block_cols

    def fits(self, kept: Tensor) -> bool:
        if self._is_larger_than(*kept.shape):
            return False
        return torch.equal(self._expand(self._tiles(kept, False).any(3).any(1), kept), kept)

    def _is_larger_than(self, N: int, K: int) -> bool:
        return self.block_rows > N or self.block_cols > K

    def _is_ragged(self, shapes: Sequence[torch.Size]) -> bool:
        return any(N % self.block_rows or K % self.block_cols for N, K in shapes)

    def _sizes(self, N: int, K: int) -> Tensor:
        """Entries in each block, int64."""
        rows = torch.arange(0, N, self.block_rows).neg_().add_(N).clamp_(max=self.block_rows)
        cols = torch.arange(0, K, self.block_cols).neg_().add_(K).clamp_(max=self.block_cols)
        return torch.outer(rows, cols)

    def _tiles(self, rows: Tensor, fill: float) -> Tensor:
        """View ``[N, K]`` as [block row, row in block, block column, column in block], filled up."""
        N, K = rows.shape
        padded = F.pad(rows, (0, -K % self.block_cols, 0, -N % self.block_rows), value=fill)
        return padded.view(-(-N // self.block_rows), self.block_rows, -(-K // self.block_cols), self.block_cols)

    def _rank_blocks(self, rows: Tensor) -> Tensor:
        """Rank each block by the mean score of its entries; those without a value count 0.

        The order is that of the sums of scores where all blocks have one size. A mean, so that the smaller blocks
        at the edge neither go first nor stay for their size alone: removing them gains as much less as it costs.
        """
        if self == UNSTRUCTURED:
            return rows
        lowest = lowest_rank(rows.dtype)
        tiles = self._tiles(rows, -torch.inf)
        best = tiles.amax(3).amax(1).double()
        scores = tiles.masked_fill(tiles <= lowest, 0)
        # One addition after another: the same bits for any number of threads.
        columns = reduce(torch.add, (row.double() for row in scores.unbind(1)))
        means = reduce(torch.add, columns.unbind(2)) / self._sizes(*rows.shape).to(rows.device)
        return torch.where(best > lowest, means, best)

    def _expand(self, blocks: Tensor, like: Tensor) -> Tensor:
        """Give every entry of ``[N, K]`` the value of its block."""
        N, K = like.shape
        return blocks.repeat_interleave(self.block_rows, 0)[:N].repeat_interleave(self.block_cols, 1)[:, :K]


UNSTRUCTURED = Blocks(1, 1)


@dataclass(frozen=True)
class Groups:
    """The best ``keep`` of every ``group`` neighbouring inputs (N:M sparsity).

    Groups start at column 0 of ``[N, K]``. A convolution is flattened in order of input channel, filter row, filter
    column, the last the fastest::

        4:16 on [N, 4, 2, 2]    c0 (0,0) c0 (0,1) c0 (1,0) c0 (1,1) c1 (0,0) ... c3 (1,1)    one group a row
    """

    keep: int
    group: int

    @classmethod
    def parse(cls, text: str) -> Groups | None:
        """Read ``"2:4"``."""
        match = re.fullmatch(r"(\d+):(\d+)", text)
        groups = cls(int(match[1]), int(match[2])) if match else None
        return groups if groups and 0 < groups.keep < groups.group else None

    def __str__(self) -> str:
        return f"{self.keep}:{self.group}"

    @property
    def sparsity(self) -> float:
        return 1 - self.keep / self.group

    def misfit(self, weight: PrunableWeight) -> str | None:
        K = weight.matrix_shape[1]
        return f"K = {K} is not a multiple of {self.group}" if K % self.group else None

    def select(self, ranks: Sequence[Tensor], sparsity: float) -> list[Tensor]:
        return [keep_groups(rows, self.keep, self.group) for rows in ranks]

    def select_by_row(self, ranks: Tensor, sparsity: float) -> Tensor:
        return keep_groups(ranks, self.keep, self.group)

    @property
    def num_columns(self) -> int:
        return self.group

    def fits(self, kept: Tensor) -> bool:
        if kept.shape[1] % self.group:
            return False
        return bool((kept.reshape(-1, self.group).sum(1) <= self.keep).all())


def parse_pattern(pattern: str) -> Pattern:
    """Read a pattern's name: ``"unstructured"``, ``"4x1"``, ``"2:4"``.

    Raises:
        ValueError: No kind of pattern is called so.
    """
    if isinstance(pattern, str):
        for kind in (Blocks, Groups):
            found = kind.parse(pattern)
            if found is not None:
                return found
    raise ValueError(
        'expected pattern "unstructured", blocks of "ROWSxCOLUMNS" such as "4x1", or "keep:group" such as "2:4", '
        f"got {pattern!r}"
    )


def require_fit(pattern: Pattern, weights: list[PrunableWeight]) -> None:
    """Raise FormatError with the name of every weight that the pattern cannot prune."""
    misfits = {weight.name: reason for weight in weights if (reason := pattern.misfit(weight))}
    if misfits:
        reasons = ", ".join(f"{name} ({reason})" for name, reason in misfits.items())
        raise FormatError(f"pattern {pattern} does not fit {reasons}; leave out with exclude={[*misfits]}")


def fits_pattern(weight: Tensor, pattern: str) -> bool:
    """Tell whether the zeros of a weight lie as a pattern puts them.

    Only the weight itself is asked, so it does not matter who pruned it, and a mask may stand for it. One zero among
    the values of a block that is kept is enough for the answer False. A convolution's groups are not looked at.

    Args:
        weight: ``[N, K]`` or ``[N, ...]``, flattened behind the outputs; any dtype, bool too.
        pattern: ``"4x1"``: every block of 4 rows and 1 column, counted from row 0 and column 0, is all zero or has
            no zero. The last ones may be smaller, but a weight smaller than a block never fits. ``"2:4"``: at most 2
            of every 4 neighbours in a row are not zero. ``"unstructured"`` fits everything.

    Raises:
        ValueError: No kind of pattern is called so.
        FormatError: The weight has fewer than two dimensions.

    Example:
        >>> weight = torch.tensor([[1.0, 0.0, 2.0, 0.0], [3.0, 0.0, 4.0, 0.0]])
        >>> fits_pattern(weight, "2x1"), fits_pattern(weight, "1x2"), fits_pattern(weight, "2:4")
        (True, False, True)
    """
    found = parse_pattern(pattern)
    if weight.dim() < 2:
        raise FormatError(f"expected a weight of 2 or more dimensions, got {list(weight.shape)}; use .reshape()")
    return found.fits(weight.detach().flatten(1) != 0)
