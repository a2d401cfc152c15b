"""Networks drawn at random: whatever is cut computes what the masked model computes; all layers are listed."""

from __future__ import annotations

import copy

import pytest
import torch
from random_nets import Builder, random_net
from structured_nets import IMAGE, SideBySide, build

from sparsecore.errors import UnsupportedError
from sparsecore.prune.structured import prunable_channels, prune_channels, prune_to_target
from sparsecore.prune.structured.layers import is_producer

pytest.importorskip("torch_pruning")


@pytest.mark.parametrize("seed", range(50))
def test_cut_equals_masked(seed):
    torch.manual_seed(seed)
    model, x = random_net(seed)
    groups = prunable_channels(model, x)
    listed = {name for group in groups.groups for name in group.layers}
    assert listed == {name for name, module in model.named_modules() if is_producer(module)}
    if not groups.prunable:
        with pytest.raises(UnsupportedError, match="nothing to cut"):
            prune_channels(model, x, 0.4)
        return
    edits = prune_channels(model, x, 0.4, dry_run=True)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
        masked, small = copy.deepcopy(model).to(dtype), copy.deepcopy(model).to(dtype)
        edits.mask(masked)
        edits.apply(small)
        with torch.no_grad():
            expected, y = masked(x.to(dtype)), small(x.to(dtype))
        assert float((y - expected).abs().max()) <= tolerance * float(expected.abs().max())
    small.train()(x.double()).square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in small.named_parameters() if parameter.grad is not None}
    assert gradients
    assert all(gradient.shape == small.get_parameter(name).shape for name, gradient in gradients.items())


def test_networks_have_every_structure():
    """The drawing is no accident: over the seeds every kind of module is there."""
    kinds = {type(module).__name__ for seed in range(50) for module in Builder(seed).network().modules()}
    assert kinds >= {"Sum", "Beside", "Product", "Halves", "Gate", "Scale", "ChannelsLast", "Shuffle", "Twice"}
    assert kinds >= {"Conv2d", "ConvTranspose2d", "Linear", "BatchNorm2d", "GroupNorm", "LayerNorm", "PReLU"}


@pytest.mark.parametrize("cut", [lambda *args: prune_channels(*args, 0.9), lambda *args: prune_to_target(*args, 0.6)])
def test_layers_side_by_side_keep_a_channel_each(cut):
    """The wide layer is scored with one of them at a time: all channels of the small one go first."""
    model, x = build(SideBySide)
    with torch.no_grad():
        model.left.weight.mul_(1e-6)
        model.wide.weight[:4].mul_(1e-6)
    cut(model, x)
    assert model.left.out_channels >= 1
    assert model(torch.randn(IMAGE)).shape == (2, 5, 8, 8)
