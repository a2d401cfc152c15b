"""Taylor scores: sums over batches, errors, and that they foretell what pruning costs better than magnitudes do."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune as torch_prune

from sparsecore.errors import FormatError
from sparsecore.prune import GradualPruner, Taylor, prune


def test_magnitudes_of_batches_are_added() -> None:
    layer = nn.Linear(3, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, -2.0, 3.0]])
    taylor = Taylor(layer)
    for x in ([[4.0, 1.0, 1.0]], [[-4.0, 1.0, 0.0]]):  # the gradient is x: in the sum the first entry cancels
        layer.zero_grad()
        layer(torch.tensor(x)).sum().backward()
        taylor.update()
    assert taylor.scores["weight"].tolist() == [[8.0, 4.0, 3.0]]
    assert prune(layer, 0.5, criterion=taylor)["weight"].tolist() == [[True, False, False]]
    taylor.reset()
    assert not taylor.scores


def test_by_name_takes_the_gradients_that_are_there() -> None:
    layer = nn.Linear(3, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, -2.0, 3.0]])
    for x in ([[4.0, 1.0, 1.0]], [[-4.0, 1.0, 0.0]]):
        layer(torch.tensor(x)).sum().backward()
    assert prune(layer, 1 / 3, criterion="taylor")["weight"].tolist() == [[False, True, True]]


def test_half_precision_is_scored_in_float32() -> None:
    layer = nn.Linear(2, 1, bias=False, dtype=torch.float16)
    layer.weight.data = torch.tensor([[1e-4, 2e-4]], dtype=torch.float16)
    layer.weight.grad = torch.tensor([[1e-4, 1e-4]], dtype=torch.float16)
    taylor = Taylor(layer)
    taylor.update()
    scores = taylor.scores["weight"]
    assert scores.dtype == torch.float32
    assert torch.equal(scores, layer.weight.detach().float() * layer.weight.grad.float())
    assert scores[0, 0] > 0  # not in float16


def test_torch_pruned_weights_are_scored_as_the_layer_uses_them() -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    torch_prune.l1_unstructured(model[0], "weight", amount=0.5)
    model(torch.ones(1, 4)).sum().backward()
    taylor = Taylor(model)
    taylor.update()
    assert torch.equal(taylor.scores["0.weight"] > 0, model[0].weight_mask.bool())
    assert prune(model, 0.5, criterion=taylor).sparsity() == 0.5


def test_works_with_gradual_pruning() -> None:
    model = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    taylor = Taylor(model)

    def step() -> None:
        optimizer.zero_grad()
        model(torch.randn(16, 8)).square().mean().backward()
        taylor.update()
        optimizer.step()

    step()
    pruner = GradualPruner(model, optimizer, 0.75, end=4, frequency=2, criterion=taylor)
    for _ in range(4):
        step()
        pruner.step()
    assert pruner.masks.sparsity() == 0.75


class Errors:
    """A net of two layers, of which the second is to fail."""

    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        self.model(torch.randn(5, 4)).sum().backward()
        self.before = [parameter.detach().clone() for parameter in self.model.parameters()]

    def unchanged(self) -> bool:
        return all(map(torch.equal, self.before, self.model.parameters()))


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
@pytest.mark.parametrize("by_name", [True, False])
def test_bad_gradients_are_refused_by_name(bad: float | None, by_name: bool) -> None:
    case = Errors()
    taylor = Taylor(case.model)
    if bad is None:
        case.model[1].weight.grad = None
    else:
        assert case.model[1].weight.grad is not None
        case.model[1].weight.grad[0, 0] = bad
    text = r"1\.weight has no gradient" if bad is None else r"1\.weight: the gradient is NaN or infinite in 1 of 6"
    refused = partial(prune, case.model, 0.5, criterion="taylor") if by_name else taylor.update
    with pytest.raises(FormatError, match=text):
        refused()
    assert case.unchanged()
    assert not taylor.scores
    Taylor(case.model, exclude="1").update()


def test_no_scores_is_an_error() -> None:
    case = Errors()
    with pytest.raises(ValueError, match=r"no Taylor scores for 0\.weight; call update\(\)"):
        prune(case.model, 0.5, criterion=Taylor(case.model))
    other = Taylor(case.model, exclude="1")
    other.update()
    with pytest.raises(ValueError, match=r"no Taylor scores for 1\.weight; it is not one"):
        prune(case.model, 0.5, criterion=other)
    assert case.unchanged()


def ranks_of(values: Tensor) -> Tensor:
    return values.argsort().argsort().double()


def spearman(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([ranks_of(a), ranks_of(b)]))[0, 1])


@pytest.mark.parametrize("seed", range(5))
def test_ranks_follow_the_true_change_of_the_loss(seed: int) -> None:
    """8x8 images of ten classes, as digits are: a pattern each, pixels of different ranges, and noise."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.rand(10, 64, generator=generator) * torch.rand(64, generator=generator)
    labels = torch.randint(10, (400,), generator=generator)
    x = (patterns[labels] + 0.2 * torch.randn(400, 64, generator=generator)).clamp(min=0)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)).double()
    x = x.double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()

    taylor = Taylor(model)
    for images, classes in zip(x.split(50), labels.split(50), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(model(images), classes).backward()
        taylor.update()
    with torch.no_grad():
        loss = F.cross_entropy(model(x), labels)
        weight = model[0].weight.view(-1)
        changes = torch.empty_like(weight)
        for index in range(weight.numel()):
            value = weight[index].item()
            weight[index] = 0
            changes[index] = (F.cross_entropy(model(x), labels) - loss).abs()
            weight[index] = value
        scores = taylor.scores["0.weight"].view(-1)
        assert spearman(scores, changes) > spearman(weight.abs(), changes)
