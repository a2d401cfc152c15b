"""Which format and kernel each layer runs on: candidates, measuring, the cache, the choice and its reasons."""

from sparsecore.tune.choice import Explanation, LayerChoice, explain
from sparsecore.tune.compile import compile
from sparsecore.tune.convert import convert

__all__ = ["Explanation", "LayerChoice", "compile", "convert", "explain"]
