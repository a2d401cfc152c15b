"""Structured pruning: whole channels go, and the layers get smaller.

``graph`` finds which channels go together, ``groups`` what can be cut, ``cut`` cuts, ``edits`` remembers what was cut.
``channels`` and ``target`` choose by a score, ``slimming`` and ``resrep`` by training. ``attention`` finds heads, which
``heads`` removes; ``layer_drop`` removes whole layers.
"""

from sparsecore.prune.structured.attention import Attention, SplitAttention, find_attention, split_attention
from sparsecore.prune.structured.channels import prune_channels
from sparsecore.prune.structured.cost import Costs, count_costs
from sparsecore.prune.structured.criteria import FILTER_CRITERIA, FilterCriterion
from sparsecore.prune.structured.cut import cut
from sparsecore.prune.structured.edits import AttributeEdit, Edits, TensorEdit
from sparsecore.prune.structured.graph import Unit
from sparsecore.prune.structured.groups import ChannelGroup, ChannelGroups, prunable_channels
from sparsecore.prune.structured.heads import head_importance, prune_heads, remove_heads
from sparsecore.prune.structured.layer_drop import RemovedLayers, drop_layers, prune_layers, remove_layers
from sparsecore.prune.structured.resrep import Compactor, ResRep
from sparsecore.prune.structured.sensitivity import ChannelSensitivity, channel_sensitivity
from sparsecore.prune.structured.slimming import Slimmed, penalize_scales, slim, slim_in_passes
from sparsecore.prune.structured.target import latency_us, prune_to_target, step_reduction

__all__ = [
    "FILTER_CRITERIA",
    "Attention",
    "AttributeEdit",
    "ChannelGroup",
    "ChannelGroups",
    "ChannelSensitivity",
    "Compactor",
    "Costs",
    "Edits",
    "FilterCriterion",
    "RemovedLayers",
    "ResRep",
    "Slimmed",
    "SplitAttention",
    "TensorEdit",
    "Unit",
    "channel_sensitivity",
    "count_costs",
    "cut",
    "drop_layers",
    "find_attention",
    "head_importance",
    "latency_us",
    "penalize_scales",
    "prunable_channels",
    "prune_channels",
    "prune_heads",
    "prune_layers",
    "prune_to_target",
    "remove_heads",
    "remove_layers",
    "slim",
    "slim_in_passes",
    "split_attention",
    "step_reduction",
]
