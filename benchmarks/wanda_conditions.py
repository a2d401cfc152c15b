"""When Wanda is better than magnitude: three small Llamas, and weights compared within rows or within layers.

    python benchmarks/wanda_conditions.py WORK_FOLDER --json wanda-conditions.json --markdown wanda-conditions.md

WORK_FOLDER is that of `llm_pruning.py`, whose model loses more by Wanda than by magnitude. What was tried was fixed
before its outcome was known:

- The comparison group: Wanda compares within each output row, magnitude within the whole layer. Here both do both.
- Longer training: that model goes on for 1200 steps, with a second warm-up and cosine.
- A smaller model, nearer to its capacity, trained as language models are: hidden size 128, 3500 steps, and no weight
  decay of the gains of its norms, so that channels may come to differ.

Pruning is done here by scores in float64, independently of the library: block by block, each calibrated on what the
pruned blocks before it give. The library's `prune_pretrained` prunes the same models to 60%, SparseGPT too. Perplexity
as in `llm_pruning.py`.

Reference: Sun et al., A Simple and Effective Pruning Approach for Large Language Models, ICLR 2024, sec. 3 and 4.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from llm_pruning import (
    CALIBRATION_SAMPLES,
    CONFIG,
    EVALUATION_BATCH,
    GOAL_SPARSITY,
    LENGTH,
    METHODS,
    SPARSITIES,
    TRAIN_IDS,
    TRAINING,
    Logits,
    measure_perplexities,
    perplexity,
    train,
    validation_windows,
)
from publish import add_file_options, publish
from torch import Tensor, nn

import sparsecore as sc
from sparsecore.bench.text_table import Table

GROUPS = ("row", "layer")
SMALL = {"hidden_size": 128, "intermediate_size": 352}
LONGER_STEPS, SMALL_STEPS = 1200, 3500


def trained_models(folder: Path, ids: Tensor) -> dict[str, Path]:
    """Folders of the three models by their names; those that are missing are trained."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    first = json.loads((folder / TRAINING).read_text())["steps"]
    models = {
        f"{first} steps": folder / "model",
        f"{first} + {LONGER_STEPS} steps": folder / "longer",
        f"width 128, {SMALL_STEPS} steps": folder / "small",
    }
    if not (folder / "longer").is_dir():
        torch.manual_seed(1)
        longer = AutoModelForCausalLM.from_pretrained(folder / "model", local_files_only=True)
        train(longer, ids, LONGER_STEPS)
        longer.save_pretrained(folder / "longer")
    if not (folder / "small").is_dir():
        torch.manual_seed(0)
        small = LlamaForCausalLM(LlamaConfig(**(CONFIG | SMALL)))
        train(small, ids, SMALL_STEPS, decay_gains=False)
        small.save_pretrained(folder / "small")
    return models


@torch.no_grad()
def prune_by_score(model: nn.Module, ids: Tensor, sparsity: float, group: str, uses_inputs: bool) -> None:
    """Zero the weights of least score in every block, in place: their magnitude, or that times the input's norm."""
    for block in model.model.layers:
        layers = [module for module in block.modules() if isinstance(module, nn.Linear)]
        squares = {layer: torch.ones(layer.in_features, dtype=torch.float64) for layer in layers}
        if uses_inputs:
            squares = input_squares(model, layers, ids)
        for layer in layers:
            scores = layer.weight.double().abs() * squares[layer].sqrt()
            rows = scores if group == "row" else scores.reshape(1, -1)
            is_least = torch.zeros_like(rows, dtype=torch.bool)
            for row, least in zip(rows, is_least, strict=True):
                least[row.argsort(stable=True)[: round(sparsity * len(row))]] = True
            layer.weight[is_least.view_as(layer.weight)] = 0


