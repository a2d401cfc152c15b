"""Where the bytes of a compressed file are: per weight and in all."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sparsecore.deep_compression.record import RecordBytes
from sparsecore.quantize.report import format_table


@dataclass(frozen=True)
class WeightBytes:
    """One weight of the file.

    Attributes:
        name: In the model's ``state_dict()``.
        shape: Of the weight.
        numel: Weights, zeros included.
        nnz: Weights that are not zero.
        num_entries: Those and the fillers.
        bits: Of a code.
        gap_bits: Of a gap.
        record: Bytes in the file.
        field_bytes: Bytes of the record if nothing were Huffman coded.
        zstd_bytes: Bytes of the codebook and of what zstd makes of codes and gaps, a byte each; None if not asked for.
    """

    name: str
    shape: tuple[int, ...]
    numel: int
    nnz: int
    num_entries: int
    bits: int
    gap_bits: int
    record: RecordBytes
    field_bytes: int
    zstd_bytes: int | None = None

    @property
    def dense_bytes(self) -> int:
        """As float32."""
        return 4 * self.numel

    @property
    def ratio(self) -> float:
        return self.dense_bytes / self.record.total


@dataclass(frozen=True)
class CompressedReport:
    """What ``save_compressed()`` wrote; prints as a table.

    Attributes:
        weights: The compressed ones, in the order of the model.
        other_bytes: Of all other tensors in the file: biases, BatchNorm and the like.
        header_bytes: Of the file's header, which names the tensors.
        dense_bytes: Of all tensors of the model as they were, each counted once.
    """

    weights: tuple[WeightBytes, ...]
    other_bytes: int
    header_bytes: int
    dense_bytes: int

    @property
    def file_bytes(self) -> int:
        """Size of the file."""
        return self.header_bytes + self.other_bytes + sum(weight.record.total for weight in self.weights)

    @property
    def ratio(self) -> float:
        """How many times as large the dense tensors are."""
        return self.dense_bytes / self.file_bytes

    @property
    def field_bytes(self) -> int:
        """Size of the file if nothing were Huffman coded."""
        return self.header_bytes + self.other_bytes + sum(weight.field_bytes for weight in self.weights)

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        totals = {name: getattr(self, name) for name in ("file_bytes", "field_bytes", "ratio")}
        return asdict(self) | totals

    def __str__(self) -> str:
        has_zstd = any(weight.zstd_bytes is not None for weight in self.weights)
        headings = ["weight", "kept", "bits", "codebook", "tables", "codes", "gaps", "bytes", "fields", "ratio"]
        rows = [[*_cells(weight), *([f"{weight.zstd_bytes:,}"] if has_zstd else [])] for weight in self.weights]
        table = format_table([*headings, *(["zstd"] if has_zstd else [])], rows, names=1)
        return (
            f"{table}\nother tensors {self.other_bytes:,} bytes, header {self.header_bytes:,}; in all "
            f"{self.file_bytes:,} bytes, {self.ratio:.1f} times smaller than {self.dense_bytes:,}"
        )


def _cells(weight: WeightBytes) -> list[str]:
    record = weight.record
    parts = (record.codebook, record.tables, record.codes, record.gaps, record.total, weight.field_bytes)
    kept, widths = f"{weight.nnz / max(weight.numel, 1):.1%}", f"{weight.bits}+{weight.gap_bits}"
    return [weight.name, kept, widths, *(f"{size:,}" for size in parts), f"{weight.ratio:.1f}"]
