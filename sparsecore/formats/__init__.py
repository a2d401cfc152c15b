"""Weight formats: frozen dataclasses of plain tensors. Stored ones are validated when built."""

from sparsecore.formats.bitmap import BitmapWeight
from sparsecore.formats.block_csr import BlockCsrWeight
from sparsecore.formats.csr import CsrWeight
from sparsecore.formats.fragment import FragmentWeight
from sparsecore.formats.int8 import Int8Weight
from sparsecore.formats.packed_int8 import PackedInt8Weight
from sparsecore.formats.panel import PanelWeight

__all__ = [
    "BitmapWeight",
    "BlockCsrWeight",
    "CsrWeight",
    "FragmentWeight",
    "Int8Weight",
    "PackedInt8Weight",
    "PanelWeight",
]
