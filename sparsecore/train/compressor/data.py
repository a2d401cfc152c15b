"""The training data: samples by number, in an order that depends on seed and epoch alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from sparsecore.user_code import code_of


class Share(NamedTuple):
    """What one process does of a step.

    Attributes:
        rows: Numbers of its samples.
        weight: Its share of the samples of the step, by which its gradient counts.
    """

    rows: list[int]
    weight: float


class TrainingData:
    """Samples, and which of them a step takes.

    Args:
        source: A dataset with a length, a list of samples, or a tuple or dict of tensors of one length.
        batch: Samples per step, of all processes together.
        seed: Of the order.
        rank: Number of this process.
        ranks: How many processes share each batch.

    Raises:
        ValueError: It is something else, or empty, or a batch is too small for the processes.

    Example:
        >>> data = TrainingData((torch.arange(10.0), torch.arange(10)), batch=4, seed=0)
        >>> data.steps_per_epoch, [len(share.rows) for share in data.epoch(0)]
        (3, [4, 4, 2])
    """

    def __init__(self, source: Any, batch: int, seed: int, rank: int = 0, ranks: int = 1) -> None:
        self._dataset = _as_dataset(source)
        self._batch, self._seed, self._rank, self._ranks = min(batch, len(self)), seed, rank, ranks
        if self._batch < ranks:
            raise ValueError(f"expected batches of at least {ranks} samples, one for each process, got {self._batch}")

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def steps_per_epoch(self) -> int:
        """Steps; a last batch of fewer than two samples per process is left out."""
        whole, rest = divmod(len(self), self._batch)
        return whole + (rest >= 2 * self._ranks)

    def epoch(self, epoch: int) -> list[Share]:
        """Return this process's part of every step of an epoch."""
        generator = torch.Generator().manual_seed((self._seed << 24) + epoch)
        order = torch.randperm(len(self), generator=generator).tolist()
        shares = []
        for step in range(self.steps_per_epoch):
            rows = order[step * self._batch : (step + 1) * self._batch]
            own = rows[self._rank :: self._ranks]
            shares.append(Share(own, len(own) / len(rows)))
        return shares

    def read(self, rows: list[int]) -> Any:
        """Return samples as a batch."""
        if isinstance(self._dataset, TensorDataset):
            return self._dataset[torch.tensor(rows)]
        with code_of("data"):
            return default_collate([self._dataset[row] for row in rows])

    def first(self, batches: int) -> list[Any]:
        """Return the first samples as batches, the same in every process."""
        count = min(batches * self._batch, len(self))
        return [
            self.read(list(range(begin, min(begin + self._batch, count)))) for begin in range(0, count, self._batch)
        ]


def split_batch(batch: Any) -> tuple[Any, Any]:
    """Return the inputs of a batch and its labels: the last part, or ``"labels"`` of a mapping.

    Raises:
        ValueError: There are not both.

    Example:
        >>> split_batch((1, 2, 3)), split_batch({"x": 1, "labels": 2})
        (((1, 2), 3), ({'x': 1}, 2))
    """
    if isinstance(batch, Mapping) and "labels" in batch and len(batch) > 1:
        return {name: value for name, value in batch.items() if name != "labels"}, batch["labels"]
    if isinstance(batch, tuple | list) and len(batch) > 1:
        *inputs, labels = batch
        return inputs[0] if len(inputs) == 1 else tuple(inputs), labels
    came = f"a dict with {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else type(batch).__name__
    raise ValueError(
        'expected samples with inputs and a label, (x, label) or a dict with "labels" among its keys, got '
        f"{came}; a training_step of your own can take others"
    )


class _Samples(Dataset[Any]):
    """A list of samples, or the columns of a table of them."""

    def __init__(self, source: list[Any] | Mapping[str, Tensor]) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(next(iter(self._source.values()))) if isinstance(self._source, Mapping) else len(self._source)

    def __getitem__(self, row: int) -> Any:
        if isinstance(self._source, Mapping):
            return {name: column[row] for name, column in self._source.items()}
        return self._source[row]


def _as_dataset(source: Any) -> Any:
    parts = list(source.values()) if isinstance(source, Mapping) else source
    if isinstance(parts, tuple | list) and parts and all(isinstance(part, Tensor) and part.dim() for part in parts):
        if len({len(part) for part in parts}) > 1:
            raise ValueError(f"expected tensors of one length, got {[len(part) for part in parts]}")
        source = _Samples(source) if isinstance(source, Mapping) else TensorDataset(*parts)
    elif isinstance(source, list) and source and all(isinstance(part, tuple | list | Mapping) for part in source):
        source = _Samples(source)
    if not isinstance(source, Dataset) or not hasattr(source, "__len__"):
        inside = f" of {type(parts[0]).__name__}" if isinstance(parts, tuple | list) and parts else ""
        way_out = "; give its dataset, batch: N makes the batches" if isinstance(source, DataLoader) else ""
        if "ndarray" in inside:
            way_out = "; torch.as_tensor() makes tensors of arrays"
        raise ValueError(
            "expected a torch.utils.data.Dataset with a length, a tuple or dict of tensors, or a list of samples "
            f"such as (x, label), got {type(source).__name__}{inside}{way_out}"
        )
    if len(source) == 0:
        raise ValueError("expected at least one sample, got none")
    return source
