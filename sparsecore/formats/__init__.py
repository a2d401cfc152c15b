"""Weight formats: frozen dataclasses of plain tensors. Stored ones are validated when built."""

from sparsecore.formats.bitmap import BitmapWeight
from sparsecore.formats.block_csr import BlockCsrWeight
from sparsecore.formats.codebook import CodebookWeight
from sparsecore.formats.csr import CsrWeight
from sparsecore.formats.delta import DeltaWeight
from sparsecore.formats.fragment import FragmentWeight
from sparsecore.formats.int4_weight import Int4Weight
from sparsecore.formats.int8 import Int8Weight
from sparsecore.formats.jit import JitProgram
from sparsecore.formats.packed_codebook import PackedCodebookWeight
from sparsecore.formats.packed_int4 import PackedInt4Weight
from sparsecore.formats.packed_int8 import PackedInt8Weight
from sparsecore.formats.panel import PanelWeight
from sparsecore.formats.planes import BinaryWeight, PlanesWeight, TernaryWeight

__all__ = [
    "BinaryWeight",
    "BitmapWeight",
    "BlockCsrWeight",
    "CodebookWeight",
    "CsrWeight",
    "DeltaWeight",
    "FragmentWeight",
    "Int4Weight",
    "Int8Weight",
    "JitProgram",
    "PackedCodebookWeight",
    "PackedInt4Weight",
    "PackedInt8Weight",
    "PanelWeight",
    "PlanesWeight",
    "TernaryWeight",
]
