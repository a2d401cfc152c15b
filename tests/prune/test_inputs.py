"""What enters a weight: multiplied by it, it gives what the layer gives."""

from typing import Any

import pytest
import torch
from networks import Conv1D
from torch import Tensor, nn
from torch.nn import functional as F

from sparsecore.errors import UnsupportedError
from sparsecore.prune import inputs as inputs_module
from sparsecore.prune.inputs import find_uses, input_rows
from sparsecore.prune.weights import PrunableWeight, prunable_weights


def rows_of(layer: nn.Module, name: str, *args: Any) -> tuple[PrunableWeight, dict[int, Tensor]]:
    """The weight, and all inputs of each of its parts."""
    (weight,) = (weight for weight in prunable_weights(layer) if weight.name == name)
    (use,) = find_uses(weight)
    parts: dict[int, list[Tensor]] = {}
    for part, rows in input_rows(use, args):
        parts.setdefault(part, []).append(rows)
    assert sorted(parts) == list(range(use.num_parts))
    return weight, {part: torch.cat(rows) for part, rows in parts.items()}


def products(weight: PrunableWeight, parts: dict[int, Tensor]) -> list[Tensor]:
    matrices = weight.to_rows(weight.value()).chunk(len(parts))
    return [parts[part] @ matrix.t() for part, matrix in enumerate(matrices)]


CONVS = {
    "1d": (nn.Conv1d(6, 4, 3, stride=2), (3, 6, 11)),
    "1d same": (nn.Conv1d(6, 4, 5, padding="same", dilation=2), (2, 6, 9)),
    "2d": (nn.Conv2d(3, 4, (3, 2), padding=(0, 2), bias=False), (2, 3, 7, 6)),
    "2d groups": (nn.Conv2d(6, 9, 3, padding=1, stride=(2, 3), dilation=(2, 1), groups=3), (2, 6, 9, 10)),
    "2d depthwise": (nn.Conv2d(5, 10, 3, groups=5), (1, 5, 4, 6)),
    "2d reflect": (nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="reflect"), (2, 2, 5, 4)),
    "2d circular": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 2, 5, 4)),
    "2d unbatched": (nn.Conv2d(2, 3, 3, padding=1), (2, 5, 4)),
    "3d": (nn.Conv3d(4, 6, (1, 2, 3), padding=1, groups=2), (2, 4, 4, 3, 5)),
}


@pytest.mark.parametrize("patch_entries", [1, 1 << 24], ids=["one image", "all images"])
@pytest.mark.parametrize(("conv", "shape"), CONVS.values(), ids=CONVS)
def test_convolutions(conv: Any, shape: tuple[int, ...], patch_entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs_module, "_MAX_PATCH_ENTRIES", patch_entries)
    conv = conv.double()
    x = torch.randn(shape, dtype=torch.float64)
    weight, parts = rows_of(conv, "weight", x)
    y = torch.cat(products(weight, parts), 1)
    expected = conv(x) - (conv.bias.reshape(-1, *[1] * len(conv.kernel_size)) if conv.bias is not None else 0)
    if expected.dim() == len(conv.kernel_size) + 1:
        expected = expected[None]
    torch.testing.assert_close(y, expected.movedim(1, -1).flatten(0, -2))


@pytest.mark.parametrize("shape", [(5, 8), (2, 5, 8), (8,), (0, 8)], ids=str)
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_linear_layers(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    layer: Any = Conv1D(nf=3, nx=8) if kind is Conv1D else nn.Linear(8, 3)
    x = torch.randn(shape)
    (y,) = products(*rows_of(layer, "weight", x))
    torch.testing.assert_close(y, (layer(x) - layer.bias).reshape(-1, 3))


def attention_inputs(kind: str) -> tuple[nn.MultiheadAttention, list[Tensor]]:
    other = {"kdim": 6, "vdim": 4} if kind == "cross" else {}
    attention = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64, **other).eval()
    nn.init.normal_(attention.in_proj_bias)
    nn.init.normal_(attention.out_proj.bias)
    sizes = [(3, 5, 8), (3, 7, 6), (3, 7, 4)] if kind == "cross" else [(3, 5, 8), (3, 7, 8), (3, 7, 8)]
    return attention, [torch.randn(size, dtype=torch.float64) for size in sizes]


def test_attention_in_projection() -> None:
    attention, x = attention_inputs("one dimension")
    weight, parts = rows_of(attention, "in_proj_weight", *x)
    for index, (rows, projected) in enumerate(zip(parts.values(), products(weight, parts), strict=True)):
        assert torch.equal(rows, x[index].reshape(-1, 8))
        assert torch.equal(projected, rows @ attention.in_proj_weight[8 * index : 8 * index + 8].t())


@pytest.mark.parametrize(("name", "index"), [("q_proj_weight", 0), ("k_proj_weight", 1), ("v_proj_weight", 2)])
def test_attention_of_other_dimensions(name: str, index: int) -> None:
    attention, x = attention_inputs("cross")
    _, parts = rows_of(attention, name, *x)
    assert torch.equal(parts[0], x[index].flatten(0, 1))


@pytest.mark.parametrize("kind", ["one dimension", "cross"])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_out_projection(kind: str, masked: bool) -> None:
    attention, x = attention_inputs(kind)
    key_padding_mask = torch.zeros(3, 7, dtype=torch.bool)
    key_padding_mask[1, 4:] = masked
    weight, parts = rows_of(attention, "out_proj.weight", *x, key_padding_mask)
    (y,) = products(weight, parts)
    expected, _ = attention(*x, key_padding_mask=key_padding_mask)
    torch.testing.assert_close(y + attention.out_proj.bias, expected.flatten(0, 1))


class Owner(nn.Module):
    """Holds a weight of another layer and uses it in its own way."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.kernel = weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.kernel)


def two_ways(kind: str) -> nn.Module:
    first: Any
    second: Any
    if kind == "stored transposed":
        first, second = nn.Linear(4, 4), Conv1D(4, 4)
    elif kind == "groups":
        first, second = nn.Conv2d(4, 4, 1), nn.Conv2d(16, 4, 1, groups=4)
    elif kind == "transposed convolution":
        first, second = nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 3)
    else:
        first = nn.Linear(4, 4)
        return nn.Sequential(first, Owner(first.weight))
    second.weight = first.weight
    return nn.Sequential(first, second)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("stored transposed", "0 and 1 use it in different ways"),
        ("groups", "0 and 1 use it in different ways"),
        ("transposed convolution", r"it is also 1\.weight"),
        ("module of its own", r"it is also 1\.kernel"),
    ],
)
def test_weights_used_in_two_ways_are_refused_by_name(kind: str, text: str) -> None:
    model = two_ways(kind)
    (weight,) = prunable_weights(model)
    with pytest.raises(UnsupportedError, match=rf"0\.weight: {text}.*exclude='0\.weight'"):
        find_uses(weight)
