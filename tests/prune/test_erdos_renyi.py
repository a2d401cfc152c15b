"""Erdos-Renyi shares: the formula, its two limits, exact counts, and that no layer gains as others lose."""

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsecore.prune import GradualPruner, fits_pattern, prune
from sparsecore.prune.erdos_renyi import erdos_renyi_kept

SHAPES = st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=4), min_size=1, max_size=6)


def test_formula_in_closed_form() -> None:
    """Sums of the shapes 30, 20 and 16: with epsilon 3 all is whole."""
    shapes = [(20, 10), (10, 10), (5, 5, 3, 3)]
    kept = erdos_renyi_kept(shapes, 3 * (30 + 20 + 16))
    assert kept == [90, 60, 48]
    densities = [count / prod(shape) for count, shape in zip(kept, shapes, strict=True)]
    assert densities == [3 * 30 / 200, 3 * 20 / 100, 3 * (5 + 5 + 3 + 3) / (5 * 5 * 3 * 3)]


def test_a_full_layer_gives_the_rest_to_the_others() -> None:
    """5 x (40, 20, 60) would be 200, 100, 300; the second has 36 entries: epsilon is (600 - 36) / 100."""
    assert erdos_renyi_kept([(20, 20), (18, 2), (30, 30)], 600) == [226, 36, 338]


def test_two_layers_full_one_after_the_other() -> None:
    """Epsilon is 2: (4, 4) is just full, (2, 9) would have 22 of its 18."""
    shapes = [(100, 100), (4, 4), (2, 9)]
    assert erdos_renyi_kept(shapes, 434) == [400, 16, 18]


def test_every_layer_keeps_an_entry() -> None:
    assert erdos_renyi_kept([(40, 40), (1, 2), (3, 3)], 10) == [8, 1, 1]
    assert erdos_renyi_kept([(4, 4), (1, 1)], 0) == [1, 1]


@settings(max_examples=100, deadline=None)
@given(SHAPES, st.floats(0, 1))
def test_counts_are_exact_and_follow_one_epsilon(shapes: list[list[int]], density: float) -> None:
    numels = [prod(shape) for shape in shapes]
    total = max(round(density * sum(numels)), len(shapes))
    kept = erdos_renyi_kept(shapes, total)
    assert sum(kept) == total
    assert all(1 <= count <= numel for count, numel in zip(kept, numels, strict=True))
    # Rounding of one epsilon: the entry that a layer was given last has no lower claim than the next one of another.
    rows = list(zip(kept, numels, map(sum, shapes), strict=True))
    last = [(2 * count - 1) / size for count, _, size in rows if count > 1]
    following = [(2 * count + 1) / size for count, numel, size in rows if count < numel]
    assert not last or not following or max(last) <= min(following) + 1e-12


@settings(max_examples=50, deadline=None)
@given(SHAPES)
def test_no_layer_gains_when_fewer_entries_are_kept(shapes: list[list[int]]) -> None:
    numel = sum(map(prod, shapes))
    before = erdos_renyi_kept(shapes, numel)
    assert before == list(map(prod, shapes))
    for num_kept in range(numel - 1, -1, -max(1, numel // 20)):
        now = erdos_renyi_kept(shapes, num_kept)
        assert all(a <= b for a, b in zip(now, before, strict=True))
        before = now


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3, groups=2), nn.Flatten(), nn.Linear(64, 10))


@pytest.mark.parametrize("sparsity", [0.0, 0.31, 0.9, 0.97, 0.9999])
def test_prune_takes_the_shares_and_the_lowest_magnitudes(sparsity: float) -> None:
    model, before = net(), net()
    masks = prune(model, sparsity, scope="erdos-renyi")
    numel = sum(mask.numel() for mask in masks.values())
    expected = erdos_renyi_kept([mask.shape for mask in masks.values()], numel - round(sparsity * numel))
    assert [row.num_kept for row in masks.statistics().values()] == expected
    assert sum(expected) == max(numel - round(sparsity * numel), 3)
    for (name, mask), count in zip(masks.items(), expected, strict=True):
        magnitudes = before.get_parameter(name).abs()
        assert set(magnitudes[mask].tolist()) == set(sorted(magnitudes.flatten().tolist())[-count:])


def test_gradual_pruning_ends_at_the_exact_count() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = GradualPruner(model, optimizer, 0.93, end=40, frequency=1, scope="erdos-renyi")
    numel = sum(mask.numel() for mask in pruner.masks.values())
    for _ in range(40):
        pruner.step()
    kept = [row.num_kept for row in pruner.masks.statistics().values()]
    assert kept == erdos_renyi_kept([mask.shape for mask in pruner.masks.values()], numel - round(0.93 * numel))


def test_blocks_come_as_close_as_they_can() -> None:
    masks = prune(net(), 0.8, scope="erdos-renyi", pattern="4x1", exclude="3")
    expected = erdos_renyi_kept(
        [mask.shape for mask in masks.values()], round(0.2 * sum(m.numel() for m in masks.values()))
    )
    for mask, count in zip(masks.values(), expected, strict=True):
        assert fits_pattern(mask, "4x1")
        assert abs(int(mask.sum()) - count) <= 2


def test_takes_one_sparsity() -> None:
    with pytest.raises(ValueError, match='scope "erdos-renyi" takes one sparsity'):
        prune(net(), {"0": 0.5}, scope="erdos-renyi")
