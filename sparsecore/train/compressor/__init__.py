"""The Compressor: one run that trains a model and compresses it on the way, as a recipe says.

``run`` is the model with its optimizer and data, as strategies see them; ``data``, ``ranks``, ``optimizer`` and
``structure`` are its parts. ``state`` takes it apart and puts it together, ``checkpoint`` keeps that in files,
``rehearsal`` tries a recipe on a copy, and ``compressor`` leads through the epochs to the ``report``.
"""

from sparsecore.train.compressor.compressor import Compressed, Compressor, load_result
from sparsecore.train.compressor.report import CompressionReport, Row

__all__ = ["Compressed", "CompressionReport", "Compressor", "Row", "load_result"]
