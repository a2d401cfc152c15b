"""The loop over the blocks of a decoder."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass

from torch import nn

from sparsecore.bench.progress import Progress, stage
from sparsecore.prune.layerwise import prune_block
from sparsecore.prune.oneshot import find_contests
from sparsecore.prune.patterns import parse_pattern
from sparsecore.prune.pretrained.blocks import Arguments
from sparsecore.prune.pretrained.calibration import Calibration
from sparsecore.prune.pretrained.output import OutputFolder
from sparsecore.prune.pretrained.skeleton import Skeleton
from sparsecore.prune.sparsegpt import SparseGPT
from sparsecore.prune.weights import PrunableWeight, find_weights

CRITERIA = ("sparsegpt", "wanda", "magnitude")


@dataclass(frozen=True)
class BlockMethod:
    """How each block is pruned; see :func:`~sparsecore.prune.layerwise.prune_block`."""

    criterion: str
    sparsity: float | None
    pattern: str
    damping: float
    block_size: int

    @property
    def needs_data(self) -> bool:
        """Whether the criterion looks at what enters a layer."""
        return self.criterion != "magnitude"

    def check(self, weights: list[PrunableWeight]) -> None:
        """Check the arguments before anything is done.

        Args:
            weights: All that are to be pruned; their values are not looked at.

        Raises:
            ValueError: An argument is out of range, or there are no weights.
            FormatError: The pattern does not fit a weight.
        """
        if self.criterion not in CRITERIA:
            raise ValueError(f"expected one of {', '.join(CRITERIA)} as criterion, got {self.criterion!r}")
        SparseGPT(self.damping, self.block_size)
        if not weights:
            raise ValueError("expected at least one weight that is not excluded, got none; exclude less")
        find_contests(weights, self.sparsity, parse_pattern(self.pattern))

    def prune(self, block: nn.Module, calls: Sequence[Arguments], weights: Collection[str]) -> tuple[int, int]:
        """Prune these weights of a block in place; return how many entries they have and how many of them are kept."""
        if not weights:
            return 0, 0
        others = [weight.name for weight in find_weights(block) if weight.name not in weights]
        masks = prune_block(block, calls, exclude=others, **asdict(self))
        counts = masks.statistics().values()
        return sum(count.numel for count in counts), sum(count.num_kept for count in counts)


@dataclass(frozen=True)
class PrunedBlock:
    """What was pruned of one block.

    Attributes:
        name: In the model.
        seconds: For all of it: reading, pruning, writing, running.
        num_entries: Of the pruned weights together.
        num_kept: How many of these are left.
    """

    name: str
    seconds: float
    num_entries: int
    num_kept: int

    @property
    def sparsity(self) -> float:
        """Share of the pruned weights' entries that is zero."""
        return 1 - self.num_kept / self.num_entries if self.num_entries else 0.0


@dataclass(frozen=True)
class Run:
    """Pruning a model into a folder.

    Attributes:
        skeleton: The model and its files.
        blocks: Names of its blocks, in their order.
        calibration: What enters them; None if the method looks at no data.
        method: How they are pruned.
        weights: Names of the weights to prune.
        output: Where they are written.
    """

    skeleton: Skeleton
    blocks: list[str]
    calibration: Calibration | None
    method: BlockMethod
    weights: Collection[str]
    output: OutputFolder

    def prune_blocks(self, done: list[PrunedBlock], progress: Progress) -> list[PrunedBlock]:
        """Prune and write the blocks that are not done, and note each in the state.

        Args:
            done: Blocks of an earlier run.
            progress: Called with steps and shares.

        Returns:
            All blocks.
        """
        blocks = list(done)
        if self.calibration is not None and not done:
            with stage(progress, "run the embeddings on the samples"):
                self.calibration.begin()
        began, num_blocks = time.monotonic(), len(self.blocks)
        for index in range(len(done), num_blocks):
            mean_seconds = (time.monotonic() - began) / max(index - len(done), 1)
            left = f", {_duration(mean_seconds * (num_blocks - index))} left" if index > len(done) else ""
            with stage(progress, f"block {index + 1} of {num_blocks}{left}") as share:
                blocks.append(self._prune_block(index, share))
                self.output.note([asdict(block) for block in blocks])
            if self.calibration is not None:
                self.calibration.drop(index)
        return blocks

    def write_others(self) -> None:
        """Write the tensors that are in no block, as they are but for their type."""
        parameters = self.skeleton.model.named_parameters(remove_duplicate=False)
        dtypes = {self.skeleton.stored_name(name): parameter.dtype for name, parameter in parameters}
        shard = len(self.blocks)
        checkpoint = self.skeleton.checkpoint
        tensors = {name: checkpoint.read(name, dtypes.get(name)) for name in self.output.shards[shard]}
        self.output.write_shard(shard, tensors)

    def _prune_block(self, index: int, share: Callable[[float], None]) -> PrunedBlock:
        began = time.monotonic()
        name = self.blocks[index]
        module = self.skeleton.filled(name)
        weights = [weight.removeprefix(f"{name}.") for weight in self.weights if weight.startswith(f"{name}.")]
        if self.calibration is None:
            num_entries, num_kept = self.method.prune(module, (), weights)
            self._write_block(index, module)
        else:
            calls = self.calibration.calls(index, share)
            num_entries, num_kept = self.method.prune(module, calls, weights)
            self._write_block(index, module)
            self.calibration.advance(index, module, calls)
        return PrunedBlock(name, time.monotonic() - began, num_entries, num_kept)

    def _write_block(self, index: int, block: nn.Module) -> None:
        """Write what the files have of a block: what it holds now, and the rest as it was."""
        tensors = {}
        for leaf, tensor in block.state_dict().items():
            stored = self.skeleton.stored_name(f"{self.blocks[index]}.{leaf}")
            if stored is not None:
                tensors[stored] = tensor
        for stored in self.output.shards[index]:
            if stored not in tensors:
                tensors[stored] = self.skeleton.checkpoint.read(stored)
        self.output.write_shard(index, tensors)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