def input_squares(model: nn.Module, layers: Sequence[nn.Module], ids: Tensor) -> dict[nn.Module, Tensor]:
    """Sums of squares of each input of linear layers, float64 ``[K]``."""
    found: dict[nn.Module, Tensor] = {}

    def add(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        squares = arguments[0].double().square().flatten(0, -2).sum(0)
        found[layer] = found.get(layer, 0) + squares

    hooks = [layer.register_forward_pre_hook(add) for layer in layers]
    for batch in ids.split(EVALUATION_BATCH):
        model.model(input_ids=batch)
    for hook in hooks:
        hook.remove()
    return found


def calibration_windows(ids: Tensor, seed: int) -> Tensor:
    """Windows of the training text, ``[CALIBRATION_SAMPLES, LENGTH]``."""
    generator = torch.Generator().manual_seed(seed)
    begins = torch.randint(len(ids) - LENGTH, (CALIBRATION_SAMPLES,), generator=generator).tolist()
    return torch.stack([ids[begin : begin + LENGTH] for begin in begins])


def measure(folder: Path, ids: Tensor, windows: Tensor, seeds: Sequence[int]) -> dict[str, Any]:
    """Perplexities of one model: dense, and by group, method, sparsity and seed; magnitude needs no seed."""
    found: dict[str, Any] = {"dense": perplexity(Logits(folder), windows)}
    for group in GROUPS:
        for sparsity in SPARSITIES:
            for method in ("magnitude", "wanda"):
                is_repeated = method == "wanda" and sparsity == GOAL_SPARSITY
                values = []
                for seed in seeds if is_repeated else seeds[:1]:
                    model = Logits(folder)
                    calibration = calibration_windows(ids, seed)
                    prune_by_score(model.model, calibration, sparsity, group, uses_inputs=method == "wanda")
                    values.append(perplexity(model, windows))
                found.setdefault(group, {}).setdefault(method, {})[f"{sparsity:.0%}"] = values
    return found


def library_orders(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """In how many seeds the library's methods came in the order dense, SparseGPT, Wanda, magnitude, by model."""
    goal, rows = f"{GOAL_SPARSITY:.0%}", []
    for name, found in report["library"].items():
        columns = list(zip(*(found[method][goal] for method in METHODS), strict=True))
        dense = report["models"][name]["dense"]
        reached = sum(all(a < b for a, b in pairwise((dense, *column))) for column in columns)
        means = {method: mean(found[method][goal]) for method in METHODS}
        rows.append({"model": name, "dense": dense, **means, "seeds_in_order": reached, "seeds": len(columns)})
    return rows


def goals(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """In how many seeds Wanda was below magnitude at the goal's sparsity, by model and groups."""
    goal, rows = f"{GOAL_SPARSITY:.0%}", []
    for name, found in report["models"].items():
        for ours, theirs in (("row", "layer"), ("row", "row"), ("layer", "layer")):
            reference = found[theirs]["magnitude"][goal][0]
            values = found[ours]["wanda"][goal]
            rows.append(
                {
                    "model": name,
                    "wanda": ours,
                    "magnitude": theirs,
                    "seeds_below": sum(value < reference for value in values),
                    "seeds": len(values),
                    "more": mean(values) / reference - 1,
                }
            )
    return rows


def markdown(report: Mapping[str, Any]) -> str:
    """The report as tables."""
    perplexity_rows = [
        [name, group, method, *(f"{mean(values):.2f}" for values in found[group][method].values())]
        for name, found in report["models"].items()
        for group in GROUPS
        for method in ("magnitude", "wanda")
    ]
    goal_rows = [
        [
            row["model"],
            f"within the {row['wanda']}",
            f"within the {row['magnitude']}",
            f"{row['seeds_below']}/{row['seeds']}",
            f"{row['more']:+.1%}",
        ]
        for row in report["goals"]
    ]
    order_rows = [
        [
            row["model"],
            *(f"{row[version]:.2f}" for version in ("dense", *METHODS)),
            f"{row['seeds_in_order']}/{row['seeds']}",
        ]
        for row in library_orders(report)
    ]
    dense = ", ".join(f"{name} {found['dense']:.2f}" for name, found in report["models"].items())
    return "\n".join(
        [
            "# When Wanda is better than magnitude",
            "",
            f"`benchmarks/wanda_conditions.py`: torch {report['torch']}, sparsecore {report['sparsecore']}. What was "
            "run is in the script's first lines.",
            "",
            f"## {GOAL_SPARSITY:.0%} zeros: Wanda below magnitude",
            "",
            Table(
                "", ["model", "Wanda compares", "magnitude compares", "seeds below", "Wanda's excess"], goal_rows
            ).markdown(),
            "",
            "The goal is the first row of each model: each method as its authors compare.",
            "",
            f"## {GOAL_SPARSITY:.0%} zeros by the library: the order",
            "",
            Table("", ["model", "dense", *METHODS, "seeds in this order"], order_rows).markdown(),
            "",
            "## Perplexity",
            "",
            f"Dense: {dense}. Wanda's is a mean over the seeds of the calibration.",
            "",
            Table(
                "", ["model", "group", "method", *(f"{sparsity:.0%} zeros" for sparsity in SPARSITIES)], perplexity_rows
            ).markdown(),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="that of llm_pruning.py; keeps the trained models")
    parser.add_argument("--seeds", type=int, default=3, help="choices of calibration windows")
    add_file_options(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder: Path = arguments.folder
    ids = torch.from_numpy(np.load(folder / TRAIN_IDS))
    windows = validation_windows(folder)
    models, library = {}, {}
    for name, path in trained_models(folder, ids).items():
        start = time.monotonic()
        seeds = range(arguments.seeds)
        models[name] = measure(path, ids, windows, seeds)
        library[name] = measure_perplexities(folder, windows, seeds, path.name, [GOAL_SPARSITY])
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    report: dict[str, Any] = {"torch": torch.__version__, "sparsecore": sc.__version__, "models": models}
    report |= {"library": library, "goals": goals(report)}
    publish(report, markdown(report), arguments)


if __name__ == "__main__":
    main()
