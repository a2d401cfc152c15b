"""What a teacher adds: a small net for digits that has 150 labels, alone and taught, plain and ternary.

    python benchmarks/distillation_accuracy.py --json distillation-accuracy.json --markdown distillation-accuracy.md

The teacher is the demo's net on scikit-learn's 8x8 digits, trained with the labels of all 1437 training images. The
student has two convolutions of 8 and 16 channels and one linear layer. It has the labels of 150 training images and
trains for 300 steps of 50 images with AdamW, learning rate 5e-3 falling to 0 on a cosine, in every version from the
same weights:

- alone: cross entropy on the 150.
- distilled: temperature 4, alpha 0.9, on the same 150 images; or on all training images, where the teacher's outputs
  are all there is for the others.
- ternary: weights of three values per layer (TWN) in training, folded to them at the end, but for the first and the
  last layer; alone, and as an Apprentice (weights 1, 0.5, 0.5; temperature 1 or 4) in the schemes A (a net like the
  teacher is trained beside it, on the 150), B (the teacher stays) and C (from the trained student of full precision,
  learning rate 1e-3, compared with the same tuning alone).

The size of the gradient is the norm of that of the soft loss with respect to the student's logits, on the test images,
for the student that was trained alone.

Accuracy is that of the 360 test images. Seeds choose the data split, the weights and the order of training; the
settings were fixed before, on seeds 10 and 11. Nothing is timed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from accuracy_report import accuracy_sections, by_version, count_at_least, goal_rows, main, over_seeds, page, seed_table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from sparsecore.bench.demo_digits import accuracy, train
from sparsecore.bench.models import Digits, digits_data, digits_net
from sparsecore.bench.models.blocks import conv_norm
from sparsecore.bench.progress import silent, stage
from sparsecore.quantize import fold_qat, prepare_ternary
from sparsecore.train import Apprentice, Distillation, soft_loss

LABELLED, STEPS, BATCH = 150, 300, 50
LEARNING_RATE, TUNING_RATE = 5e-3, 1e-3
TEMPERATURE, ALPHA = 4.0, 0.9
TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)

ALONE, DISTILLED, DISTILLED_ALL = "student, alone", "student, distilled", "student, distilled on all images"
TERNARY, TUNED = "ternary, alone", "ternary, tuned alone"
APPRENTICES = {
    f"ternary, Apprentice {scheme}, T = {temperature:g}": (scheme, temperature)
    for scheme in "ABC"
    for temperature in (1.0, TEMPERATURE)
}

# Turns the student's logits, labels and inputs into a loss.
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Images(NamedTuple):
    """Training images and their labels, -100 where there is none."""

    x: Tensor
    y: Tensor


def student_net() -> nn.Module:
    return nn.Sequential(
        conv_norm(1, 8, 3), nn.MaxPool2d(2), conv_norm(8, 16, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10)
    )


def fit(model: nn.Module, images: Images, loss: Loss, *taught: nn.Module, rate: float = LEARNING_RATE) -> nn.Module:
    """Train for the same number of steps in every version; also the models that learn beside it."""
    optimizer = AdamW([parameter for each in (model, *taught) for parameter in each.parameters()], lr=rate)
    schedule = CosineAnnealingLR(optimizer, STEPS)
    model.train()
    rows: list[Tensor] = []
    for _ in range(STEPS):
        rows = rows or list(torch.randperm(len(images.x)).split(BATCH))
        x, y = (part[rows[0]] for part in images)
        del rows[0]
        optimizer.zero_grad()
        loss(model(x), y, x).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def alone(logits: Tensor, labels: Tensor, x: Tensor) -> Tensor:
    return cross_entropy(logits, labels)


def apprentice(
    student: nn.Module, teacher: nn.Module, scheme: str, temperature: float, images: Images, rate: float
) -> nn.Module:
    if scheme == "A":
        teacher = digits_net()
    loss = Apprentice(student, teacher, scheme=scheme, temperature=temperature)
    return fit(student, images, loss, *[teacher] * loss.trains_teacher, rate=rate)


def gradient_norms(student: nn.Module, teacher: nn.Module, x: Tensor) -> dict[str, float]:
    """Norm of the soft loss's gradient by temperature."""
    with torch.no_grad():
        ours, theirs = student(x), teacher(x)
    ours.requires_grad_()
    return {
        f"T = {temperature:g}": float(torch.autograd.grad(soft_loss(ours, theirs, temperature), ours)[0].norm())
        for temperature in TEMPERATURES
    }


