"""Whole networks at full width: the cut model computes what the masked one computes, and trains."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sparsecore.bench.models import create, settle_batchnorm
from sparsecore.calls import ExampleInputs, call_model
from sparsecore.prune.structured import (
    Edits,
    channel_sensitivity,
    count_costs,
    cut,
    prunable_channels,
    prune_channels,
    prune_to_target,
)

pytest.importorskip("torch_pruning")
pytestmark = pytest.mark.slow


def output_of(model: nn.Module, inputs: ExampleInputs) -> torch.Tensor:
    output = call_model(model, inputs)
    return output if isinstance(output, torch.Tensor) else output[0]


def check(model: nn.Module, inputs: ExampleInputs, edits: Edits, tolerance: float = 1e-4) -> None:
    """The masked model's outputs to a share of the largest, a backward pass, and fewer parameters."""
    whole = copy.deepcopy(model)
    edits.apply(model)
    y = output_of(model, inputs)
    edits.mask(whole)
    with torch.no_grad():
        expected = output_of(whole, inputs)
    assert float((y - expected).abs().max()) <= tolerance * float(expected.abs().max())
    y.square().mean().backward()
    assert all(
        parameter.grad.shape == parameter.shape for parameter in model.parameters() if parameter.grad is not None
    )
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def image_network(name: str, size: int = 96) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model, x = create(name), torch.randn(2, 3, size, size)
    settle_batchnorm(model, x)
    return model, x


@pytest.mark.parametrize(
    "name", ["resnet50", "vgg16", "densenet121", "mobilenet_v2", "resnext50_32x4d", "regnet_y_400mf"]
)
def test_convolutional_networks(name):
    model, x = image_network(name)
    before = count_costs(model, x)
    refused = {group.name for group in prunable_channels(model, x).groups if group.reason}
    assert len(refused) == 1  # the classifier
    edits = prune_channels(model, x, 0.3, dry_run=True)
    after = before.after(edits)
    assert after.multiply_adds < 0.65 * before.multiply_adds
    check(model, x, edits)
    assert count_costs(model, x) == after


def transformer(name: str) -> tuple[nn.Module, ExampleInputs]:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if name == "vit":
        return transformers.ViTModel(transformers.ViTConfig()).eval(), {"pixel_values": torch.randn(1, 3, 224, 224)}
    return transformers.BertModel(transformers.BertConfig()).eval(), {"input_ids": torch.randint(0, 30000, (2, 32))}


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_transformers_neurons(name):
    model, inputs = transformer(name)
    groups = prunable_channels(model, inputs)
    assert [len(group.units) for group in groups.prunable] == [3072] * 12
    check(model, inputs, prune_channels(model, inputs, 0.3, dry_run=True))


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_transformers_heads(name):
    """Whole heads go with their queries, keys, values and the columns of the projection; a part of one cannot."""
    model, inputs = transformer(name)
    queries = [name for name, _ in model.named_modules() if name.endswith((".query", ".q_proj"))]
    assert len(queries) == 12
    heads = [channel for head in (0, 3, 7, 11) for channel in range(64 * head, 64 * (head + 1))]
    edits = cut(model, inputs, dict.fromkeys(queries, heads), dry_run=True)
    assert {len(edit.kept) for edit in edits.tensors} == {512}
    assert len(edits.tensors) == 12 * 7
    check(model, inputs, edits)


def test_mobilenet_to_half_of_its_flops():
    """By a uniform ratio and by sensitivity, within one channel of the target."""
    model, x = image_network("mobilenet_v1", 64)
    y = model(x).detach()
    scan = channel_sensitivity(model, x, lambda model: -float((model(x) - y).square().mean().detach()), (0.2, 0.5, 0.8))
    before = count_costs(model, x)
    kept = []
    for sensitivity in (None, scan):
        candidate = copy.deepcopy(model)
        edits = prune_to_target(candidate, x, 0.5, sensitivity=sensitivity)
        after = count_costs(candidate, x)
        assert after.flops <= 0.5 * before.flops
        gone = prunable_channels(model, x).prunable
        largest = max(before.flops - before.without(group.units[:1]).flops for group in gone)
        assert after.flops + largest > 0.5 * before.flops
        kept.append([after.channels_of(layer) for layer in after.positions])
        check(copy.deepcopy(model), x, edits)
    assert kept[0] != kept[1]
