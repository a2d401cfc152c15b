"""Several runs as one: a shared machine has slow minutes, which mislead about the cells that fall into them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from sparsecore.bench.kernels.compare import conclusions

Row = Mapping[str, Any]
SAME = ("cpu", "isa", "threads")


def merge(reports: Sequence[Row]) -> dict[str, Any]:
    """Merge runs of one machine: each candidate's times are the medians over the runs in which it took part.

    Args:
        reports: Of `run.measure`, oldest first.

    Returns:
        A report with the cells of all, ``runs`` more than one, and the machine and the versions of the last.

    Raises:
        ValueError: There is none, or they differ in processor, instruction set, number of threads or mask.
    """
    settings = {(*(report["machine"][name] for name in SAME), report["mask"]) for report in reports}
    if len(settings) != 1:
        found = "; ".join(", ".join(map(str, each)) for each in sorted(settings, key=str)) or "none"
        raise ValueError(f"expected reports of one processor, instruction set, number of threads and mask, got {found}")
    places: dict[tuple[float, str], list[Row]] = {}
    for report in reports:
        for cell in report["cells"]:
            places.setdefault((cell["sparsity"], json.dumps(cell["layer"], sort_keys=True)), []).append(cell)
    layers = list(dict.fromkeys(layer for _, layer in places))
    order = sorted(places, key=lambda place: (place[0], layers.index(place[1])))
    cells = [_merge_cells(places[place]) for place in order]
    commits = dict.fromkeys(str(report["machine"]["commit"]) for report in reports)
    return {
        **reports[-1],
        "machine": reports[-1]["machine"] | {"commit": " ".join(commits)},
        "runs": sum(report.get("runs", 1) for report in reports),
        "rounds": sum(report["rounds"] for report in reports),
        "complete": all(report["complete"] for report in reports),
        "cells": cells,
        **conclusions(cells),
    }


def _merge_cells(cells: Sequence[Row]) -> dict[str, Any]:
    candidates: dict[tuple[str, str, str], list[Row]] = {}
    for cell in cells:
        for row in cell["candidates"]:
            candidates.setdefault((row["library"], row["name"], row["dtype"]), []).append(row)
    return {
        **cells[-1],
        "fma_gflops": _median([cell["fma_gflops"] for cell in cells]),
        "candidates": [_merge_candidates(rows) for rows in candidates.values()],
        "failures": list(dict.fromkeys(failure for cell in cells for failure in cell["failures"])),
    }


def _merge_candidates(rows: Sequence[Row]) -> dict[str, Any]:
    timed = [row for row in rows if row.get("us")]
    merged = dict(rows[-1]) | {"wrong": any(row["wrong"] for row in rows)}
    if not timed:
        return merged
    for key in ("us", "first_us"):
        merged[key] = {name: _median([row[key][name] for row in timed]) for name in timed[0][key]}
        merged[key]["rounds"] = sum(row[key]["rounds"] for row in timed)
    return merged | {"share_of_peak": _median([row.get("share_of_peak") for row in timed])}


def _median(numbers: Sequence[float | None]) -> float | None:
    found = [number for number in numbers if number is not None]
    return median(found) if found else None
