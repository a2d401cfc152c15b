"""An optimizer whose parameters are cut, replaced or added keeps the state of what stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

pytest.importorskip("torch_pruning")

from sparsecore.prune.structured import cut
from sparsecore.train.compressor.optimizer import (
    add_group,
    carry_over,
    load_optimizer_state,
    make_scheduler,
    optimizer_state,
)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def steps(model: nn.Module, optimizer: Optimizer, count: int, keep: Tensor | None = None) -> None:
    for seed in range(count):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        hidden = model[0](x)
        if keep is not None:
            hidden = hidden * keep
        model[2](hidden.relu()).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("kind", "options"), [(SGD, {"lr": 0.1, "momentum": 0.9}), (Adam, {"lr": 0.01}), (AdamW, {"lr": 0.01})]
)
def test_state_after_a_cut_is_that_of_what_stays(kind: Any, options: dict[str, float]) -> None:
    model = net()
    optimizer = kind(model.parameters(), **options)
    steps(model, optimizer, 3)
    momenta = {
        name: {key: value.clone() for key, value in optimizer.state[parameter].items() if isinstance(value, Tensor)}
        for name, parameter in model.named_parameters()
    }
    before = dict(model.named_parameters())
    edits = cut(model, torch.randn(1, 4), {"0": [1, 4]})
    after = dict(model.named_parameters())
    carry_over(optimizer, before, after, edits)
    kept = [0, 2, 3, 5]
    assert optimizer.param_groups[0]["params"] == list(after.values())
    assert set(optimizer.state) == set(after.values())
    for name, dim in (("0.weight", 0), ("0.bias", 0), ("2.weight", 1)):
        for key, value in optimizer.state[after[name]].items():
            old = momenta[name][key]
            assert torch.equal(value, old[kept] if dim == 0 and old.dim() else old[:, kept] if old.dim() else old)
    assert after["2.bias"] is before["2.bias"]


def test_going_on_after_a_cut_equals_going_on_with_the_masked_model() -> None:
    """Units that give nothing and get no gradient: training the small net is training the large one."""
    keep = torch.tensor([1.0, 0, 1, 1, 0, 1])
    small, large = net(), net()
    optimizers = [Adam(model.parameters(), lr=0.01) for model in (small, large)]
    for model, optimizer in zip((small, large), optimizers, strict=True):
        steps(model, optimizer, 3, keep)
    before = dict(small.named_parameters())
    edits = cut(small, torch.randn(1, 4), {"0": [1, 4]})
    carry_over(optimizers[0], before, dict(small.named_parameters()), edits)
    steps(small, optimizers[0], 4)
    steps(large, optimizers[1], 4, keep)
    torch.testing.assert_close(small[0].weight, large[0].weight[keep.bool()], rtol=0, atol=1e-6)
    torch.testing.assert_close(small[2].weight, large[2].weight[:, keep.bool()], rtol=0, atol=1e-6)


def test_new_parameters_join_and_old_ones_leave() -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    steps(model, optimizer, 1)
    before = dict(model.named_parameters())
    model[2] = nn.Linear(6, 2)
    carry_over(optimizer, before, dict(model.named_parameters()), None)
    assert optimizer.param_groups[0]["params"] == list(model.parameters())
    assert set(optimizer.state) == set(model[0].parameters())


def test_state_by_name_goes_to_an_optimizer_of_another_model() -> None:
    a, b = net(), net()
    optimizers = [AdamW([{"params": m[0].parameters(), "lr": 0.1}, {"params": m[2].parameters()}]) for m in (a, b)]
    scheduler = make_scheduler("CosineAnnealingLR", {}, optimizers[0], 10)
    add_group(optimizers[0], scheduler, [a[2].bias], weight_decay=0.5, momentum=0.9)
    steps(a, optimizers[0], 2)
    scheduler.step()
    saved = optimizer_state(optimizers[0], dict(a.named_parameters()))
    assert [group["names"] for group in saved["groups"]] == [["0.weight", "0.bias"], ["2.weight"], ["2.bias"]]
    b.load_state_dict(a.state_dict())
    load_optimizer_state(optimizers[1], dict(b.named_parameters()), saved)
    for model, optimizer in zip((a, b), optimizers, strict=True):
        steps(model, optimizer, 2)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert [group["weight_decay"] for group in optimizers[1].param_groups] == [0.01, 0.01, 0.5]
