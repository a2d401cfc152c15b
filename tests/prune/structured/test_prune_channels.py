"""Criteria and choices of structured pruning, against brute force."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from structured_nets import Attention, Concat, Flattened, Grouped, Residual, SideBySide, build
from torch import nn

from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.prune.structured import cut, prunable_channels, prune_channels
from sparsecore.prune.structured.channels import choose_units, keep_count, score_groups

pytest.importorskip("torch_pruning")


def mean_square(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().mean()


def test_l1_is_the_sum_over_coupled_filters():
    model, x = build(Residual)
    groups = prunable_channels(model, x).prunable
    scores = score_groups(model, groups, "l1")
    for group in groups:
        expected = np.zeros(len(group.units))
        for name in group.layers:
            weight = model.get_submodule(name).weight.detach().numpy().astype(np.float64)
            for index in range(len(weight)):
                expected[index] += np.abs(weight[index]).sum()
        np.testing.assert_allclose(scores[group.name].numpy(), expected, rtol=1e-6)


def test_l1_of_grouped_and_transposed_filters():
    model, x = build(Grouped)
    groups = prunable_channels(model, x)
    weights = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    scores = score_groups(model, groups.prunable, "l1")
    for unit in range(4):
        expected = weights["reduce.weight"][2 * unit : 2 * unit + 2].abs().sum()
        for name in ("grouped", "depthwise", "excite"):
            expected += weights[f"{name}.weight"][4 * unit : 4 * unit + 4].abs().sum()
        torch.testing.assert_close(scores["reduce"][unit], expected)
    up = weights["up.weight"]  # [in, out, 2, 2], normalised two by two
    torch.testing.assert_close(scores["up"], up.abs().sum((0, 2, 3)).view(3, 2).sum(1))


def test_l1_of_layers_side_by_side():
    model, x = build(SideBySide)
    (group,) = prunable_channels(model, x).prunable
    assert group.layers == ("wide", "left", "right")
    weights = [model.get_submodule(name).weight.detach().double() for name in group.layers]
    wide, left, right = (weight.abs().sum((1, 2, 3)) for weight in weights)
    torch.testing.assert_close(score_groups(model, [group], "l1")["wide"], wide + torch.cat([left, right]))
    prune_channels(model, x, 0.5)
    assert model.wide.out_channels == model.left.out_channels + model.right.out_channels == 5


def test_lowest_scores_go_and_ties_keep_the_earlier():
    model, x = build(Flattened)
    with torch.no_grad():
        for index, size in enumerate((5, 1, 3, 3, 3, 0.5, 7, 6)):
            model[0].weight[index].fill_(size)
    edits = prune_channels(model, x, {"0": 0.5})
    (kept,) = (edit.kept for edit in edits.tensors if (edit.name, edit.dim) == ("0.weight", 0))
    assert kept == (0, 2, 6, 7)
    assert model[6].in_features == 96


@pytest.mark.parametrize("kind", [Residual, Concat, Grouped, Flattened, Attention])
@pytest.mark.parametrize("criterion", ["l1", "l2", "l1_greedy", "activation", "taylor"])
def test_every_criterion_cuts_what_the_masked_model_lacks(kind, criterion):
    model, x = build(kind)
    masked = copy.deepcopy(model)
    data = {"batches": [x], "loss": mean_square}
    edits = prune_channels(model, x, 0.4, criterion=criterion, **data)
    edits.mask(masked)
    torch.testing.assert_close(model(x), masked(x), rtol=1e-5, atol=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_greedy_leaves_out_what_is_gone():
    model, x = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)), torch.ones(1, 3)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 1, 1], [0.1, 0.1, 0.1]]))
        model[2].weight.copy_(torch.tensor([[1.0, 9], [2.0, 0]]))  # the first is larger by what comes from the second
    independent = prune_channels(copy.deepcopy(model), x, 0.5)
    greedy = prune_channels(model, x, 0.5, criterion="l1_greedy")
    kept = [{(e.name, e.dim): e.kept for e in edits.tensors}["2.weight", 0] for edits in (independent, greedy)]
    assert kept == [(0,), (1,)]


def test_activation_is_what_the_next_layers_get():
    model, x = build(Flattened)
    group = prunable_channels(model, x)["3"]
    scores = score_groups(model, [group], "activation", [x[:1], x[1:]])["3"]
    hidden = nn.Sequential(*list(model)[:5])(x).double()
    torch.testing.assert_close(scores, hidden.abs().sum((0, 2, 3)) / len(x), rtol=1e-6, atol=1e-6)


def test_removing_a_dead_unit_is_exact():
    model, x = build(Flattened)
    with torch.no_grad():
        model[3].weight[[1, 4]] = -1.0
        model[3].bias[[1, 4]] = -10.0
    before = model.double()(x.double())
    edits = prune_channels(model, x.double(), {"3": 1 / 3}, criterion="activation", batches=[x.double()])
    (kept,) = (edit.kept for edit in edits.tensors if edit.name == "3.bias")
    assert kept == (0, 2, 3, 5)
    torch.testing.assert_close(model(x.double()), before, rtol=1e-14, atol=1e-14)


def test_taylor_is_the_first_order_change_of_each_sample():
    model, x = build(Residual)
    model, x = model.double(), x.double()
    group = prunable_channels(model, x)["conv1"]
    signs = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)  # samples whose changes would cancel

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return (signs * model(batch)).mean()

    scores = score_groups(model, [group], "taylor", [x], loss)["conv1"]
    hidden = torch.relu(model.conv1(torch.relu(model.bn(model.stem(x))))).detach().requires_grad_()
    y = torch.relu(torch.relu(model.bn(model.stem(x))) + model.bn2(model.conv2(hidden)))
    y = model.fc(torch.relu(model.conv3(y) + model.projection(y)).mean((2, 3)))
    (grad,) = torch.autograd.grad((signs * y).mean(1).sum(), hidden)
    expected = (grad * hidden).mean((2, 3)).abs().mean(0)
    torch.testing.assert_close(scores, expected / expected.norm())


def test_taylor_ranks_like_ablation_where_the_loss_is_linear():
    """For a loss that is linear in the hidden units the first-order change is the change."""
    model, x = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1)), torch.randn(1, 6)
    group = prunable_channels(model, x)["0"]

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return model(batch).mean()

    scores = score_groups(model, [group], "taylor", [x], loss)["0"]
    base = loss(model, x).detach()
    ablation = []
    for unit in range(16):
        without = copy.deepcopy(model)
        with torch.no_grad():
            without[2].weight[:, unit] = 0
        ablation.append(float((loss(without, x) - base).detach().abs()))
    assert scores.argsort().tolist() == np.argsort(ablation).tolist()


def test_function_and_its_errors():
    model, x = build(Residual)
    prune_channels(copy.deepcopy(model), x, 0.5, criterion=lambda name, rows: rows.std(1))
    with pytest.raises(FormatError, match="expected 8 finite scores"):
        prune_channels(model, x, 0.5, criterion=lambda name, rows: rows)
    with pytest.raises(FormatError, match="finite scores"):
        prune_channels(model, x, 0.5, criterion=lambda name, rows: rows.sum(1) / 0)


def test_counts():
    model, x = build(Residual)
    prune_channels(model, x, 0.4)
    assert (model.stem.out_channels, model.conv1.out_channels, model.conv3.out_channels) == (5, 4, 7)
    model, x = build(Residual)
    prune_channels(model, x, {"st*": 0.4, "conv?": 0.99})
    assert (model.stem.out_channels, model.conv1.out_channels, model.conv3.out_channels) == (5, 1, 1)
    model, x = build(Residual)
    prune_channels(model, x, 0.4, round_to=4)
    assert (model.stem.out_channels, model.conv1.out_channels, model.conv3.out_channels) == (8, 4, 8)
    model, x = build(Grouped)
    prune_channels(model, x, {"reduce": 0.5}, round_to=3)  # two channels per unit: three units
    assert model.reduce.out_channels == 6


def test_global_scope_compares_all_layers_and_empties_none():
    model, x = build(Residual)
    with torch.no_grad():
        model.conv1.weight.mul_(1e-3)
    prune_channels(model, x, 5 / 26, scope="global")
    assert (model.stem.out_channels, model.conv1.out_channels, model.conv3.out_channels) == (8, 1, 12)


def test_choose_units_is_exact():
    model, x = build(Flattened)
    groups = prunable_channels(model, x).prunable
    generator = torch.Generator().manual_seed(0)
    scores = {group.name: torch.rand(len(group.units), generator=generator).double() for group in groups}
    gone = choose_units(groups, scores, {group.name: 0.5 for group in groups})
    for group in groups:
        order = sorted(range(len(group.units)), key=lambda index: float(scores[group.name][index]))
        expected = {id(group.units[index]) for index in order[: round(0.5 * len(order))]}
        assert expected == {id(unit) for unit in gone} & {id(unit) for unit in group.units}
    assert keep_count(torch.tensor([1.0, 2, 2, 0]), 2).tolist() == [False, True, True, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": 1.0}, r"ratio in \[0, 1\), got 1.0"),
        ({"ratio": -0.1}, r"ratio in \[0, 1\)"),
        ({"ratio": {"nothing": 0.5}}, "no layer is called 'nothing'"),
        ({"ratio": 0.5, "scope": "all"}, "expected scope"),
        ({"ratio": 0.5, "criterion": "l3"}, "l1_greedy, l2, taylor, got 'l3'"),
        ({"ratio": 0.5, "criterion": "taylor"}, "give batches"),
        ({"ratio": 0.5, "criterion": "taylor", "batches": []}, "needs a loss"),
        ({"ratio": 0.5, "criterion": "taylor", "batches": [], "loss": mean_square}, "got none"),
        ({"ratio": 0.5, "criterion": "activation", "batches": []}, "got none"),
        ({"ratio": 0.5, "criterion": "l1_greedy", "scope": "global"}, "layer to layer"),
        ({"ratio": 0.5, "round_to": 0}, "round_to of at least 1"),
        ({"ratio": {"conv1": 0.5, "stem": 0.2}, "scope": "global"}, "one ratio for all"),
    ],
)
def test_bad_arguments_change_nothing(arguments, message):
    model, x = build(Residual)
    before = str(model)
    with pytest.raises(ValueError, match=message):
        prune_channels(model, x, **arguments)
    assert str(model) == before


def test_nothing_to_cut_says_why():
    model = nn.Sequential(nn.Linear(4, 2))
    with pytest.raises(UnsupportedError, match="they are an output of the model"):
        prune_channels(model, torch.randn(1, 4), 0.5)
    with pytest.raises(UnsupportedError, match="ratio: 0 cannot be cut: they are an output"):
        prune_channels(model, torch.randn(1, 4), {"0": 0.5})


def test_mode_stays():
    model, x = build(Residual)
    model.train()
    statistics = model.bn.running_mean.clone()
    prune_channels(model, x, {"conv1": 0.5}, criterion="taylor", batches=[x], loss=mean_square)
    assert all(module.training for module in model.modules())
    assert torch.equal(model.bn.running_mean, statistics)


def test_cut_by_channels_of_a_group_is_prune_channels():
    model, x = build(Residual)
    group = prunable_channels(model, x)["stem"]
    scores = score_groups(model, [group], "l1")["stem"]
    gone = [index for index, keep in enumerate(keep_count(scores, 4).tolist()) if not keep]
    expected = cut(model, x, {"stem": group.channels_of(gone)}, dry_run=True)
    assert prune_channels(model, x, {"stem": 0.5}).to_dict() == expected.to_dict()
