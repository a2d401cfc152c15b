"""sparsecore: pruned and quantized PyTorch models that really run faster.

The way through: ``prune`` -> ``quantize`` -> ``convert`` -> ``explain``, ``save`` and ``load``. See README.md.

``sc.prune`` and ``sc.quantize`` are the functions. The packages of these names hold more; take it by
``from sparsecore.prune import SparseGPT``, for ``import sparsecore.prune as p`` gives the function.
"""

from importlib.metadata import version as _version

from sparsecore import formats, nn, ops
from sparsecore.deep_compression import CompressedReport, load_compressed, save_compressed
from sparsecore.errors import (
    BundleError,
    FormatError,
    MissingExtraError,
    SparsecoreError,
    UnsupportedError,
)
from sparsecore.formats import CsrWeight, Int8Weight
from sparsecore.io import load, save
from sparsecore.prune import GradualPruner, IterativePruner, Masks, prune, pruning_sensitivity
from sparsecore.prune.structured import prune_channels, prune_to_target
from sparsecore.quantize import Percentile, quantization_report, quantize, sensitivity
from sparsecore.tune import compile, convert, explain

__version__ = _version("sparsecore")

__all__ = [
    "BundleError",
    "CompressedReport",
    "CsrWeight",
    "FormatError",
    "GradualPruner",
    "Int8Weight",
    "IterativePruner",
    "Masks",
    "MissingExtraError",
    "Percentile",
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
