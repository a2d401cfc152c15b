"""What the machine can do: FMA peak, read bandwidth per cache level, and what it is."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import torch

from sparsecore import _C

KIB = 1024
MIB = 1024 * KIB
# Only where the operating system does not tell: L1 and L2 of one core, and the shared L3.
DEFAULT_CACHE_BYTES = (32 * KIB, 512 * KIB, 16 * MIB)
# All threads together; filling more would take seconds.
MAX_BUFFER_BYTES = 1024 * MIB


@dataclass(frozen=True)
class Bandwidth:
    """Read bandwidth of all threads together, each on a private buffer of that size."""

    level: str
    buffer_bytes: int
    read_gbps: float


@dataclass(frozen=True)
class Limits:
    """What this machine allows right now with that many threads."""

    threads: int
    fma_gflops: float
    bandwidth: tuple[Bandwidth, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"bandwidth": [asdict(level) for level in self.bandwidth]}


def fma_gflops(threads: int = 1, seconds: float = 0.1) -> float:
    """Measure the float32 FMA peak, operands in registers.

    Args:
        threads: Threads that run at the same time; the result is their sum.
        seconds: How long each of them runs.

    Returns:
        10^9 operations per second; one multiply-add is two.
    """
    return _sum_over_threads(lambda: _C.probe_fma_gflops(seconds), threads)


def read_gbps(buffer_bytes: int, threads: int = 1, seconds: float = 0.1) -> float:
    """Measure how fast threads read, each its own buffer again and again.

    Args:
        buffer_bytes: Size of the buffer of each thread; it decides which level of memory is read.
        threads: Threads that run at the same time; the result is their sum.
        seconds: How long each of them runs.

    Returns:
        10^9 bytes per second.
    """
    return _sum_over_threads(lambda: _C.probe_read_gbps(buffer_bytes, seconds), threads)


def limits(threads: int, seconds: float = 0.1) -> Limits:
    """Measure FMA peak and read bandwidth of L1, L2, L3 and DRAM.

    Args:
        threads: Threads that run at the same time.
        seconds: How long each of the five measurements takes.

    Returns:
        The measured limits, summed over the threads.
    """
    return Limits(
        threads=threads,
        fma_gflops=fma_gflops(threads, seconds),
        bandwidth=tuple(
            Bandwidth(level, size, read_gbps(size, threads, seconds))
            for level, size in _buffer_bytes(cache_bytes(), threads).items()
        ),
    )


def cache_bytes() -> tuple[int, int, int]:
    """Sizes of L1 data, L2 and L3 as the operating system gives them, else a common guess."""
    found = dict(enumerate(DEFAULT_CACHE_BYTES, start=1))
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            if (index / "type").read_text().strip() == "Instruction":
                continue
            level = int((index / "level").read_text())
            found[level] = int((index / "size").read_text().strip().removesuffix("K")) * KIB
        except (OSError, ValueError):
            continue
    return found[1], found[2], found[3]


def machine() -> dict[str, Any]:
    """Describe what measures: processor, threads, versions, instruction set, commit and date.

    Returns:
        A dict that JSON can hold; ``commit`` is None outside a git checkout, ``load_average`` is
        that of the last minute.
    """
    return {
        "cpu": _C.cpu_name(),
        "cores": _available_cores(),
        "threads": torch.get_num_threads(),
        "isa": _C.isa(),
        "isa_detected": _C.isa_detected(),
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sparsecore": _C.build_info()["version"],
        "commit": _commit(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def installation() -> dict[str, Any]:
    """Describe what is installed: machine, build, CUDA, and every operation's kernels.

    Returns:
        A dict that JSON can hold. ``operations`` maps each operation to its kernels, best first;
        ``in_use`` marks the one that calls get by default.
    """
    return {
        "machine": machine(),
        "build": _C.build_info(),
        "cuda_available": torch.cuda.is_available(),
        "operations": operations(),
    }


def operations() -> dict[str, list[dict[str, Any]]]:
    """List every operation's kernels, best first; the first available one is in use."""
    table: dict[str, list[dict[str, Any]]] = {}
    for kernel in _C.kernels():
        rows = table.setdefault(kernel["op"], [])
        in_use = kernel["available"] and not any(row["in_use"] for row in rows)
        rows.append({key: kernel[key] for key in ("name", "isa", "available")} | {"in_use": in_use})
    return table


def _sum_over_threads(probe: Callable[[], float], threads: int) -> float:
    """Run the probe on that many threads at once; it must release the GIL."""
    if threads < 1:
        raise ValueError(f"expected at least one thread, got {threads}")
    start = threading.Barrier(threads)

    def run(_: int) -> float:
        start.wait()
        return probe()

    with ThreadPool(threads) as pool:
        return sum(pool.map(run, range(threads), chunksize=1))


def _buffer_bytes(caches: tuple[int, int, int], threads: int) -> dict[str, int]:
    """Buffer per thread that fits well into each level and not into the one before it."""
    l1, l2, l3 = caches
    return {
        "L1": l1 // 2,
        "L2": max(l2 // 2, 2 * l1),
        "L3": max(l3 // 2 // threads, 2 * l2),
        "DRAM": max(min(4 * l3, MAX_BUFFER_BYTES) // threads, 4 * l2),
    }


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _commit() -> str | None:
    """Commit of the checkout that this package runs from, None if it is installed elsewhere."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None
