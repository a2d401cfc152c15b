"""Reports on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsecore.bench.kernels import grid, plot, tables
from sparsecore.bench.kernels.run import DEFAULT_MASK, SCHEMA
from sparsecore.errors import FormatError

Report = Mapping[str, Any]
FORMATS_ENDING = "-formats.svg"


def name_of(report: Report) -> str:
    """``kernels-<isa>-<threads>-threads``, and the mask where it is not the usual one, 4:16 as ``4of16``."""
    machine = report["machine"]
    mask = "" if report["mask"] == DEFAULT_MASK else f"-{report['mask'].replace(':', 'of')}"
    return f"kernels-{machine['isa']}-{machine['threads']}-threads{mask}"


def write(report: Report, folder: Path) -> list[Path]:
    """Write a report as .json, .md and .svg, and which format wins as -formats.svg.

    Args:
        report: Of `run.measure`.
        folder: Created where it is missing; files of an older run with as many threads are overwritten.

    Returns:
        The files; without any speed-up there is no .svg of it.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / name_of(report)
    texts = {".json": json.dumps(report, indent=1) + "\n", ".md": tables.markdown(report)}
    paths = [with_ending(stem, ending) for ending in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        path.write_text(text, encoding="utf-8")
    for drawing, ending in ((plot, ".svg"), (grid, FORMATS_ENDING)):
        if drawing.is_drawable(report):
            paths.append(with_ending(stem, ending))
            drawing.draw([report], paths[-1])
    return paths


def with_ending(stem: Path, ending: str) -> Path:
    """The path of a file whose name is the stem's and the ending; names may hold dots."""
    return stem.with_name(stem.name + ending)


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
