"""4-bit training against 4-bit rounding on digits: ways to train, two nets, accuracy and cross-entropy.

    python benchmarks/qat_four_bits.py --json qat-four-bits.json --markdown qat-four-bits.md

In `quantization_accuracy.py` training with 4 bits is below rounding to 4 bits in 2 of 5 seeds: rounding loses one
image of 360, and training anything further, in float32 too, moves as many. What was tried was fixed before its outcome
was known:

- cross-entropy on the test images beside accuracy, for a finer measure;
- a net of a quarter of the channels, where 4 bits cost more;
- rounding after the same 6 epochs of training in float32, so that both sides have trained as long;
- 18 epochs instead of 6, the ranges of activations frozen for the last 6;
- a tenth of the learning rate, from the rounded net on, and of the nets after each epoch and before the first the one
  with the least cross-entropy on a fifth of the training images, which are not trained on;
- learned step sizes, of activations too, for 18 epochs: started as the paper says, and from the ranges of weights.

Learned steps were run twice: with a prototype (demo's net 5/5 in both measures, quarter net 4/5 in accuracy, 5/5 in
cross-entropy) and, as in the results, by `prepare_qat(steps="learned")`, which adds in another order; the start from
ranges came with the second run.

All fold BatchNorm first, so it is frozen, and use one range of activations per layer and one scale per output channel.
The nets, the data and the calibration are those of `quantization_accuracy.py`. Nothing is timed.

Reference: Esser et al., Learned Step Size Quantization, ICLR 2020, for the learned steps.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from accuracy_report import by_version, count_at_least, goal_rows, main, over_seeds, page, seed_table
from quantization_accuracy import LEARNING_RATE, TRAIN_EPOCHS, TUNE_EPOCHS, calibrated, calibration, fine_tuned, folded
from torch import Tensor, nn
from torch.optim import AdamW

from sparsecore.bench.demo_digits import accuracy, steps_per_epoch, train
from sparsecore.bench.models import Digits, digits_data, digits_net
from sparsecore.bench.models.blocks import conv_norm
from sparsecore.quantize import freeze_ranges, prepare_qat

BITS = 4
LONG_EPOCHS, FROZEN_EPOCHS = 18, 6
VALIDATION_SHARE = 5  # one image in this many
LARGEST = 2 ** (BITS - 1) - 1
REFERENCE = "calibrated"


def quarter_net() -> nn.Sequential:
    """The demo's net with a quarter of its channels."""
    return nn.Sequential(
        OrderedDict(
            stem=conv_norm(1, 16, 3),
            spatial=conv_norm(16, 32, 3),
            pool=nn.MaxPool2d(2),
            pointwise=conv_norm(32, 64, 1),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            hidden=nn.Linear(64 * 2 * 2, 64),
            relu=nn.ReLU(),
            classifier=nn.Linear(64, 10),
        )
    )


def train_by(model: nn.Module, data: Digits, epochs: int, rate: float, after_step: Callable[[], None]) -> nn.Module:
    train(model, data, AdamW(model.parameters(), lr=rate), epochs, lambda share: None, after_step)
    return model


def as_before(model: nn.Module, data: Digits) -> nn.Module:
    return train_by(calibrated(model, data, BITS), data, TUNE_EPOCHS, LEARNING_RATE, lambda: None)


def calibrated_after_training(model: nn.Module, data: Digits) -> nn.Module:
    return calibrated(fine_tuned(model, data), data, BITS)


def long_and_frozen(model: nn.Module, data: Digits) -> nn.Module:
    model = calibrated(model, data, BITS)
    steps, last = 0, (LONG_EPOCHS - FROZEN_EPOCHS) * steps_per_epoch(data)

    def freeze_at_last() -> None:
        nonlocal steps
        steps += 1
        if steps == last:
            freeze_ranges(model)

    return train_by(model, data, LONG_EPOCHS, LEARNING_RATE, freeze_at_last)


