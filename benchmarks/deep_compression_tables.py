"""The layers of Deep Compression's tables 4 and 5, and what they add up to.

Densities and bits were written down from memory, not from the paper at hand. What they can be held to are the totals
that the paper reports: how many weights are left, and the ratio before Huffman coding.

Reference: Han, Mao and Dally, Deep Compression, ICLR 2016, tables 4 and 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class PaperLayer:
    """A layer of the paper's tables: N, K, taps, groups, share of weights kept, bits of a code."""

    N: int
    K: int
    taps: int
    kept: float
    bits: int
    groups: int = 1

    @property
    def numel(self) -> int:
        return self.N * self.K * max(self.taps, 1) ** 2

    @property
    def nnz(self) -> float:
        return self.kept * self.numel

    def build(self) -> nn.Module:
        if self.taps == 0:
            return nn.Linear(self.K, self.N)
        return nn.Conv2d(self.K * self.groups, self.N, self.taps, groups=self.groups)


@dataclass(frozen=True)
class PaperNet:
    """A network of the paper: its layers, the width of gaps in its table, and what it reports."""

    layers: Mapping[str, PaperLayer]
    table_gap_bits: int
    ratio_pruned: float
    ratio_before_huffman: float
    ratio: float
    has_mixed_gaps: bool = False

    def gap_bits(self, conv: int, linear: int) -> dict[str, int]:
        """Widths of gaps by the name of the weight."""
        return {f"{name}.weight": conv if layer.taps else linear for name, layer in self.layers.items()}

    @property
    def other_gap_bits(self) -> dict[str, dict[str, int]]:
        """Choices of widths that neither the tables nor section 2 name, but both together suggest."""
        return {"4 bits in convolutions, 5 in the others": self.gap_bits(4, 5)} if self.has_mixed_gaps else {}


NETS = {
    "AlexNet": PaperNet(
        {
            "conv1": PaperLayer(96, 3, 11, 0.84, 8),
            "conv2": PaperLayer(256, 48, 5, 0.38, 8, groups=2),
            "conv3": PaperLayer(384, 256, 3, 0.35, 8),
            "conv4": PaperLayer(384, 192, 3, 0.37, 8, groups=2),
            "conv5": PaperLayer(256, 192, 3, 0.37, 8, groups=2),
            "fc6": PaperLayer(4096, 9216, 0, 0.09, 5),
            "fc7": PaperLayer(4096, 4096, 0, 0.09, 5),
            "fc8": PaperLayer(1000, 4096, 0, 0.25, 5),
        },
        table_gap_bits=4,
        ratio_pruned=9,
        has_mixed_gaps=True,
        ratio_before_huffman=27,
        ratio=35,
    ),
    "VGG-16": PaperNet(
        {
            "conv1_1": PaperLayer(64, 3, 3, 0.58, 8),
            "conv1_2": PaperLayer(64, 64, 3, 0.22, 8),
            "conv2_1": PaperLayer(128, 64, 3, 0.34, 8),
            "conv2_2": PaperLayer(128, 128, 3, 0.36, 8),
            "conv3_1": PaperLayer(256, 128, 3, 0.53, 8),
            "conv3_2": PaperLayer(256, 256, 3, 0.24, 8),
            "conv3_3": PaperLayer(256, 256, 3, 0.42, 8),
            "conv4_1": PaperLayer(512, 256, 3, 0.32, 8),
            "conv4_2": PaperLayer(512, 512, 3, 0.27, 8),
            "conv4_3": PaperLayer(512, 512, 3, 0.34, 8),
            "conv5_1": PaperLayer(512, 512, 3, 0.35, 8),
            "conv5_2": PaperLayer(512, 512, 3, 0.29, 8),
            "conv5_3": PaperLayer(512, 512, 3, 0.36, 8),
            "fc6": PaperLayer(4096, 25088, 0, 0.04, 5),
            "fc7": PaperLayer(4096, 4096, 0, 0.04, 5),
            "fc8": PaperLayer(1000, 4096, 0, 0.23, 5),
        },
        table_gap_bits=5,
        ratio_pruned=13,
        ratio_before_huffman=31,
        ratio=49,
    ),
}


def kept_weights(net: PaperNet) -> tuple[int, float]:
    """Weights of a network, and how many its table keeps."""
    return sum(layer.numel for layer in net.layers.values()), sum(layer.nnz for layer in net.layers.values())


def accounted(net: PaperNet) -> dict[str, float]:
    """Ratio over float32 before Huffman by what is counted, in uniformly random places; no biases, no headers."""
    table = net.gap_bits(net.table_gap_bits, net.table_gap_bits)
    rows = {
        "codes and gaps of the weights that are kept": _ratio(net, table, fillers_cost_codes=None, codebooks=False),
        "codebooks too": _ratio(net, table, fillers_cost_codes=None),
        "and fillers, their gaps alone": _ratio(net, table, fillers_cost_codes=False),
        "and fillers, codes and gaps": _ratio(net, table),
        "the same with section 2's gaps, 8 and 5 bits": _ratio(net, net.gap_bits(8, 5)),
    }
    return rows | {f"the same with {name}": _ratio(net, gaps) for name, gaps in net.other_gap_bits.items()}


def _ratio(
    net: PaperNet, gap_bits: Mapping[str, int], fillers_cost_codes: bool | None = True, codebooks: bool = True
) -> float:
    """None counts no fillers."""
    num_bits = 0.0
    for name, layer in net.layers.items():
        gap = gap_bits[f"{name}.weight"]
        num_fillers = 0.0 if fillers_cost_codes is None else layer.nnz * expected_fillers(layer.kept, gap)
        num_bits += layer.nnz * (layer.bits + gap) + num_fillers * (gap + bool(fillers_cost_codes) * layer.bits)
        num_bits += codebooks * 32 * 2**layer.bits
    return 32 * kept_weights(net)[0] / num_bits


def expected_fillers(kept: float, gap_bits: int) -> float:
    """Fillers per weight that is kept, where each place is kept with the same probability.

    A gap of z zeros takes floor(z / 2^b) fillers, each of which stands for 2^b places. z is geometric, so that the mean
    is the sum over i from 1 of P(z >= i 2^b).

    Example:
        >>> round(expected_fillers(0.5, 1), 6)  # 1/4 + 1/16 + ...
        0.333333
    """
    beyond = (1 - kept) ** (2**gap_bits)
    return beyond / (1 - beyond)


def fillers(keep: Tensor, gap_bits: int) -> float:
    """Fillers per entry that is kept in ``keep``, scanned from the first to the last.

    Example:
        >>> fillers(torch.tensor([1, 0, 0, 0, 0, 1], dtype=torch.bool), gap_bits=1)
        1.0
    """
    places = keep.flatten().nonzero().flatten()
    zeros = torch.diff(places, prepend=places.new_tensor([-1])) - 1
    return float((zeros // 2**gap_bits).sum()) / len(places)
