"""Cutting: what the cut model computes is what the masked one computes, and nothing changes on an error."""

from __future__ import annotations

import copy

import pytest
import torch
from structured_nets import NETS, Attention, Concat, Flattened, Grouped, Residual, SideBySide, build
from torch import nn

from sparsecore.errors import ModelError, UnsupportedError
from sparsecore.prune.structured import cut, prunable_channels

pytest.importorskip("torch_pruning")


def zero_outputs(model: nn.Module, channels: dict[str, list[int]]) -> nn.Module:
    """A copy with hooks that zero channels where they are made and, behind BatchNorm, again."""
    masked = copy.deepcopy(model)
    for name, indices in channels.items():

        def zero(module, args, output, indices=indices):
            dim = -1 if isinstance(module, nn.Linear) else 1
            return output.index_fill(dim, torch.tensor(indices), 0)

        masked.get_submodule(name).register_forward_hook(zero)
    return masked


@pytest.mark.parametrize("kind", NETS)
def test_every_group_cut_equals_masked(kind):
    model, x = build(kind)
    groups = prunable_channels(model, x)
    assert groups.prunable
    for group in groups.prunable:
        removed = group.channels_of(range(0, len(group.units), 3))
        one = copy.deepcopy(model)
        edits = cut(one, x, {group.name: removed})
        masked = copy.deepcopy(model)
        edits.mask(masked)
        assert sum(p.numel() for p in one.parameters()) < sum(p.numel() for p in model.parameters())
        torch.testing.assert_close(one(x), masked(x), rtol=1e-5, atol=1e-5)
        one.train()(x).square().mean().backward()
        assert all(p.grad.shape == p.shape for p in one.parameters() if p.grad is not None)


# Hooks know nothing of edits. Channels that were zero ahead of sigmoid, or a shift, are not zero behind it, so these
# are the channels behind which there is only what keeps zero.
@pytest.mark.parametrize(
    ("kind", "channels", "hooked"),
    [
        (Residual, {"conv1": [1, 4]}, {"conv1": [1, 4]}),
        (Residual, {"stem": [0, 5]}, {"bn": [0, 5], "bn2": [0, 5]}),
        (Residual, {"projection": [2, 11]}, {"conv3": [2, 11], "projection": [2, 11]}),
        (Concat, {"left": [1], "right": [0, 5]}, {"bn": [1, 4, 9]}),
        (SideBySide, {"left": [1], "right": [0]}, {"wide": [1, 4], "left": [1], "right": [0]}),
        (Grouped, {"squeeze": [3]}, {"squeeze": [3]}),
        (Grouped, {"grouped": [5]}, {"grouped": [4, 5, 6, 7], "depthwise": [4, 5, 6, 7]}),
        (Grouped, {"up": [2]}, {"norm": [2, 3]}),
        (Flattened, {"0": [7], "3": [0, 2]}, {"1": [7], "3": [0, 2]}),
        (Attention, {"up": [0, 23]}, {"up": [0, 23]}),
    ],
)
def test_equals_channels_zeroed_by_hooks(kind, channels, hooked):
    model, x = build(kind)
    expected = zero_outputs(model, hooked)(x)
    cut(model, x, channels)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_what_goes_with_a_channel():
    model, x = build(Residual)
    cut(model, x, {"conv2": [3]})
    assert model.stem.out_channels == model.bn.num_features == model.conv2.out_channels == model.bn2.num_features == 7
    assert model.conv1.in_channels == model.conv3.in_channels == model.projection.in_channels == 7
    assert model.conv1.out_channels == 6
    assert model.bn.running_mean.shape == (7,)

    model, x = build(Grouped)
    cut(model, x, {"reduce": [2]})
    assert (model.grouped.in_channels, model.grouped.out_channels, model.grouped.groups) == (6, 12, 3)
    assert (model.depthwise.groups, model.prelu.num_parameters, model.excite.out_channels) == (12, 12, 12)
    assert model.squeeze.in_channels == model.up.in_channels == 12


