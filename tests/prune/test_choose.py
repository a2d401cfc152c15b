"""Masks from scores, against plain Python loops."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecore.prune.choose import keep_groups, keep_largest, keep_largest_by_row

# Few distinct values, so that ties are the rule.
SCORES = st.sampled_from([-2.0, 0.0, 0.5, 1.0, 3.0])


def largest_by_loop(scores: list[list[float]], num_kept: int) -> list[list[bool]]:
    keep = [[False] * len(row) for row in scores]
    for _ in range(num_kept):
        best = None
        for i, row in enumerate(scores):
            for j, score in enumerate(row):
                if not keep[i][j] and (best is None or score > scores[best[0]][best[1]]):
                    best = (i, j)
        assert best is not None
        keep[best[0]][best[1]] = True
    return keep


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(SCORES, min_size=1, max_size=12), min_size=1, max_size=4),
    st.floats(0, 1, exclude_max=True),
)
def test_keep_largest_equals_loop(scores: list[list[float]], sparsity: float) -> None:
    numel = sum(map(len, scores))
    keep = keep_largest([torch.tensor(row) for row in scores], sparsity)
    assert [row.tolist() for row in keep] == largest_by_loop(scores, numel - round(sparsity * numel))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.floats(0, 1, exclude_max=True), st.data())
def test_keep_largest_by_row_equals_loop(columns: int, rows: int, sparsity: float, data: st.DataObject) -> None:
    row = st.lists(st.one_of(SCORES, st.just(-float("inf"))), min_size=columns, max_size=columns)
    scores = data.draw(st.lists(row, min_size=rows, max_size=rows))
    keep = keep_largest_by_row(torch.tensor(scores), sparsity)
    num_kept = max(columns - round(sparsity * columns), 1)
    for got, values in zip(keep.tolist(), scores, strict=True):
        (best,) = largest_by_loop([values], num_kept)
        assert got == [kept and value > -float("inf") for kept, value in zip(best, values, strict=True)]


@pytest.mark.parametrize(("numel", "num_pruned"), [(1, 0), (3, 2), (10, 5), (11, 6), (13, 6)], ids=str)
def test_rounding_is_half_to_even(numel: int, num_pruned: int) -> None:
    (keep,) = keep_largest([torch.arange(float(numel))], 0.5)
    assert keep.tolist() == [False] * num_pruned + [True] * (numel - num_pruned)


def test_infinite_scores_overrule_the_count() -> None:
    inf = float("inf")
    (keep,) = keep_largest([torch.tensor([inf, 1.0, inf, 2.0])], 0.9)
    assert keep.tolist() == [True, False, True, False]
    (keep,) = keep_largest([torch.tensor([-inf, 1.0, -inf, 2.0])], 0.0)
    assert keep.tolist() == [False, True, False, True]
    (keep,) = keep_largest([torch.tensor([-inf, -inf])], 0.0)
    assert keep.tolist() == [False, False]


def closest_by_loop(scores: list[float], sizes: list[int], sparsity: float) -> int:
    """Try every count of lowest scores; of equal scores the later one goes first."""
    order = sorted(range(len(scores)), key=lambda i: (scores[i], -i))
    target = Fraction(sparsity) * sum(sizes)
    distances = [abs(sum(sizes[i] for i in order[:count]) - target) for count in range(len(scores) + 1)]
    return min(range(len(scores) + 1), key=lambda count: (distances[count], count % 2))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(SCORES, st.integers(1, 8)), min_size=1, max_size=12), st.integers(0, 63), st.integers(1, 3))
def test_sizes_come_closest(scored: list[tuple[float, int]], sixtyfourths: int, num_tensors: int) -> None:
    sparsity = sixtyfourths / 64
    scores, sizes = [score for score, _ in scored], [size for _, size in scored]
    keep = torch.cat(
        keep_largest(
            torch.tensor_split(torch.tensor(scores), num_tensors),
            sparsity,
            torch.tensor_split(torch.tensor(sizes), num_tensors),
        )
    )
    num_pruned = closest_by_loop(scores, sizes, sparsity)
    assert [keep.tolist()] == largest_by_loop([scores], len(scores) - num_pruned)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("sixtyfourths", range(64))
def test_equal_sizes_are_no_sizes(size: int, sixtyfourths: int) -> None:
    scores = torch.tensor([0.5, 1.0, 0.5, -2.0, 3.0, 0.5, 1.0, 0.0])
    sparsity = sixtyfourths / 64
    (keep,) = keep_largest([scores], sparsity)
    (same,) = keep_largest([scores], sparsity, [torch.full((8,), size)])
    assert torch.equal(keep, same)


def test_large_sizes_are_counted_exactly() -> None:
    """float32 cannot tell 2^25 + 1 from 2^25."""
    sizes = torch.tensor([2**25 - 1, 1, 1, 2**25 + 1])
    (keep,) = keep_largest([torch.tensor([4.0, 3.0, 2.0, 1.0])], 0.5, [sizes])
    assert keep.tolist() == [True, True, True, False]


def test_infinite_scores_overrule_the_sizes() -> None:
    inf = float("inf")
    (keep,) = keep_largest([torch.tensor([inf, 1.0, inf, -inf])], 0.9, [torch.tensor([4, 4, 2, 2])])
    assert keep.tolist() == [True, False, True, False]
    (keep,) = keep_largest([torch.tensor([-inf, 1.0, 2.0])], 0.0, [torch.tensor([1, 2, 2])])
    assert keep.tolist() == [False, True, True]


def test_keep_largest_restores_shapes() -> None:
    scores = [torch.rand(2, 3, 1, 2), torch.rand(5), torch.rand(4, 0)]
    assert [keep.shape for keep in keep_largest(scores, 0.5)] == [s.shape for s in scores]


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(1, 3), st.integers(1, 3), st.integers(2, 5))
def test_keep_groups_equals_loop(data: st.DataObject, N: int, num_groups: int, group: int) -> None:
    keep = data.draw(st.integers(1, group - 1))
    rows = data.draw(
        st.lists(
            st.lists(SCORES, min_size=num_groups * group, max_size=num_groups * group),
            min_size=N,
            max_size=N,
        )
    )
    mask = keep_groups(torch.tensor(rows), keep, group).tolist()
    for row, kept in zip(rows, mask, strict=True):
        for start in range(0, len(row), group):
            part = slice(start, start + group)
            assert [kept[part]] == largest_by_loop([row[part]], keep)


def test_keep_groups_never_keeps_minus_infinity() -> None:
    inf = float("inf")
    mask = keep_groups(torch.tensor([[-inf, -inf, -inf, 1.0]]), 2, 4)
    assert mask.tolist() == [[False, False, False, True]]
