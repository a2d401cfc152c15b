"""Layer drop: which layers run in training, and that removed equals skipped."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import Tensor, nn

from sparsecore.errors import BundleError, UnsupportedError
from sparsecore.prune.structured import RemovedLayers, drop_layers, prune_layers, remove_layers


class Layer(nn.Module):
    def __init__(self, index: int) -> None:
        super().__init__()
        self.layer_idx = index
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x))


class Stack(nn.Module):
    def __init__(self, kind: type[nn.Module] = nn.ModuleList, count: int = 8) -> None:
        super().__init__()
        self.num_layers = count
        layers = [Layer(index) for index in range(count)]
        self.layers = kind(layers) if kind is nn.ModuleList else kind(*layers)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.layers, nn.Sequential):
            return self.layers(x)
        for layer in self.layers[: self.num_layers]:
            x = layer(x)
        return x


def run(model: Stack, x: Tensor, layers: list[int]) -> Tensor:
    for index in layers:
        x = model.layers[index](x)
    return x


@pytest.mark.parametrize("kind", [nn.ModuleList, nn.Sequential])
def test_training_skips_what_the_generator_says_and_evaluation_nothing(kind: type[nn.Module]) -> None:
    model, x = Stack(kind), torch.randn(3, 6)
    names = list(model.state_dict())
    full = model(x)
    drop_layers(model, "layers", 0.4, generator=torch.Generator().manual_seed(7))
    same = torch.Generator().manual_seed(7)
    for _ in range(4):
        stays = [index for index, draw in enumerate(torch.rand(8, generator=same).tolist()) if draw >= 0.4]
        assert 0 < len(stays) < 8
        assert torch.equal(model(x), run(model, x, stays))
    assert torch.equal(model.eval()(x), full)
    assert list(model.state_dict()) == names


def test_each_layer_is_skipped_with_the_probability() -> None:
    stack = drop_layers(Stack(), "layers", 0.25, generator=torch.Generator().manual_seed(0))
    counts = [0] * 8
    for _ in range(4000):
        for layer in stack:
            counts[layer.layer_idx] += 1
    # Six standard deviations of the binomial count.
    assert max(abs(count - 3000) for count in counts) < 6 * (4000 * 0.25 * 0.75) ** 0.5
    stack.probability = 0.0
    assert len(list(stack)) == 8


def test_slices_skip_as_their_list_does() -> None:
    stack = drop_layers(Stack(), "layers", 0.5, generator=torch.Generator().manual_seed(0))
    assert any(len(list(stack[:4])) < 4 for _ in range(20))
    assert all(len(list(stack.eval()[:4])) == 4 for _ in range(20))


@pytest.mark.parametrize(
    ("probability", "kept"),
    [(0.5, [0, 2, 4, 6]), (0.34, [0, 2, 4, 6]), (1 / 3, [0, 1, 3, 4, 6, 7]), (0.2, [0, 1, 2, 3, 5, 6, 7])],
)
@pytest.mark.parametrize("kind", [nn.ModuleList, nn.Sequential])
def test_removed_equals_skipped(kind: type[nn.Module], probability: float, kept: list[int]) -> None:
    model, x = Stack(kind).eval(), torch.randn(3, 6)
    fresh = copy.deepcopy(model)
    drop_layers(model, "layers", probability)
    expected = run(model, x, kept)
    removed = prune_layers(model, "layers", probability)
    assert torch.equal(model(x), expected)
    assert type(model.layers) is kind
    assert [layer.layer_idx for layer in model.layers] == list(range(len(kept)))
    assert model.num_layers == len(kept)
    RemovedLayers.from_dict(json.loads(json.dumps(removed.to_dict()))).apply(fresh)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), expected)


def test_torch_encoder() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 4)
    x = torch.randn(2, 3, 8)
    expected = model.layers[2](model.layers[0](x))
    drop_layers(model, "layers", 0.5)
    prune_layers(model, "layers", 0.5)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


def test_transformers_layers() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=50, **sizes)).eval()
    ids = torch.randint(50, (1, 6))
    drop_layers(model, "model.layers", 0.5)
    full = model(ids).logits
    skipped = copy.deepcopy(model)
    for index in (1, 3):
        skipped.model.layers[index].forward = lambda hidden_states, **_: hidden_states
    expected = skipped(ids, use_cache=False).logits
    prune_layers(model, "model.layers", 0.5)
    assert torch.equal(model(ids, use_cache=False).logits, expected)
    assert not torch.equal(expected, full)
    # By the cache each layer finds its own keys and values.
    step = model(ids[:, :4], use_cache=True)
    torch.testing.assert_close(
        model(ids[:, 4:], past_key_values=step.past_key_values).logits, expected[:, 4:], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("container", "layers", "error", "message"),
    [
        ("layer", [0], ValueError, "no module is called 'layer'"),
        ("layers.0", [0], ValueError, "nn.ModuleList or nn.Sequential, got Layer"),
        ("layers", [8], ValueError, r"0\.\.7"),
        ("layers", [True], ValueError, r"0\.\.7"),
        ("layers", list(range(8)), ValueError, "at least one layer"),
    ],
)
def test_bad_arguments_leave_the_model_alone(
    container: str, layers: list[int], error: type[Exception], message: str
) -> None:
    model = Stack()
    with pytest.raises(error, match=message):
        remove_layers(model, container, layers)
    for probability in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"\[0, 1\)"):
            drop_layers(model, "layers", probability)
    with pytest.raises(ValueError, match=r"\(0, 0\.5\]"):
        prune_layers(model, "layers", 0.6)
    assert type(model.layers) is nn.ModuleList
    assert len(model.layers) == 8


def test_other_containers_and_edits_of_others_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="the model itself"):
        drop_layers(nn.Sequential(nn.Linear(2, 2)), "", 0.5)
    removed = RemovedLayers("layers", 6, (1,))
    with pytest.raises(BundleError, match="expected 6 layers"):
        removed.apply(Stack())
    for content in (
        {},
        {"container": "layers", "count": 2, "removed": [5]},
        {"container": 1, "count": 2, "removed": []},
    ):
        with pytest.raises(BundleError, match="RemovedLayers"):
            RemovedLayers.from_dict(content)
