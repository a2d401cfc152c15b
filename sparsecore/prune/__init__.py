"""Pruning: zero weights, remember which, and keep them zero while training goes on.

Weights stay plain parameters; their zeros are the truth. ``sparsecore.prune`` as an attribute is the function
``prune()``; what else is here comes by ``from sparsecore.prune import ...``.
"""

from sparsecore.prune.calibrated import CALIBRATED, CalibratedCriterion
from sparsecore.prune.criteria import CRITERIA, Criterion
from sparsecore.prune.iterative import IterativePruner, round_sparsity
from sparsecore.prune.layerwise import prune_block
from sparsecore.prune.masks import Masks, MaskStatistics
from sparsecore.prune.oneshot import prune
from sparsecore.prune.patterns import fits_pattern
from sparsecore.prune.pretrained import PrunedBlock, PrunedModel, prune_pretrained
from sparsecore.prune.ranks import averaged_over_ranks
from sparsecore.prune.schedule import GradualPruner, cubic_sparsity
from sparsecore.prune.sensitivity import PruningSensitivity, pruning_sensitivity
from sparsecore.prune.sparsegpt import SparseGPT
from sparsecore.prune.taylor import Taylor
from sparsecore.prune.wanda import Wanda
from sparsecore.prune.weights import fold_torch_pruning

__all__ = [
    "CALIBRATED",
    "CRITERIA",
    "CalibratedCriterion",
    "Criterion",
    "GradualPruner",
    "IterativePruner",
    "MaskStatistics",
    "Masks",
    "PrunedBlock",
    "PrunedModel",
    "PruningSensitivity",
    "SparseGPT",
    "Taylor",
    "Wanda",
    "averaged_over_ranks",
    "cubic_sparsity",
    "fits_pattern",
    "fold_torch_pruning",
    "prune",
    "prune_block",
    "prune_pretrained",
    "pruning_sensitivity",
    "round_sparsity",
]
