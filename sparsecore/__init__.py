"""sparsecore: pruned and quantized PyTorch models that really run faster.

The way through: ``prune`` -> ``quantize`` -> ``convert`` -> ``explain``, ``save`` and ``load``. See README.md.

``sc.prune`` and ``sc.quantize`` are the functions. The packages of these names hold more; take it by
``from sparsecore.prune import SparseGPT``, for ``import sparsecore.prune as p`` gives the function.
"""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING
from typing import Any as _Any

from sparsecore import formats, nn, ops
from sparsecore.deep_compression import CompressedReport, load_compressed, save_compressed
from sparsecore.errors import (
    BundleError,
    CheckpointError,
    FormatError,
    MissingExtraError,
    RecipeError,
    SparsecoreError,
    UnsupportedError,
)
from sparsecore.formats import CsrWeight, Int8Weight
from sparsecore.io import load, save
from sparsecore.prune import GradualPruner, IterativePruner, Masks, prune, pruning_sensitivity
from sparsecore.prune.structured import prune_channels, prune_to_target
from sparsecore.quantize import Percentile, quantization_report, quantize, sensitivity
from sparsecore.tune import compile, convert, explain

if TYPE_CHECKING:
    from sparsecore.train.compressor import Compressor

__version__ = _version("sparsecore")

__all__ = [
    "BundleError",
    "CheckpointError",
    "CompressedReport",
    "Compressor",
    "CsrWeight",
    "FormatError",
    "GradualPruner",
    "Int8Weight",
    "IterativePruner",
    "Masks",
    "MissingExtraError",
    "Percentile",
    "RecipeError",
    "SparsecoreError",
    "UnsupportedError",
    "compile",
    "convert",
    "explain",
    "formats",
    "load",
    "load_compressed",
    "nn",
    "ops",
    "prune",
    "prune_channels",
    "prune_to_target",
    "pruning_sensitivity",
    "quantization_report",
    "quantize",
    "save",
    "save_compressed",
    "sensitivity",
]


def __getattr__(name: str) -> _Any:
    """Import what is built on everything else when it is asked for."""
    if name == "Compressor":
        from sparsecore.train.compressor import Compressor

        return Compressor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
