"""Layers that run on compressed weights; each is made from a dense layer by ``from_dense()``."""

from sparsecore.nn.base import CompressedModule, leave_fast_path, put_layer
from sparsecore.nn.conv import BlockConv2d, Int8Conv2d, JitConv2d, PanelConv2d, SparseConv2d, SparseInt8Conv2d
from sparsecore.nn.dense import ChannelsLastConv2d, DenseConv2d, DenseLayer, DenseLinear, PackedLinear
from sparsecore.nn.depthwise import DepthwiseConv2d
from sparsecore.nn.int8_linear import (
    BitmapInt8Linear,
    DeltaWeightOnlyLinear,
    FragmentInt8Linear,
    FragmentWeightOnlyLinear,
    Int8Linear,
    RowsInt8Linear,
    SparseInt4Linear,
    SparseInt8Linear,
)
from sparsecore.nn.linear import (
    BitmapLinear,
    BlockLinear,
    CodebookLinear,
    DeltaLinear,
    FragmentInt4Linear,
    FragmentLinear,
    JitLinear,
    PanelLinear,
    SparseLinear,
)
from sparsecore.nn.planes import BinaryConv2d, BinaryLinear, TernaryConv2d, TernaryLinear
from sparsecore.nn.semi_structured import SemiStructuredLinear
from sparsecore.nn.torch_int4 import TorchInt4WeightLinear
from sparsecore.nn.torch_int8 import TorchInt8Linear, TorchInt8WeightLinear

__all__ = [
    "BinaryConv2d",
    "BinaryLinear",
    "BitmapInt8Linear",
    "BitmapLinear",
    "BlockConv2d",
    "BlockLinear",
    "ChannelsLastConv2d",
    "CodebookLinear",
    "CompressedModule",
    "DeltaLinear",
    "DeltaWeightOnlyLinear",
    "DenseConv2d",
    "DenseLayer",
    "DenseLinear",
    "DepthwiseConv2d",
    "FragmentInt4Linear",
    "FragmentInt8Linear",
    "FragmentLinear",
    "FragmentWeightOnlyLinear",
    "Int8Conv2d",
    "Int8Linear",
    "JitConv2d",
    "JitLinear",
    "PackedLinear",
    "PanelConv2d",
    "PanelLinear",
    "RowsInt8Linear",
    "SemiStructuredLinear",
    "SparseConv2d",
    "SparseInt4Linear",
    "SparseInt8Conv2d",
    "SparseInt8Linear",
    "SparseLinear",
    "TernaryConv2d",
    "TernaryLinear",
    "TorchInt4WeightLinear",
    "TorchInt8Linear",
    "TorchInt8WeightLinear",
    "leave_fast_path",
    "put_layer",
]
