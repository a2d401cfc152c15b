"""SparseGPT, Wanda and magnitude on a small Llama trained on the docstrings of Python's standard library.

    python benchmarks/llm_pruning.py WORK_FOLDER --json llm-pruning.json --markdown llm-pruning.md

Training: docstrings and comments of the standard library of the Python that runs this, split by module, as tokens of a
byte-level BPE. The model and its tokenizer are made once and kept in WORK_FOLDER; that takes about 20 minutes on one
core. Pruning: `sparsecore.prune.prune_pretrained`, calibrated on windows of the training text that the seed chooses.
Perplexity is per token, in windows of the validation modules, as long as those of the training. Speed: batch 1 x 128
tokens, float32, all models in one interleaved run. When Wanda is better than magnitude: `wanda_conditions.py`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from publish import add_file_options, publish
from stdlib_text import stdlib_text
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

import sparsecore as sc
from sparsecore.bench.probes import machine
from sparsecore.bench.text_table import Table
from sparsecore.bench.timing import interleave, speedup
from sparsecore.prune import prune_pretrained

VOCABULARY, LENGTH, BATCH = 2048, 128, 8
WARMUP_STEPS, LEARNING_RATE = 80, 2e-3
MODEL = "model"
TRAINING, TRAIN_IDS, VALIDATION_IDS = "training.json", "train.npy", "validation.npy"
CONFIG: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
}
# From the best that is expected to the worst.
METHODS = ("sparsegpt", "wanda", "magnitude")
SPARSITIES = (0.5, 0.6, 0.7)
GOAL_SPARSITY = 0.6
CALIBRATION_SAMPLES = 128
EVALUATION_WINDOWS, EVALUATION_BATCH = 256, 16


def train_model(folder: Path, steps: int, seed: int) -> None:
    """Train the tokenizer and the model, and leave both in a folder that transformers loads, with the texts' tokens."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    train_text, validation_text = stdlib_text()
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(train_text.split("\n\n"), vocab_size=VOCABULARY, show_progress=False)
    train_ids, validation_ids = (torch.tensor(bpe.encode(text).ids) for text in (train_text, validation_text))

    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG))
    start = time.monotonic()
    loss = train(model, train_ids, steps)
    training = {"steps": steps, "tokens": steps * BATCH * LENGTH, "seconds": time.monotonic() - start, "loss": loss}
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / TRAIN_IDS, train_ids.numpy())
    np.save(folder / VALIDATION_IDS, validation_ids.numpy())
    PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer).save_pretrained(folder / MODEL)
    model.save_pretrained(folder / MODEL)
    (folder / TRAINING).write_text(json.dumps(training) + "\n")


