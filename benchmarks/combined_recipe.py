"""Filters, zeros and int8 in one run of the Compressor, beside each of them alone.

    python benchmarks/combined_recipe.py --work runs --json benchmarks/results/combined-recipe.json \
        --markdown benchmarks/results/combined-recipe.md

Every version is a run of examples/recipes/combined.yaml on scikit-learn's 8x8 digits, on one thread, for the same 28
epochs: with all its strategies, with a single one of them at its epochs, or with none (dense). Seeds choose the split
into training and test images, the weights and the order of training. What is compared is what ``compile()`` makes of
the result on this machine: its file in bytes, its accuracy on the 360 test images, and the time of one image, all
versions of a seed in one interleaved run.

Runs stay in the folder that --work names. Given again, the command trains nothing twice: it compiles and measures anew
from the last checkpoints, as on a quieter machine.
"""

from __future__ import annotations

import copy
import sys
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from accuracy_report import accuracy_sections, by_version, goal_rows, over_seeds, page, seed_table
from publish import add_file_options, publish

import sparsecore as sc
from sparsecore.bench import probes
from sparsecore.bench.models import digits_data
from sparsecore.bench.report import format_bytes, format_us
from sparsecore.bench.timing import interleave
from sparsecore.train.compressor import Compressed
from sparsecore.train.recipe import read_recipe

RECIPE = Path(__file__).parents[1] / "examples" / "recipes" / "combined.yaml"
DENSE, COMBINED = "dense", "combined"
SINGLE = {"filters alone": "l1-filters", "zeros alone": "gradual", "int8 alone": "qat"}
VERSIONS = (DENSE, *SINGLE, COMBINED)
MOST_POINTS_LOST = 1.5
TIMING_SECONDS = 5.0


def recipe_of(version: str, seed: int) -> dict[str, Any]:
    """The combined recipe with the strategies of a version."""
    content = copy.deepcopy(read_recipe(RECIPE).document.content)
    content |= {"seed": seed, "compile": {"cache": False}}
    for key in ("data", "metric"):
        content[key] = {"name": content[key], "split": seed}
    if version != COMBINED:
        content["strategies"] = [entry for entry in content["strategies"] if entry["name"] == SINGLE.get(version)]
    return content


def compressed(version: str, seed: int, work: Path) -> Compressed:
    """Run a version, or go on from its last checkpoint."""
    folder = work / f"{version.replace(' ', '-')}-{seed}"
    compressor = sc.Compressor(None, recipe_of(version, seed), output=folder)
    return compressor.run(resume=(folder / "checkpoints").exists())


def run_seed(seed: int, work: Path) -> dict[str, dict[str, float]]:
    """Accuracy, bytes and time of each version."""
    runs = {version: compressed(version, seed, work) for version in VERSIONS}
    image = digits_data(seed).test_x[:1]
    with torch.inference_mode():
        timings = interleave(
            {version: partial(run.fast, image) for version, run in runs.items()}, min_time_s=TIMING_SECONDS
        )
    last = {version: run.report.rows[-1] for version, run in runs.items()}
    return {
        "accuracy": {version: row.metric for version, row in last.items()},
        "bytes": {version: float(row.disk_bytes) for version, row in last.items()},
        "plain_bytes": {version: float(run.report.rows[-2].disk_bytes) for version, run in runs.items()},
        "parameters": {version: float(row.parameters) for version, row in last.items()},
        "nonzeros": {version: float(row.nonzeros) for version, row in last.items()},
        "us": {version: timing.median_us for version, timing in timings.items()},
        "spread": {version: timing.spread for version, timing in timings.items()},
    }


def run(seeds: Sequence[int], work: Path) -> dict[str, Any]:
    results = over_seeds("combined recipe", seeds, lambda seed: run_seed(seed, work))
    figures = {kind: by_version([result[kind] for result in results]) for kind in results[0]}
    return {"machine": probes.machine(), **figures, "goals": goals(figures)}


def goals(figures: Mapping[str, Mapping[str, Sequence[float]]]) -> list[dict[str, Any]]:
    def below(kind: str, *kinds: str) -> int:
        """In how many seeds the combined one is below all figures of these kinds of the single ones."""
        singles = zip(*(figures[each][name] for each in (kind, *kinds) for name in SINGLE), strict=True)
        return sum(ours < min(theirs) for ours, theirs in zip(figures[kind][COMBINED], singles, strict=True))

    accuracy = figures["accuracy"]
    lost = [100 * (dense - ours) for dense, ours in zip(accuracy[DENSE], accuracy[COMBINED], strict=True)]
    return goal_rows(
        [
            ("combined: a smaller file than each alone, compiled or not", below("bytes", "plain_bytes")),
            ("combined: faster than each alone", below("us")),
            (f"combined: at most {MOST_POINTS_LOST} points below dense", sum(p <= MOST_POINTS_LOST for p in lost)),
        ]
    )


def markdown(report: Mapping[str, Any]) -> str:
    seeds, machine = report["seeds"], report["machine"]

    def table(kind: str, text: Any) -> str:
        rows = [
            [name, *(text(value) for value in report[kind][name]), text(mean(report[kind][name])), ratio(kind, name)]
            for name in VERSIONS
        ]
        return seed_table(seeds, rows, "mean", "combined is")

    def ratio(kind: str, name: str) -> str:
        pairs = zip(report[kind][name], report[kind][COMBINED], strict=True)
        return "-" if name == COMBINED else f"{median(theirs / ours for theirs, ours in pairs):.2f}x less"

    sections = {
        "Bytes of the file": (
            "Compiled. A layer that runs as panels is stored as CSR, 8 bytes per number, also without zeros.\n\n"
            + table("bytes", format_bytes)
            + "\n\nNot compiled, in PyTorch's layers or plain int8 ones:\n\n"
            + table("plain_bytes", format_bytes)
        ),
        "One image": (
            f"{machine['cpu']}, {machine['isa']}, {machine['threads']} thread; load {machine['load_average']:.1f}. "
            f"Median of one interleaved run per seed; the widest spread (quartiles over median) of a version is "
            f"{max(max(values) for values in report['spread'].values()):.0%}.\n\n" + table("us", format_us)
        ),
        "Numbers that are not zero": table("nonzeros", lambda value: f"{value:,.0f}"),
        **accuracy_sections(seeds, report["accuracy"], DENSE),
    }
    return page("Filters, zeros and int8 in one recipe", "benchmarks/combined_recipe.py", report, sections)


def main() -> None:
    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("combined-recipe-runs"))
    add_file_options(parser)
    arguments = parser.parse_args()
    sys.path.insert(0, str(RECIPE.parent))  # where digits.py is
    torch.set_num_threads(1)
    seeds = list(range(arguments.seeds))
    versions = {"torch": torch.__version__, "sparsecore": sc.__version__}
    report = {**versions, "seeds": seeds, **run(seeds, arguments.work)}
    publish(report, markdown(report), arguments)


if __name__ == "__main__":
    main()
