"""prune_block(): a block with the calls that its model makes."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsecore.prune import Masks, SparseGPT, prune, prune_block


class Block(nn.Module):
    """Called with positional and keyword arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 12)
        self.second = nn.Linear(12, 8)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> tuple[Tensor, None]:
        hidden = torch.relu(self.first(x))
        return x + self.second(hidden if mask is None else hidden * mask), None


def some_calls() -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(12) > 3).float()
    return [((torch.randn(3, 5, 8, generator=generator),), {"mask": mask}) for _ in range(3)]


@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("arguments", [{"sparsity": 0.6}, {"pattern": "2:4"}, {"sparsity": 0.5, "pattern": "4x1"}])
def test_every_layer_is_pruned_on_its_inputs_in_the_dense_block(criterion: str, arguments: dict[str, Any]) -> None:
    block, calls = Block(), some_calls()
    expected = copy.deepcopy(block)
    x = [args[0] for args, _ in calls]
    hidden = [(torch.relu(block.first(batch)) * calls[0][1]["mask"]).detach() for batch in x]
    prune(expected.first, criterion=criterion, batches=x, **arguments)
    prune(expected.second, criterion=criterion, batches=hidden, **arguments)
    masks = prune_block(block, calls, criterion=criterion, **arguments)
    assert list(masks) == ["first.weight", "second.weight"]
    assert all(map(torch.equal, block.parameters(), expected.parameters()))
    if criterion == "wanda":
        assert masks == Masks.from_model(expected)


def test_settings_reach_sparsegpt() -> None:
    block, calls = Block(), some_calls()
    expected = copy.deepcopy(block)
    x = [args[0] for args, _ in calls]
    prune(expected.first, 0.5, criterion=SparseGPT(0.5, 3), batches=x)
    prune_block(block, calls, 0.5, criterion="sparsegpt", damping=0.5, block_size=3, exclude="second")
    assert torch.equal(block.first.weight, expected.first.weight)


def test_magnitude_needs_no_calls() -> None:
    block = Block()
    expected = copy.deepcopy(block)
    prune(expected, 0.5)
    assert prune_block(block, [], 0.5, criterion="magnitude") == Masks.from_model(expected)


@pytest.mark.parametrize("layers", ["second", ["sec*"], "second.weight"])
def test_only_some_layers(layers: Any) -> None:
    assert list(prune_block(Block(), some_calls(), 0.5, layers=layers)) == ["second.weight"]
    assert list(prune_block(Block(), some_calls(), pattern="2:4", layers=nn.Linear, exclude="second")) == [
        "first.weight"
    ]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"layers": "third"}, "layers: 'third' matches no weight"),
        ({"layers": "second", "exclude": "second"}, "layers: 'second' matches no weight"),
        ({"calls": []}, "at least one calibration batch"),
        ({"sparsity": 1.0}, "got 1.0"),
        ({"criterion": "sparse-gpt"}, "as criterion, got 'sparse-gpt'"),
        ({"criterion": "sparsegpt", "block_size": 0}, "block_size"),
        ({"calls": [((torch.full((2, 8), torch.nan),), {})]}, "first: an input is NaN"),
    ],
    ids=str,
)
def test_errors_leave_the_block_alone(arguments: dict[str, Any], text: str) -> None:
    block = Block()
    before = copy.deepcopy(block.state_dict())
    with pytest.raises(ValueError, match=text):
        prune_block(block, **{"calls": some_calls(), "sparsity": 0.5, **arguments})
    assert all(map(torch.equal, block.state_dict().values(), before.values()))
