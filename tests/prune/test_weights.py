"""Which weights are found, under which names."""

import contextlib
import copy
import re
from collections.abc import Callable

import pytest
import torch
from networks import Conv1D
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.prune import fold_torch_pruning
from sparsecore.prune.weights import find_weights, prunable_weights


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.blocks = nn.Sequential(
            nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), nn.Conv2d(6, 6, 3, groups=3), nn.Conv3d(6, 2, 1)
        )
        self.up = nn.ConvTranspose2d(4, 4, 2)
        self.norm = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.cross = nn.MultiheadAttention(4, 2, kdim=3, vdim=5)
        self.lstm = nn.LSTM(4, 4)
        self.projection = Conv1D(4, 8)
        self.empty = nn.Linear(4, 1)
        self.empty.weight = nn.Parameter(torch.empty(0, 4))
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embedding.weight
        self.again = self.blocks[0]


def names(model: nn.Module, exclude: object = ()) -> list[str]:
    return [weight.name for weight in prunable_weights(model, exclude)]


def test_finds_every_kind_once_in_model_order() -> None:
    assert names(Everything()) == [
        "blocks.0.weight",
        "blocks.2.weight",
        "blocks.3.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "cross.q_proj_weight",
        "cross.k_proj_weight",
        "cross.v_proj_weight",
        "cross.out_proj.weight",
        "projection.weight",
    ]


def test_a_model_may_be_a_single_layer() -> None:
    assert names(nn.Linear(2, 2)) == ["weight"]
    with pytest.raises(UnsupportedError, match="nothing to prune in Linear"):
        names(nn.Linear(2, 2), nn.Linear)


@pytest.mark.parametrize(
    ("exclude", "gone"),
    [
        (["blocks.0"], {"blocks.0.weight"}),
        ("again", {"blocks.0.weight"}),  # its other name
        ("blocks.0.weight", {"blocks.0.weight"}),
        ("blocks", {"blocks.0.weight", "blocks.2.weight", "blocks.3.weight"}),
        ("blocks.[02]", {"blocks.0.weight", "blocks.2.weight"}),
        ("*.out_proj", {"attention.out_proj.weight", "cross.out_proj.weight"}),
        (["norm", "head"], set()),
        (nn.LSTM, set()),
        (nn.Conv3d, {"blocks.3.weight"}),
        ([nn.Conv2d, Conv1D], {"blocks.2.weight", "projection.weight"}),
        (
            nn.MultiheadAttention,
            {name for name in names(Everything()) if name.startswith(("attention", "cross"))},
        ),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),  # sets have no order
)
def test_exclude(exclude: object, gone: set[str]) -> None:
    model = Everything()
    assert set(names(model)) - set(names(model, exclude)) == gone


@pytest.mark.parametrize("exclude", ["block", ["blocks.0", "blocks.9"], "blocks.*.bia"], ids=str)
def test_unknown_name_is_an_error(exclude: object) -> None:
    with pytest.raises(ValueError, match="nothing in the model is called"):
        names(Everything(), exclude)


def test_weights_shared_by_two_layers_count_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert names(model) == ["0.weight"]
    with pytest.raises(UnsupportedError):
        names(model, exclude="1")


def test_transposed_storage_becomes_rows() -> None:
    layer = Conv1D(nf=2, nx=5)
    (weight,) = prunable_weights(layer)
    assert torch.equal(weight.to_rows(weight.stored), layer.weight.t())
    assert torch.equal(weight.from_rows(weight.to_rows(weight.stored)), layer.weight)


def test_class_named_conv1d_of_another_kind_is_left_alone() -> None:
    other = Conv1D(2, 3)
    other.weight = nn.Parameter(torch.randn(2, 3, 4))
    with pytest.raises(UnsupportedError):
        names(other)


def test_computed_weight_is_an_error_unless_excluded() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), nn.Linear(2, 2))
    with pytest.raises(UnsupportedError, match=r"0\.weight is computed"):
        names(model)
    assert names(model, "0") == ["1.weight"]


