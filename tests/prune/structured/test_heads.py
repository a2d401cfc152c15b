"""Attention heads: importance against brute force, removal equal to masking, and the choice."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsecore.errors import UnsupportedError
from sparsecore.prune.structured import (
    Edits,
    find_attention,
    head_importance,
    prune_heads,
    remove_heads,
    split_attention,
)


def encoder(dtype: torch.dtype = torch.float32, layers: int = 2) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), layers).to(dtype).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    split_attention(model)
    return model, torch.randn(6, 5, 16, dtype=dtype)


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch)[:, 0].tanh().square().sum(1).mean()


def with_heads_scaled(model: nn.Module, heads: dict[str, list[int]], scale: float) -> nn.Module:
    """A copy with hooks that scale what heads give to the output layer."""
    masked = copy.deepcopy(model)
    for name, indices in heads.items():
        attention = find_attention(model)[name]

        def hook(module, inputs, attention=attention, indices=indices):
            x = inputs[0].unflatten(-1, (attention.num_heads, attention.head_dim)).clone()
            x[..., indices, :] *= scale
            return (x.flatten(-2),)

        masked.get_submodule(attention.output).register_forward_pre_hook(hook)
    return masked


def test_importance_is_the_mean_slope_of_each_samples_loss() -> None:
    model, x = encoder(torch.float64)
    batches = [x[:4], x[4:]]
    importance = head_importance(model, batches, loss)
    for name, attention in find_attention(model).items():
        slopes = []
        for head in range(attention.num_heads):
            up, down = (with_heads_scaled(model, {name: [head]}, 1 + step) for step in (1e-5, -1e-5))
            slopes.append(sum(abs(float((loss(up, s) - loss(down, s)).detach())) / 2e-5 for s in x.split(1)) / len(x))
        expected = torch.tensor(slopes, dtype=torch.float64)
        torch.testing.assert_close(importance[name], expected / expected.norm(), rtol=1e-6, atol=1e-8)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_importance_leaves_modes_and_frozen_weights_alone() -> None:
    model, x = encoder()
    expected = head_importance(model, [x], loss)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.train()
    model.layers[0].eval()
    got = head_importance(model, iter([x]), loss)
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert model.training
    assert not model.layers[0].training
    with pytest.raises(ValueError, match="got none"):
        head_importance(model, [], loss)
    with pytest.raises(UnsupportedError, match="does not depend"):
        head_importance(model, [x], lambda model, batch: batch.mean())


def test_planted_useless_head_ranks_last() -> None:
    model, x = encoder()
    with torch.no_grad():
        model.layers[1].self_attn.out_proj.weight[:, 8:12] = 1e-4
    importance = head_importance(model, [x], loss)
    assert int(importance["layers.1.self_attn"].argmin()) == 2
    prune_heads(model, x, 1 / 8, batches=[x], loss=loss)
    assert [find_attention(model)[f"layers.{i}.self_attn"].num_heads for i in (0, 1)] == [4, 3]
    assert not (model.layers[1].self_attn.out_proj.weight == 1e-4).any()


def test_removed_equals_masked_and_edits_replay() -> None:
    model, x = encoder()
    fresh = copy.deepcopy(model)
    heads = {"layers.0.self_attn": [0, 3], "layers.1.self_attn": [1]}
    expected = with_heads_scaled(model, heads, 0.0)(x)
    edits = remove_heads(model, x, heads)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert model.layers[0].self_attn.k_proj.weight.shape == (8, 16)
    model.train()(x).square().mean().backward()
    Edits.from_dict(edits.to_dict()).apply(fresh)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model.eval()(x))


def test_rounds_judge_anew_and_each_layer_keeps_a_head() -> None:
    model, x = encoder()
    fresh = copy.deepcopy(model)
    by_hand = copy.deepcopy(model)
    edits = prune_heads(model, x, 0.5, batches=[x], loss=loss, rounds=4)
    for _ in range(4):
        scores = head_importance(by_hand, [x], loss)
        _, name, head = min((float(v), n, i) for n, vs in scores.items() for i, v in enumerate(vs) if len(vs) > 1)
        remove_heads(by_hand, x, {name: [head]})
    assert torch.equal(model(x), by_hand(x))
    edits.apply(fresh)
    fresh.load_state_dict(model.state_dict())
    prune_heads(fresh, x, 0.99, batches=[x], loss=loss, exclude="layers.1.*")
    assert next(iter(find_attention(fresh).values())).num_heads == 1


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"layers.0.self_attm": [0]}, "did you mean|no attention layer"),
        ({"layers.0.self_attn": [4]}, r"0\.\.3"),
        ({"layers.0.self_attn": [True]}, r"0\.\.3"),
        ({"layers.0.self_attn": [0, 1, 2, 3]}, "at least one head"),
    ],
)
def test_bad_heads_leave_the_model_alone(heads: dict[str, list[int]], message: str) -> None:
    model, x = encoder()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        remove_heads(model, x, heads)
    remove_heads(model, x, {"layers.0.self_attn": [0]}, dry_run=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_unknown_attention_is_refused() -> None:
    x = torch.randn(2, 5, 16)
    with pytest.raises(UnsupportedError, match="split_attention"):
        remove_heads(nn.TransformerEncoderLayer(16, 4), x, {"self_attn": [0]})
    with pytest.raises(UnsupportedError, match="no attention"):
        remove_heads(nn.Linear(16, 4), x, {"": [0]})

    class FixedView(nn.Module):
        """Attention whose code has the number of heads in it."""

        def __init__(self) -> None:
            super().__init__()
            self.num_heads = 4
            self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(16, 16) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (layer(x).unflatten(-1, (4, 4)) for layer in (self.q_proj, self.k_proj, self.v_proj))
            return self.out_proj((q * k * v).flatten(-2))

    model = nn.Sequential(FixedView())
    with pytest.raises(UnsupportedError, match="cannot remove heads of 0: the model does not run"):
        remove_heads(model, x, {"0": [0]})
    assert model[0].q_proj.out_features == 16


def _transformers_model(kind: str, size: dict[str, int]) -> tuple[nn.Module, Any]:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    ids = torch.randint(50, (2, 9))
    if kind == "vit":
        image = {"image_size": 32, "patch_size": 8} if size["hidden_size"] < 100 else {}
        model = transformers.ViTModel(transformers.ViTConfig(**size, **image))
        return model.eval(), torch.randn(2, 3, model.config.image_size, model.config.image_size)
    config = transformers.BertConfig(vocab_size=50, **size)
    return transformers.BertModel(config).eval(), {"input_ids": ids}


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}


@pytest.mark.parametrize("kind", ["bert", "vit"])
@pytest.mark.parametrize("size", [SMALL, pytest.param(BASE, marks=pytest.mark.slow)], ids=["small", "base"])
def test_transformers_models(kind: str, size: dict[str, int]) -> None:
    model, inputs = _transformers_model(kind, size)
    attentions = find_attention(model)
    assert len(attentions) == size["num_hidden_layers"]
    count = round(0.3 * size["num_attention_heads"])
    heads = {name: list(range(layer % 2, 2 * count, 2)) for layer, name in enumerate(attentions)}

    def output(model: nn.Module) -> Tensor:
        result = model(**inputs) if isinstance(inputs, dict) else model(inputs)
        return result.last_hidden_state

    expected = output(with_heads_scaled(model, heads, 0.0))
    remove_heads(model, inputs, heads)
    assert {a.num_heads for a in find_attention(model).values()} == {size["num_attention_heads"] - count}
    tolerance = 1e-5 if size is SMALL else 1e-4
    torch.testing.assert_close(output(model), expected, rtol=tolerance, atol=tolerance)
    output(model.train()).square().mean().backward()
