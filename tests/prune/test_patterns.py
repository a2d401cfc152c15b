"""Block patterns against plain Python loops in float64, what a weight's zeros tell, and every error."""

from collections.abc import Iterator
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sparsecore.errors import FormatError
from sparsecore.prune import Masks, fits_pattern, prune
from sparsecore.prune.patterns import UNSTRUCTURED, Blocks, Groups, parse_pattern

Matrix = list[list[float]]
Cells = list[tuple[int, int]]  # the places (row, column) of a block


def blocks_of(N: int, K: int, block_rows: int, block_cols: int) -> Iterator[Cells]:
    """Cut [N, K] into blocks, row by row."""
    for top in range(0, N, block_rows):
        for left in range(0, K, block_cols):
            yield [
                (i, j)
                for i in range(top, min(top + block_rows, N))
                for j in range(left, min(left + block_cols, K))
            ]  # fmt: skip


def prune_by_loop(weights: list[Matrix], sparsity: float, block_rows: int, block_cols: int) -> list[Matrix]:
    """Zero the blocks of lowest mean magnitude of all weights together; the best of each weight stays."""
    blocks: list[tuple[int, Cells]] = []
    means: list[Fraction] = []
    best: dict[int, int] = {}
    for index, weight in enumerate(weights):
        for cells in blocks_of(len(weight), len(weight[0]), block_rows, block_cols):
            mean = sum(Fraction(abs(weight[i][j])) for i, j in cells) / len(cells)
            if index not in best or mean > means[best[index]]:
                best[index] = len(blocks)
            blocks.append((index, cells))
            means.append(mean)
    order = sorted(range(len(blocks)), key=lambda b: (b in best.values(), means[b], -b))
    target = Fraction(sparsity) * sum(len(cells) for _, cells in blocks)
    distances = [abs(sum(len(blocks[b][1]) for b in order[:count]) - target) for count in range(len(order) + 1)]
    closest = min(range(len(order) + 1), key=lambda count: (distances[count], count % 2))

    pruned = [[list(row) for row in weight] for weight in weights]
    for b in order[: min(closest, len(order) - len(weights))]:
        index, cells = blocks[b]
        for i, j in cells:
            pruned[index][i][j] = 0.0
    return pruned


def fits_by_loop(weight: Matrix, block_rows: int, block_cols: int) -> bool:
    return all(
        len({weight[i][j] != 0 for i, j in cells}) == 1
        for cells in blocks_of(len(weight), len(weight[0]), block_rows, block_cols)
    )


def model_of(weights: list[Matrix]) -> nn.Sequential:
    """Linear layers with these weights, which need not fit together."""
    model = nn.Sequential()
    for weight in weights:
        layer = nn.Linear(len(weight[0]), len(weight))
        layer.weight = nn.Parameter(torch.tensor(weight))
        model.append(layer)
    return model


def linear(*rows: list[float]) -> nn.Linear:
    (layer,) = model_of([list(rows)])
    assert isinstance(layer, nn.Linear)
    return layer


