"""Packed storages: what is in memory, in a state_dict and in a file; blocks that do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors
import torch
from torch import Tensor, nn

import sparsecore as sc
from sparsecore import nn as snn
from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.formats import CsrWeight
from sparsecore.nn import CompressedModule

# Class, options of from_dense(), names of what the state_dict must not hold.
FORMS = [
    (snn.BitmapLinear, {}, "masks"),
    (snn.BlockLinear, {"block_rows": 4}, "block_ptr"),
    (snn.BlockLinear, {"block_rows": 8}, "block_ptr"),
    (snn.PanelLinear, {"panel_cols": 7}, "run_ptr"),
    (snn.BlockConv2d, {"block_rows": 4}, "block_ptr"),
    (snn.BlockConv2d, {"block_rows": 8}, "block_ptr"),
    (snn.PanelConv2d, {"panel_cols": 18}, "run_ptr"),
]
each_form = pytest.mark.parametrize(("cls", "options", "private"), FORMS)


def make_model(cls: type[CompressedModule]) -> nn.Sequential:
    layer = nn.Linear(20, 16) if cls.dense_type is nn.Linear else nn.Conv2d(6, 16, 3, padding=1)
    return nn.Sequential(layer).eval()


def pruned(cls: type[CompressedModule]) -> nn.Sequential:
    model = make_model(cls)
    with torch.no_grad():
        model[0].weight *= torch.rand(model[0].weight.shape) < 0.3
    return model


def example(cls: type[CompressedModule]) -> Tensor:
    return torch.randn(5, 20) if cls.dense_type is nn.Linear else torch.randn(2, 6, 5, 7)


def csr_of(layer: nn.Module) -> CsrWeight:
    return CsrWeight.from_dense(layer.weight)


@each_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_dict_holds_csr(
    cls: type[CompressedModule], options: dict[str, int], private: str, dtype: torch.dtype
) -> None:
    dense = pruned(cls)[0].to(dtype)
    layer = cls.from_dense(dense, **options)
    state, weight = layer.state_dict(), csr_of(dense.float())
    assert set(state) == {"row_ptr", "col_idx", "values", "bias"}
    assert private in dict(layer.named_buffers())
    for name in ("row_ptr", "col_idx", "values"):
        assert torch.equal(state[name].to(getattr(weight, name).dtype), getattr(weight, name)), name
    other = cls.from_dense(make_model(cls)[0], **options)
    other.load_state_dict(state)
    x = example(cls)
    assert torch.equal(other(x), layer.float()(x))


@each_form
def test_files_hold_csr(cls: type[CompressedModule], options: dict[str, int], private: str, tmp_path: Path) -> None:
    model = pruned(cls)
    weight = csr_of(model[0])
    model[0] = cls.from_dense(model[0], activation="relu", **options)
    path = tmp_path / "m.safetensors"
    sc.save(model, path)
    with safetensors.safe_open(path, "pt") as file:
        names = {name.rpartition(".")[2]: name for name in file.keys()}  # noqa: SIM118
        assert private not in names
        assert torch.equal(file.get_tensor(names["col_idx"]), weight.col_idx)
        assert torch.equal(file.get_tensor(names["values"]), weight.values)
    loaded = sc.load(path, lambda: make_model(cls))
    assert type(loaded[0]) is cls
    assert str(loaded) == str(model)
    assert all(getattr(loaded[0], name) == value for name, value in options.items())
    x = example(cls)
    assert torch.equal(loaded(x), model(x))


@each_form
def test_memory_holds_the_packed_form_alone(cls: type[CompressedModule], options: dict[str, int], private: str) -> None:
    layer = cls.from_dense(pruned(cls)[0], **options)
    assert set(dict(layer.named_buffers())) == set(cls.packed_names)


@pytest.mark.parametrize("rows", [4, 8])
def test_rows_that_blocks_do_not_fit(rows: int) -> None:
    with pytest.raises(FormatError, match=f"got {rows} and N = {rows + 2}"):
        snn.BlockLinear.from_dense(nn.Linear(5, rows + 2), block_rows=rows)
    with pytest.raises(UnsupportedError, match="whole blocks"):
        snn.BlockConv2d.from_dense(nn.Conv2d(4, 2 * rows + rows, 3, groups=2), block_rows=rows)


@pytest.mark.parametrize("rows", [0, 1, 3, 5, 16])
def test_blocks_of_other_sizes(rows: int) -> None:
    with pytest.raises(FormatError, match="blocks of 4 or 8 rows"):
        snn.BlockLinear.from_dense(nn.Linear(5, 16), block_rows=rows)


@each_form
def test_moving_and_casting_keep_the_packed_values(
    cls: type[CompressedModule], options: dict[str, int], private: str
) -> None:
    layer = cls.from_dense(pruned(cls)[0], **options)
    before = {name: tensor.clone() for name, tensor in layer.named_buffers()}
    for cast in (layer.half, layer.bfloat16, layer.float):
        cast()
        for name, tensor in layer.named_buffers():
            assert tensor.dtype == before[name].dtype
            assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bitmaps_keep_16_bit_values(dtype: torch.dtype) -> None:
    layer = snn.BitmapLinear.from_dense(pruned(snn.BitmapLinear)[0].to(dtype))
    assert layer.values.dtype == layer.state_dict()["values"].dtype == dtype
    assert f"nnz={layer.weight_format.nnz}," in str(layer)
    wide = snn.BitmapLinear.from_dense(make_model(snn.BitmapLinear)[0])
    wide.load_state_dict(layer.state_dict())
    assert wide.values.dtype == torch.float32
    x = example(snn.BitmapLinear)
    assert torch.equal(wide(x), layer.float()(x))
    layer.load_state_dict(wide.state_dict())
    assert layer.values.dtype == dtype
    assert torch.equal(wide(x), layer(x))
