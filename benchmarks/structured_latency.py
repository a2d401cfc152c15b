"""What structured pruning is worth in time: whole models and cut ones in turns, in PyTorch and compiled.

    python benchmarks/structured_latency.py --json results/structured-latency.json \\
        --markdown results/structured-latency.md

ResNet-50, VGG-16, DenseNet-121 and MobileNetV2 lose 30% of the filters of every layer that can be cut, with counts as
they come out and rounded to what is fast by measuring; MobileNetV1 half of its FLOPs, uniformly and by sensitivity;
ViT-B/16 and BERT-base 30% of the neurons, and 4 of 12 heads of every layer too. Weights are random, so filters go by
the L1 norm of random numbers and the first heads go: this tells speed, not accuracy.

Every model runs as it is and cut, by PyTorch eager and by ``sparsecore.compile``, all in one interleaved run on one
input; times are medians. A speed-up is the median over the rounds of the ratio to the whole model in the same form, and
its quartiles. Parameters and multiply-adds are counted. ``--quick`` runs the smallest model shortly.

Files are written after every model. With ``--add`` they keep what they hold of other models and threads, so that the
whole can be measured in parts: ``--models vgg16 --threads 2 --add``.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from publish import add_file_options, write_files
from torch import nn

import sparsecore as sc
from sparsecore.bench.models import create, settle_batchnorm
from sparsecore.bench.probes import machine
from sparsecore.bench.text_table import Table, count_threads
from sparsecore.bench.timing import Timing, interleave
from sparsecore.calls import ExampleInputs, call_model
from sparsecore.cost import count_multiply_adds
from sparsecore.prune.structured import (
    channel_sensitivity,
    find_attention,
    prune_channels,
    prune_to_target,
    remove_heads,
)

RATIO, FLOPS, HEADS = 0.3, 0.5, (0, 1, 2, 3)
WHOLE, EAGER, COMPILED = "whole", "PyTorch", "compiled"
# Shares of filters at which a layer is judged alone, on the smaller image.
SCANNED, SCANNED_SIZE = (0.2, 0.5, 0.8), 64

Cut = Callable[[nn.Module, ExampleInputs], object]


def guided(model: nn.Module, x: ExampleInputs) -> object:
    """Half of the FLOPs, by how much the output changes without filters of each layer."""
    small = torch.randn(4, 3, SCANNED_SIZE, SCANNED_SIZE)
    with torch.no_grad():
        y = model(small)
    scan = channel_sensitivity(model, small, lambda net: -float((net(small) - y).square().mean()), SCANNED)
    return prune_to_target(model, x, FLOPS, sensitivity=scan)


def heads_and_neurons(model: nn.Module, x: ExampleInputs) -> object:
    remove_heads(model, x, dict.fromkeys(find_attention(model), HEADS))
    return prune_channels(model, x, RATIO)


FILTERS: dict[str, Cut] = {
    "30% of filters": partial(prune_channels, ratio=RATIO),
    "30% of filters, counts measured": partial(prune_channels, ratio=RATIO, round_to="measured"),
}
HALF: dict[str, Cut] = {
    "-50% FLOPs, uniform": partial(prune_to_target, reduce_by=FLOPS),
    "-50% FLOPs, by sensitivity": guided,
}
TRANSFORMER: dict[str, Cut] = {
    "30% of neurons": partial(prune_channels, ratio=RATIO),
    "4 of 12 heads, 30% of neurons": heads_and_neurons,
}
# The smallest first.
CUTS: dict[str, dict[str, Cut]] = {
    "mobilenet_v2": FILTERS,
    "mobilenet_v1": HALF,
    "densenet121": FILTERS,
    "resnet50": FILTERS,
    "vgg16": FILTERS,
    "vit": TRANSFORMER,
    "bert": TRANSFORMER,
}


def build(name: str) -> tuple[nn.Module, ExampleInputs]:
    """A model with random weights in evaluation mode, and one input."""
    torch.manual_seed(0)
    if name in ("vit", "bert"):
        import transformers

        if name == "bert":
            tokens = torch.randint(0, 30000, (1, 128))
            return transformers.BertModel(transformers.BertConfig()).eval(), {"input_ids": tokens}
        image = {"pixel_values": torch.randn(1, 3, 224, 224)}
        return transformers.ViTModel(transformers.ViTConfig()).eval(), image
    model, x = create(name), torch.randn(1, 3, 224, 224)
    settle_batchnorm(model, x)
    return model.eval(), x


def speedup(baseline: Timing, timing: Timing) -> dict[str, float]:
    """Median and quartiles of the ratio within a round."""
    ratios = np.array(baseline.samples_us) / np.array(timing.samples_us)
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    return {"q25": float(low), "median": float(middle), "q75": float(high)}


def measure(name: str, threads: int, seconds: float) -> list[dict[str, Any]]:
    """Time a model whole and cut on a number of threads; a row for each version."""
    torch.set_num_threads(threads)
    model, x = build(name)
    versions = {WHOLE: model}
    for cut, run in CUTS[name].items():
        versions[cut] = copy.deepcopy(model)
        run(versions[cut], x)
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    for version, net in versions.items():
        calls[EAGER, version] = partial(call_model, net, x)
        calls[COMPILED, version] = partial(call_model, sc.compile(net, x), x)
    names = {" ".join(key): key for key in calls}
    with torch.no_grad():
        timed = interleave({text: calls[key] for text, key in names.items()}, min_time_s=seconds, min_rounds=15)
    found = machine()
    timings = {names[text]: timing for text, timing in timed.items()}
    return [
        {
            "model": name,
            "version": version,
            "threads": threads,
            **{key: found[key] for key in ("date", "commit")},
            "parameters": sum(parameter.numel() for parameter in net.parameters()),
            "multiply_adds": count_multiply_adds(net, x),
            **{
                form: {
                    **timings[form, version].to_dict(),
                    "speedup": speedup(timings[form, WHOLE], timings[form, version]),
                }
                for form in (EAGER, COMPILED)
            },
        }
        for version, net in versions.items()
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = []
    for row in rows:
        forms = []
        for form in (EAGER, COMPILED):
            ratio = row[form]["speedup"]
            spread = "" if row["version"] == WHOLE else f" ({ratio['q25']:.2f}-{ratio['q75']:.2f})"
            forms += [f"{row[form]['median_us'] / 1e3:.2f}", f"{ratio['median']:.2f}x{spread}"]
        counts = [f"{row['parameters'] / 1e6:.2f}", f"{row['multiply_adds'] / 1e6:.0f}"]
        cells.append([row["model"], row["version"], *counts, *forms])
    headings = ["model", "version", "10^6 parameters", "10^6 multiply-adds"]
    headings += [f"{form}, {what}" for form in (EAGER, COMPILED) for what in ("ms", "over whole")]
    return Table("", headings, cells, names=2).markdown()


def markdown(report: Mapping[str, Any]) -> str:
    found = report["machine"]
    parts = [
        "# Structured pruning: latency",
        f"`benchmarks/structured_latency.py` on {found['cpu']}, torch {found['torch']}, sparsecore "
        f"{report['sparsecore']}; float32, one input. What was run is in the script's first lines.",
    ]
    if len({row["commit"] for row in report["rows"]}) > 1:
        parts.append("Measured in parts; the JSON file has date and commit of each row. Ratios are within a part.")
    for threads in dict.fromkeys(row["threads"] for row in report["rows"]):
        parts += [
            f"## {count_threads(threads).capitalize()}",
            table([row for row in report["rows"] if row["threads"] == threads]),
        ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=CUTS, default=list(CUTS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=20.0, help="for each model and number of threads")
    parser.add_argument("--add", action="store_true", help="keep the rows that the file of --json holds")
    parser.add_argument("--quick", action="store_true", help="the smallest model, 2 seconds, one thread")
    add_file_options(parser)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.models, arguments.threads, arguments.seconds = [next(iter(CUTS))], [1], 2.0
    rows = kept_rows(arguments.json) if arguments.add else []
    order = list(CUTS)
    for threads in sorted(arguments.threads):
        for name in sorted(arguments.models, key=order.index):
            start = time.perf_counter()
            print(f"{name}, {count_threads(threads)}", file=sys.stderr, flush=True)
            rows = [row for row in rows if (row["model"], row["threads"]) != (name, threads)]
            rows += measure(name, threads, arguments.seconds)
            rows.sort(key=lambda row: (row["threads"], order.index(row["model"])))
            report = {"machine": machine(), "sparsecore": sc.__version__, "rows": rows}
            write_files(report, markdown(report), arguments)
            print(f"  {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    print(markdown(report))


def kept_rows(file: Path | None) -> list[dict[str, Any]]:
    """The rows of an earlier run on this processor and with this torch; they stand in one table."""
    if file is None or not file.exists():
        sys.exit("error: expected --json FILE to add to")
    report = json.loads(file.read_text())
    here = machine()
    for key in ("cpu", "isa", "torch"):
        if report["machine"][key] != here[key]:
            sys.exit(f"error: {file} is of {key} {report['machine'][key]}, not {here[key]}; measure all anew")
    known = {key: report["machine"][key] for key in ("date", "commit")}
    return [known | row for row in report["rows"]]


if __name__ == "__main__":
    main()
