"""What quantization did to each layer, as rows and as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from torch import nn

from sparsecore.errors import UnsupportedError

ATTRIBUTE = "_sparsecore_quantization"


class LayerError(NamedTuple):
    """How far the model's output is off when one layer alone is quantized."""

    layer: str
    error: float


@dataclass(frozen=True)
class Sensitivity:
    """One row per layer, the most sensitive first; prints as a table."""

    rows: tuple[LayerError, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"rows": [...]}``, ready for JSON or a data frame."""
        return {"rows": [row._asdict() for row in self.rows]}

    def __iter__(self) -> Iterator[LayerError]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        return format_table(("layer", "output error"), [(row.layer, _percent(row.error)) for row in self.rows])


@dataclass(frozen=True)
class LayerRow:
    """One layer of a model that was quantized.

    Attributes:
        layer: its name in the model, the first if it has several.
        kind: its class before.
        form: its class now.
        error: relative error of the model's output when this layer alone is quantized; None if not measured.
    """

    layer: str
    kind: str
    form: str
    error: float | None

    @property
    def is_quantized(self) -> bool:
        """Whether the layer is int8 now."""
        return self.form != self.kind


@dataclass(frozen=True)
class QuantizationReport:
    """What quantize() did; prints as a table.

    Attributes:
        settings: the arguments of quantize() that say how.
        max_error: largest relative error of the model's output that was allowed; None if any.
        error: what it is on the calibration batches; None if not measured.
        rows: one per layer, in the order of the model.
    """

    settings: dict[str, Any]
    max_error: float | None
    error: float | None
    rows: tuple[LayerRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return asdict(self)

    def __iter__(self) -> Iterator[LayerRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        count = sum(row.is_quantized for row in self.rows)
        facts = [f"{count} of {len(self)} layers in int8", *(f"{key} {value}" for key, value in self.settings.items())]
        if self.max_error is not None:
            facts.append(f"output error {_percent(self.error)} of {_percent(self.max_error)} allowed")
        cells = [(row.layer, row.kind, row.form, _percent(row.error)) for row in self.rows]
        return f"{', '.join(facts)}\n{format_table(('layer', 'was', 'is', 'error alone'), cells)}"


def quantization_report(model: nn.Module) -> QuantizationReport:
    """Say for every layer of a quantized model what it became, and why.

    Args:
        model: from ``quantize()``.

    Raises:
        UnsupportedError: it is not.

    Example:
        >>> from sparsecore.quantize import quantize
        >>> print(quantization_report(quantize(nn.Sequential(nn.Linear(8, 4)))))
        1 of 1 layers in int8, activations dynamic
        layer  was     is          error alone
        --------------------------------------
        0      Linear  Int8Linear            -
    """
    report = getattr(model, ATTRIBUTE, None)
    if not isinstance(report, QuantizationReport):
        raise UnsupportedError(f"expected a model from quantize(), got a {type(model).__name__} without a report")
    return report


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.3%}"


def format_table(headings: Sequence[str], rows: Sequence[Sequence[str]], names: int | None = None) -> str:
    """Columns of text: the first ones, names, to the left and figures to the right; None: all but the last."""
    table = [headings, *rows]
    left = len(headings) - 1 if names is None else names
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
