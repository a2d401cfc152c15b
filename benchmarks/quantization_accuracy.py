"""What few bits cost in accuracy: one net for digits, with and without training in them.

    python benchmarks/quantization_accuracy.py --json quantization-accuracy.json --markdown quantization-accuracy.md

The demo's net on scikit-learn's 8x8 digits, trained for 12 epochs; "90% sparse" is that net pruned and fine-tuned as in
the demo. Every trained version starts from one of the two and trains for 6 more epochs with AdamW, learning rate 1e-3
falling to 0 on a cosine, and masks attached where it is sparse:

- float32, fine-tuned: without quantization.
- int8 and 4 bits: weights per output channel, activations per tensor (static), BatchNorm folded. Without training:
  calibrated on 256 training images (min-max); with it: quantization-aware from the same ranges. 4-bit activations are
  simulated, for there is no kernel; int8 runs in the int8 layers. `qat_four_bits.py` tries other ways to train 4 bits.
- k-means: every layer's weights that are not zero share 2^bits values; with centroid training and without.
- binary: signs times the mean magnitude of the row, in training by sign or drawn; without a scale, +-1, where a
  BatchNorm follows. ternary: TWN and TTQ. The results are plain weights of two values per row or three per layer.

Accuracy is that of the 360 test images. Seeds choose the data split, the weights and the order of training. Nothing is
timed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from accuracy_report import accuracy_sections, by_version, count_at_least, goal_rows, main, over_seeds, page
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

import sparsecore as sc
from sparsecore.bench.demo_digits import BATCH, DigitsPlan, accuracy, prune_and_finetune, train
from sparsecore.bench.models import Digits, digits_data, digits_net
from sparsecore.bench.progress import silent, stage
from sparsecore.graph import fold_batchnorm
from sparsecore.quantize import (
    clip_binary,
    convert_qat,
    fold_qat,
    prepare_binary,
    prepare_qat,
    prepare_ternary,
    share_weights,
)

FLOAT, SPARSE = "float32", "90% sparse"
TRAIN_EPOCHS, TUNE_EPOCHS = 12, 6
LEARNING_RATE = 1e-3

# Changes a copy of the dense or the sparse net; gets the data.
Method = Callable[[nn.Module, Digits], nn.Module]


def tune(model: nn.Module, data: Digits, *attached: Callable[[Optimizer], object]) -> nn.Module:
    """Train for as long as all versions train; masks and their like tie themselves to the optimizer."""
    optimizer = AdamW(model.parameters(), lr=LEARNING_RATE)
    for attach in attached:
        attach(optimizer)
    with stage(silent, "tune") as share:
        train(model, data, optimizer, TUNE_EPOCHS, share)
    return model


def masks_of(model: nn.Module) -> Callable[[Optimizer], object]:
    """Keep what is zero now."""
    return sc.Masks.from_model(model).attach


def calibration(data: Digits) -> Sequence[Tensor]:
    return data.train_x[:256].split(BATCH)


def folded(model: nn.Module, data: Digits) -> nn.Module:
    return fold_batchnorm(model, data.test_x[:1])


def fine_tuned(model: nn.Module, data: Digits) -> nn.Module:
    return tune(model, data, masks_of(model))


def calibrated(model: nn.Module, data: Digits, bits: int) -> nn.Module:
    return prepare_qat(folded(model, data), calibration(data), bits=bits, progress=False)


def int8(model: nn.Module, data: Digits) -> nn.Module:
    return sc.quantize(folded(model, data), calibration(data), activations="static", progress=False)


def aware(model: nn.Module, data: Digits, bits: int) -> nn.Module:
    model = calibrated(model, data, bits)
    tune(model, data, masks_of(model))
    return convert_qat(model) if bits == 8 else model


def shared(model: nn.Module, data: Digits, bits: int, is_trained: bool) -> nn.Module:
    clusters = share_weights(model, bits)
    return tune(model, data, clusters.attach, masks_of(model)) if is_trained else model


def binary(model: nn.Module, data: Digits, **settings: Any) -> nn.Module:
    prepare_binary(model, **settings)
    return fold_qat(tune(model, data, partial(clip_binary, model)))


def ternary(model: nn.Module, data: Digits, method: str) -> nn.Module:
    return fold_qat(tune(prepare_ternary(model, method=method), data))


FEW_VALUES: dict[str, Method] = {
    "binary": binary,
    "binary, stochastic": partial(binary, stochastic=True),
    "binary, no scale, convolutions only": partial(binary, scale=None, exclude=nn.Linear),
    "ternary, TWN": partial(ternary, method="twn"),
    "ternary, TTQ": partial(ternary, method="ttq"),
}
METHODS: dict[str, Method] = {
    f"{FLOAT}, fine-tuned": fine_tuned,
    "int8, calibrated": int8,
    "int8, trained": partial(aware, bits=8),
    "4 bits, calibrated": partial(calibrated, bits=4),
    "4 bits, trained": partial(aware, bits=4),
    f"{SPARSE}, {FLOAT}": lambda model, data: model,
    f"{SPARSE}, int8, calibrated": int8,
    f"{SPARSE}, int8, trained": partial(aware, bits=8),
    **{
        f"{SPARSE}, k-means, {bits} bits{', trained' * is_trained}": partial(shared, bits=bits, is_trained=is_trained)
        for bits in (5, 4, 2)
        for is_trained in (False, True)
    },
    **FEW_VALUES,
}


def digits_results(seed: int) -> dict[str, float]:
    """Accuracy of every version, 0 to 1."""
    torch.manual_seed(seed)
    data = digits_data(seed)
    dense = digits_net()
    with stage(silent, "train") as share:
        train(dense, data, AdamW(dense.parameters(), lr=2e-3), TRAIN_EPOCHS, share)
        sparse = copy.deepcopy(dense)
        prune_and_finetune(sparse, data, DigitsPlan(), share)
    results = {FLOAT: accuracy(dense, data.test_x, data.test_y)}
    for name, method in METHODS.items():
        torch.manual_seed(seed)  # every version sees the same batches
        model = method(copy.deepcopy(sparse if name.startswith(SPARSE) else dense), data)
        results[name] = accuracy(model.eval(), data.test_x, data.test_y)
    return results


def goals(digits: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """What was to be reached, and in how many seeds it was."""
    dense = digits[FLOAT]
    return goal_rows(
        [
            (
                f"{SPARSE}, int8, trained within 1 point of {FLOAT}",
                count_at_least(digits[f"{SPARSE}, int8, trained"], dense, 0.01),
            ),
            (
                "4 bits, trained at least as accurate as calibrated",
                count_at_least(digits["4 bits, trained"], digits["4 bits, calibrated"]),
            ),
            *(
                (
                    f"{SPARSE}, k-means, {bits} bits, trained within 1 point of {FLOAT}",
                    count_at_least(digits[f"{SPARSE}, k-means, {bits} bits, trained"], dense, 0.01),
                )
                for bits in (5, 4)
            ),
            *(
                (f"{name}: at least 90%, where chance is 10%", count_at_least(digits[name], [0.9] * len(dense)))
                for name in FEW_VALUES
            ),
        ]
    )


def run(seeds: Sequence[int]) -> dict[str, Any]:
    digits = by_version(over_seeds("digits", seeds, digits_results))
    return {"goals": goals(digits), "digits_accuracy": digits}


def markdown(report: Mapping[str, Any]) -> str:
    sections = accuracy_sections(report["seeds"], report["digits_accuracy"], FLOAT)
    return page("Accuracy with few bits", "benchmarks/quantization_accuracy.py", report, sections)


if __name__ == "__main__":
    main(__doc__, run, markdown)
