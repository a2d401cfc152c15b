"""Structured pruning: whole channels go, and the layers get smaller.

``graph`` finds which channels go together, ``groups`` what can be cut, ``cut`` cuts, ``edits`` remembers what was cut.
"""

from sparsecore.prune.structured.channels import prune_channels
from sparsecore.prune.structured.cost import Costs, count_costs
from sparsecore.prune.structured.criteria import FILTER_CRITERIA, FilterCriterion
from sparsecore.prune.structured.cut import cut
from sparsecore.prune.structured.edits import AttributeEdit, Edits, TensorEdit
from sparsecore.prune.structured.graph import Unit
from sparsecore.prune.structured.groups import ChannelGroup, ChannelGroups, prunable_channels

__all__ = [
    "FILTER_CRITERIA",
    "AttributeEdit",
    "ChannelGroup",
    "ChannelGroups",
    "Costs",
    "Edits",
    "FilterCriterion",
    "TensorEdit",
    "Unit",
    "count_costs",
    "cut",
    "prunable_channels",
    "prune_channels",
]