def test_what_cannot_be_cut_has_a_reason():
    model, x = build(Attention)
    groups = prunable_channels(model, x)
    assert [group.name for group in groups.prunable] == ["up"]
    assert "LayerNorm norm" in groups["embed"].reason
    assert groups["project"] is groups["embed"] is groups["down"]
    assert "as in attention" in groups["qkv.0"].reason
    with pytest.raises(UnsupportedError, match="does not run without them"):  # the number of heads is in the code
        cut(model, x, {"qkv.0": range(4)})
    assert groups["head"].reason == "they are an output of the model"
    with pytest.raises(UnsupportedError, match=r"cannot cut channels of embed.*LayerNorm"):
        cut(model, x, {"embed": [0]})
    with pytest.raises(UnsupportedError, match="output of the model"):
        cut(model, x, {"head": [0]})


class Dependent(nn.Module):
    """The mean over channels depends on how many there are, which shapes do not show."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.second(y - y.mean(-1, keepdim=True))


def test_trial_finds_what_the_trace_takes_on_trust():
    model, x = Dependent(), torch.randn(3, 4)
    assert "the others depend on them" in prunable_channels(model, x)["first"].reason
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UnsupportedError, match="the others depend on them"):
        cut(model, x, {"first": [1]})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Shared(nn.Module):
    """Two layers with one weight, and a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.second.weight = self.first.weight
        self.unused = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.second(torch.relu(self.first(x)))))


def test_shared_weights_and_layers_out_of_sight_are_refused():
    model, x = Shared(), torch.randn(2, 6)
    groups = prunable_channels(model, x)
    assert not groups.prunable
    assert "first.weight and second.weight are one parameter" in groups["first"].reason
    assert "no output depends on it" in groups["unused"].reason
    with pytest.raises(UnsupportedError, match="cannot cut channels of unused: no output depends on it"):
        cut(model, x, {"unused": [0]})


def test_mode_frozen_parameters_and_no_grad():
    model, x = build(Residual)
    model.train()
    model.stem.weight.requires_grad_(False)
    with torch.no_grad():
        cut(model, x, {"stem": [0]})
    assert all(module.training for module in model.modules())
    assert not model.stem.weight.requires_grad
    assert model.conv1.weight.requires_grad


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ({"stemm": [0]}, "perhaps you meant stem"),
        ({"stem": [8]}, r"channels of stem in 0\.\.7, got 8"),
        ({"stem": [-1]}, r"got -1"),
        ({"stem": [True]}, r"got True"),
        ({"bn": [0]}, "bn is a BatchNorm2d"),
        ({"conv1": range(6)}, "at least one channel to stay"),
    ],
)
def test_bad_channels(channels, message):
    model, x = build(Residual)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        cut(model, x, channels)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_model_that_does_not_run():
    with pytest.raises(ModelError, match="does not run on the example inputs"):
        cut(build(Residual)[0], torch.randn(2, 4, 8, 8), {"stem": [0]})


def test_exclude():
    model, x = build(Residual)
    groups = prunable_channels(model, x, exclude=["conv1", "proj*"])
    assert groups["conv1"].reason == "conv1 excluded"
    assert groups["conv3"].reason == "projection excluded"
    with pytest.raises(ValueError, match="no module is called 'cnv1', perhaps you meant"):
        prunable_channels(model, x, exclude="cnv1")


def test_dry_run_changes_nothing():
    model, x = build(Residual)
    edits = cut(model, x, {"stem": [0]}, dry_run=True)
    assert model.stem.out_channels == 8
    edits.apply(model)
    assert model.stem.out_channels == 7


def test_keyword_arguments():
    model, x = build(Concat)
    assert cut(model, {"x": x}, {"left": [0]}).to_dict() == cut(build(Concat)[0], (x,), {"left": [0]}).to_dict()
