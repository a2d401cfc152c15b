"""BinaryLinear and TernaryLinear beside what all layers have in common (test_base.py)."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from networks import fit_
from oracle import assert_within, dense_reference
from torch import nn
from torch.nn.utils import prune as torch_prune

import sparsecore as sc
from sparsecore.errors import BundleError, FormatError, UnsupportedError
from sparsecore.nn import BinaryLinear, TernaryLinear

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


@each_class
def test_convolutions_are_refused(cls: type[BinaryLinear] | type[TernaryLinear]) -> None:
    with pytest.raises(UnsupportedError, match=r"expected a torch.nn.Linear, got Conv2d"):
        cls.from_dense(nn.Conv2d(3, 4, 1))


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
