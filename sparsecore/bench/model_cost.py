"""What models cost beside each other: multiply-adds by counting, time by measuring."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from sparsecore.bench.timing import interleave
from sparsecore.calibration import evaluation_mode
from sparsecore.calls import call_model
from sparsecore.cost import count_multiply_adds
from sparsecore.quantize.report import format_table


@dataclass(frozen=True)
class ModelCost:
    """What one model costs.

    Attributes:
        name: Of the model.
        parameters: How many numbers it is trained with.
        multiply_adds: Of one call.
        median_ms: Median time of one call.
    """

    name: str
    parameters: int
    multiply_adds: int
    median_ms: float


@dataclass(frozen=True)
class CostTable:
    """One row per model, the first is what the others are compared with; prints as a table."""

    rows: tuple[ModelCost, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"rows": [...]}``, ready for JSON."""
        return {"rows": [asdict(row) for row in self.rows]}

    def __iter__(self) -> Iterator[ModelCost]:
        return iter(self.rows)

    def __str__(self) -> str:
        first = self.rows[0]
        cells = [
            (
                row.name,
                f"{row.parameters:,}",
                f"{row.multiply_adds:,}",
                f"{row.multiply_adds / max(first.multiply_adds, 1):.1%}",
                f"{row.median_ms:.3f}",
                f"{row.median_ms / first.median_ms:.1%}" if first.median_ms else "-",
            )
            for row in self.rows
        ]
        return format_table(("model", "parameters", "multiply-adds", "of first", "ms", "of first"), cells, names=1)


@torch.no_grad()
def compare_cost(models: Mapping[str, nn.Module], inputs: Any, *, min_time_s: float = 0.2) -> CostTable:
    """Count the multiply-adds of models and time them beside each other, on the same inputs.

    Args:
        models: By name, each of PyTorch's own layers.
        inputs: A tensor, a tuple or list of positional or a dict of keyword arguments.
        min_time_s: Seconds that the timing takes at least.

    Returns:
        A row per model, in their order.

    Raises:
        ValueError: There are no models.

    Example:
        >>> small, large = nn.Linear(8, 1), nn.Linear(8, 4)
        >>> [row.multiply_adds for row in compare_cost({"large": large, "small": small}, torch.ones(1, 8))]
        [32, 8]
    """
    counts = {name: count_multiply_adds(model, inputs) for name, model in models.items()}
    calls = {name: partial(call_model, model, inputs) for name, model in models.items()}
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(evaluation_mode(model))
        timings = interleave(calls, min_time_s=min_time_s)
    return CostTable(
        tuple(
            ModelCost(
                name,
                sum(parameter.numel() for parameter in model.parameters()),
                counts[name],
                timings[name].median_us / 1e3,
            )
            for name, model in models.items()
        )
    )