def best_on_validation(model: nn.Module, data: Digits) -> nn.Module:
    """Train on four fifths of the training images and keep the best epoch on the others, the start among them."""
    model = freeze_ranges(calibrated(model, data, BITS))
    order = torch.randperm(len(data.train_x))
    held, rest = order[::VALIDATION_SHARE], torch.cat([order[i::VALIDATION_SHARE] for i in range(1, VALIDATION_SHARE)])
    part = replace(data, train_x=data.train_x[rest], train_y=data.train_y[rest])
    best, best_loss, steps = copy.deepcopy(model.state_dict()), math.inf, 0

    def keep_best() -> None:
        nonlocal best, best_loss
        model.eval()
        loss = cross_entropy(model, data.train_x[held], data.train_y[held])
        model.train()
        if loss < best_loss:
            best, best_loss = copy.deepcopy(model.state_dict()), loss

    def after_step() -> None:
        nonlocal steps
        steps += 1
        if steps % steps_per_epoch(part) == 0:
            keep_best()

    keep_best()
    train_by(model, part, TUNE_EPOCHS, LEARNING_RATE / 10, after_step)
    model.load_state_dict(best)
    return model


def learned_steps(model: nn.Module, data: Digits, is_from_ranges: bool) -> nn.Module:
    model = prepare_qat(folded(model, data), calibration(data), bits=BITS, steps="learned", progress=False)
    for layer in model.modules():
        if is_from_ranges and hasattr(layer, "simulation"):
            step = layer.simulation.weight_step.data
            step.copy_((layer.weight.detach().abs().flatten(1).amax(1) / LARGEST).view_as(step))
    return train_by(model, data, LONG_EPOCHS, LEARNING_RATE, lambda: None)


METHODS: dict[str, Callable[[nn.Module, Digits], nn.Module]] = {
    REFERENCE: partial(calibrated, bits=BITS),
    "calibrated after 6 epochs in float32": calibrated_after_training,
    "trained, 6 epochs (as before)": as_before,
    "trained, 18 epochs, ranges frozen": long_and_frozen,
    "trained, slowly, best on validation": best_on_validation,
    "trained, learned steps": partial(learned_steps, is_from_ranges=False),
    "trained, learned steps from the ranges": partial(learned_steps, is_from_ranges=True),
}
NETS = {"demo's net": digits_net, "quarter net": quarter_net}


@torch.no_grad()
def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float(F.cross_entropy(model(x).double(), y))


def results(seed: int) -> dict[str, dict[str, float]]:
    """Accuracy, 0 to 1, and cross-entropy on the test images by net and version."""
    data = digits_data(seed)
    accuracies, losses = {}, {}
    for net, make in NETS.items():
        torch.manual_seed(seed)
        dense = make()
        train_by(dense, data, TRAIN_EPOCHS, 2e-3, lambda: None)
        for name, method in {"float32": lambda model, _: model, **METHODS}.items():
            torch.manual_seed(seed)  # every version sees the same batches
            model = method(copy.deepcopy(dense), data).eval()
            accuracies[f"{net}, {name}"] = accuracy(model, data.test_x, data.test_y)
            losses[f"{net}, {name}"] = cross_entropy(model, data.test_x, data.test_y)
    return {"accuracy": accuracies, "cross_entropy": losses}


def goals(found: Mapping[str, Mapping[str, Sequence[float]]]) -> list[dict[str, Any]]:
    """In how many seeds each way to train was at least as good as calibration."""
    rows = []
    for net in NETS:
        for name in METHODS:
            for measure, sign in (("accuracy", 1), ("cross_entropy", -1)):
                ours, theirs = (
                    [sign * value for value in found[measure][f"{net}, {version}"]] for version in (name, REFERENCE)
                )
                if name != REFERENCE:
                    goal = f"{net}, {name}: {measure.replace('_', '-')} at least as good as {REFERENCE}"
                    rows.append((goal, count_at_least(ours, theirs)))
    return goal_rows(rows)


def run(seeds: Sequence[int]) -> dict[str, Any]:
    runs = over_seeds("digits", seeds, results)
    found = {measure: by_version([run[measure] for run in runs]) for measure in ("accuracy", "cross_entropy")}
    return {"goals": goals(found), **found}


def markdown(report: Mapping[str, Any]) -> str:
    def table(measure: str, style: str) -> str:
        rows = [
            [name, *(format(value, style) for value in [*values, sum(values) / len(values)])]
            for name, values in report[measure].items()
        ]
        return seed_table(report["seeds"], rows, "mean")

    sections = {"Accuracy": table("accuracy", ".2%"), "Cross-entropy": table("cross_entropy", ".4f")}
    return page("Four bits: trained against rounded", "benchmarks/qat_four_bits.py", report, sections)


if __name__ == "__main__":
    main(__doc__, run, markdown)
