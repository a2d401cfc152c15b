"""The choice of one layer, its reason, and the table of all of them."""

from __future__ import annotations

import html
import statistics
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from sparsecore.errors import UnsupportedError, require_module
from sparsecore.graph.compiled import CompiledModule
from sparsecore.nn import CompressedModule, DepthwiseConv2d
from sparsecore.tune.budget import Budget
from sparsecore.tune.candidates import (
    FLOAT,
    format_of,
    kernel_of,
    numeric_type,
    operation_of,
    weight_statistics,
)

ATTRIBUTE = "_sparsecore_explanation"


@dataclass(frozen=True)
class LayerChoice:
    """How one layer runs, and why.

    Attributes:
        name: of the layer in the model.
        op: ``linear`` or ``conv KHxKW``.
        shape: of the weight and the input, for people.
        sparsity: share of zeros in the weight.
        format: what `tune.candidates.format_of` says.
        kernel: the kernel that runs it on this machine.
        time_us: time of all its calls in one pass of the model (lower quartile); None if not measured.
        alone_us: the same, timed by itself, as the formats were compared; None if not measured.
        dense_us: of the dense layer by itself.
        roofline: operations on stored entries over time, as a share of the float32 FMA peak of the same run;
            None on a GPU.
        error: relative error that the format adds to the layer's output on the example, ``||y - y_own|| / ||y_own||``;
            0 in the layer's own numeric type (rounding aside), None if not measured.
        reason: why this format, and what the others would have cost in time and error.
        predicted_us: what the cost model makes of dense_us for this format, where that was measured.
    """

    name: str
    op: str
    shape: str
    sparsity: float
    format: str
    kernel: str
    time_us: float | None
    alone_us: float | None
    dense_us: float | None
    roofline: float | None
    error: float | None
    reason: str
    predicted_us: float | None = None

    @property
    def speedup(self) -> float | None:
        """Time of the dense layer over that of the format, both timed by themselves."""
        if self.alone_us is None or self.dense_us is None:
            return None
        return self.dense_us / self.alone_us

    def to_dict(self) -> dict[str, Any]:
        """All fields and the speed-up, ready for JSON or a data frame."""
        return asdict(self) | {"speedup": self.speedup}


# Names and formats to the left, numbers to the right.
_COLUMNS = ("layer", "op", "format", "zeros", "us", "alone us", "dense us", "speed-up", "of peak", "error")
_LEFT = {"layer", "op", "format"}
_DETAILS = ("shape", "kernel", "why")
_WIDTH = 100


