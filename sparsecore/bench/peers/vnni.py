"""Whether the peers' int8 kernels are right with 8-bit weights on this CPU."""

from __future__ import annotations

from pathlib import Path


def weight_note() -> str:
    """Bits of the weights, for a candidate's note."""
    return "8-bit weights" if is_exact_at_8_bits() else "7-bit weights (no VNNI)"


def weight_levels() -> int:
    """The largest int8 weight: 7-bit weights keep sums of two products in a saturating 16 bits exact."""
    return 127 if is_exact_at_8_bits() else 63


def is_exact_at_8_bits() -> bool:
    """Whether uint8 times int8 does not saturate in the usual kernels: not x86, or x86 with VNNI."""
    return is_exact_with(_cpu_flags())


def is_exact_with(flags: set[str] | None) -> bool:
    """The same for given x86 CPU flags, None for another CPU."""
    return flags is None or bool(flags & {"avx512_vnni", "avx_vnni"})


def _cpu_flags() -> set[str] | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()  # unknown: be careful
    flags = [line.partition(":")[2].split() for line in lines if line.startswith("flags")]
    return set(flags[0]) if flags else None
