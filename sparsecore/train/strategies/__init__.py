"""Strategies: methods of ``sparsecore.methods`` that work on a model while it trains, each with a lifecycle.

A method can stand in a recipe if its entry is in :data:`STRATEGIES`; its options are those of the entry.
"""

from __future__ import annotations

from sparsecore.methods import Method, methods
from sparsecore.train.strategies.base import Stage, Strategy
from sparsecore.train.strategies.options import RecipeOption, recipe_options
from sparsecore.train.strategies.pruning import GradualPruning, IterativePruning, OneShotPruning
from sparsecore.train.strategies.quantization import (
    BinaryTraining,
    Int8AfterTraining,
    QuantizationAwareTraining,
    TernaryTraining,
    WeightSharing,
)
from sparsecore.train.strategies.replacing import LowRank, Separable
from sparsecore.train.strategies.structured import (
    ChannelPruning,
    FiltersToTarget,
    HeadPruning,
    LayerDrop,
    NetworkSlimming,
    ResRepPruning,
)
from sparsecore.train.strategies.teaching import ApprenticeTraining, DistillationTraining

__all__ = ["STRATEGIES", "RecipeOption", "Stage", "Strategy", "recipe_methods", "recipe_options", "strategy_class"]

#: By the entry of the method.
STRATEGIES: dict[str, type[Strategy]] = {
    "sparsecore.prune:prune": OneShotPruning,
    "sparsecore.prune:GradualPruner": GradualPruning,
    "sparsecore.prune:IterativePruner": IterativePruning,
    "sparsecore.prune.structured:prune_channels": ChannelPruning,
    "sparsecore.prune.structured:prune_to_target": FiltersToTarget,
    "sparsecore.prune.structured:slim": NetworkSlimming,
    "sparsecore.prune.structured:ResRep": ResRepPruning,
    "sparsecore.prune.structured:prune_heads": HeadPruning,
    "sparsecore.prune.structured:prune_layers": LayerDrop,
    "sparsecore.quantize:quantize": Int8AfterTraining,
    "sparsecore.quantize:prepare_qat": QuantizationAwareTraining,
    "sparsecore.quantize:share_weights": WeightSharing,
    "sparsecore.quantize:prepare_binary": BinaryTraining,
    "sparsecore.quantize:prepare_ternary": TernaryTraining,
    "sparsecore.train:Distillation": DistillationTraining,
    "sparsecore.train:Apprentice": ApprenticeTraining,
    "sparsecore.train:replace_by_separable": Separable,
    "sparsecore.train:replace_by_low_rank": LowRank,
}


def recipe_methods() -> tuple[Method, ...]:
    """List the methods that can stand in a recipe, in the order of the table.

    Example:
        >>> [method.name for method in recipe_methods()][:2]
        ['magnitude', 'criterion']
    """
    return tuple(method for method in methods() if method.entry in STRATEGIES)


def strategy_class(method: Method) -> type[Strategy]:
    """Return the class that runs a method, which must be of :func:`recipe_methods`."""
    return STRATEGIES[method.entry]
