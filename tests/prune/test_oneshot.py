"""prune(): exact counts, patterns, order, and that a refused call changes nothing."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Conv1D
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from sparsecore.errors import FormatError, SparsecoreError, UnsupportedError
from sparsecore.prune import CRITERIA, Masks, prune


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=2), nn.Linear(16, 11))


def weights(model: nn.Module, masks: Masks) -> dict[str, Tensor]:
    return {name: model.get_parameter(name).detach() for name in masks}


def num_zeros(tensor: Tensor) -> int:
    return sum(value == 0 for value in tensor.flatten().tolist())


def global_by_sorting(tensors: list[list[float]], sparsity: float) -> list[list[bool]]:
    """Rank all entries by (magnitude, earlier first); the best of each tensor comes before all."""
    entries = [(i, j, abs(value)) for i, tensor in enumerate(tensors) for j, value in enumerate(tensor)]
    first = {
        i: max(range(len(tensor)), key=lambda j, tensor=tensor: (abs(tensor[j]), -j))
        for i, tensor in enumerate(tensors)
    }
    entries.sort(key=lambda entry: (first[entry[0]] != entry[1], -entry[2], entry[0], entry[1]))
    num_kept = max(len(entries) - round(sparsity * len(entries)), len(tensors))
    kept = {entry[:2] for entry in entries[:num_kept]}
    return [[(i, j) in kept for j in range(len(tensor))] for i, tensor in enumerate(tensors)]


class Plain(nn.Module):
    """Linear layers with given weights, one row each."""

    def __init__(self, rows: list[list[float]], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        for i, row in enumerate(rows):
            layer = nn.Linear(len(row), 1, dtype=dtype)
            layer.weight = nn.Parameter(torch.tensor([row], dtype=dtype))
            self.add_module(f"layer{i}", layer)


VALUES = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0])
ROWS = st.lists(st.lists(VALUES, min_size=1, max_size=10), min_size=1, max_size=4)
SPARSITY = st.floats(0, 1, exclude_max=True)


@settings(max_examples=100, deadline=None)
@given(ROWS, SPARSITY, st.sampled_from(["layer", "global"]))
def test_magnitude_equals_sorting(rows: list[list[float]], sparsity: float, scope: str) -> None:
    model = Plain(rows)
    masks = prune(model, sparsity, scope=scope)
    if scope == "global":
        expected = global_by_sorting(rows, sparsity)
    else:
        expected = [global_by_sorting([row], sparsity)[0] for row in rows]
    assert [mask[0].tolist() for mask in masks.values()] == expected
    for row, keep, weight in zip(rows, expected, weights(model, masks).values(), strict=True):
        assert weight[0].tolist() == [v if k else 0.0 for v, k in zip(row, keep, strict=True)]


@settings(max_examples=100, deadline=None)
@given(ROWS, SPARSITY, SPARSITY, st.sampled_from(["layer", "global"]))
def test_pruning_again_never_revives(rows: list[list[float]], first: float, second: float, scope: str) -> None:
    model = Plain(rows)
    masks = prune(model, first, scope=scope)
    before = {name: mask.clone() for name, mask in masks.items()}
    again = prune(model, second, scope=scope, masks=masks)
    assert again & masks == again
    assert all(bool((before[name] | ~mask).all()) for name, mask in again.items())
    fresh = prune(Plain(rows), second, scope=scope)
    assert again.sparsity() == max(masks.sparsity(), fresh.sparsity())


@pytest.mark.parametrize("sparsity", [0, 0.0, 0.3, 0.5, 0.77, 0.9, 0.999])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_exact_count(sparsity: float, scope: str) -> None:
    model = small_net()
    masks = prune(model, sparsity, scope=scope)
    numels = [mask.numel() for mask in masks.values()]
    zeros = [num_zeros(weight) for weight in weights(model, masks).values()]
    assert [num_zeros(mask) for mask in masks.values()] == zeros
    if scope == "layer":
        assert zeros == [min(round(sparsity * numel), numel - 1) for numel in numels]
    else:
        assert sum(zeros) == min(round(sparsity * sum(numels)), sum(numels) - len(numels))


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_every_weight_keeps_an_entry(scope: str) -> None:
    model = Plain([[1e-9, 2e-9], [5.0, 6.0, 7.0], [0.0, 0.0], [1.0]])
    masks = prune(model, 0.99, scope=scope)
    assert [mask[0].tolist() for mask in masks.values()] == [
        [False, True],
        [False, False, True],
        [True, False],
        [True],
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_float_types(dtype: torch.dtype) -> None:
    masks = prune(Plain([[1.0, -4.0, 3.0, -2.0]], dtype), 0.5)
    assert masks["layer0.weight"].tolist() == [[False, True, True, False]]


def test_float64_is_compared_in_float64() -> None:
    masks = prune(Plain([[1.0, 1.0 + 1e-12]], torch.float64), 0.5)
    assert masks["layer0.weight"].tolist() == [[False, True]]


def test_memory_format_does_not_matter() -> None:
    model = small_net()
    model[0].weight.data.fill_(1)
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    assert prune(model, 0.5) == prune(other, 0.5)
    assert all(mask.is_contiguous() for mask in prune(other, 0.5).values())


def test_biases_and_norms_are_untouched() -> None:
    model = small_net()
    before = copy.deepcopy(model.state_dict())
    masks = prune(model, 0.9)
    for name, tensor in model.state_dict().items():
        assert (name in masks) == (not torch.equal(tensor, before[name]))


def test_sparsity_for_each_layer() -> None:
    model = small_net()
    before = model[3].weight.detach().clone()
    masks = prune(model, {"0": 0.25, nn.Conv2d: 0.5, "*.weight": 0.0})
    assert {name: round(row.sparsity, 2) for name, row in masks.statistics().items()} == {
        "0.weight": 0.25,
        "2.weight": 0.5,
        "3.weight": 0.0,
    }
    assert torch.equal(model[3].weight, before)
    assert list(prune(model, {"2": 0.5})) == ["2.weight"]


@pytest.mark.parametrize(("keep", "group"), [(2, 4), (1, 4), (3, 9)])
def test_pattern_group_by_group(keep: int, group: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(36, 5), nn.Conv2d(8, 6, 3, groups=2), nn.Conv1d(12, 4, 3), Conv1D(nf=3, nx=36))
    before = [w.detach().clone() for w in (*(m.weight for m in model[:3]), model[3].weight.t())]
    prune(model, pattern=f"{keep}:{group}")
    after = [*(m.weight.detach() for m in model[:3]), model[3].weight.detach().t()]
    for old, new in zip(before, after, strict=True):
        for old_row, new_row in zip(old.flatten(1).tolist(), new.flatten(1).tolist(), strict=True):
            for start in range(0, len(old_row), group):
                ours = range(start, start + group)
                best = sorted(ours, key=lambda j, row=old_row: -abs(row[j]))[:keep]
                assert [new_row[j] for j in ours] == [old_row[j] if j in best else 0 for j in ours]


def test_pattern_ties_keep_the_earlier() -> None:
    masks = prune(Plain([[1.0, -1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]]), pattern="2:4")
    assert masks["layer0.weight"].tolist() == [[True, True, False, False] * 2]


def test_pattern_respects_earlier_masks() -> None:
    model = Plain([[4.0, 3.0, 2.0, 1.0]])
    earlier = Masks(model, {"layer0.weight": torch.tensor([[False, False, False, True]])})
    assert prune(model, pattern="2:4", masks=earlier) == earlier


def test_pattern_takes_its_own_sparsity_only() -> None:
    assert prune(nn.Linear(8, 2), 0.5, pattern="2:4").sparsity() == 0.5
    assert prune(nn.Linear(20, 2), 0.3, pattern="7:10").sparsity() == pytest.approx(0.3)  # 1 - 7 / 10 is not 0.3
    for other in (0.9, "0.5", {"": 0.5}):
        with pytest.raises(ValueError, match=r"prunes 50\.0% by itself"):
            prune(nn.Linear(8, 2), other, pattern="2:4")


def test_pattern_names_layers_that_do_not_divide() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(6, 2))
    with pytest.raises(
        FormatError, match=r"2:4 does not fit 0\.weight \(K = 27 is not a multiple of 4\), 2\.weight"
    ) as e:
        prune(model, pattern="2:4")
    assert "exclude=['0.weight', '2.weight']" in str(e.value)
    assert list(prune(model, pattern="2:4", exclude=["0.weight", "2.weight"])) == ["1.weight"]


def test_zeros_go_first_whatever_the_criterion() -> None:
    model = Plain([[0.0, 5.0, 0.0, 1.0, -3.0]])
    masks = prune(model, 0.4, criterion=lambda name, weight: -weight.abs())
    assert masks["layer0.weight"].tolist() == [[False, True, False, True, True]]


def test_criterion_is_one_function() -> None:
    model = Plain([[1.0, 2.0, 3.0, 4.0]])
    model.layer0(torch.tensor([[4.0, -1.0, 1.0, 0.5]])).sum().backward()
    seen: list[str] = []

    def taylor(name: str, weight: Tensor) -> Tensor:
        seen.append(name)
        assert weight.grad is not None
        return (weight.mul_(weight.grad)).abs_()  # even in place: the weight is a copy

    masks = prune(model, 0.5, criterion=taylor)
    assert seen == ["layer0.weight"]
    assert masks["layer0.weight"].tolist() == [[True, False, True, False]]
    assert model.layer0.weight.tolist() == [[1.0, 0.0, 3.0, 0.0]]


def test_criterion_by_name() -> None:
    assert list(CRITERIA) == ["magnitude", "taylor"]
    a, b = small_net(), small_net()
    assert prune(a, 0.5) == prune(b, 0.5, criterion=CRITERIA["magnitude"])


def test_shared_layers_and_weights_are_pruned_once() -> None:
    layer = nn.Linear(10, 10)
    model = nn.Sequential(layer, layer, nn.Linear(10, 10))
    model[2].weight = layer.weight
    masks = prune(model, 0.5, scope="global")
    assert list(masks) == ["0.weight"]
    assert num_zeros(layer.weight) == 50


def test_head_tied_to_an_embedding_is_left_alone() -> None:
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 4), nn.Linear(4, 6, bias=False))
    model[2].weight = model[0].weight
    before = model[0].weight.detach().clone()
    assert list(prune(model, 0.5)) == ["1.weight"]
    assert torch.equal(model[0].weight, before)


def test_multihead_attention() -> None:
    attention = nn.MultiheadAttention(8, 2)
    masks = prune(attention, 0.75)
    assert list(masks) == ["in_proj_weight", "out_proj.weight"]
    assert num_zeros(attention.in_proj_weight) == 144
    assert num_zeros(attention.out_proj.weight) == 48


def test_torch_pruned_model_is_folded() -> None:
    model = small_net()
    torch_prune.l1_unstructured(model[3], "weight", amount=0.5)
    kept = model[3].weight_mask.bool()
    masks = prune(model, 0.75)
    assert "3.weight" in model.state_dict()
    assert num_zeros(model[3].weight) == round(0.75 * kept.numel())
    assert not (masks["3.weight"] & ~kept).any()


def test_earlier_masks_of_excluded_weights_are_kept_in_the_result() -> None:
    model = small_net()
    first = prune(model, {"0": 0.5})
    second = prune(model, 0.9, exclude="0", masks=first)
    assert list(second) == ["0.weight", "2.weight", "3.weight"]
    assert torch.equal(second["0.weight"], first["0.weight"])


def test_same_result_for_any_number_of_threads() -> None:
    threads = torch.get_num_threads()
    digests = set()
    for count in (1, 2):
        torch.set_num_threads(count)
        digests.add(prune(small_net(), 0.9, scope="global").hash())
    torch.set_num_threads(threads)
    assert len(digests) == 1


def _nan_in_last(model: nn.Sequential) -> dict[str, Any]:
    model[3].weight.data[0, 0] = float("nan")
    return {"sparsity": 0.5}


def _inf_in_last(model: nn.Sequential) -> dict[str, Any]:
    model[3].weight.data[0, 0] = float("inf")
    return {"sparsity": 0.5, "criterion": lambda name, weight: torch.ones_like(weight)}


def _bad_scores(make: Callable[[Tensor], Any]) -> Callable[[nn.Sequential], dict[str, Any]]:
    def criterion(name: str, weight: Tensor) -> Any:
        return make(weight) if name == "3.weight" else weight.abs()

    return lambda model: {"sparsity": 0.5, "criterion": criterion}


def _foreign_masks(model: nn.Sequential) -> dict[str, Any]:
    return {"sparsity": 0.5, "masks": Masks.from_model(small_net())}


def _masks_that_empty_a_layer(model: nn.Sequential) -> dict[str, Any]:
    masks = {**Masks.from_model(model), "3.weight": torch.zeros(11, 16, dtype=torch.bool)}
    return {"sparsity": 0.5, "masks": Masks(model, masks)}


def _nan_gradient(model: nn.Sequential) -> dict[str, Any]:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model[3].weight.grad[0, 0] = float("nan")
    return {"sparsity": 0.5, "criterion": lambda name, weight: (weight * weight.grad).abs()}


BAD: list[tuple[str, type[Exception], str, Callable[[nn.Sequential], dict[str, Any]]]] = [
    ("none", ValueError, "got None", lambda m: {}),
    ("one", ValueError, "got 1.0", lambda m: {"sparsity": 1.0}),
    ("percent", ValueError, "0.9 prunes 90%", lambda m: {"sparsity": 90}),
    ("negative", ValueError, r"in \[0, 1\)", lambda m: {"sparsity": -0.1}),
    ("nan", ValueError, "got nan", lambda m: {"sparsity": float("nan")}),
    ("text", TypeError, "str", lambda m: {"sparsity": "0.9"}),
    ("in dict", ValueError, "got 2", lambda m: {"sparsity": {"0": 0.5, "2": 2}}),
    ("dict key", ValueError, "'1' matches no", lambda m: {"sparsity": {"0": 0.5, "1": 0.5}}),
    ("dict global", ValueError, "one", lambda m: {"sparsity": {"0": 0.5}, "scope": "global"}),
    ("scope", ValueError, "scope", lambda m: {"sparsity": 0.5, "scope": "model"}),
    ("criterion", ValueError, "magnitude", lambda m: {"sparsity": 0.5, "criterion": "l7"}),
    ("pattern", ValueError, "2:4", lambda m: {"sparsity": 0.5, "pattern": "4:2"}),
    ("ragged", FormatError, "multiple of 7", lambda m: {"pattern": "1:7"}),
    ("exclude", ValueError, "'fc'", lambda m: {"sparsity": 0.5, "exclude": ["0", "fc"]}),
    ("all excluded", UnsupportedError, "nothing", lambda m: {"sparsity": 0.5, "exclude": "*"}),
    ("nan weight", FormatError, "3.weight: the weight is NaN", _nan_in_last),
    ("inf weight", FormatError, "in 1 of 176", _inf_in_last),
    ("nan score", FormatError, "3.weight: the score", _bad_scores(lambda w: w / 0 * 0)),
    ("score shape", FormatError, r"shape \[11, 16\]", _bad_scores(lambda w: w.abs().sum(1))),
    ("score type", FormatError, "got NoneType", _bad_scores(lambda w: None)),
    ("raises", ZeroDivisionError, "division", _bad_scores(lambda w: 1 / 0)),
    ("nan gradient", FormatError, r"3\.weight: the score is NaN or infinite in 1 of 176", _nan_gradient),
    ("masks", ValueError, "another model", _foreign_masks),
    ("masks of nothing", FormatError, r"3\.weight: the earlier masks leave none", _masks_that_empty_a_layer),
]


@pytest.mark.parametrize("torch_pruned", [False, True], ids=["plain", "torch-pruned"])
@pytest.mark.parametrize(("error", "text", "make"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
def test_bad_input_changes_nothing(
    error: type[Exception],
    text: str,
    make: Callable[[nn.Sequential], dict[str, Any]],
    torch_pruned: bool,
) -> None:
    model = small_net()
    arguments = make(model)
    if torch_pruned:
        torch_prune.l1_unstructured(model[0], "weight", amount=0.5)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=text):
        prune(model, **arguments)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name].nan_to_num(7), tensor.nan_to_num(7)) for name, tensor in before.items())


def test_model_without_prunable_layer() -> None:
    with pytest.raises(SparsecoreError, match="nothing to prune in ReLU"):
        prune(nn.ReLU(), 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exclude": 3}, "expected names, patterns or module types in exclude, got 3"),
        ({"exclude": ["0", None]}, "in exclude, got None"),
        ({"masks": {}}, "expected Masks or None as masks, got dict"),
    ],
    ids=["number", "none among names", "dict of masks"],
)
def test_arguments_of_another_type_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        prune(nn.Linear(4, 4), 0.5, **arguments)


@pytest.mark.parametrize("model", [None, {"weight": torch.ones(2, 2)}, nn.Linear], ids=["none", "state", "class"])
def test_what_is_no_model_is_named(model: Any) -> None:
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got"):
        prune(model, 0.5)


def test_sparsity_may_be_numpys() -> None:
    assert prune(nn.Linear(4, 4), np.float32(0.5)).sparsity() == 0.5
