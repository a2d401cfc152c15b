"""Attention whose heads can go: a layer for torch's, and where the parts of attention are in a model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention

from sparsecore.errors import UnsupportedError, require_module


class SplitAttention(nn.Module):
    """``nn.MultiheadAttention`` as four linear layers, with any number of heads of any size.

    torch's layer fixes ``num_heads * head_dim`` to ``embed_dim``, so it cannot hold fewer heads of the same size.
    It takes the arguments of torch's layer and returns the same; averaged attention weights are those of the heads
    that are there.

    Args:
        attention: Gives the weights, which are copied.

    Attributes:
        num_heads: Heads.
        head_dim: Size of each.

    Raises:
        UnsupportedError: The layer has ``bias_k``, ``bias_v`` or ``add_zero_attn``.

    Example:
        >>> attention, x = nn.MultiheadAttention(16, 4, batch_first=True), torch.randn(2, 5, 16)
        >>> torch.allclose(SplitAttention(attention)(x, x, x)[0], attention(x, x, x)[0], atol=1e-6)
        True
    """

    # By these nn.TransformerEncoderLayer knows that its fused kernel, which reads torch's weights, may not run.
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        if attention.add_zero_attn or any(getattr(attention, name) is not None for name in ("bias_k", "bias_v")):
            raise UnsupportedError("attention with bias_k, bias_v or add_zero_attn cannot be split; leave it as it is")
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.batch_first, self.dropout = attention.batch_first, attention.dropout
        parts = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
        together, *apart = (getattr(attention, name) for name in parts)
        weights = apart if together is None else together.chunk(3)
        biases = (None,) * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
        out = attention.out_proj
        self.q_proj, self.k_proj, self.v_proj = (_linear(*pair) for pair in zip(weights, biases, strict=True))
        self.out_proj = _linear(out.weight, out.bias)
        self.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, as ``nn.MultiheadAttention`` does; without a mask ``is_causal`` makes one."""
        is_batched = query.dim() == 3
        if not is_batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._heads(self.q_proj(query)), self._heads(self.k_proj(key)), self._heads(self.v_proj(value))
        if is_causal and attn_mask is None:
            attn_mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
        bias = self._bias(attn_mask, key_padding_mask, q)
        rate = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(2, 3) / math.sqrt(self.head_dim)
            weights = dropout((scores if bias is None else scores + bias).softmax(dim=-1), rate)
            context = weights @ v
            weights = weights.mean(dim=1) if average_attn_weights else weights
        else:
            context = scaled_dot_product_attention(q, k, v, bias, rate)
        output = self.out_proj(context.transpose(1, 2).flatten(2))
        if not is_batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1), weights

    def extra_repr(self) -> str:
        """Heads and their size."""
        return f"num_heads={self.num_heads}, head_dim={self.head_dim}"

    def _heads(self, x: Tensor) -> Tensor:
        """``[B, L, heads * head_dim]`` as ``[B, heads, L, head_dim]``."""
        return x.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _bias(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor) -> Tensor | None:
        """Both masks as one to add to the scores, where True, which forbids, is -inf."""
        if attn_mask is not None and attn_mask.dim() == 3:
            if len(attn_mask) != len(q) * self.num_heads:
                raise ValueError(
                    f"expected attn_mask for {len(q)} x {self.num_heads} heads, got one for {len(attn_mask)}; "
                    "leave out those of heads that were removed"
                )
            attn_mask = attn_mask.unflatten(0, (len(q), self.num_heads))
        if key_padding_mask is not None:
            key_padding_mask = key_padding_mask[:, None, None, :]
        masks = [_additive(mask, q.dtype) for mask in (attn_mask, key_padding_mask) if mask is not None]
        return sum(masks[1:], masks[0]) if masks else None


def split_attention(model: nn.Module) -> list[str]:
    """Replace every ``nn.MultiheadAttention`` in a model by a :class:`SplitAttention` with the same weights, in place.

    Args:
        model: Any module. Its parameters there are new ones: build optimizers afterwards.

    Returns:
        The names of the layers. Edits of the model are replayed on a fresh one that was split too.

    Raises:
        UnsupportedError: A layer cannot be split, or is the model itself; the model is unchanged.

    Example:
        >>> split_attention(nn.TransformerEncoderLayer(16, 4))
        ['self_attn']
    """
    require_module(model)
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]
    if found and not found[0][0]:
        raise UnsupportedError("the model is nn.MultiheadAttention itself; use SplitAttention(model)")
    split = {name: SplitAttention(module) for name, module in found}
    for name, attention in split.items():
        model.set_submodule(name, attention)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # for a fused kernel, which reads torch's weights
    return list(split)


@dataclass(frozen=True)
class Attention:
    """Where an attention layer and its parts are in a model.

    Attributes:
        name: The layer.
        inputs: Its linear layers for query, key and value, by full name.
        output: The linear layer that reads the heads side by side.
        num_heads: Heads.
        head_dim: Size of each.
    """

    name: str
    inputs: tuple[str, str, str]
    output: str
    num_heads: int
    head_dim: int


# Names of the layers for query, key, value and output within attention; BERT keeps the last beside it.
_LAYOUTS = (
    ("q_proj", "k_proj", "v_proj", "out_proj"),
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("query", "key", "value", "../output.dense"),
    ("q_lin", "k_lin", "v_lin", "out_lin"),
)
_NUM_HEADS = ("num_heads", "num_attention_heads", "n_heads")
#: Plain ints of attention layers that count heads, and those that count their features.
HEAD_COUNTS, FEATURE_COUNTS = _NUM_HEADS, ("all_head_size",)


def find_attention(model: nn.Module) -> dict[str, Attention]:
    """List the attention layers whose heads can go: linear layers for query, key, value and output around them.

    These are :class:`SplitAttention`, and those of BERT, ViT and their like in transformers. Layers whose heads share
    keys and values are not among them.

    Args:
        model: Any module.

    Example:
        >>> layer = nn.TransformerEncoderLayer(16, 4)
        >>> _ = split_attention(layer)
        >>> find_attention(layer)["self_attn"].num_heads
        4
    """
    require_module(model)
    modules = dict(model.named_modules())
    return {found.name: found for name in modules for found in _attention_at(name, modules)}


def _attention_at(name: str, modules: dict[str, nn.Module]) -> Iterator[Attention]:
    for layout in _LAYOUTS:
        *inputs, output = (_resolve(name, leaf) for leaf in layout)
        layers = [modules.get(layer) for layer in (*inputs, output)]
        num_heads = next((n for n in (getattr(modules[name], key, None) for key in _NUM_HEADS) if type(n) is int), 0)
        if not num_heads or not all(isinstance(layer, nn.Linear) for layer in layers):
            continue
        features = {layer.out_features for layer in layers[:3] if isinstance(layer, nn.Linear)}
        width = layers[3].in_features if isinstance(layers[3], nn.Linear) else 0
        if features == {width} and width % num_heads == 0:
            query, key, value = inputs
            yield Attention(name, (query, key, value), output, num_heads, width // num_heads)
            return


def _resolve(name: str, leaf: str) -> str:
    """Full name of a layer within another, or beside it."""
    owner = name.rpartition(".")[0] if leaf.startswith("../") else name
    leaf = leaf.removeprefix("../")
    return f"{owner}.{leaf}" if owner else leaf


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, -torch.inf)
