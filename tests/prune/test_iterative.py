"""Iterative pruning: exact rounds, one quality for all thresholds, exact resume, and errors that change nothing."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsecore.errors import FormatError
from sparsecore.prune import (
    IterativePruner,
    Masks,
    PruningSensitivity,
    fits_pattern,
    prune,
    pruning_sensitivity,
    round_sparsity,
)

NUMELS = {"0.weight": 240, "2.weight": 100}


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 5))


def make_scan() -> PruningSensitivity:
    return PruningSensitivity(1.0, {"0.weight": {0.95: 0.9}, "2.weight": {0.95: 0.6}}, NUMELS)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    """Every step is determined by its number."""
    for step in range(first, last):
        x = torch.randn(16, 12, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def start(seed: int = 0, **arguments: Any) -> tuple[nn.Sequential, torch.optim.Optimizer, IterativePruner]:
    model = net(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return model, optimizer, IterativePruner(model, optimizer, 0.9, **{"rounds": 4, **arguments})


def scores(model: nn.Module, qualities: dict[str, float]) -> dict[str, list[float]]:
    """The overall quality at which each entry is pruned: |w| / (quality * standard deviation), in plain Python."""
    found = {}
    for name in NUMELS:
        values = model.get_parameter(name).flatten().tolist()
        mean = sum(values) / len(values)
        deviation = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
        found[name] = [abs(value) / (qualities.get(name, 1.0) * deviation) for value in values]
    return found


def test_each_round_removes_the_same_share_of_what_is_left() -> None:
    curve = [1 - round_sparsity(i, 5, 0.95) for i in range(6)]
    assert curve[0] == 1
    assert 1 - curve[-1] == 0.95
    assert [later / earlier for earlier, later in pairwise(curve)] == pytest.approx([0.05**0.2] * 5)


@pytest.mark.parametrize("scan", [None, make_scan()], ids=["one quality", "scan"])
def test_rounds_are_exact_and_zeros_stay(scan: PruningSensitivity | None) -> None:
    model, optimizer, pruner = start(sensitivity=scan)
    masks, before = pruner.masks, Masks(model, pruner.masks)
    assert masks.sparsity() == 0
    numbers = []
    for number in pruner:
        numbers.append(number)
        assert pruner.masks is masks
        assert sum(row.num_kept for row in masks.statistics().values()) == 340 - round(
            340 * round_sparsity(number, 4, 0.9)
        )
        assert masks & before == masks  # what is pruned stays pruned
        for step in range(3):
            train(model, optimizer, 10 * number + step, 10 * number + step + 1)
            for name, mask in masks.items():
                weight = model.get_parameter(name)
                for tensor in (weight, optimizer.state[weight]["exp_avg"], optimizer.state[weight]["exp_avg_sq"]):
                    assert not tensor[~mask].any()
        before = Masks(model, masks)
    assert numbers == [1, 2, 3, 4]
    assert pruner.round == 4
    assert list(pruner) == []


@pytest.mark.parametrize("scan", [None, make_scan()], ids=["one quality", "scan"])
def test_one_quality_parts_what_stays_from_what_goes(scan: PruningSensitivity | None) -> None:
    model, optimizer, pruner = start(sensitivity=scan)
    train(model, optimizer, 0, 5)
    for number in range(1, 5):
        before, kept_before = scores(model, pruner.qualities), dict(pruner.masks)
        assert next(pruner) == number
        stays, goes = [], []
        for name, mask in pruner.masks.items():
            rows = zip(before[name], mask.flatten().tolist(), kept_before[name].flatten().tolist(), strict=True)
            for score, keeps, kept in rows:
                if kept:
                    (stays if keeps else goes).append(score)
        assert min(stays) >= max(goes)
        train(model, optimizer, 10 * number, 10 * number + 5)


def test_dense_model_is_pruned_as_the_scan_says() -> None:
    """In a single round the overall quality is 1."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scan, reference = make_scan(), net()
    pruner = IterativePruner(model, optimizer, 0.8, rounds=1, sensitivity=scan)
    next(pruner)
    assert pruner.masks == prune(reference, scan.sparsities(0.8))
    assert pruner.masks["0.weight"].float().mean() < pruner.masks["2.weight"].float().mean()


