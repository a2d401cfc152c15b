"""Wanda: exact counts per row against loops over exact scores, and less error than magnitude."""

from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sparsecore.prune import prune

# Powers of two, so that weight^2 * sum of squares orders exactly as float32 scores do, ties included.
WEIGHTS = st.sampled_from([-4.0, -2.0, -1.0, 0.0, 0.5, 1.0])
INPUTS = st.sampled_from([-2.0, 0.0, 1.0, 3.0])


def linear(rows: Sequence[Sequence[float]]) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows))
    layer.weight.data = torch.tensor(rows)
    return layer


def squared_scores(row: list[float], x: list[list[float]]) -> list[Fraction]:
    return [Fraction(w) ** 2 * sum(Fraction(sample[k]) ** 2 for sample in x) for k, w in enumerate(row)]


def kept(row: list[float], scores: list[Fraction], span: range, num_kept: int) -> set[int]:
    """Zeros go first, then the lowest scores; of equal ones the earlier stays."""
    return set(sorted(span, key=lambda k: (row[k] == 0, -scores[k], k))[:num_kept])


@st.composite
def problems(draw: st.DrawFn, group: int = 1) -> tuple[list[list[float]], list[list[float]]]:
    K = draw(st.integers(1, 3 if group > 1 else 9)) * group
    row = st.lists(WEIGHTS, min_size=K, max_size=K)
    sample = st.lists(INPUTS, min_size=K, max_size=K)
    x = draw(st.lists(sample, min_size=1, max_size=4).filter(lambda x: any(map(any, x))))
    return draw(st.lists(row, min_size=1, max_size=4)), x


@settings(max_examples=150, deadline=None)
@given(problems(), st.floats(0, 1, exclude_max=True))
def test_rows_equal_the_loop(problem: tuple[list[list[float]], list[list[float]]], sparsity: float) -> None:
    rows, x = problem
    layer, K = linear(rows), len(rows[0])
    masks = prune(layer, sparsity, criterion="wanda", batches=[torch.tensor([sample]) for sample in x])
    expected = [kept(row, squared_scores(row, x), range(K), max(K - round(sparsity * K), 1)) for row in rows]
    assert [{k for k in range(K) if row[k]} for row in masks["weight"].tolist()] == expected
    assert layer.weight.tolist() == [
        [w if k in keep else 0.0 for k, w in enumerate(row)] for row, keep in zip(rows, expected, strict=True)
    ]


@settings(max_examples=100, deadline=None)
@given(problems(group=4))
def test_groups_equal_the_loop(problem: tuple[list[list[float]], list[list[float]]]) -> None:
    rows, x = problem
    masks = prune(linear(rows), pattern="2:4", criterion="wanda", batches=[torch.tensor(x)])
    for mask, row in zip(masks["weight"].tolist(), rows, strict=True):
        scores = squared_scores(row, x)
        for begin in range(0, len(row), 4):
            group = range(begin, begin + 4)
            assert {k for k in group if mask[k]} == kept(row, scores, group, 2)


@pytest.mark.parametrize("pattern", ["2x1", "1x4", "4x2", "3x5"])
@pytest.mark.parametrize("sparsity", [0.0, 0.4, 0.5, 0.99])
def test_blocks_are_compared_with_those_of_their_rows(pattern: str, sparsity: float) -> None:
    layer, x = nn.Linear(16, 10), torch.randn(20, 16) * torch.rand(16)
    scores = layer.weight.detach().abs() * x.norm(dim=0)
    block_rows, _ = map(int, pattern.split("x"))
    parts = [nn.Linear(16, len(part)) for part in scores.split(block_rows)]
    for part, values in zip(parts, scores.split(block_rows), strict=True):
        part.weight.data = values.clone()
    alone = nn.Sequential(*parts)
    last = [] if 10 % block_rows == 0 else [len(parts) - 1]
    masks = prune(layer, sparsity, pattern=pattern, criterion="wanda", batches=[x])
    expected = prune(alone, sparsity, pattern=pattern, exclude=[str(index) for index in last])
    mask = masks["weight"][: 10 - 10 % block_rows]
    assert torch.equal(mask, torch.cat(list(expected.values())))


def test_same_norms_are_the_magnitudes_of_each_row() -> None:
    layer, x = nn.Linear(12, 5), torch.eye(12)
    rows = nn.Sequential(*(linear([row]) for row in layer.weight.tolist()))
    masks = prune(layer, 0.7, criterion="wanda", batches=[x])
    assert torch.equal(masks["weight"], torch.cat(list(prune(rows, 0.7).values())))


def test_how_inputs_are_batched_does_not_matter() -> None:
    x = torch.randint(-4, 5, (12, 6)).float()
    first, second = nn.Linear(6, 4), nn.Linear(6, 4)
    second.load_state_dict(first.state_dict())
    assert prune(first, 0.5, criterion="wanda", batches=[x]) == prune(
        second, 0.5, criterion="wanda", batches=list(x.view(3, 2, 2, 6))
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_float_types_keep_their_values(dtype: torch.dtype) -> None:
    layer, x = nn.Linear(8, 4, dtype=dtype), torch.randn(9, 8, dtype=dtype)
    before = layer.weight.detach().clone()
    mask = prune(layer, 0.5, criterion="wanda", batches=[x])["weight"]
    scores = before.double().abs() * x.double().norm(dim=0)
    assert torch.equal(mask, scores >= scores.sort(descending=True).values[:, 3:4])
    assert torch.equal(layer.weight, before * mask)


def output_error(layer: nn.Linear, before: Tensor, x: Tensor) -> float:
    return float((x.double() @ (layer.weight.detach() - before).double().t()).square().sum())


@pytest.mark.parametrize("seed", range(5))
def test_less_error_than_magnitude_where_columns_differ(seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(256, 64) * torch.logspace(-1, 1, 64)[torch.randperm(64)]
    layer = nn.Linear(64, 32)
    before = layer.weight.detach().clone()
    prune(layer, 0.5)
    magnitude = output_error(layer, before, x)
    layer.weight.data = before.clone()
    prune(layer, 0.5, criterion="wanda", batches=[x])
    assert output_error(layer, before, x) < magnitude
