"""BinaryLinear and TernaryLinear beside what all layers have in common (test_base.py)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import fit_
from oracle import assert_within, dense_reference
from torch import nn
from torch.nn.utils import prune as torch_prune

import sparsecore as sc
from sparsecore.errors import BundleError, FormatError, UnsupportedError
from sparsecore.nn import BinaryConv2d, BinaryLinear, TernaryConv2d, TernaryLinear

each_class = pytest.mark.parametrize("cls", [BinaryLinear, TernaryLinear])


@each_class
@pytest.mark.parametrize("batch", [(), (1,), (2, 3), (2, 0), (40,)])
def test_outputs(cls: type[BinaryLinear] | type[TernaryLinear], batch: tuple[int, ...]) -> None:
    layer, x = fit_(cls, nn.Linear(33, 17)), torch.randn(*batch, 33)
    compressed = cls.from_dense(layer, activation="relu")
    assert_within(compressed(x), *dense_reference(layer, x, "relu"))
    assert compressed.count_nonzero() == int(layer.weight.count_nonzero())


@each_class
def test_memory_is_one_or_two_bits_for_a_weight(cls: type[BinaryLinear] | type[TernaryLinear]) -> None:
    layer = cls.from_dense(fit_(cls, nn.Linear(1024, 64, bias=False)))
    planes = 1 if cls is BinaryLinear else 2
    assert sum(buffer.nbytes for buffer in layer.buffers()) == planes * (64 * 1024 // 8 + 64 * 4)


def test_masks_of_torch_prune_are_applied() -> None:
    layer = fit_(BinaryLinear, nn.Linear(20, 6))
    torch_prune.random_unstructured(layer, "weight", amount=0.5)
    assert torch.equal(TernaryLinear.from_dense(layer).weight, layer.weight)
    with pytest.raises(FormatError, match="TernaryWeight for zeros"):
        BinaryLinear.from_dense(layer)


@pytest.mark.parametrize("cls", [BinaryConv2d, TernaryConv2d])
@pytest.mark.parametrize(
    ("kernel_size", "settings"), [(1, {}), ((2, 3), {"stride": (2, 1), "padding": (0, 1), "dilation": (1, 2)})]
)
def test_convolutions(
    cls: type[BinaryConv2d] | type[TernaryConv2d], kernel_size: int | tuple[int, int], settings: dict[str, Any]
) -> None:
    conv = fit_(cls, nn.Conv2d(4, 6, kernel_size, **settings))
    layer, x = cls.from_dense(conv, activation="relu"), torch.randn(3, 4, 7, 8)
    assert_within(layer(x), *dense_reference(conv, x, "relu"))
    residual = torch.randn_like(layer(x))
    assert_within(layer(x, residual), *dense_reference(conv, x, "relu", residual))


def test_groups_are_refused() -> None:
    conv = fit_(BinaryConv2d, nn.Conv2d(4, 6, 3, groups=2))
    with pytest.raises(UnsupportedError, match="expected 1 group, got 2; keep this layer dense"):
        BinaryConv2d.from_dense(conv)


def test_tampered_state_is_refused_and_the_layer_stays() -> None:
    layer = TernaryLinear.from_dense(fit_(TernaryLinear, nn.Linear(12, 7)))
    expected, state = layer.weight, layer.state_dict()
    for name, tensor, message in (
        ("sign", state["sign"] | 2**7, "no bits of sign past column 12"),
        ("nonzero", torch.zeros_like(state["nonzero"]), "a sign only where"),
        ("positive_scale", state["positive_scale"] * torch.nan, "every scale finite"),
        ("negative_scale", state["negative_scale"][:3], r"scale of shape \[7\], got \[3\]"),
    ):
        with pytest.raises(FormatError, match=message):
            layer.load_state_dict(state | {name: tensor})
        assert torch.equal(layer.weight, expected)


def test_tampered_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = fit_(BinaryLinear, nn.Linear(12, 7))
    layer = BinaryLinear.from_dense(dense)
    bad = layer.tensors() | {"scale": -torch.ones(7)}
    monkeypatch.setattr(layer, "tensors", lambda: bad)
    sc.save(nn.Sequential(layer), tmp_path / "m.safetensors")  # with the right digest
    with pytest.raises(BundleError, match="every scale finite and above 0"):
        sc.load(tmp_path / "m.safetensors", lambda: nn.Sequential(copy.deepcopy(dense)))