def trained_teacher(data: Digits) -> nn.Module:
    teacher = digits_net()
    with stage(silent, "train") as share:
        train(teacher, data, AdamW(teacher.parameters(), lr=2e-3), 12, share)
    return teacher


def digits_results(seed: int) -> dict[str, dict[str, float]]:
    """Accuracy of every version, 0 to 1, and norms of gradients."""
    torch.manual_seed(seed)
    data = digits_data(seed)
    teacher, start = trained_teacher(data), student_net()
    few = Images(data.train_x[:LABELLED], data.train_y[:LABELLED])
    labels = data.train_y.clone()
    labels[LABELLED:] = -100
    every = Images(data.train_x, labels)

    def distilled(student: nn.Module, images: Images) -> nn.Module:
        return fit(student, images, Distillation(student, teacher, temperature=TEMPERATURE, alpha=ALPHA))

    def ternary(weights: nn.Module, run: Callable[[nn.Module], nn.Module]) -> nn.Module:
        return fold_qat(run(prepare_ternary(copy.deepcopy(weights), skip_ends=True)))

    def of_seed(run: Callable[[], nn.Module]) -> nn.Module:
        torch.manual_seed(seed)  # every version sees the same batches
        return run()

    plain = of_seed(lambda: fit(copy.deepcopy(start), few, alone))
    models = {
        "teacher": teacher,
        ALONE: plain,
        DISTILLED: of_seed(lambda: distilled(copy.deepcopy(start), few)),
        DISTILLED_ALL: of_seed(lambda: distilled(copy.deepcopy(start), every)),
        TERNARY: of_seed(lambda: ternary(start, lambda net: fit(net, few, alone))),
        TUNED: of_seed(lambda: ternary(plain, lambda net: fit(net, few, alone, rate=TUNING_RATE))),
    }
    for name, (scheme, temperature) in APPRENTICES.items():
        weights, rate = (plain, TUNING_RATE) if scheme == "C" else (start, LEARNING_RATE)
        learn = partial(apprentice, teacher=teacher, scheme=scheme, temperature=temperature, images=few, rate=rate)
        models[name] = of_seed(partial(ternary, weights, learn))
    return {
        "accuracy": {name: accuracy(model.eval(), data.test_x, data.test_y) for name, model in models.items()},
        "gradient_norm": gradient_norms(plain, teacher, data.test_x),
    }


def goals(accuracies: Mapping[str, Sequence[float]], norms: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """What was to be reached, and in how many seeds it was."""

    def better(ours: str, theirs: str) -> tuple[str, int]:
        count = count_at_least(accuracies[ours], accuracies[theirs], -1e-6)  # by one image at least
        return f"{ours} more accurate than {theirs}", count

    high = [norms[f"T = {temperature:g}"] for temperature in TEMPERATURES if temperature >= 4]
    constant = sum(max(of_seed) <= 2 * min(of_seed) for of_seed in zip(*high, strict=True))
    return goal_rows(
        [
            better(DISTILLED, ALONE),
            better(DISTILLED_ALL, ALONE),
            *(better(name, TUNED if scheme == "C" else TERNARY) for name, (scheme, _) in APPRENTICES.items()),
            ("norm of the soft loss's gradient for T = 4 to 32 within a factor of 2 (64 without T^2)", constant),
        ]
    )


def run(seeds: Sequence[int]) -> dict[str, Any]:
    results = over_seeds("digits", seeds, digits_results)
    accuracies, norms = (by_version([result[key] for result in results]) for key in ("accuracy", "gradient_norm"))
    return {"goals": goals(accuracies, norms), "digits_accuracy": accuracies, "gradient_norm": norms}


def markdown(report: Mapping[str, Any]) -> str:
    rows = [[name, *(f"{value:.4f}" for value in values)] for name, values in report["gradient_norm"].items()]
    sections = {
        **accuracy_sections(report["seeds"], report["digits_accuracy"], ALONE),
        "Digits: norm of the gradient of the soft loss": seed_table(report["seeds"], rows),
    }
    return page("Accuracy with a teacher", "benchmarks/distillation_accuracy.py", report, sections)


if __name__ == "__main__":
    main(__doc__, run, markdown)
