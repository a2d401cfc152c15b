"""Reports on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsecore.bench.kernels import plot, tables
from sparsecore.bench.kernels.run import DEFAULT_MASK, SCHEMA
from sparsecore.errors import FormatError

Report = Mapping[str, Any]


def name_of(report: Report) -> str:
    """``kernels-<isa>-<threads>-threads``, and the mask where it is not the usual one, 4:16 as ``4of16``."""
    machine = report["machine"]
    mask = "" if report["mask"] == DEFAULT_MASK else f"-{report['mask'].replace(':', 'of')}"
    return f"kernels-{machine['isa']}-{machine['threads']}-threads{mask}"


def write(report: Report, folder: Path) -> list[Path]:
    """Write a report as .json, .md and .svg.

    Args:
        report: Of `run.measure`.
        folder: Created where it is missing; files of an older run with as many threads are overwritten.

    Returns:
        The files; without any speed-up there is no .svg.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {suffix: folder / f"{name_of(report)}.{suffix}" for suffix in ("json", "md", "svg")}
    paths["json"].write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    paths["md"].write_text(tables.markdown(report), encoding="utf-8")
    if plot.is_drawable(report):
        plot.draw([report], paths["svg"])
    else:
        del paths["svg"]
    return list(paths.values())


def read(path: Path) -> list[Report]:
    """Read the reports in a file, which holds one, or a list of them under ``reports``.

    Raises:
        FormatError: It holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        reports: Sequence[Report] = content.get("reports", [content])
        if reports and all(report["schema"] == SCHEMA for report in reports):
            return list(reports)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise FormatError(f"expected a report of sparsecore kernels bench, version {SCHEMA}, got {path}")
