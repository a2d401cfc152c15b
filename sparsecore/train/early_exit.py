"""Early exit: classifiers along the depth of a model; a sample whose answer is sure enough leaves there."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from sparsecore.calibration import evaluation_mode
from sparsecore.cost import count_multiply_adds
from sparsecore.errors import require_module
from sparsecore.lookup import close_matches
from sparsecore.train.terms import Term, at_least_float32, cross_entropy, weighted_sum


@dataclass(frozen=True)
class EarlyExitOutput:
    """What a batch gave, each sample from the exit where it left.

    Attributes:
        logits: ``[B, C]``.
        exits: ``[B]`` int64, the number of the exit, from 0.
    """

    logits: Tensor
    exits: Tensor

    def mean_cost(self, costs: Sequence[float]) -> float:
        """Return the mean cost of a sample, from the cost of leaving at each exit."""
        return float(torch.tensor(costs, dtype=torch.float64)[self.exits.cpu()].mean())


class EarlyExit(nn.Module):
    """A model in stages with a classifier after each.

    In training ``forward()`` gives the logits of all exits for ``exit_loss()``. ``infer()`` lets a sample leave at the
    first exit whose largest probability reaches the threshold there: it leaves the batch, and the later stages run
    with the others only, or not at all.

    Args:
        stages: Each takes what the one before it gave: a tensor ``[B, ...]``, or lists, tuples and dicts of them.
        exits: As many; each turns what its stage gave into logits ``[B, C]``.

    Raises:
        ValueError: There are no stages, or not as many exits.

    Example:
        >>> model = EarlyExit([nn.Linear(8, 8), nn.Linear(8, 8)], [nn.Linear(8, 3), nn.Linear(8, 3)])
        >>> x = torch.randn(5, 8)
        >>> [list(logits.shape) for logits in model(x)]
        [[5, 3], [5, 3]]
        >>> model.eval().infer(x, thresholds=[0.0]).exits.tolist()
        [0, 0, 0, 0, 0]

    Reference:
        Huang et al., Multi-Scale Dense Networks for Resource Efficient Image Classification, ICLR 2018, sec. 3-4.
    """

    def __init__(self, stages: Iterable[nn.Module], exits: Iterable[nn.Module]) -> None:
        super().__init__()
        stages, exits = list(stages or ()), list(exits or ())
        for module in (*stages, *exits):
            require_module(module, "each stage and each exit")
        self.stages, self.exits = nn.ModuleList(stages), nn.ModuleList(exits)
        if not 0 < len(self.stages) == len(self.exits):
            raise ValueError(
                f"expected an exit for each of one or more stages, got {len(self.stages)} stages and "
                f"{len(self.exits)} exits"
            )

    @classmethod
    def from_sequential(cls, model: nn.Sequential, exits: Mapping[str, nn.Module]) -> EarlyExit:
        """Put exits after layers of a sequential model; its own end stays the last exit.

        Args:
            model: Its layers are taken over, not copied; the model itself stays as it is.
            exits: Classifiers, by the names of the layers that they follow, in any order.

        Returns:
            A model whose last exit gives what the model gives.

        Raises:
            ValueError: The model has no such layer, or it is the last one.

        Example:
            >>> layers = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
            >>> len(EarlyExit.from_sequential(layers, {"1": nn.Linear(6, 3)}).stages)
            2
        """
        if not isinstance(model, nn.Sequential) or type(model).forward is not nn.Sequential.forward:
            raise ValueError(f"expected an nn.Sequential, got {type(model).__name__}; use EarlyExit(stages, exits)")
        layers = list(model._modules.items())  # named_children() leaves out a layer that comes twice
        names = [name for name, _ in layers]
        for name in exits:
            if name not in names[:-1]:
                problem = "is the model's last layer" if name in names else f"is no layer{close_matches(name, names)}"
                raise ValueError(f"exits: {name!r} {problem}; the model has {', '.join(names)}")
        ends = [index + 1 for index, name in enumerate(names) if name in exits] + [len(names)]
        stages = [nn.Sequential(OrderedDict(layers[begin:end])) for begin, end in pairwise([0, *ends])]
        early = cls(stages, [*(exits[name] for name in names if name in exits), nn.Identity()])
        for module in (early, early.stages, *early.stages, *early.exits.modules()):  # not the layers of the model
            module.training = model.training
        return early

    def forward(self, x: Any) -> list[Tensor]:
        """Return the logits ``[B, C]`` of every exit, for all samples."""
        logits = []
        for stage, classifier in zip(self.stages, self.exits, strict=True):
            x = stage(x)
            logits.append(classifier(x))
        return logits

    @torch.no_grad()
    def infer(self, x: Any, thresholds: Sequence[float]) -> EarlyExitOutput:
        """Run a batch; each sample leaves at the first exit that is sure enough of it.

        Args:
            x: What the first stage takes, ``[B, ...]``.
            thresholds: One for each exit but the last: the least largest softmax probability to leave with. Above 1
                nobody leaves there; at all exits the result is that of the last one, to the bit.

        Returns:
            Logits and exits of the batch, in its order.

        Raises:
            ValueError: The number of thresholds is wrong, one is NaN, or an exit gives no logits ``[B, C]``.
            RuntimeError: The model is in training mode, where samples of a batch depend on each other.
        """
        self._check_thresholds(thresholds)
        if self.training:
            raise RuntimeError("expected the model in evaluation mode, got training mode; call .eval() first")
        batch = _batch_size(x)
        logits: Tensor | None = None
        exits = torch.zeros(batch, dtype=torch.int64)
        rows = torch.arange(batch)
        for index, (stage, classifier) in enumerate(zip(self.stages, self.exits, strict=True)):
            x = stage(x)
            y = _check_logits(classifier(x), len(rows), logits)
            if logits is None:
                logits, exits, rows = y.new_empty(batch, y.shape[1]), exits.to(y.device), rows.to(y.device)
            is_last = index == len(thresholds)
            leaves = torch.ones_like(rows, dtype=torch.bool) if is_last else confidence(y) >= thresholds[index]
            logits[rows[leaves]] = y[leaves]
            exits[rows[leaves]] = index
            if leaves.all():
                break
            if leaves.any():
                rows, x = rows[~leaves], _select(x, ~leaves)
        assert logits is not None
        return EarlyExitOutput(logits, exits)

    def costs(self, x: Any) -> list[int]:
        """Count the multiply-adds of one sample until it leaves, at each exit.

        Args:
            x: A batch; its first sample runs.

        Returns:
            Multiply-adds of the stages and the exits up to each exit, that one included.

        Raises:
            ValueError: The batch is empty.
        """
        if not _batch_size(x):
            raise ValueError("expected at least one sample, got an empty batch")
        x = _select(x, slice(0, 1))
        counts = []
        with evaluation_mode(self), torch.no_grad():
            for stage, classifier in zip(self.stages, self.exits, strict=True):
                count = count_multiply_adds(stage, (x,))  # one argument, which may itself be a list or a dict
                x = stage(x)
                counts.append(count + count_multiply_adds(classifier, (x,)))
        return list(accumulate(counts))

    def _check_thresholds(self, thresholds: Sequence[float]) -> None:
        if not isinstance(thresholds, Iterable):
            raise ValueError(f"expected thresholds as a list of numbers, got {thresholds!r}")
        if len(thresholds) != len(self.stages) - 1:
            raise ValueError(
                f"expected {len(self.stages) - 1} thresholds, for every exit but the last, got {len(thresholds)}"
            )
        for index, threshold in enumerate(thresholds):
            if threshold != threshold:
                raise ValueError(f"expected numbers as thresholds, got NaN for exit {index}")


def exit_loss(logits: Sequence[Tensor], labels: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """Return the weighted sum of the cross entropies of all exits.

    Args:
        logits: ``[B, C]`` for every exit, from ``EarlyExit.forward()``.
        labels: ``[B]`` int64.
        weights: One for each exit; None for 1 each.

    Returns:
        Scalar.

    Raises:
        ValueError: Shapes or numbers do not fit, or a loss is NaN or infinite; the message names the exit.

    Example:
        >>> exits = [torch.zeros(4, 2), torch.zeros(4, 2)]
        >>> round(exit_loss(exits, torch.tensor([0, 1, 1, 0])).item(), 4)  # 2 ln 2
        1.3863

    Reference:
        Huang et al., Multi-Scale Dense Networks for Resource Efficient Image Classification, ICLR 2018, sec. 4.
    """
    weights = [1.0] * len(logits) if weights is None else weights
    if len(weights) != len(logits):
        raise ValueError(f"expected a weight for each of {len(logits)} exits, got {len(weights)}")
    return weighted_sum(
        [
            Term(f"exit {index}", weight, cross_entropy(exit_logits, labels))
            for index, (weight, exit_logits) in enumerate(zip(weights, logits, strict=True))
        ]
    )


def confidence(logits: Tensor) -> Tensor:
    """Return the largest softmax probability ``[...]`` of logits ``[..., C]``, at least in float32."""
    return at_least_float32(logits).softmax(-1).amax(-1)


def _batch_size(x: Any) -> int:
    """Size of the first dimension of all the tensors."""
    if isinstance(x, Tensor) and x.dim():
        return len(x)
    parts = list(x.values()) if isinstance(x, Mapping) else x
    if not isinstance(parts, list | tuple) or not parts:
        raise ValueError(f"expected tensors [B, ...], or lists, tuples or dicts of them, got {type(x).__name__}")
    sizes = {_batch_size(part) for part in parts}
    if len(sizes) > 1:
        raise ValueError(f"expected tensors of one batch size, got {sorted(sizes)}")
    return sizes.pop()


def _select(x: Any, samples: Tensor | slice) -> Any:
    """The samples of a batch, in the same structure of tensors."""
    if isinstance(x, Tensor):
        return x[samples]
    if isinstance(x, Mapping):
        return {key: _select(part, samples) for key, part in x.items()}
    parts = [_select(part, samples) for part in x]
    return tuple(parts) if isinstance(x, tuple) else parts


def _check_logits(y: Any, batch: int, earlier: Tensor | None) -> Tensor:
    if not isinstance(y, Tensor) or y.dim() != 2 or len(y) != batch:
        got = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"expected logits [{batch}, classes] from every exit, got {got}")
    if earlier is not None and y.shape[1] != earlier.shape[1]:
        raise ValueError(f"expected as many classes from every exit, got {earlier.shape[1]} and {y.shape[1]}")
    return y