@dataclass(frozen=True)
class Explanation:
    """The table of a model: one row per layer, as text, HTML (in notebooks) or plain data.

    Attributes:
        rows: one per layer, in the order of the model.
        budget: the error budget, if there was one.
        note: what else to know, such as why a model was not captured.
        pass_us: microseconds of a pass of the whole model; None if not measured.
        between_us: of that, what runs between the layers: name to microseconds.
    """

    rows: tuple[LayerChoice, ...]
    budget: Budget | None = None
    note: str = ""
    pass_us: float | None = None
    between_us: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, ready for JSON; ``["rows"]`` is ready for a data frame."""
        return {
            "rows": [row.to_dict() for row in self.rows],
            "budget": None if self.budget is None else asdict(self.budget),
            "note": self.note,
            "pass_us": self.pass_us,
            "between_us": dict(self.between_us),
        }

    def __iter__(self) -> Iterator[LayerChoice]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        table = [_COLUMNS, *map(_cells, self.rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        head, *lines = [
            "  ".join(
                cell.ljust(width) if title in _LEFT else cell.rjust(width)
                for title, cell, width in zip(_COLUMNS, row, widths, strict=True)
            ).rstrip()
            for row in table
        ]
        text = [head, "-" * len(head)]
        for row, line in zip(self.rows, lines, strict=True):
            text += [line, *_indented(", ".join(_details(row)[:2]) + ": " + row.reason)]
        return "\n".join(text + [line for part in self._summary() for line in textwrap.wrap(part, _WIDTH)])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(title)}</th>" for title in (*_COLUMNS, *_DETAILS))
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in (*_cells(row), *_details(row))) + "</tr>"
            for row in self.rows
        )
        summary = "".join(f"<p>{html.escape(part)}</p>" for part in self._summary())
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{summary}"

    def _summary(self) -> list[str]:
        """What the table does not say."""
        parts = [self.note] if self.note else []
        if self.budget is not None:
            parts.append(self._budget_text(self.budget))
        if self.pass_us is not None:
            parts.append(self._pass_text(self.pass_us))
        if (factor := self.prediction_error) is not None:
            parts.append(f'the cost model, which policy="model" goes by, is off by a factor of {factor:.2f} (median)')
        return parts

    @property
    def prediction_error(self) -> float | None:
        """Median factor between predicted and measured times of layers that are not dense; None without any."""
        factors = [
            max(row.predicted_us / row.alone_us, row.alone_us / row.predicted_us)
            for row in self.rows
            if row.predicted_us and row.alone_us and row.format != "dense"
        ]
        return statistics.median(factors) if factors else None

    def _pass_text(self, pass_us: float) -> str:
        """Where the time of a pass goes."""
        layers = sum(row.time_us or 0.0 for row in self.rows)
        between = sum(self.between_us.values())
        slowest = sorted(self.between_us.items(), key=lambda item: -item[1])[:3]
        names = ", ".join(f"{name} {time_us:.0f}" for name, time_us in slowest)
        return (
            f"a pass takes {pass_us:.0f} us: {layers:.0f} us in layers, {between:.0f} us between them"
            + (f" ({names})" if names else "")
            + f", {max(pass_us - layers - between, 0.0):.0f} us elsewhere"
        )

    def _budget_text(self, budget: Budget) -> str:
        """What became of the error budget."""
        counts = Counter(numeric_type(row.format) for row in self.rows)
        del counts[FLOAT]
        parts = [f"{count} of {len(self.rows)} layers in {name}" for name, count in counts.items()]
        text = f"output error {percent(budget.error)} of {percent(budget.max_error)} allowed, "
        text += ", ".join(parts) or f"none of {len(self.rows)} layers in integers"
        given_up = budget.num_given_up
        return text + (f"; {given_up} held back by it" if given_up else "")


def percent(error: float) -> str:
    """Write an error as ``quantization_report()`` does."""
    return f"{error:.3%}"


def _cells(row: LayerChoice) -> Sequence[str]:
    def number(value: float | None, text: str) -> str:
        return "-" if value is None else text.format(value)

    return (
        row.name,
        row.op,
        row.format,
        f"{row.sparsity:.1%}",
        number(row.time_us, "{:.0f}"),
        number(row.alone_us, "{:.0f}"),
        number(row.dense_us, "{:.0f}"),
        number(row.speedup, "{:.2f}x"),
        number(row.roofline, "{:.0%}"),
        "0" if row.error == 0 else "-" if row.error is None else percent(row.error),
    )


def _details(row: LayerChoice) -> Sequence[str]:
    return row.shape, row.kernel, row.reason


def _indented(text: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent="    ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )


def explain(model: nn.Module) -> Explanation:
    """Say for every layer of a converted model what it runs on, how fast, and why.

    Args:
        model: from ``compile()`` or ``convert()``; one that was loaded or built by hand has no times.

    Returns:
        The table; ``print()`` it, or take ``.rows`` or ``.to_dict()``.

    Raises:
        UnsupportedError: nothing in the model runs on sparsecore.

    Example:
        >>> from sparsecore import convert
        >>> print(explain(convert(nn.Sequential(nn.Linear(4, 4)))).rows[0].format)
        dense
    """
    require_module(model)
    model = getattr(model, "_orig_mod", model)  # under torch.compile
    explanation = getattr(model, ATTRIBUTE, None)
    if isinstance(explanation, Explanation):
        return explanation
    layers = _layers_of(model)
    if not layers:
        raise UnsupportedError(
            f"expected a model from convert() or compile(), got a {type(model).__name__} without layers of ours"
        )
    return Explanation(tuple(unmeasured(n, m, "not measured here") for n, m in layers.items()))


def _layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that run on sparsecore; of a compiled model all."""
    if isinstance(model, CompiledModule):
        names = dict.fromkeys(model.layers_of_nodes().values())
        return {name: model.graph_module.get_submodule(name) for name in names}
    return {n: m for n, m in model.named_modules() if isinstance(m, CompressedModule | DepthwiseConv2d)}


def unmeasured(name: str, layer: nn.Module, reason: str, shape: str = "", form: nn.Module | None = None) -> LayerChoice:
    """Return the row of a layer that was not timed; form is what it became, None if it stayed."""
    weight = weight_statistics(layer)
    form = form if form is not None else layer
    return LayerChoice(
        name=name,
        op=operation_of(layer),
        shape=shape or f"{weight.N}x{weight.K}",
        sparsity=weight.sparsity,
        format=format_of(form),
        kernel=kernel_of(form),
        time_us=None,
        alone_us=None,
        dense_us=None,
        roofline=None,
        error=None,
        reason=reason,
    )
