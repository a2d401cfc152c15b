"""Split attention against torch's, and where attention is found."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sparsecore.errors import UnsupportedError
from sparsecore.prune.structured import SplitAttention, find_attention, split_attention


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("mask", ["none", "padding", "bool", "additive", "per head", "both", "causal"])
def test_equals_torch(batch_first: bool, need_weights: bool, average: bool, mask: str) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 4, batch_first=batch_first, kdim=10, vdim=6, dtype=torch.float64).eval()
    nn.init.normal_(attention.in_proj_bias)
    nn.init.normal_(attention.out_proj.bias)
    B, L, S = 3, 5, 5
    inputs = [torch.randn(B, n, size, dtype=torch.float64) for n, size in ((L, 16), (S, 10), (S, 6))]
    if not batch_first:
        inputs = [x.transpose(0, 1) for x in inputs]
    forbidden = torch.ones(L, S, dtype=torch.bool).triu(1)
    padding = torch.zeros(B, S, dtype=torch.bool)
    padding[1, 3:] = True
    options: dict = {
        "none": {},
        "padding": {"key_padding_mask": padding},
        "bool": {"attn_mask": forbidden},
        "additive": {"attn_mask": torch.randn(L, S, dtype=torch.float64)},
        "per head": {"attn_mask": torch.randn(B * 4, L, S, dtype=torch.float64)},
        "both": {"attn_mask": forbidden, "key_padding_mask": padding},
        "causal": {"attn_mask": forbidden, "is_causal": True},
    }[mask]
    options |= {"need_weights": need_weights, "average_attn_weights": average}
    expected, got = attention(*inputs, **options), SplitAttention(attention)(*inputs, **options)
    torch.testing.assert_close(got[0], expected[0], rtol=1e-12, atol=1e-12)
    if need_weights:
        torch.testing.assert_close(got[1], expected[1], rtol=1e-12, atol=1e-12)
    else:
        assert got[1] is expected[1] is None


def test_unbatched_and_causal_without_a_mask() -> None:
    attention = nn.MultiheadAttention(8, 2, bias=False).eval()
    split, x = SplitAttention(attention), torch.randn(4, 8)
    forbidden = torch.ones(4, 4, dtype=torch.bool).triu(1)
    for got, expected in (
        (split(x, x, x), attention(x, x, x)),
        (split(x, x, x, is_causal=True), attention(x, x, x, attn_mask=forbidden)),
    ):
        torch.testing.assert_close(got, expected)


def test_encoders_of_torch_run_with_it_in_both_modes() -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True), 2)
    split, x = copy.deepcopy(encoder), torch.randn(3, 5, 16)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[0, 4] = True
    assert split_attention(split) == ["layers.0.self_attn", "layers.1.self_attn"]
    assert not any(isinstance(module, nn.MultiheadAttention) for module in split.modules())
    for mode in (True, False):
        expected = encoder.train(mode)(x, src_key_padding_mask=padding)[~padding]
        torch.testing.assert_close(split.train(mode)(x, src_key_padding_mask=padding)[~padding], expected)
    assert {name: (a.num_heads, a.head_dim) for name, a in find_attention(split).items()} == {
        "layers.0.self_attn": (4, 4),
        "layers.1.self_attn": (4, 4),
    }


def test_what_cannot_be_split_is_refused() -> None:
    model = nn.ModuleList([nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2, add_zero_attn=True)])
    with pytest.raises(UnsupportedError, match="add_zero_attn"):
        split_attention(model)
    assert isinstance(model[0], nn.MultiheadAttention)
    with pytest.raises(UnsupportedError, match="itself"):
        split_attention(model[0])
    with pytest.raises(ValueError, match="attn_mask for 2 x 2 heads"):
        SplitAttention(model[0])(*[torch.randn(3, 2, 8)] * 3, attn_mask=torch.zeros(8, 3, 3))


def test_shared_keys_and_values_are_not_found() -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_heads = 4
            self.q_proj, self.o_proj = nn.Linear(8, 8), nn.Linear(8, 8)
            self.k_proj, self.v_proj = nn.Linear(8, 4), nn.Linear(8, 4)

    assert find_attention(Grouped()) == {}
