"""What the times say: ours over the best dense peer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sparsecore.bench.peers.candidate import FLOAT32, INT8
from sparsecore.bench.whole_models.libraries import OURS

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """One cell of a report: a model at one batch, number of threads and share of zeros.

    Attributes:
        cell: Of a report.
        rows: Candidates with times, in the order of the cell.
        dense: The fastest float32 of the others, or None.
        int8: The fastest int8 of the others.
        ours: Our float32 model.
        ours_int8: Ours with int8 layers.
    """

    cell: Row
    rows: tuple[Row, ...]
    dense: Row | None
    int8: Row | None
    ours: Row | None
    ours_int8: Row | None

    def over_dense(self, row: Row | None) -> float | None:
        """Speed-up of a candidate over the best dense peer."""
        return _ratio(self.dense, row)

    def summary(self) -> dict[str, Any]:
        """The conclusion, for JSON."""
        return {
            **{name: self.cell[name] for name in ("batch", "threads", "sparsity")},
            "best_dense": self.dense and label(self.dense),
            "ours_over_best_dense": self.over_dense(self.ours),
            "best_int8": self.int8 and label(self.int8),
            "our_int8_over_best_int8": _ratio(self.int8, self.ours_int8),
        }


def compare(cell: Row) -> Comparison:
    """Pick the fastest of every sort from a cell; wrong and unfinished candidates do not count."""
    rows = tuple(row for row in cell["candidates"] if row.get("us") and not row["wrong"])
    others = [row for row in rows if not is_ours(row)]
    ours = [row for row in rows if is_ours(row)]
    return Comparison(
        cell,
        rows,
        dense=_fastest(row for row in others if row["dtype"] == FLOAT32),
        int8=_fastest(row for row in others if row["dtype"] == INT8),
        ours=_fastest(row for row in ours if row["dtype"] == FLOAT32),
        ours_int8=_fastest(row for row in ours if row["dtype"] == INT8),
    )


def is_ours(row: Row) -> bool:
    """Computed by our kernels."""
    return bool(row["library"] == OURS.name)


def label(row: Row) -> str:
    """Library, and what is special about the candidate."""
    name = str(row["name"])
    return row["library"] if name in ("dense", "compiled") else f"{row['library']}, {name.removeprefix('dense, ')}"


def _ratio(slow: Row | None, fast: Row | None) -> float | None:
    if slow is None or fast is None or not fast["us"]["median_us"]:
        return None
    ratio: float = slow["us"]["median_us"] / fast["us"]["median_us"]
    return ratio


def _fastest(rows: Iterable[Row]) -> Row | None:
    return min(rows, key=lambda row: row["us"]["median_us"], default=None)
