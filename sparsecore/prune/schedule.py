"""Gradual pruning: the sparsity rises along a curve while the model trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from sparsecore.errors import FormatError
from sparsecore.prune.criteria import Criterion
from sparsecore.prune.masks import Masks
from sparsecore.prune.oneshot import Sparsity
from sparsecore.prune.training import TrainingPruner
from sparsecore.prune.weights import Selector


def cubic_sparsity(step: int, begin: int, end: int, initial: float, final: float) -> float:
    """Sparsity at a training step: fast at first, slower the fewer weights are left.

    ``final + (initial - final) * (1 - (step - begin) / (end - begin)) ** 3`` between ``begin`` and
    ``end``, constant outside; never falls from one step to the next.

    Args:
        step: Training step.
        begin: Step at which the sparsity starts to rise.
        end: Step at which ``final`` is reached.
        initial: Sparsity up to ``begin``, in [0, 1).
        final: Sparsity from ``end`` on, in [initial, 1).

    Returns:
        A sparsity between ``initial`` and ``final``.

    Raises:
        ValueError: Not ``0 <= begin < end`` or not ``0 <= initial <= final < 1``.

    Example:
        >>> [round(cubic_sparsity(step, 0, 4, 0.0, 0.8), 4) for step in (0, 1, 2, 3, 4, 9)]
        [0.0, 0.4625, 0.7, 0.7875, 0.8, 0.8]

    Reference:
        Zhu & Gupta, To prune, or not to prune, arXiv 1710.01878, 2017, eq. 1.
    """
    if not 0 <= begin < end:
        raise ValueError(f"expected 0 <= begin < end, got begin {begin} and end {end}")
    if not 0 <= initial <= final < 1:
        raise ValueError(f"expected 0 <= initial <= final < 1, got {initial} and {final}")
    left = 1 - min(max(step - begin, 0), end - begin) / (end - begin)
    return final - (final - initial) * left**3


class GradualPruner(TrainingPruner):
    """Prune a model little by little inside one's own training loop.

    The model is pruned to ``initial_sparsity`` at once, in place, and its zeros are kept by
    ``masks.attach(optimizer)``. Every ``frequency`` steps, and at ``end``, :meth:`step` prunes to
    :func:`cubic_sparsity`. A pruned entry never comes back.

    Args:
        model: Any module with weights that :func:`prune` takes.
        optimizer: The optimizer that trains it.
        sparsity: Final share of entries to prune, or one for each layer as in :func:`prune`.
        begin: Number of calls of :meth:`step` before the sparsity starts to rise.
        end: Number of calls after which ``sparsity`` is reached.
        frequency: Calls from one pruning to the next.
        initial_sparsity: Share of entries pruned from the start.
        criterion: As in :func:`prune`.
        scope: As in :func:`prune`.
        pattern: As in :func:`prune`, but none with a sparsity of its own such as ``"2:4"``: to get there in
            steps, call ``masks = prune(model, pattern="3:4", masks=masks)``, then ``"2:4"``, with training between.
        exclude: As in :func:`prune`.
        masks: As in :func:`prune`: what they prune stays pruned.

    Attributes:
        masks: The masks in force, always the same object.

    Raises:
        ValueError: An argument is out of range, a name matches nothing, or the optimizer holds none
            of the weights; nothing is changed.

    Example:
        >>> import torch
        >>> model = nn.Linear(20, 10)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> pruner = GradualPruner(model, optimizer, 0.9, end=30, frequency=10)
        >>> for step in range(40):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(8, 20)).square().mean().backward()
        ...     optimizer.step()
        ...     pruner.step()
        >>> pruner.masks
        Masks(1 weights, 90.0% sparse)
          weight   90.0% of [10, 20]

    Reference:
        Zhu & Gupta, To prune, or not to prune, arXiv 1710.01878, 2017.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        sparsity: Sparsity,
        *,
        begin: int = 0,
        end: int,
        frequency: int = 100,
        initial_sparsity: float = 0.0,
        criterion: str | Criterion = "magnitude",
        scope: str = "layer",
        pattern: str = "unstructured",
        exclude: Selector | Iterable[Selector] = (),
        masks: Masks | None = None,
    ) -> None:
        for name, count, least in (("begin", begin, 0), ("end", end, 1), ("frequency", frequency, 1)):
            if not isinstance(count, int) or count < least:
                raise ValueError(f"expected {name} as a number of steps, {least} or more, got {count!r}")
        self._sparsity = sparsity
        self._begin, self._end, self._frequency = begin, end, frequency
        self._initial = initial_sparsity
        self._step = 0
        super().__init__(
            model,
            optimizer,
            self._target(0),
            criterion=criterion,
            scope=scope,
            pattern=pattern,
            exclude=exclude,
            masks=masks,
            settings={
                "sparsity": sparsity,
                "begin": begin,
                "end": end,
                "frequency": frequency,
                "initial_sparsity": initial_sparsity,
                "criterion": criterion,
                "scope": scope,
            },
        )

    def step(self) -> None:
        """Count one training step, and prune when it is time; call it after ``optimizer.step()``.

        Raises:
            FormatError: A weight has become NaN or infinite; nothing is changed and the step does not count.
        """
        step = self._step + 1
        if self._is_due(step):
            self._prune_to(self._target(step))
        self._step = step

    def state_dict(self) -> dict[str, Any]:
        """Return the step count, the masks and the settings; model and optimizer are saved on their own."""
        return {"step": self._step, **super().state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` left off, bit for bit.

        Args:
            state: From a pruner with the same arguments.

        Raises:
            FormatError: The state is another one's, of a pruner with other arguments, or the masks are not those
                of this model's weights; nothing is changed.
        """
        self._require_state(state, "step")
        step = state["step"]
        if not isinstance(step, int) or step < 0:
            raise FormatError(f"expected a count of steps, got {step!r}")
        self.masks.load_state_dict(state["masks"])
        self._step = step

    def _is_due(self, step: int) -> bool:
        is_multiple = (step - self._begin) % self._frequency == 0
        return self._begin < step <= self._end and (is_multiple or step == self._end)

    def _target(self, step: int) -> Sparsity:
        """Sparsity to prune to at a step, for each layer if they differ."""

        def cubic(final: float) -> float:
            return cubic_sparsity(step, self._begin, self._end, self._initial, final)

        if isinstance(self._sparsity, Mapping):
            return {selector: cubic(final) for selector, final in self._sparsity.items()}
        return cubic(self._sparsity)