def test_scan_of_the_same_model() -> None:
    model, x = net(), torch.randn(32, 12)
    y = model(x).detach()
    scan = pruning_sensitivity(model, lambda model: -float((model(x) - y).square().mean()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = IterativePruner(model, optimizer, 0.9, rounds=1, sensitivity=scan)
    next(pruner)
    shares = scan.sparsities(0.9)
    for name, row in pruner.masks.statistics().items():
        assert abs(row.numel - row.num_kept - shares[name] * row.numel) <= 1


def test_blocks() -> None:
    model, optimizer, pruner = start(pattern="4x1", rounds=2)
    for number in pruner:
        train(model, optimizer, 10 * number, 10 * number + 5)
        assert all(fits_pattern(model.get_parameter(name), "4x1") for name in pruner.masks)
    assert abs(pruner.masks.sparsity() - 0.9) * 340 <= 2


def test_earlier_masks_and_exclude() -> None:
    model = net()
    earlier = prune(model, 0.5, criterion=lambda name, weight: -weight.abs(), exclude="2")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = IterativePruner(model, optimizer, 0.9, rounds=2, exclude=iter(["2"]), masks=earlier)
    assert pruner.masks == earlier
    assert list(pruner) == [1, 2]
    assert pruner.masks["0.weight"].sum() == 24
    assert pruner.masks & earlier == pruner.masks
    assert model[2].weight.all()


def test_weights_without_a_spread() -> None:
    """All entries alike, all zero, a single one: pruned without a division by zero."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(1, 1), nn.Linear(4, 5))
    model[0].weight.data.fill_(0.25)
    model[1].weight.data.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scan = pruning_sensitivity(model, lambda model: -float(model[0].weight.abs().sum()))
    pruner = IterativePruner(model, optimizer, 0.5, rounds=2, sensitivity=scan)
    assert list(pruner) == [1, 2]
    assert sum(row.num_kept for row in pruner.masks.statistics().values()) == 45 - round(45 * 0.5)
    assert all(mask.any() for mask in pruner.masks.values())


@pytest.mark.parametrize("stop", [1, 3])
def test_exact_resume_through_files(stop: int, tmp_path: Path) -> None:
    """Stopped after two of four steps of a round, and continued with a fresh model, optimizer and pruner."""
    model, optimizer, pruner = start(sensitivity=make_scan())
    for number in pruner:
        train(model, optimizer, 10 * number, 10 * number + 2)
        if number == stop:
            states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "pruner": pruner.state_dict()}
            torch.save(states, tmp_path / "checkpoint.pt")
        train(model, optimizer, 10 * number + 2, 10 * number + 4)

    other, other_optimizer, resumed = start(seed=1)  # the scan is in the state
    states = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    other.load_state_dict(states["model"])
    other_optimizer.load_state_dict(states["optimizer"])
    resumed.load_state_dict(states["pruner"])
    train(other, other_optimizer, 10 * stop + 2, 10 * stop + 4)
    for number in resumed:
        train(other, other_optimizer, 10 * number, 10 * number + 4)
    assert resumed.round == 4
    assert resumed.masks == pruner.masks
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_nan_begins_no_round() -> None:
    model, optimizer, pruner = start()
    next(pruner)
    train(model, optimizer, 0, 2)
    model[2].weight.data[tuple(pruner.masks["2.weight"].nonzero()[0])] = float("nan")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    digest = pruner.masks.hash()
    with pytest.raises(FormatError, match=r"2\.weight: the weight is NaN or infinite in 1 of 100"):
        next(pruner)
    assert all(torch.equal(tensor, before[name]) or name == "2.weight" for name, tensor in model.state_dict().items())
    assert torch.equal(model[2].weight.nan_to_num(7), before["2.weight"].nan_to_num(7))
    assert pruner.masks.hash() == digest
    assert pruner.round == 1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda state: {**state, "masks": Masks.from_model(nn.Linear(2, 2)).state_dict()}, "only in one of the two"),
        (
            lambda state: {**state, "masks": {name: mask.t() for name, mask in state["masks"].items()}},
            r"shape \[20, 12\]",
        ),
        (lambda state: {"step": 1, "masks": state["masks"]}, r"IterativePruner\.state_dict\(\) returned"),
        (lambda state: None, "got NoneType"),
        (lambda state: {**state, "settings": {}}, "rounds None instead of 4"),
        (lambda state: {**state, "settings": None}, "expected settings by name"),
        (lambda state: {**state, "round": 99}, "expected a round from 0 to"),
        (lambda state: {**state, "round": 1.5}, "expected a round from 0 to"),
        (lambda state: {**state, "masks": None}, "expected masks by name"),
        (lambda state: {**state, "qualities": None}, "expected a quality for each"),
        (lambda state: {**state, "qualities": {"zz": 1.0}}, "expected a quality for each"),
        (lambda state: {**state, "qualities": dict.fromkeys(state["masks"], "x")}, "expected a quality above 0"),
    ],
)
def test_state_of_another_changes_nothing(change: Any, text: str) -> None:
    model, _, pruner = start()
    next(pruner)
    before, digest = [parameter.clone() for parameter in model.parameters()], pruner.masks.hash()
    state = start(seed=1)[2].state_dict()
    with pytest.raises(FormatError, match=text):
        pruner.load_state_dict(change(state))
    assert pruner.masks.hash() == digest
    assert pruner.round == 1
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"rounds": 0}, "a number of rounds, 1 or more"),
        ({"rounds": 1.5}, "a number of rounds, 1 or more"),
        ({"sparsity": 1.0}, r"in \[0, 1\)"),
        ({"pattern": "2:4"}, "2:4 has one sparsity"),
        ({"pattern": "30x1"}, "30x1 does not fit 0.weight"),
        ({"exclude": "fc"}, "called 'fc'"),
        ({"sensitivity": PruningSensitivity(1.0, {"0.weight": {0.95: 0.9}}, {"0.weight": 240})}, "lacks 2.weight"),
        ({"sensitivity": make_scan(), "sparsity": 0.97}, "at most 95.0%"),
        ({"optimizer": torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)}, "holds none"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_bad_arguments_change_nothing(arguments: dict[str, Any], text: str) -> None:
    model = net()
    before: list[Tensor] = [parameter.clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=text):
        IterativePruner(model, **{"optimizer": optimizer, "sparsity": 0.9, "rounds": 2, **arguments})
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert not optimizer._optimizer_step_post_hooks