class Conv1D(nn.Module):
    """Looks like transformers' layer of that name: weight stored [K, N]."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)


# Few distinct values, so that ties are the rule; their sums are exact.
VALUES = st.sampled_from([-2.0, -1.0, 0.0, 0.0, 0.5, 1.0, 3.0])


@st.composite
def matrices(draw: st.DrawFn, min_rows: int = 1, min_cols: int = 1) -> Matrix:
    N, K = draw(st.integers(min_rows, 9)), draw(st.integers(min_cols, 7))
    return draw(st.lists(st.lists(VALUES, min_size=K, max_size=K), min_size=N, max_size=N))


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Matrix], int, int]:
    block_rows, block_cols = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    return draw(st.lists(matrices(block_rows, block_cols), min_size=1, max_size=3)), block_rows, block_cols


@settings(max_examples=100, deadline=None)
@given(cases(), st.integers(0, 63), st.sampled_from(["layer", "global"]))
def test_blocks_equal_loop(case: tuple[list[Matrix], int, int], sixtyfourths: int, scope: str) -> None:
    weights, block_rows, block_cols = case
    sparsity = sixtyfourths / 64  # exact in binary, so that halves are halves
    model = model_of(weights)
    masks = prune(model, sparsity, scope=scope, pattern=f"{block_rows}x{block_cols}")
    together = [weights] if scope == "global" else [[weight] for weight in weights]
    expected = [weight for some in together for weight in prune_by_loop(some, sparsity, block_rows, block_cols)]
    assert [layer.weight.tolist() for layer in model] == expected
    assert all(fits_pattern(mask, f"{block_rows}x{block_cols}") for mask in masks.values())


@pytest.mark.parametrize("pattern", ["4x1", "8x1", "1x4", "2x3", "16x16"])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.9])
def test_random_weights_equal_loop(pattern: str, sparsity: float) -> None:
    torch.manual_seed(0)
    block_rows, block_cols = map(int, pattern.split("x"))
    model = nn.Sequential(nn.Linear(30, 21), nn.Conv2d(4, 18, 3), nn.Conv1d(8, 16, 2))
    rows = [layer.weight.detach().flatten(1).tolist() for layer in model]
    prune(model, sparsity, pattern=pattern)
    for before, layer in zip(rows, model, strict=True):
        (expected,) = prune_by_loop([before], sparsity, block_rows, block_cols)
        assert layer.weight.detach().flatten(1).tolist() == expected


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.77, 0.9, 0.999])
def test_exact_count_where_blocks_divide(sparsity: float) -> None:
    torch.manual_seed(0)
    num_kept = max(100 - round(sparsity * 100), 1)
    for scope in ("layer", "global"):
        masks = prune(nn.Linear(50, 8), sparsity, scope=scope, pattern="4x1")
        assert masks.statistics()["weight"].num_kept == 4 * num_kept


def test_one_by_one_is_unstructured() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(9, 7)
    other = nn.Linear(9, 7)
    other.load_state_dict(layer.state_dict())
    assert prune(layer, 0.6, pattern="1x1") == prune(other, 0.6)


def test_a_small_block_at_the_edge_is_no_worse_for_its_size() -> None:
    """By their sums the last row would go first."""
    layer = linear([1.0, 1.0], [1.0, 1.0], [1.5, 1.5])
    assert prune(layer, 0.3, pattern="2x1")["weight"].tolist() == [[True, False], [True, False], [True, True]]


def test_ties_keep_the_earlier_block() -> None:
    masks = prune(linear([1.0, 2.0, -1.0, 1.0], [2.0, 1.0, 2.0, -2.0]), 0.5, pattern="2x1")
    assert masks["weight"].tolist() == [[True, True, False, False]] * 2


def test_zero_blocks_go_first_whatever_the_criterion() -> None:
    """A zero among values counts 0: the third column scores -4.5."""
    layer = linear([0.0, 5.0, 0.0, 1.0], [0.0, 5.0, 9.0, 1.0])
    masks = prune(layer, 0.25, pattern="2x1", criterion=lambda name, weight: -weight.abs())
    assert masks["weight"].tolist() == [[False, True, True, True]] * 2
    masks = prune(layer, 0.5, pattern="2x1", criterion=lambda name, weight: -weight.abs())
    assert masks["weight"].tolist() == [[False, False, True, True]] * 2


def test_every_weight_keeps_a_block() -> None:
    model = model_of([[[1e-9, 2e-9], [1e-9, 2e-9]], [[5.0], [6.0]], [[0.0, 0.0], [0.0, 0.0]]])
    for scope in ("layer", "global"):
        masks = prune(model, 0.99, scope=scope, pattern="2x1")
        assert [mask[0].tolist() for mask in masks.values()] == [[False, True], [True], [True, False]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_float_types(dtype: torch.dtype) -> None:
    layer = linear([1.0, -4.0], [3.0, -2.0]).to(dtype)
    assert prune(layer, 0.5, pattern="2x1")["weight"].tolist() == [[False, True]] * 2


def test_sums_are_taken_in_float64() -> None:
    """In float32 both columns sum to 2^24."""
    layer = linear([2.0**24, 2.0**24], [0.25, 0.5])
    assert prune(layer, 0.5, pattern="2x1")["weight"].tolist() == [[False, True]] * 2


def test_weight_stored_transposed() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 8)
    layer, transposed = nn.Linear(6, 8), Conv1D(weight.clone())
    layer.weight.data.copy_(weight.t())
    for pattern in ("4x1", "unstructured"):
        mask = prune(layer, 0.5, pattern=pattern)["weight"]
        assert torch.equal(prune(transposed, 0.5, pattern=pattern)["weight"], mask.t())


def test_ties_do_not_depend_on_how_a_weight_is_stored() -> None:
    layer, transposed = nn.Linear(4, 2), Conv1D(torch.ones(4, 2))
    layer.weight.data.fill_(1)
    assert torch.equal(prune(transposed, 0.5)["weight"], prune(layer, 0.5)["weight"].t())


def test_memory_format_does_not_matter() -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(4, 8, 3)
    other = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
    other.load_state_dict(model.state_dict())
    assert prune(model, 0.5, pattern="4x2") == prune(other, 0.5, pattern="4x2")


def test_same_result_for_any_number_of_threads() -> None:
    threads = torch.get_num_threads()
    digests = set()
    for count in (1, 2):
        torch.set_num_threads(count)
        torch.manual_seed(0)
        digests.add(prune(nn.Linear(512, 256), 0.9, pattern="16x16").hash())
    torch.set_num_threads(threads)
    assert len(digests) == 1


def test_groups_of_whole_blocks() -> None:
    conv = nn.Conv2d(8, 16, 3, groups=2)
    assert prune(conv, 0.75, pattern="8x1").sparsity() == 0.75
    assert fits_pattern(conv.weight, "8x1")


@settings(max_examples=100, deadline=None)
@given(matrices(4), st.integers(0, 63), st.integers(0, 63))
def test_pruning_again_never_revives(weight: Matrix, first: int, second: int) -> None:
    layer = linear(*weight)
    masks = prune(layer, first / 64, pattern="4x1")
    before = masks["weight"].clone()
    again = prune(layer, second / 64, pattern="4x1", masks=masks)
    assert bool((before | ~again["weight"]).all())
    assert fits_pattern(again["weight"], "4x1")
    fresh = prune(linear(*weight), second / 64, pattern="4x1")
    assert again.sparsity() == max(masks.sparsity(), fresh.sparsity())


def test_earlier_masks_hold_inside_a_block() -> None:
    """What is not allowed counts 0 and stays pruned; the rest of the block is kept."""
    layer = linear([9.0, 2.0, 3.0], [1.0, 3.0, 3.0])
    earlier = Masks(layer, {"weight": torch.tensor([[False, True, True], [True, True, False]])})
    masks = prune(layer, 1 / 3, pattern="2x1", masks=earlier)
    assert masks["weight"].tolist() == [[False, True, True], [False, True, False]]


def test_masks_merge_save_and_load() -> None:
    torch.manual_seed(0)
    layer, other = nn.Linear(10, 9), nn.Linear(10, 9)
    one, two = prune(layer, 0.5, pattern="4x1"), prune(other, 0.6, pattern="4x1")
    two = Masks(layer, two)
    for merged in (one & two, one | two):
        assert fits_pattern(merged["weight"], "4x1")
        assert 0 < merged.sparsity() < 1
    fresh = Masks.from_model(layer)
    assert fresh == one
    fresh.load_state_dict(two.state_dict())
    assert fresh == two


def test_sparsity_for_each_layer_checks_only_those() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    masks = prune(model, {"0": 0.5}, pattern="4x1")
    assert list(masks) == ["0.weight"]
    assert masks.sparsity() == 0.5


@pytest.mark.parametrize(
    ("model", "pattern", "reason"),
    [
        (nn.Linear(6, 3), "4x1", "4x1 does not fit weight (it has N = 3 rows and K = 6 columns)"),
        (nn.Linear(6, 8), "4x7", "4x7 does not fit weight (it has N = 8 rows and K = 6 columns)"),
        (nn.Linear(6, 8), "99999999999999999999x1", "does not fit weight"),
        (nn.Conv2d(4, 12, 3, groups=2), "4x1", "weight (a block would cross its 2 groups of 6 rows)"),
        (nn.Conv2d(8, 8, 3, groups=8), "4x1", "weight (a block would cross its 8 groups of 1 rows)"),
        (nn.Conv1d(8, 8, 3, groups=4), "8x1", "weight (a block would cross its 4 groups of 2 rows)"),
        (nn.Sequential(nn.Linear(4, 2), nn.Linear(4, 4)), "4x1", "fit 0.weight (it has N = 2 rows and K = 4 columns);"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 6 else "",
)
def test_weights_that_do_not_fit_are_named(model: nn.Module, pattern: str, reason: str) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(FormatError) as e:
        prune(model, 0.5, pattern=pattern)
    assert reason in str(e.value)
    assert "leave out with exclude=['" in str(e.value)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_excluded_weights_need_not_fit() -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(4, 4))
    assert list(prune(model, 0.5, pattern="4x1", exclude=["0.weight"])) == ["1.weight"]


def test_transposed_convolutions_are_never_pruned() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(6, 3, 3), nn.Linear(4, 4))
    assert list(prune(model, 0.5, pattern="4x1")) == ["1.weight"]


def test_parse_pattern() -> None:
    assert parse_pattern("unstructured") == parse_pattern("1x1") == UNSTRUCTURED
    assert parse_pattern("4x1") == Blocks(4, 1)
    assert parse_pattern("2:4") == Groups(2, 4)
    assert [str(parse_pattern(name)) for name in ("16x32", "4:16")] == ["16x32", "4:16"]
    assert [parse_pattern(name).sparsity for name in ("4x1", "1:4")] == [None, 0.75]


@pytest.mark.parametrize(
    "bad",
    [
        *("", "4", "4:2", "4:4", "0:4", "-1:4", "2:4 ", "two:4", "2:4:8"),
        *("0x1", "4x0", "-4x1", "4x", "x4", "4X1", "4x1x1", "4 x 1", "4x1\n", "4x1.5", None, (4, 1), 4),
    ],
)
def test_bad_patterns(bad: str) -> None:
    with pytest.raises(ValueError, match='expected pattern "unstructured", blocks of "ROWSxCOLUMNS"'):
        parse_pattern(bad)
    with pytest.raises(ValueError, match="expected pattern"):
        fits_pattern(torch.ones(4, 4), bad)
    with pytest.raises(ValueError, match="expected pattern"):
        prune(nn.Linear(4, 4), 0.5, pattern=bad)


@settings(max_examples=100, deadline=None)
@given(matrices(4, 3), st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_fits_blocks_equals_loop(weight: Matrix, block_rows: int, block_cols: int, pruned: bool) -> None:
    if pruned:  # random zeros rarely fit
        (weight,) = prune_by_loop([weight], 0.5, block_rows, block_cols)
    expected = fits_by_loop(weight, block_rows, block_cols)
    assert fits_pattern(torch.tensor(weight), f"{block_rows}x{block_cols}") is expected


@settings(max_examples=100, deadline=None)
@given(matrices(), st.integers(1, 3), st.integers(2, 4))
def test_fits_groups_equals_loop(weight: Matrix, keep: int, group: int) -> None:
    keep = min(keep, group - 1)
    expected = len(weight[0]) % group == 0 and all(
        sum(value != 0 for value in row[start : start + group]) <= keep
        for row in weight
        for start in range(0, len(row), group)
    )
    assert fits_pattern(torch.tensor(weight), f"{keep}:{group}") is expected


def test_fits_pattern_of_other_weights() -> None:
    weight = torch.zeros(8, 2, 3, 3)
    weight[4:, 1, 2, 0] = 1
    assert fits_pattern(weight, "4x1")
    assert fits_pattern(weight.to(memory_format=torch.channels_last), "4x1")
    assert fits_pattern(weight.to(torch.int8), "4x1")
    assert fits_pattern(weight != 0, "4x1")
    assert fits_pattern(nn.Parameter(weight), "4x1")
    assert not fits_pattern(weight, "8x1")
    weight[5, 1, 2, 0] = -0.0
    assert not fits_pattern(weight, "4x1")
    assert fits_pattern(weight, "unstructured")
    weight[5, 1, 2, 0] = torch.nan  # a value
    assert fits_pattern(weight, "4x1")


def test_fits_pattern_of_dense_empty_and_small_weights() -> None:
    assert fits_pattern(torch.ones(9, 3), "4x1")
    assert fits_pattern(torch.zeros(9, 3), "4x1")
    assert not fits_pattern(torch.ones(9, 4), "2:4")
    assert not fits_pattern(torch.ones(3, 3), "4x1")
    assert not fits_pattern(torch.ones(0, 3), "4x1")
    assert fits_pattern(torch.ones(4, 0), "2:4")
    with pytest.raises(FormatError, match=r"2 or more dimensions, got \[4\]"):
        fits_pattern(torch.ones(4), "4x1")
