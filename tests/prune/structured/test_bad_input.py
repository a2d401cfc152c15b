"""What a new user gets wrong: clear errors before anything changes; and what has to stay as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from structured_nets import IMAGE, Residual, build
from torch import nn

import sparsecore as sc
from sparsecore.errors import FormatError, ModelError, UnsupportedError
from sparsecore.prune.structured import (
    channel_sensitivity,
    count_costs,
    cut,
    prunable_channels,
    prune_channels,
    prune_heads,
    prune_to_target,
    remove_layers,
    slim,
    split_attention,
)

pytest.importorskip("torch_pruning")


def mean_square(model, batch):
    return model(batch).square().mean()


TAYLOR = {"criterion": "taylor", "batches": [torch.ones(IMAGE)]}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ratio": "0.3"}, ValueError, r"ratio in \[0, 1\), got '0.3'"),
        ({"ratio": float("nan")}, ValueError, r"ratio in \[0, 1\), got nan"),
        ({"ratio": True}, ValueError, r"ratio in \[0, 1\), got True"),
        ({"ratio": {0: 0.3}}, TypeError, "ratio: expected names or patterns of layers, got 0"),
        ({"ratio": {}}, ValueError, "a ratio for at least one layer"),
        ({"exclude": 3}, TypeError, "names, patterns or module types in exclude, got 3"),
        ({"exclude": [nn.ReLU()]}, TypeError, "names, patterns or module types in exclude"),
        ({"criterion": "activation", "batches": torch.ones(IMAGE)}, ValueError, "put it in a list"),
        ({"criterion": "activation", "batches": []}, ValueError, "got none"),
        ({"criterion": "activation", "batches": [torch.full(IMAGE, torch.nan)]}, FormatError, "not finite"),
        ({**TAYLOR, "loss": 3}, ValueError, "needs a loss"),
        ({**TAYLOR, "loss": lambda model, batch: None}, ValueError, "one element, got None"),
        (
            {**TAYLOR, "loss": lambda model, batch: model(batch)},
            ValueError,
            r"one element, got shape \[2, 5\]",
        ),
        (
            {**TAYLOR, "loss": lambda model, batch: mean_square(model, batch).detach()},
            UnsupportedError,
            "does not depend",
        ),
    ],
)
def test_arguments(arguments, error, message):
    model, x = build(Residual)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=message):
        prune_channels(model, x, **{"ratio": 0.3, **arguments})
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_is_no_model():
    x = torch.ones(IMAGE)
    for call in (
        lambda model: prune_channels(model, x, 0.3),
        lambda model: prune_to_target(model, x, 0.3),
        lambda model: prunable_channels(model, x),
        lambda model: count_costs(model, x),
        lambda model: cut(model, x, {"stem": [0]}),
        lambda model: slim(model, x, 0.3),
        lambda model: remove_layers(model, "layers", [0]),
        lambda model: prune_heads(model, x, 0.3, batches=[x], loss=mean_square),
        split_attention,
    ):
        with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got dict"):
            call({})


def test_models_without_values_or_layers():
    model, x = build(Residual)
    with pytest.raises(ModelError, match=r"stem\.weight is on the meta device and has no values"):
        prune_channels(Residual().to("meta"), x, 0.3)
    with pytest.raises(ModelError, match=r"0\.weight has no shape yet: run the model once"):
        prune_channels(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2)), torch.ones(2, 3), 0.3)
    for function in (prune_channels, prune_to_target):
        with pytest.raises(UnsupportedError, match="ReLU has no convolutions and linear layers"):
            function(nn.ReLU(), x, 0.3)
        with pytest.raises(UnsupportedError, match="output on the example inputs is NaN or infinite"):
            function(model, x * torch.nan, 0.3)


def test_compressed_models_are_cut_before():
    model, x = build(Residual)
    sc.quantize(model)
    with pytest.raises(UnsupportedError, match="cut before quantize"):
        prune_channels(model, x, 0.3)
    model, _ = build(Residual)
    with pytest.raises(UnsupportedError, match="is compiled: cut first, then compile"):
        prune_channels(sc.compile(model, x, policy="model"), x, 0.3)


def test_numbers_of_other_libraries():
    model, x = build(Residual)
    prune_channels(model, x, np.float32(0.25))
    assert model.stem.out_channels == 6
    cut(model, x, {"stem": np.array([0]), "conv3": torch.tensor([1, 2])})
    assert (model.stem.out_channels, model.conv3.out_channels) == (5, 7)
    prune_to_target(
        model, x, np.float64(0.2), measure=lambda net: torch.tensor(sum(map(torch.numel, net.parameters())))
    )
    scan = channel_sensitivity(model, x, lambda net: np.float64(1.0), [0.5])
    assert scan.whole == 1.0


@pytest.mark.parametrize(
    ("channels", "error", "message"),
    [
        (["stem"], TypeError, "channels as {layer: indices}, got list"),
        ({"stem": 3}, TypeError, "a list of channels of stem, got 3"),
        ({"stem": [True]}, ValueError, "channels of stem in 0..7, got True"),
        ({"stem": torch.tensor([1.0])}, ValueError, r"channels of stem in 0..7, got 1\.0"),
    ],
)
def test_channels_to_cut(channels, error, message):
    model, x = build(Residual)
    with pytest.raises(error, match=message):
        cut(model, x, channels)


def test_wrong_scan_rounds_and_losses():
    model, x = build(Residual)
    with pytest.raises(TypeError, match=r"sensitivity from channel_sensitivity\(\), got dict"):
        prune_to_target(model, x, 0.3, sensitivity={"stem": 0.1})
    encoder, tokens = nn.TransformerEncoderLayer(8, 2, batch_first=True), torch.ones(2, 3, 8)
    split_attention(encoder)
    with pytest.raises(ValueError, match=r"at least 1 round, got 1\.5"):
        prune_heads(encoder, tokens, 0.5, batches=[tokens], loss=mean_square, rounds=1.5)
    with pytest.raises(ValueError, match=r"one element, got shape \[2, 3, 8\]"):
        prune_heads(encoder, tokens, 0.5, batches=[tokens], loss=lambda net, batch: net(batch))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_modes_hooks_and_types_stay(dtype):
    """Also frozen parameters and running statistics."""
    model, x = build(Residual)
    model.to(dtype).train()
    model.bn.eval()
    model.stem.weight.requires_grad_(False)
    calls = []
    model.conv1.register_forward_hook(lambda *_: calls.append(1))
    statistics = model.bn2.running_mean.clone()
    prune_channels(model, x.to(dtype), {"conv1": 0.5})
    assert [model.training, model.bn.training, model.bn2.training] == [True, False, True]
    assert torch.equal(model.bn2.running_mean, statistics)
    assert not model.stem.weight.requires_grad
    assert model.conv1.weight.requires_grad
    assert {value.dtype for value in model.parameters()} == {dtype}
    calls.clear()
    model.eval()(x.to(dtype))
    assert calls == [1]


def test_a_model_inside_torch_compile():
    model, x = build(Residual)
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    prune_channels(compiled, x, 0.5)
    assert model.stem.out_channels == 4
    assert torch.equal(compiled(x), model(x))
