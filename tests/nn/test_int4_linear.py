"""SparseInt4Linear: what it has beside the other int8 layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from torch import nn

import sparsecore as sc
from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.formats import Int4Weight
from sparsecore.nn import Int8Linear, SparseInt4Linear, SparseInt8Linear


def pruned(sparsity: float = 0.7) -> nn.Linear:
    layer = nn.Linear(300, 20)
    with torch.no_grad():
        layer.weight *= torch.rand(layer.weight.shape) >= sparsity
    return layer


@pytest.mark.parametrize("options", [{}, {"group_size": 64}, {"group_size": 128, "scales": "minmax"}], ids=str)
def test_weight_is_that_of_the_format(options: dict[str, Any]) -> None:
    dense = pruned()
    layer = SparseInt4Linear.from_dense(dense, **options)
    expected = Int4Weight.from_dense(dense.weight.detach(), **options)
    assert torch.equal(layer.weight, expected.to_dense())
    assert layer.weight_format.group_size == options.get("group_size", 256)
    assert layer.count_nonzero() == int(expected.integers().count_nonzero())
    names = {name for name, tensor in layer.named_buffers() if tensor is not None}
    assert names == set(SparseInt4Linear.packed_names)
    assert set(layer.state_dict()) == {"nonzero", "values", "scale", "group_size", "bias", "_extra_state"}


def test_both_packings_give_the_same_bits() -> None:
    layer = SparseInt4Linear.from_dense(pruned(), activation="gelu")
    few = layer.with_packing(few_rows=True)
    assert (layer.few_rows, few.few_rows) == (False, True)
    for rows in (1, 5):
        x = torch.randn(rows, 300)
        assert torch.equal(few(x), layer(x))


def test_a_state_of_other_groups_and_zeros_is_taken(tmp_path: Path) -> None:
    layer = SparseInt4Linear.from_dense(pruned(0.9), group_size=32)
    other = SparseInt4Linear.from_dense(pruned(0.3))
    other.load_state_dict(layer.state_dict())
    x = torch.randn(3, 300)
    assert torch.equal(other(x), layer(x))
    assert other.weight_format.group_size == 32

    sc.save(nn.Sequential(layer), tmp_path / "m.safetensors")
    loaded = sc.load(tmp_path / "m.safetensors", lambda: nn.Sequential(nn.Linear(300, 20)))
    assert torch.equal(loaded(x), layer(x))
    with safetensors.safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert set(file.keys()) == {"0.nonzero", "0.values", "0.scale", "0.group_size", "0.bias"}


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("group_size", torch.tensor([24], dtype=torch.int32), "multiple of 16"),
        ("group_size", torch.tensor([16]), "int32"),
        ("group_size", torch.tensor([16, 16], dtype=torch.int32), "shape"),
        ("scale", torch.ones(20, 3), r"scale of shape \[20, 2\]"),
        ("values", torch.zeros(1, dtype=torch.uint8), "values of shape"),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(name: str, tensor: torch.Tensor, message: str) -> None:
    layer = SparseInt4Linear.from_dense(pruned())
    x = torch.randn(2, 300)
    before, state = layer(x), layer.state_dict()
    with pytest.raises(FormatError, match=message):
        layer.load_state_dict(state | {name: tensor})
    assert torch.equal(layer(x), before)


def test_int8_layers_are_not_made_of_4_bit_ones() -> None:
    layer = SparseInt4Linear.from_dense(pruned())
    with pytest.raises(UnsupportedError, match="expected an int8 layer, got SparseInt4Linear"):
        SparseInt8Linear.from_int8(layer)
    with pytest.raises(FormatError, match="expected a Int4Weight, got Int8Weight"):
        SparseInt4Linear(Int8Linear.from_dense(pruned()).weight_format)


def test_compiled_models_hand_int8_on_to_layers_of_4_bits() -> None:
    x = torch.randn(8, 300)
    model = nn.Sequential(pruned(), nn.ReLU(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    sc.quantize(model, [x], activations="static", bits=4, group_size=16)
    compiled = sc.compile(model, x, policy={"0": "lookup int4", "2": "lookup int4", "4": "lookup int4"}, cache=False)
    with torch.no_grad():
        error = (compiled(x) - model(x)).norm() / model(x).norm()
    assert float(error) < 0.02
