"""What the scripts that measure accuracy over several seeds share: the runs, the tables and the files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean
from typing import Any, TypeVar

import torch
from publish import add_file_options, publish

import sparsecore as sc
from sparsecore.bench.text_table import Table

Result = TypeVar("Result")
BySeed = Mapping[str, Sequence[float]]  # a figure for every seed, by version


def over_seeds(what: str, seeds: Iterable[int], run: Callable[[int], Result]) -> list[Result]:
    """Run for every seed, and say so on stderr."""
    results = []
    for seed in seeds:
        print(f"{what}, seed {seed}", file=sys.stderr, flush=True)
        results.append(run(seed))
    return results


def by_version(runs: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """One list over the seeds per version."""
    return {name: [run[name] for run in runs] for name in runs[0]}


def goal_rows(goals: Iterable[tuple[str, int]]) -> list[dict[str, Any]]:
    """What was to be reached, and in how many seeds it was."""
    return [{"goal": goal, "seeds_reached": reached} for goal, reached in goals]


def count_at_least(ours: Sequence[float], theirs: Sequence[float], margin: float = 0.0) -> int:
    """In how many seeds ours is at least theirs less a margin; rounding to half an image of 10^6 decides no seed."""
    return sum(a >= b - margin - 5e-7 for a, b in zip(ours, theirs, strict=True))


def seed_table(seeds: Sequence[int], rows: Sequence[Sequence[str]], *last: str) -> str:
    """A table with a column per seed, and others behind."""
    return Table("", ["version", *(f"seed {seed}" for seed in seeds), *last], rows).markdown()


def accuracy_sections(seeds: Sequence[int], accuracies: BySeed, reference: str) -> dict[str, str]:
    """Tables by title: accuracy on the digits, and points lost against a reference."""
    accuracy_rows, loss_rows = [], []
    for name, values in accuracies.items():
        lost = [100 * (f - a) for f, a in zip(accuracies[reference], values, strict=True)]
        accuracy_rows.append([name, *(f"{value:.2%}" for value in values), f"{mean(values):.2%}"])
        loss_rows.append([name, *(f"{points:+.2f}" for points in lost), f"{mean(lost):+.2f}", f"{max(lost):+.2f}"])
    return {
        "Digits: accuracy": seed_table(seeds, accuracy_rows, "mean"),
        f"Digits: points lost against {reference}": (
            "One of the 360 test images is 0.28 points; below zero is a gain.\n\n"
            + seed_table(seeds, loss_rows, "mean", "worst")
        ),
    }


def page(title: str, script: str, report: Mapping[str, Any], sections: Mapping[str, str]) -> str:
    """A Markdown page: what was run, the goals, and sections by title."""
    seeds = report["seeds"]
    rows = [
        [row["goal"], f"{row['seeds_reached']}/{len(seeds)}", "yes" if row["seeds_reached"] == len(seeds) else "**no**"]
        for row in report["goals"]
    ]
    parts = [
        f"# {title}",
        f"`{script}`: torch {report['torch']}, sparsecore {report['sparsecore']}, seeds "
        f"{', '.join(map(str, seeds))}. What was run is in the script's first lines.",
    ]
    for heading, text in {"Goals": Table("", ["goal", "seeds", "reached"], rows).markdown(), **sections}.items():
        parts += [f"## {heading}", text]
    return "\n\n".join(parts) + "\n"


def main(
    description: str | None,
    run: Callable[[Sequence[int]], dict[str, Any]],
    markdown: Callable[[Mapping[str, Any]], str],
) -> None:
    """Read the arguments of a script, run it on one thread, print and write the report."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    add_file_options(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seeds = list(range(arguments.seeds))
    report = {"torch": torch.__version__, "sparsecore": sc.__version__, "seeds": seeds, **run(seeds)}
    publish(report, markdown(report), arguments)
