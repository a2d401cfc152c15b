"""keep:group patterns (N:M) through the package: pruning, masks, training, layers, bundles, convert."""

import itertools
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import sparsecore as sc
from sparsecore.errors import FormatError
from sparsecore.prune import GradualPruner, Masks, fits_pattern, prune

PATTERNS = ["2:4", "8:16", "4:16"]


def parts(pattern: str) -> tuple[int, int]:
    keep, group = map(int, pattern.split(":"))
    return keep, group


def some_net() -> nn.Sequential:
    """Every K is a multiple of 16."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(16, 8, 3), nn.Conv2d(32, 8, 3, groups=2), nn.Conv1d(8, 4, 2), nn.Linear(48, 5), nn.Linear(16, 1)
    )


def entries_along_K(weight: Tensor) -> list[list[float]]:
    """The rows of a weight in the order that the docstring of prune() names, by plain loops."""
    rows = []
    for n in range(weight.shape[0]):
        places = itertools.product(*(range(size) for size in weight.shape[1:]))  # the last index moves fastest
        rows.append([float(weight[n][place]) for place in places])
    return rows


def prune_by_loop(rows: list[list[float]], keep: int, group: int) -> list[list[float]]:
    """Zero all but the largest magnitudes of every group; of equal ones the earlier stays."""
    pruned = []
    for row in rows:
        kept: set[int] = set()
        for start in range(0, len(row), group):
            kept.update(sorted(range(start, start + group), key=lambda j, row=row: (-abs(row[j]), j))[:keep])
        pruned.append([value if j in kept else 0.0 for j, value in enumerate(row)])
    return pruned


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_every_layer_equals_the_loop(pattern: str, scope: str) -> None:
    model = some_net()
    expected = [prune_by_loop(entries_along_K(layer.weight.detach()), *parts(pattern)) for layer in model]
    masks = prune(model, pattern=pattern, scope=scope)
    keep, group = parts(pattern)
    assert masks.sparsity() == 1 - keep / group
    for layer, mask, rows in zip(model, masks.values(), expected, strict=True):
        assert entries_along_K(layer.weight.detach()) == rows
        assert fits_pattern(layer.weight, pattern)
        assert fits_pattern(mask, pattern)
        assert mask.flatten(1).view(len(mask), -1, group).sum(2).unique().tolist() == [keep]


def test_groups_of_a_convolution_cross_filter_pixels_before_channels() -> None:
    conv = nn.Conv2d(4, 1, 2, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.arange(16.0, 0, -1).view(1, 4, 2, 2))
    prune(conv, pattern="4:16")
    assert conv.weight[0].count_nonzero((1, 2)).tolist() == [4, 0, 0, 0]  # the first channel is the first four
    pointwise = nn.Conv2d(16, 3, 1)
    expected = prune_by_loop(pointwise.weight[:, :, 0, 0].tolist(), 4, 16)
    prune(pointwise, pattern="4:16")
    assert pointwise.weight[:, :, 0, 0].tolist() == expected


@pytest.mark.parametrize("pattern", PATTERNS)
def test_attention_and_memory_format(pattern: str) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(32, 2)
    expected = prune_by_loop(attention.in_proj_weight.tolist(), *parts(pattern))
    assert list(prune(attention, pattern=pattern)) == ["in_proj_weight", "out_proj.weight"]
    assert attention.in_proj_weight.tolist() == expected
    model, other = some_net()[:2], some_net()[:2].to(memory_format=torch.channels_last)
    assert prune(model, pattern=pattern) == prune(other, pattern=pattern)
    assert torch.equal(model[0].weight, other[0].weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_float_types(dtype: torch.dtype) -> None:
    model = some_net().to(dtype)
    expected = [prune_by_loop(entries_along_K(layer.weight.detach()), 4, 16) for layer in model]
    prune(model, pattern="4:16")
    assert [entries_along_K(layer.weight.detach()) for layer in model] == expected


def test_another_criterion() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(32, 4)
    rows = layer.weight.tolist()
    prune(layer, pattern="4:16", criterion=lambda name, weight: -weight.abs())
    inverse = prune_by_loop([[1 / value for value in row] for row in rows], 4, 16)
    assert (layer.weight != 0).tolist() == [[value != 0 for value in row] for row in inverse]


def test_in_steps_is_the_same_as_at_once() -> None:
    model, other = some_net(), some_net()
    masks = None
    for pattern in ("12:16", "8:16", "4:16"):
        masks = prune(model, pattern=pattern, masks=masks)
    assert masks == prune(other, pattern="4:16")


def test_earlier_masks_are_never_revived() -> None:
    model = some_net()
    first = prune(model, 0.9)
    second = prune(model, pattern="8:16", masks=first)
    assert second & first == second
    assert all(fits_pattern(mask, "8:16") for mask in second.values())


def test_training_keeps_the_pattern() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(16, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss = model(torch.randn(4, 16, 3, 3)).square().sum()
    loss.backward()
    optimizer.step()  # the momentum is full before the pruning
    masks = prune(model, pattern="4:16")
    masks.attach(optimizer)
    for _ in range(3):
        optimizer.step()
    assert all(fits_pattern(model.get_parameter(name), "4:16") for name in masks)
    restored = Masks.from_model(model)
    assert restored == masks
    restored.load_state_dict(masks.state_dict())
    assert all(fits_pattern(mask, "4:16") for mask in (*restored.values(), *(restored & masks).values()))


def test_a_gradual_schedule_says_what_to_do_instead() -> None:
    layer = nn.Linear(16, 4)
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"pattern 4:16 has one sparsity.*use prune\(\)"):
        GradualPruner(layer, optimizer, 0.75, end=10, pattern="4:16")
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("torch_pruned", [False, True])
def test_what_does_not_fit_is_named_and_nothing_changes(torch_pruned: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 8, 1), nn.Linear(24, 4))
    if torch_pruned:
        torch_prune.l1_unstructured(model[2], "weight", amount=0.5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    reasons = (
        "pattern 4:16 does not fit 0.weight (K = 27 is not a multiple of 16), "
        "1.weight (K = 9 is not a multiple of 16), "
        "3.weight (K = 24 is not a multiple of 16); leave out with exclude=['0.weight', '1.weight', '3.weight']"
    )
    with pytest.raises(FormatError, match=re.escape(reasons)):
        prune(model, pattern="4:16")
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    masks = prune(model, pattern="4:16", exclude=["0.weight", "1.weight", "3.weight"])
    assert list(masks) == ["2.weight"]
    assert fits_pattern(model[2].weight, "4:16")


def test_what_fits_and_what_does_not() -> None:
    weight = torch.zeros(3, 2, 4, 4)
    weight[:, :, 0] = 1  # 4 of the 16 pixels of every channel
    assert fits_pattern(weight, "4:16")
    assert fits_pattern(weight.to(memory_format=torch.channels_last), "4:16")
    assert not fits_pattern(weight.permute(0, 2, 3, 1), "4:16")
    assert fits_pattern(weight.to(torch.int8), "8:16")
    weight[2, 1, 3, 3] = 1
    assert not fits_pattern(weight, "4:16")
    assert fits_pattern(weight, "5:16")
    assert not fits_pattern(torch.zeros(4, 24), "4:16")


def as_float64(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer's output by its dense weight."""
    weight = layer.weight.detach().double()
    bias = layer.bias.detach().double() if layer.bias is not None else None
    if isinstance(layer, nn.Conv2d):
        return nn.functional.conv2d(x.double(), weight, bias)
    return nn.functional.linear(x.double(), weight, bias)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_layers_bundles_and_convert(pattern: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 64, 5, 5)
    conv, linear = nn.Conv2d(64, 48, 3), nn.Linear(48, 32)
    masks = prune(nn.ModuleList([conv, linear]), pattern=pattern)
    hidden = as_float64(conv, x)
    expected = as_float64(linear, hidden.mean((2, 3)).float())

    class Net(nn.Module):
        def __init__(self, conv: nn.Module, linear: nn.Module) -> None:
            super().__init__()
            self.conv, self.linear = conv, linear

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.conv(x).mean((2, 3)))

    dense = Net(conv, linear)
    layered = Net(sc.nn.SparseConv2d.from_dense(conv), sc.nn.PanelLinear.from_dense(linear))
    converted = sc.convert(dense, policy="model")
    for model in (layered, converted):
        torch.testing.assert_close(model(x).double(), expected, rtol=1e-4, atol=1e-4)
        sc.save(model, tmp_path / "model.safetensors")
        loaded = sc.load(tmp_path / "model.safetensors", lambda: Net(nn.Conv2d(64, 48, 3), nn.Linear(48, 32)))
        assert torch.equal(loaded.eval()(x), model.eval()(x))
        for name, mask in zip(("conv", "linear"), masks.values(), strict=True):
            layer = getattr(loaded, name)
            assert torch.equal(layer.weight != 0, mask)
            assert fits_pattern(layer.weight, pattern)


def test_quantized_weights_still_fit() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 16))
    prune(model, pattern="4:16")
    sparse = sc.nn.SparseInt8Linear.from_dense(model[0])
    converted = sc.convert(sc.quantize(model), policy="model")
    for layer in (sparse, model[0], model[2], converted[0], converted[2]):
        assert not isinstance(layer, nn.Linear)
        assert fits_pattern(layer.weight, "4:16")
