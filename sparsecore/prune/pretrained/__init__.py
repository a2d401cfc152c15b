"""Language models in a folder, pruned block by block: a model may be larger than memory."""

from sparsecore.prune.pretrained.run import PrunedBlock
from sparsecore.prune.pretrained.stream import PrunedModel, prune_pretrained

__all__ = ["PrunedBlock", "PrunedModel", "prune_pretrained"]
