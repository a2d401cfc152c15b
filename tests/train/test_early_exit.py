"""Early exit: who leaves where, what still runs, the loss, and thresholds for a budget."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from sparsecore.train import EarlyExit, exit_loss, exit_shares, fit_thresholds
from sparsecore.train.exit_policy import thresholds_for


def backbone() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Flatten(),
        nn.Linear(8 * 16, 5),
    )


def head(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


def model_of(layers: nn.Sequential) -> EarlyExit:
    model = EarlyExit.from_sequential(layers, {"2": head(6), "4": head(8)}).eval()
    for classifier, std in zip(model.exits, (7.0, 20.0), strict=False):
        nn.init.normal_(classifier[2].weight, std=std)  # confidences from 0.3 to 1
    return model


@contextmanager
def rows_of(model: EarlyExit) -> Iterator[dict[str, list[int]]]:
    """Batch sizes that every stage and exit is called with, by name."""
    seen: dict[str, list[int]] = {}

    def watch(name: str) -> None:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen.setdefault(name, []).append(len(args[0]))

        handles.append(model.get_submodule(name).register_forward_pre_hook(hook))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    for index in range(len(model.stages)):
        watch(f"stages.{index}")
        watch(f"exits.{index}")
    yield seen
    for handle in handles:
        handle.remove()


def by_hand(model: EarlyExit, x: Tensor, thresholds: list[float]) -> tuple[Tensor, Tensor]:
    """Every exit for every sample, and then the choice, one by one."""
    every = [logits.detach() for logits in model(x)]
    exits, rows = [], []
    for sample in range(len(x)):
        for index, logits in enumerate(every):
            largest = logits[sample].double().softmax(0).max()
            if index == len(thresholds) or largest >= thresholds[index]:
                exits.append(index)
                rows.append(logits[sample])
                break
    return torch.stack(rows), torch.tensor(exits)


def test_every_sample_leaves_at_the_first_exit_that_is_sure() -> None:
    model, x = model_of(backbone()), torch.randn(200, 1, 4, 4)
    thresholds = [0.9, 0.9]
    output = model.infer(x, thresholds)
    logits, exits = by_hand(model, x, thresholds)
    assert torch.equal(output.exits, exits)
    assert exits.bincount(minlength=3).min() > 10
    torch.testing.assert_close(output.logits, logits, rtol=1e-4, atol=1e-5)


def test_those_who_left_are_not_computed() -> None:
    model, x = model_of(backbone()), torch.randn(200, 1, 4, 4)
    with rows_of(model) as rows:
        left = model.infer(x, [0.9, 0.8]).exits.bincount(minlength=3).tolist()
    alive = [200, 200 - left[0], 200 - left[0] - left[1]]
    assert rows == {f"{kind}.{index}": [alive[index]] for index in range(3) for kind in ("stages", "exits")}
    with rows_of(model) as rows:
        model.infer(x, [0.0, 0.0])
    assert rows == {"stages.0": [200], "exits.0": [200]}


@pytest.mark.parametrize("threshold", [1.0 + 1e-6, 2.0, math.inf])
def test_above_one_the_result_is_that_of_the_model_to_the_bit(threshold: float) -> None:
    layers, x = backbone().eval(), torch.randn(50, 1, 4, 4)
    model = model_of(layers)
    output = model.infer(x, [threshold, threshold])
    assert torch.equal(output.logits, layers(x))
    assert (output.exits == 2).all()
    assert torch.equal(model(x)[2], layers(x))


def test_cost_is_monotone_in_each_threshold() -> None:
    model, x = model_of(backbone()), torch.randn(100, 1, 4, 4)
    costs = model.costs(x)
    levels = [0.0, 0.3, 0.6, 0.8, 0.95, 0.99, 1.1]
    cost = torch.tensor([[model.infer(x, [a, b]).mean_cost(costs) for b in levels] for a in levels])
    assert (cost.diff(dim=0) >= 0).all()
    assert (cost.diff(dim=1) >= 0).all()
    assert cost[0, 0] == costs[0]
    assert cost[-1, -1] == costs[-1]
    assert len(cost.unique()) > 10


def test_costs_are_the_formulas_up_to_each_exit() -> None:
    model, x = model_of(backbone()), torch.randn(7, 1, 4, 4)
    stages = [9 * 6 * 16, 9 * 6 * 8 * 16, 9 * 8 * 8 * 16 + 8 * 16 * 5]
    exits = [6 * 5, 8 * 5, 0]
    assert model.costs(x) == [sum(stages[: k + 1]) + sum(exits[: k + 1]) for k in range(3)]


def test_from_sequential_takes_the_layers_over() -> None:
    layers = backbone()
    model = EarlyExit.from_sequential(layers, {"4": head(8), "2": head(6)})
    assert [len(stage) for stage in model.stages] == [3, 2, 3]
    assert [classifier[2].in_features for classifier in model.exits[:2]] == [6, 8]
    assert model.stages[0][0] is layers[0]
    assert len(layers) == 8
    layers[1].eval()  # a frozen BatchNorm stays frozen
    model = EarlyExit.from_sequential(layers, {"2": head(6).eval()})
    assert not layers[1].training
    assert all(module.training for module in model.modules() if module is not layers[1])
    relu = nn.ReLU()
    twice = nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu, nn.Linear(4, 3))
    assert [len(stage) for stage in EarlyExit.from_sequential(twice, {"1": nn.Linear(4, 3)}).stages] == [2, 3]


class TwoScales(nn.Module):
    """A stage whose state is a dict with a list of tensors."""

    def forward(self, x: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
        return {"scales": [part + 1 for part in x["scales"]], "pair": (x["scales"][0], x["scales"][1])}


class Classifier(nn.Module):
    def forward(self, x: dict[str, list[Tensor]]) -> Tensor:
        return torch.cat([x["scales"][0], x["pair"][1]], dim=1)


def test_the_state_between_stages_may_be_nested() -> None:
    model = EarlyExit([TwoScales() for _ in range(3)], [Classifier() for _ in range(3)]).eval()
    x = {"scales": [3 * torch.randn(60, 2), 3 * torch.randn(60, 2)]}
    output = model.infer(x, [0.8, 0.7])
    every = model(x)
    assert output.exits.bincount(minlength=3).min() > 0
    for sample, index in enumerate(output.exits):
        torch.testing.assert_close(output.logits[sample], every[index][sample])


def test_empty_batch() -> None:
    output = model_of(backbone()).infer(torch.zeros(0, 1, 4, 4), [0.5, 0.5])
    assert output.logits.shape == (0, 5)
    assert output.exits.shape == (0,)


def test_who_is_at_the_threshold_leaves() -> None:
    model = EarlyExit([nn.Identity(), nn.Identity()], [nn.Identity(), nn.Identity()]).eval()
    x = torch.zeros(1, 2)  # probabilities of 0.5
    assert model.infer(x, [0.5]).exits.tolist() == [0]
    assert model.infer(x, [math.nextafter(0.5, 1.0) + 1e-7]).exits.tolist() == [1]


def test_nan_is_never_sure() -> None:
    model, x = model_of(backbone()), torch.randn(3, 1, 4, 4)
    x[1] = math.nan
    assert model.infer(x, [0.0, 0.0]).exits.tolist() == [0, 2, 0]


def test_loss_is_the_weighted_sum_over_the_exits() -> None:
    model, x, labels = model_of(backbone()), torch.randn(6, 1, 4, 4), torch.randint(5, (6,))
    model.train()
    logits = model(x)
    losses = [-(row.double().softmax(1).log()[range(6), labels]).mean() for row in logits]
    torch.testing.assert_close(exit_loss(logits, labels).double(), sum(losses), rtol=1e-5, atol=1e-6)
    weighted = exit_loss(logits, labels, [0.5, 0.0, 2.0])
    torch.testing.assert_close(weighted.double(), 0.5 * losses[0] + 2 * losses[2], rtol=1e-5, atol=1e-6)
    exit_loss(logits, labels).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("budget", [1.0, 1.3, 2.0, 4.0, 5.9, 6.0, 100.0])
def test_shares_meet_the_budget(budget: float) -> None:
    costs = [1.0, 2.5, 6.0]
    shares = exit_shares(costs, budget)
    assert sum(shares) == pytest.approx(1.0, abs=1e-12)
    assert sum(share * cost for share, cost in zip(shares, costs, strict=True)) == pytest.approx(min(budget, 6.0))
    if 1.0 < budget < 6.0:  # a geometric sequence
        assert shares[1] ** 2 == pytest.approx(shares[0] * shares[2])


@pytest.mark.parametrize("budget", [1.0, 1.5, 2.0, 3.0, 4.5, 5.0])
def test_thresholds_keep_the_budget_on_validation_data(budget: float) -> None:
    model, x = model_of(backbone()), torch.randn(160, 1, 4, 4)
    costs = [1.0, 2.0, 5.0]
    before = copy.deepcopy(model.state_dict())
    thresholds = fit_thresholds(model.train(), x.split(50), costs, budget)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    cost = model.eval().infer(x, thresholds).mean_cost(costs)
    assert budget - (costs[-1] - costs[0]) / 160 - 1e-9 <= cost <= budget  # one sample more may leave at each exit


def test_thresholds_by_hand() -> None:
    confidences = torch.tensor([[0.9, 0.8, 0.7, 0.6], [0.5, 0.6, 0.9, 0.95], [1.0, 1.0, 1.0, 1.0]])
    assert thresholds_for(confidences, [0.25, 0.5, 0.25]) == pytest.approx([0.9, 0.9], abs=2e-6)
    assert thresholds_for(confidences, [0.0, 0.25, 0.75]) == [math.inf, pytest.approx(0.95, abs=2e-6)]
    assert thresholds_for(confidences, [0.0, 0.0, 1.0]) == [math.inf, math.inf]
    ties = torch.tensor([[0.9, 0.9, 0.9, 0.6], [0.5, 0.6, 0.9, 0.95]])
    assert thresholds_for(ties, [0.25, 0.75]) == pytest.approx([0.9], abs=2e-6)


def test_wrong_models() -> None:
    with pytest.raises(ValueError, match=r"got 2 stages and 1 exits"):
        EarlyExit([nn.Linear(2, 2), nn.Linear(2, 2)], [nn.Linear(2, 2)])
    with pytest.raises(ValueError, match=r"got 0 stages"):
        EarlyExit([], [])
    with pytest.raises(ValueError, match=r"'9' is no layer.*the model has 0, 1"):
        EarlyExit.from_sequential(backbone(), {"9": head(6)})
    with pytest.raises(ValueError, match=r"'7' is the model's last layer"):
        EarlyExit.from_sequential(backbone(), {"7": head(6)})
    with pytest.raises(ValueError, match=r"expected an nn.Sequential, got Linear"):
        EarlyExit.from_sequential(nn.Linear(2, 2), {})


def test_wrong_calls() -> None:
    model, x = model_of(backbone()), torch.randn(3, 1, 4, 4)
    with pytest.raises(ValueError, match=r"expected 2 thresholds.*got 1"):
        model.infer(x, [0.5])
    with pytest.raises(ValueError, match=r"got NaN for exit 1"):
        model.infer(x, [0.5, math.nan])
    with pytest.raises(RuntimeError, match=r"call .eval"):
        model.train().infer(x, [0.5, 0.5])
    with pytest.raises(ValueError, match=r"logits \[3, classes\] from every exit, got \[3, 6, 4, 4\]"):
        EarlyExit(model.stages, [nn.Identity()] * 3).eval().infer(x, [0.5, 0.5])
    with pytest.raises(ValueError, match=r"as many classes from every exit, got 4 and 2"):
        EarlyExit([nn.Linear(4, 4), nn.Linear(4, 2)], [nn.Identity()] * 2).eval().infer(torch.randn(3, 4), [2.0])
    with pytest.raises(ValueError, match=r"one batch size"):
        model.eval().infer([x, x[:1]], [0.5, 0.5])
    with pytest.raises(ValueError, match=r"got an empty batch"):
        model.costs(x[:0])


def test_wrong_losses_and_budgets() -> None:
    logits, labels = [torch.zeros(4, 2), torch.zeros(4, 2)], torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"a weight for each of 2 exits, got 1"):
        exit_loss(logits, labels, [1.0])
    with pytest.raises(ValueError, match=r"not finite .exit 1: nan"):
        exit_loss([logits[0], logits[1] * math.nan], labels)
    with pytest.raises(ValueError, match=r"budget of at least the first exit's cost 1.0, got 0.5"):
        exit_shares([1.0, 2.0], 0.5)
    with pytest.raises(ValueError, match=r"got nan"):
        exit_shares([1.0, 2.0], math.nan)
    with pytest.raises(ValueError, match=r"costs above zero that rise"):
        exit_shares([2.0, 1.0], 3.0)
    with pytest.raises(ValueError, match=r"got NaN; the model gives NaN"):
        thresholds_for(torch.tensor([[0.5, math.nan], [1.0, 1.0]]), [0.5, 0.5])
    with pytest.raises(ValueError, match=r"expected confidences \[3, samples\], got \[2, 1\]"):
        thresholds_for(torch.ones(2, 1), [0.2, 0.3, 0.5])
    with pytest.raises(ValueError, match=r"at least one calibration batch"):
        fit_thresholds(model_of(backbone()), [], [1.0, 2.0, 3.0], 2.0)


def test_what_is_no_module_or_no_list() -> None:
    with pytest.raises(TypeError, match="each stage and each exit as a torch"):
        EarlyExit([1], [nn.Linear(2, 2)])
    model = EarlyExit([nn.Linear(2, 2)], [nn.Linear(2, 2)]).eval()
    with pytest.raises(ValueError, match=r"thresholds as a list of numbers, got 0\.5"):
        model.infer(torch.ones(1, 2), 0.5)
