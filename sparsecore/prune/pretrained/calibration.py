"""The calls of every block on the calibration samples, from file to file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from sparsecore.prune.pretrained.activations import Activations
from sparsecore.prune.pretrained.blocks import BlockCalls, Chain, first_inputs, run_block
from sparsecore.prune.pretrained.skeleton import Skeleton


@dataclass(frozen=True)
class Calibration:
    """What enters the blocks on the calibration samples: a file for each block, written when the one before is pruned.

    Attributes:
        skeleton: The model.
        chain: How its blocks are called.
        samples: Token ids ``[samples, length]``, int64.
        folder: Holds the files.
    """

    skeleton: Skeleton
    chain: Chain
    samples: Tensor
    folder: Path

    def begin(self) -> None:
        """Write what enters the first block."""
        self.folder.mkdir(exist_ok=True)
        self._inputs(0).write(first_inputs(self.skeleton, self.chain, self.samples))

    def calls(self, block: int, share: Callable[[float], None]) -> BlockCalls:
        """Return the calls of a block.

        Args:
            block: Its number.
            share: Called with the share of samples read, in every pass.

        Raises:
            ModelError: The file of its inputs is missing or damaged.
        """
        inputs = self._inputs(block)
        inputs.require_complete()
        return BlockCalls(self.chain.calls[block], inputs, share)

    def advance(self, block: int, module: nn.Module, calls: BlockCalls) -> None:
        """Write what enters the next block: what this one, pruned, makes of its calls."""
        if block + 1 < len(self.chain.calls):
            self._inputs(block + 1).write(run_block(module, calls))

    def drop(self, block: int) -> None:
        """Remove what entered a block that is done."""
        self._inputs(block).path.unlink(missing_ok=True)

    def _inputs(self, block: int) -> Activations:
        first = self.chain.first_input
        return Activations(self.folder / f"block-{block}.bin", len(self.samples), tuple(first.shape), first.dtype)
