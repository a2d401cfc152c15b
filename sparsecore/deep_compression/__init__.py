"""Deep Compression: a pruned model with shared weights in one small file, Huffman coded; see ``file.py``."""

from sparsecore.deep_compression.file import load_compressed, save_compressed
from sparsecore.deep_compression.report import CompressedReport, WeightBytes

__all__ = ["CompressedReport", "WeightBytes", "load_compressed", "save_compressed"]