@pytest.mark.parametrize(
    ("compute", "remove"),
    [
        (nn.utils.parametrizations.weight_norm, torch.nn.utils.parametrize.remove_parametrizations),
        (nn.utils.parametrizations.spectral_norm, torch.nn.utils.parametrize.remove_parametrizations),
        (nn.utils.weight_norm, nn.utils.remove_weight_norm),
        (nn.utils.spectral_norm, nn.utils.remove_spectral_norm),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_way_out_of_a_computed_weight_works(
    compute: Callable[[nn.Module], nn.Module], remove: Callable[[nn.Module, str], nn.Module]
) -> None:
    model = nn.Sequential(compute(nn.Linear(2, 2)))
    way_out = re.escape(f".{remove.__name__}(model.get_submodule('0'), 'weight')")
    with pytest.raises(UnsupportedError, match=way_out):
        names(model)
    remove(model.get_submodule("0"), "weight")
    assert names(model) == ["0.weight"]


@pytest.mark.parametrize("kind", [nn.Linear, nn.Embedding, nn.Bilinear], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("exclude", [(), "0"])
def test_looking_at_a_model_moves_no_power_iteration(kind: type[nn.Module], exclude: str | tuple[()]) -> None:
    layer = kind(*{nn.Linear: (4, 3), nn.Embedding: (4, 3), nn.Bilinear: (2, 3, 4)}[kind])
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(layer), nn.Linear(2, 2))
    before = copy.deepcopy(model.state_dict())
    with contextlib.suppress(UnsupportedError):
        names(model, exclude)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("layer", [nn.LazyLinear(3), nn.Linear(2, 2, device="meta")], ids=repr)
def test_weight_without_values_is_an_error(layer: nn.Module) -> None:
    with pytest.raises(UnsupportedError, match="no values yet"):
        names(layer)


def test_weight_of_integers_is_an_error() -> None:
    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(FormatError, match="expected floating point"):
        names(layer)


def test_weight_that_torch_does_not_calculate_in_is_an_error() -> None:
    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(FormatError, match=r"got torch\.float8_e4m3fn; convert it with \.to\(\)"):
        names(layer)


def test_value_carries_the_gradient_and_is_a_copy() -> None:
    layer = nn.Linear(2, 2)
    layer(torch.ones(1, 2)).sum().backward()
    before = layer.weight.detach().clone()
    (weight,) = prunable_weights(layer)
    value = weight.value()
    assert value.grad is layer.weight.grad
    value.zero_()
    assert torch.equal(layer.weight, before)


def test_fold_torch_pruning() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Linear(4, 4))
    torch_prune.l1_unstructured(model[0], "weight", amount=0.5)
    torch_prune.random_unstructured(model[0], "bias", amount=1)
    torch_prune.global_unstructured([(model[1], "weight")], torch_prune.L1Unstructured, amount=0.3)
    torch_prune.l1_unstructured(model[1], "weight", amount=0.3)  # a second round: a container
    x = torch.randn(1, 2, 3, 4)
    expected: list[Tensor] = [model[0](x), model[1](x)]
    originals = [model[0].weight_orig, model[1].weight_orig]
    masks = [model[0].weight_mask, model[1].weight_mask]

    found = prunable_weights(model)
    assert [weight.name for weight in found] == ["0.weight", "1.weight"]
    assert all(torch.equal(w.value(), o * m) for w, o, m in zip(found, originals, masks, strict=True))
    assert names(model, exclude="0.weight") == ["1.weight"]
    assert "0.weight_orig" in model.state_dict()  # looking changes nothing

    fold_torch_pruning(model)
    assert set(model.state_dict()) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert model[0].weight is originals[0]
    assert all(torch.equal(a, b) for a, b in zip(expected, [model[0](x), model[1](x)], strict=True))


def test_weights_without_values_are_found_but_not_prunable() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    assert [(weight.name, weight.matrix_shape) for weight in find_weights(model, exclude="2")] == [("0.weight", (2, 3))]
    with pytest.raises(UnsupportedError, match=r"0\.weight has no values yet"):
        prunable_weights(model)
