"""Layers: names, sizes, and finding them."""

from __future__ import annotations

import pytest
from torch import nn

from sparsecore.bench.kernels.layers import FEW_ROWS, LAYERS, LINEAR, ONE_ROW, POINTWISE, SPATIAL, Layer, select


def test_names_are_unique() -> None:
    assert len({layer.name for layer in LAYERS}) == len(LAYERS)


@pytest.mark.parametrize(
    ("layer", "name", "kind", "K", "columns"),
    [
        (Layer("", 8, 4, 16), "linear 8x4, 16", LINEAR, 4, 16),
        (Layer("", 8, 4, 1), "linear 8x4, 1", ONE_ROW, 4, 1),
        (Layer("", 8, 4, 2), "linear 8x4, 2", FEW_ROWS, 4, 2),
        (Layer("", 8, 4, 15), "linear 8x4, 15", FEW_ROWS, 4, 15),
        (Layer("", 8, 4, 7, 1), "conv 1x1 4->8 @7", POINTWISE, 4, 49),
        (Layer("", 8, 4, 7, 3, 2, 16), "conv 3x3/2 4->8 @7 b16", SPATIAL, 36, 16 * 16),
    ],
)
def test_what_follows_from_the_sizes(layer: Layer, name: str, kind: str, K: int, columns: int) -> None:
    assert (layer.name, layer.kind, layer.K, layer.columns) == (name, kind, K, columns)
    described = layer.describe()
    assert (described["N"], described["name"], described["columns"]) == (8, name, columns)


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if layer.kernel], ids=lambda layer: layer.name)
def test_output_size_is_that_of_torch(layer: Layer) -> None:
    conv = nn.Conv2d(layer.C, layer.N, layer.kernel, layer.stride, layer.padding, device="meta")
    x = conv.weight.new_empty(layer.input_shape)
    assert conv.weight.shape == layer.weight_shape
    assert conv(x).shape == (layer.batch, layer.N, layer.out_size, layer.out_size)


def test_select() -> None:
    assert select("all") == LAYERS
    assert len(select("quick")) == 16
    assert all(layer.kernel == 3 for layer in select("CONV 3X3"))
    assert {layer.network for layer in select("mobilenetv2")} == {"MobileNetV2"}


@pytest.mark.parametrize("shape", ["4096x4096", "11008x4096", "4096x11008", "14336x4096"])
def test_decode_has_1_to_16_rows(shape: str) -> None:
    layers = select(f"llama linear {shape}, ")
    assert sorted(layer.columns for layer in layers) == [1, 2, 4, 8, 16]


def test_select_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"BERT-base.*got 'conv 9x9'"):
        select("conv 9x9")