def train(model: Any, ids: Tensor, steps: int, decay_gains: bool = True) -> float:
    """Train on random windows of the text: AdamW, a linear warm-up, then a cosine down to a tenth.

    Returns:
        Mean loss of the last 100 steps.
    """
    parameters = list(model.parameters())
    gains = [parameter for parameter in parameters if parameter.ndim == 1]
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1]},
        {"params": gains} if decay_gains else {"params": gains, "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)

    def learning_rate(step: int) -> float:
        if step < WARMUP_STEPS:
            return (step + 1) / WARMUP_STEPS
        return 0.55 + 0.45 * math.cos(math.pi * (step - WARMUP_STEPS) / (steps - WARMUP_STEPS))

    schedule = LambdaLR(optimizer, learning_rate)
    start = time.monotonic()
    model.train()
    losses: list[float] = []
    for step in range(steps):
        begins = torch.randint(len(ids) - LENGTH, (BATCH,)).tolist()
        batch = torch.stack([ids[begin : begin + LENGTH] for begin in begins])
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if step % 50 == 0:
            seconds = time.monotonic() - start
            print(f"step {step} of {steps}, loss {losses[-1]:.3f}, {seconds:.0f} s", file=sys.stderr, flush=True)
    return mean(losses[-100:])


class Logits(nn.Module):
    """A language model that takes token ids and returns logits ``[batch, length, vocabulary]``."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
        self.model.config.use_cache = False

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids).logits


@torch.inference_mode()
def perplexity(model: nn.Module, ids: Tensor) -> float:
    """exp of the mean negative log likelihood of all tokens but the first of windows ``[windows, LENGTH]``."""
    total = 0.0
    for batch in ids.split(EVALUATION_BATCH):
        logits = model(batch)[:, :-1].flatten(0, 1)
        total += float(F.cross_entropy(logits, batch[:, 1:].flatten(), reduction="sum"))
    return math.exp(total / ids[:, 1:].numel())


def validation_windows(folder: Path) -> Tensor:
    """Windows of the validation text's tokens, spread over it, ``[EVALUATION_WINDOWS, LENGTH]``."""
    ids = torch.from_numpy(np.load(folder / VALIDATION_IDS))
    windows = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
    return windows[:: len(windows) // EVALUATION_WINDOWS][:EVALUATION_WINDOWS]


def unigram_perplexity(train_ids: Tensor, ids: Tensor) -> float:
    """Perplexity of the same tokens by their frequencies in the training text, each seen once more."""
    counts = torch.bincount(train_ids, minlength=VOCABULARY).double() + 1
    return math.exp(-float((counts / counts.sum()).log()[ids[:, 1:]].mean()))


def pruned_folder(folder: Path, method: str, sparsity: float, seed: int, model: str = MODEL) -> Path:
    """Prune a model of the folder, unless that was done before."""
    out = folder / f"{'' if model == MODEL else f'{model}-'}{method}-{sparsity}-seed{seed}"
    data = None if method == "magnitude" else folder / TRAIN_IDS
    prune_pretrained(
        folder / model,
        out,
        sparsity,
        criterion=method,
        data=data,
        samples=CALIBRATION_SAMPLES,
        length=LENGTH,
        seed=seed,
    )
    return out


def measure_perplexities(
    folder: Path, ids: Tensor, seeds: Sequence[int], model: str = MODEL, sparsities: Sequence[float] = SPARSITIES
) -> dict[str, dict[str, list[float]]]:
    """Perplexity by method and sparsity, one for each seed; magnitude's is the same for all."""
    found: dict[str, dict[str, list[float]]] = {}
    for method in METHODS:
        for sparsity in sparsities:
            values = []
            for seed in seeds if method != "magnitude" else seeds[:1]:
                print(f"{method}, {sparsity:.0%}, seed {seed}", file=sys.stderr, flush=True)
                values.append(perplexity(Logits(pruned_folder(folder, method, sparsity, seed, model)), ids))
            found.setdefault(method, {})[f"{sparsity:.0%}"] = values * (len(seeds) // len(values))
    return found


@torch.no_grad()
def measure_speed(folder: Path, ids: Tensor, seed: int) -> dict[str, Any]:
    """Time the dense model in PyTorch, compiled, and pruned by SparseGPT and compiled, in one interleaved run."""
    dense = Logits(folder / MODEL)
    models = {"dense, PyTorch": dense, "dense, compiled": sc.compile(dense, (ids,), cache=False)}
    differences = {"dense, compiled": relative_difference(models["dense, compiled"](ids), dense(ids))}
    for sparsity in SPARSITIES:
        pruned = Logits(pruned_folder(folder, METHODS[0], sparsity, seed))
        name = f"{sparsity:.0%} pruned, compiled"
        models[name] = sc.compile(pruned, (ids,), cache=False)
        differences[name] = relative_difference(models[name](ids), pruned(ids))
    timings = interleave({name: (lambda model=model: model(ids)) for name, model in models.items()}, min_time_s=20)
    base = timings["dense, PyTorch"]
    return {
        name: timing.to_dict()
        | {"speedup": speedup(base, timing), "spread": timing.spread, "difference": differences.get(name, 0.0)}
        for name, timing in timings.items()
    }


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def goals(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was to be reached, and in how many seeds it was."""
    dense, goal = report["dense"], f"{GOAL_SPARSITY:.0%}"
    columns = zip(*(report["perplexity"][method][goal] for method in METHODS), strict=True)
    pairs = [("dense", METHODS[0]), *pairwise(METHODS)]
    in_order = [[a < b for a, b in pairwise((dense, *column))] for column in columns]
    return [
        {"goal": f"{goal} zeros: {better} below {worse}", "seeds_reached": sum(row[i] for row in in_order)}
        for i, (better, worse) in enumerate(pairs)
    ]


def markdown(report: Mapping[str, Any]) -> str:
    """The report as tables."""
    seeds, found = report["seeds"], report["machine"]

    def cell(values: Sequence[float]) -> str:
        return (
            f"{mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"
            if len(set(values)) > 1
            else f"{values[0]:.2f}"
        )

    headings = [f"{sparsity:.0%} zeros" for sparsity in SPARSITIES]
    rows = [[method, *map(cell, by_sparsity.values())] for method, by_sparsity in report["perplexity"].items()]
    goal_rows = [
        [row["goal"], f"{row['seeds_reached']}/{len(seeds)}", "yes" if row["seeds_reached"] == len(seeds) else "**no**"]
        for row in report["goals"]
    ]
    speed_rows = [
        [
            name,
            f"{row['median_us'] / 1e3:.2f}",
            f"{row['spread']:.1%}",
            f"{row['speedup']:.2f}",
            f"{row['difference']:.1e}",
        ]
        for name, row in report["speed"].items()
    ]
    return "\n".join(
        [
            "# Pruning a small language model",
            "",
            f"`benchmarks/llm_pruning.py`: torch {found['torch']}, sparsecore {found['sparsecore']}, Python "
            f"{found['python']}. A Llama of {report['parameters'] / 1e6:.1f} million weights "
            f"({CONFIG['num_hidden_layers']} blocks, hidden size {CONFIG['hidden_size']}, vocabulary {VOCABULARY}), "
            f"trained on {report['training']['tokens'] / 1e6:.1f} million tokens of docstrings and comments in "
            f"{report['training']['steps']} steps.",
            "",
            "## Perplexity",
            "",
            f"On {report['validation_tokens']} tokens of modules that were not trained on: dense "
            f"{report['dense']:.2f}, token frequencies alone {report['unigram']:.1f}. Calibrated on "
            f"{CALIBRATION_SAMPLES} x {LENGTH} tokens; mean (smallest to largest) over {len(seeds)} choices of them.",
            "",
            Table("", ["method", *headings], rows).markdown(),
            "",
            Table("", ["goal", "seeds", "reached"], goal_rows).markdown(),
            "",
            "## Speed",
            "",
            f"1 x {LENGTH} tokens on {found['cpu']} ({found['isa']}), {found['threads']} thread(s), load average "
            f"{found['load_average']:.1f}; one interleaved run; pruned by SparseGPT.",
            "",
            Table("", ["model", "median, ms", "spread", "speed-up", "difference"], speed_rows).markdown(),
            "",
            "Spread: interquartile range over median. Difference: the largest of the logits against the same weights "
            "in PyTorch, over the largest logit.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="keeps the trained model and the pruned ones")
    parser.add_argument("--steps", type=int, default=3000, help=f"of training, {BATCH} x {LENGTH} tokens each")
    parser.add_argument("--seeds", type=int, default=5, help="choices of calibration windows")
    parser.add_argument("--threads", type=int, default=1)
    add_file_options(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder: Path = arguments.folder
    if not (folder / TRAINING).is_file():
        train_model(folder, arguments.steps, seed=0)

    train_ids, windows = torch.from_numpy(np.load(folder / TRAIN_IDS)), validation_windows(folder)
    dense = Logits(folder / MODEL)
    seeds = list(range(arguments.seeds))
    report: dict[str, Any] = {
        "machine": machine(),
        "seeds": seeds,
        "training": json.loads((folder / TRAINING).read_text()),
        "parameters": sum(parameter.numel() for parameter in dense.parameters()),
        "train_tokens": len(train_ids),
        "validation_tokens": windows.numel(),
        "unigram": unigram_perplexity(train_ids, windows),
        "dense": perplexity(dense, windows),
        "perplexity": measure_perplexities(folder, windows, seeds),
        "speed": measure_speed(folder, windows[:1], seeds[0]),
    }
    report["goals"] = goals(report)
    publish(report, markdown(report), arguments)


if __name__ == "__main__":
    main()
