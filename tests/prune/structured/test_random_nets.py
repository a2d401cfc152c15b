"""Networks drawn at random: whatever is cut computes what the masked model computes; all layers are listed."""

from __future__ import annotations

import copy

import pytest
import torch
from random_nets import Builder, Halves, Scale, random_net
from structured_nets import IMAGE, SideBySide, build
from torch import nn

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


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(3, 8, 1), Halves(), nn.Flatten(), nn.Linear(256, 5)),
        nn.Sequential(nn.Conv2d(3, 6, 1), Scale(6), nn.Conv2d(6, 8, 1), Halves(), nn.Conv2d(4, 5, 1)),
    ],
)
def test_halves_lose_the_same_channels(model):
    """Whatever reads them, and with a parameter of three dimensions before."""
    x = torch.randn(IMAGE)
    halved = next(layer for layer in model if isinstance(layer, nn.Conv2d) and layer.out_channels == 8)
    prune_channels(model.eval(), x, 0.25)
    assert halved.out_channels == 6
    assert model(x).shape[:2] == (2, 5)


def test_a_part_that_only_an_even_cut_leaves_whole_is_refused():
    """The code asks for two parts of one size: by chance they stay so, if every fourth channel goes."""

    class Parts(nn.Module):
        def forward(self, x):
            return torch.stack(torch.tensor_split(x, 2, 1)).sum(0)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 16, 1), Parts(), nn.Conv2d(8, 5, 1)).eval()
    groups = prunable_channels(model, torch.randn(IMAGE))
    assert not groups["0"].reason
    prune_channels(model, torch.randn(IMAGE), 0.5)
    assert model[0].out_channels == 4
    assert model(torch.randn(IMAGE)).shape[:2] == (2, 5)
