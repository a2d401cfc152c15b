"""The main job: digits from training to int8 without zeros, ResNet-50 end to end, and a report of both."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from sparsecore._threads import use_threads
from sparsecore.bench import probes
from sparsecore.bench.demo_digits import run_digits
from sparsecore.bench.demo_resnet import run_resnet
from sparsecore.bench.progress import Progress, lines, stage
from sparsecore.bench.report import write_report
from sparsecore.errors import require_extra

SCHEMA = 1


def run_demo(
    out_dir: str | Path,
    threads: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run the whole demo and write its report.

    Trains a small net on scikit-learn's digits, prunes it to 90% zeros, quantizes and converts it,
    and measures every version; then measures ResNet-50 with 90% zeros against PyTorch.

    Args:
        out_dir: Gets report.json, report.html and the saved models; created if it does not exist.
        threads: Threads to compute with; None is torch's own number.
        seed: Of every random choice.
        progress: Called with the name of the step and the share done; None prints lines to stderr.

    Returns:
        What report.json holds.

    Raises:
        MissingExtraError: scikit-learn, plotly or jinja2 is not installed.
    """
    for library, extra in (("sklearn", "train"), ("plotly", "bench"), ("jinja2", "bench")):
        require_extra(library, extra)  # now, not after minutes
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):  # now, not after minutes
        pass
    progress = progress or lines()
    start = time.monotonic()
    with use_threads(threads):
        with stage(progress, "machine: measure its limits"):
            limits = probes.limits(torch.get_num_threads())
        report = {
            "schema": SCHEMA,
            "machine": probes.machine(),
            "limits": limits.to_dict(),
            "digits": run_digits(folder, seed, progress),
            "resnet50": run_resnet(seed, progress),
            "seconds": time.monotonic() - start,
        }
    write_report(report, folder)
    return report
