"""Structured pruning: whole channels go, and the layers get smaller.

``graph`` finds which channels go together, ``groups`` what can be cut, ``cut`` cuts, ``edits`` remembers what was cut.
"""

from sparsecore.prune.structured.cut import cut
from sparsecore.prune.structured.edits import AttributeEdit, Edits, TensorEdit
from sparsecore.prune.structured.graph import Unit
from sparsecore.prune.structured.groups import ChannelGroup, ChannelGroups, prunable_channels

__all__ = [
    "AttributeEdit",
    "ChannelGroup",
    "ChannelGroups",
    "Edits",
    "TensorEdit",
    "Unit",
    "cut",
    "prunable_channels",
]
