"""Layers that run on compressed weights; each is made from a dense layer by ``from_dense()``."""

from sparsecore.nn.base import CompressedModule, put_layer
from sparsecore.nn.conv import BlockConv2d, Int8Conv2d, PanelConv2d, SparseConv2d, SparseInt8Conv2d
from sparsecore.nn.dense import ChannelsLastConv2d, DenseConv2d, DenseLayer, DenseLinear
from sparsecore.nn.depthwise import DepthwiseConv2d
from sparsecore.nn.linear import (
    BitmapInt8Linear,
    BitmapLinear,
    BlockLinear,
    FragmentLinear,
    Int8Linear,
    PanelLinear,
    SparseInt8Linear,
    SparseLinear,
)

__all__ = [
    "BitmapInt8Linear",
    "BitmapLinear",
    "BlockConv2d",
    "BlockLinear",
    "ChannelsLastConv2d",
    "CompressedModule",
    "DenseConv2d",
    "DenseLayer",
    "DenseLinear",
    "DepthwiseConv2d",
    "FragmentLinear",
    "Int8Conv2d",
    "Int8Linear",
    "PanelConv2d",
    "PanelLinear",
    "SparseConv2d",
    "SparseInt8Conv2d",
    "SparseInt8Linear",
    "SparseLinear",
    "put_layer",
]
