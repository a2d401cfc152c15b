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
from sparsecore.prune.structured.sensitivity import ChannelSensitivity, channel_sensitivity
from sparsecore.prune.structured.target import latency_us, prune_to_target, step_reduction

__all__ = [
    "FILTER_CRITERIA",
    "AttributeEdit",
    "ChannelGroup",
    "ChannelGroups",
    "ChannelSensitivity",
    "Costs",
    "Edits",
    "FilterCriterion",
    "TensorEdit",
    "Unit",
    "channel_sensitivity",
    "count_costs",
    "cut",
    "latency_us",
    "prunable_channels",
    "prune_channels",
    "prune_to_target",
    "step_reduction",
]
