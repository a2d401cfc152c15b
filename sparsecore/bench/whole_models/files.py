"""Reports on disk."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsecore.bench.whole_models import plot, tables


def name_of(report: Mapping[str, Any]) -> str:
    """``model-<model>-<isa>``, and the pattern of the zeros, without signs that a file's name should not have."""
    model = re.sub(r"[^\w.-]+", "-", report["model"]).strip("-.")
    pattern = report.get("pattern", "unstructured")
    ending = "" if pattern == "unstructured" else "-" + pattern.replace(":", "of")
    return f"model-{model}-{report['machine']['isa']}{ending}"


def write(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write a report as .json, .md and .svg.

    Args:
        report: Of `run.measure`.
        folder: Created where it is missing; files of an older run of the same model are overwritten.

    Returns:
        The files; without any time there is no .svg.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = name_of(report)
    texts = {".json": json.dumps(report, indent=1) + "\n", ".md": tables.markdown(report)}
    paths = [folder / f"{stem}{ending}" for ending in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        path.write_text(text, encoding="utf-8")
    if plot.is_drawable(report):
        paths.append(folder / f"{stem}.svg")
        plot.draw(report, paths[-1])
    return paths
