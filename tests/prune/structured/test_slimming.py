"""Network Slimming: the penalty on scales, the threshold, removal equal to masking, and shifts carried over."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from cifar_nets import preactivation_resnet, resnet, settled, vgg19
from structured_nets import Residual, build
from torch import Tensor, nn

from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.prune.structured import Slimmed, penalize_scales, slim, slim_in_passes

pytest.importorskip("torch_pruning")

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def plain(padding: int = 0) -> nn.Sequential:
    """Convolutions with BatchNorm of random scales, with and without a bias to carry shifts into."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=padding, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=padding, bias=False),
        nn.BatchNorm2d(12),
        nn.Tanh(),
        nn.Conv2d(12, 6, 3, padding=padding),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(4),
    )
    model(torch.randn(2, 3, 10, 10))
    for norm in (model[1], model[4]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return model.eval()


def small(model: nn.Module, ratio: float) -> dict[str, Tensor]:
    """Brute force: which scales are among the smallest of the whole model, by BatchNorm."""
    scales = {name: m.weight.detach().abs() for name, m in model.named_modules() if isinstance(m, NORMS)}
    everything = sorted((float(x), name, i) for name, scale in scales.items() for i, x in enumerate(scale))
    masks = {name: torch.zeros(len(scale), dtype=torch.bool) for name, scale in scales.items()}
    for _, name, index in everything[: round(ratio * len(everything))]:
        masks[name][index] = True
    return masks


@torch.no_grad()
def masked(model: nn.Module, going: dict[str, Tensor], shifts: bool = False) -> nn.Module:
    model = copy.deepcopy(model)
    for name, mask in going.items():
        model.get_submodule(name).weight[mask] = 0
        if not shifts:
            model.get_submodule(name).bias[mask] = 0
    return model


def test_penalty_is_the_gradient_of_the_absolute_sum() -> None:
    model, penalized = plain().train(), plain().train()
    x = torch.randn(4, 3, 10, 10)
    for batch in x.split(2):  # accumulated: the penalty counts once
        model(batch).sum().backward()
        penalized(batch).sum().backward()
    (0.25 * sum(m.weight.abs().sum() for m in model if isinstance(m, NORMS))).backward()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, penalized)]
    handle = penalize_scales(penalized, optimizers[1], 0.25)
    for optimizer in optimizers:
        optimizer.step()
    for one, other in zip(model.parameters(), penalized.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    handle.remove()
    before = penalized[1].weight.clone()
    optimizers[1].zero_grad()
    penalized[1].weight.grad = torch.zeros(8)
    optimizers[1].step()
    assert torch.equal(penalized[1].weight, before)


def test_share_of_small_scales_rises_with_the_strength() -> None:
    shares = []
    for strength in (0.0, 0.01, 0.02, 0.03):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))
        x = torch.randn(128, 8)
        y = x[:, :3].argmax(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        penalize_scales(model, optimizer, strength)
        for _ in range(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        shares.append(float((model[1].weight.abs() < 0.2).float().mean()))
    assert shares == sorted(set(shares)), shares


@pytest.mark.parametrize("strength", [-1.0, float("nan")])
def test_penalty_refuses_bad_arguments(strength: float) -> None:
    model = plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="strength of at least 0"):
        penalize_scales(model, optimizer, strength)
    with pytest.raises(UnsupportedError, match="has no BatchNorm"):
        penalize_scales(nn.Linear(2, 2), optimizer)
    with pytest.raises(ValueError, match="holds none"):
        penalize_scales(plain(), optimizer)
    penalize_scales(model, optimizer)
    with pytest.raises(UnsupportedError, match="closure"):
        optimizer.step(lambda: 0.0)


@pytest.mark.parametrize("padding", [0, 1])
def test_removed_equals_masked_by_one_threshold(padding: int) -> None:
    model, x = plain(padding), torch.randn(2, 3, 10, 10)
    slimmed = copy.deepcopy(model)
    result = slim(slimmed, x, 0.4)
    going = small(model, 0.4)
    assert result.channels == {name: (len(m), int((~m).sum())) for name, m in (("0", going["1"]), ("3", going["4"]))}
    assert torch.equal(slimmed[1].weight, model[1].weight[~going["1"]])
    torch.testing.assert_close(slimmed(x), masked(model, going)(x), rtol=1e-5, atol=1e-5)
    assert result.threshold == max(float(model[i].weight.detach()[going[str(i)]].abs().max()) for i in (1, 4))


def test_shifts_are_carried_exactly_without_padding() -> None:
    model, x = plain(0), torch.randn(2, 3, 10, 10)
    expected = masked(model, small(model, 0.4), shifts=True)(x)
    dropped, carried = copy.deepcopy(model), copy.deepcopy(model)
    lost = slim(dropped, x, 0.4).shift_errors
    kept = slim(carried, x, 0.4, carry_shift=True).shift_errors
    torch.testing.assert_close(carried(x), expected, rtol=1e-5, atol=1e-5)
    assert (dropped(x) - expected).abs().max() > 1e-2
    assert lost.keys() == kept.keys() == {"3", "6"}
    assert min(lost.values()) > 0.01
    assert max(kept.values()) < 1e-5


def test_border_error_is_reported() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 1, 3, padding=1, bias=True)
    ).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.0, 1.0]))
        model[1].bias.copy_(torch.tensor([2.0, 0.0]))
        model[3].weight.copy_(torch.arange(18.0).reshape(1, 2, 3, 3))
    x = torch.randn(1, 1, 6, 6)
    expected = model(x)
    result = slim(model, x, 0.5, carry_shift=True)
    # At the lower right corner five of the nine taps read padding: 2 * (2 + 5 + 6 + 7 + 8).
    assert result.shift_errors == {"3": pytest.approx(56.0)}
    difference = (model(x) - expected).detach().abs()
    assert float(difference.max()) == pytest.approx(56.0, rel=1e-5)
    assert float(difference[..., 1:-1, 1:-1].max()) < 1e-4


def test_residual_channels_go_only_if_all_their_scales_are_small() -> None:
    model, x = build(Residual)
    with torch.no_grad():
        model.bn.weight.copy_(torch.tensor([0.01, 0.01, 1, 1, 1, 1, 1, 1]))
        model.bn2.weight.copy_(torch.tensor([0.02, 1, 0.02, 1, 1, 1, 1, 1]))
    going = torch.tensor([True, *[False] * 7])
    expected = masked(model, {"bn": going, "bn2": going})(x)
    result = slim(model, x, 4 / 16)
    assert result.channels == {"stem": (8, 7)}
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_no_layer_is_emptied_and_counts_are_rounded() -> None:
    x = torch.randn(2, 3, 10, 10)
    model = plain()
    model[1].weight.data *= 1e-3
    assert slim(model, x, 0.9).channels["0"] == (8, 1)
    assert slim(plain(), x, 0.4, round_to=4).channels["0"][1] % 4 == 0


def test_passes_reach_the_ratio_and_edits_replay() -> None:
    model, x = plain(), torch.randn(2, 3, 10, 10)
    original, trained = copy.deepcopy(model), []
    edits = slim_in_passes(model, x, 0.64, 2, train=lambda m: trained.append(m[0].out_channels + m[3].out_channels))
    assert trained == [20, 12]
    assert model[0].out_channels + model[3].out_channels == 7
    edits.apply(original)
    original.load_state_dict(model.state_dict())
    assert torch.equal(original(x), model(x))


def test_dry_run_and_errors_leave_the_model_alone() -> None:
    model, x = plain(), torch.randn(2, 3, 10, 10)
    before = copy.deepcopy(model.state_dict())
    result = slim(model, x, 0.4, carry_shift=True, dry_run=True)
    assert isinstance(result, Slimmed)
    assert result.edits
    with pytest.raises(ValueError, match="round_to"):
        slim(model, x, 0.4, round_to=0)
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        slim(model, x, 1.0)
    with pytest.raises(ValueError, match="at least 1 pass"):
        slim_in_passes(model, x, 0.5, 0, train=lambda model: None)
    with pytest.raises(UnsupportedError, match="nothing to slim"):
        slim(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 4), 0.5)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    model[1].weight.data[0] = torch.nan
    with pytest.raises(FormatError, match="NaN"):
        slim(model, x, 0.4)


def test_channels_read_without_their_batchnorm_are_left_out() -> None:
    class Bypass(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.good = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.bn, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
            self.one, self.two = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            y = self.bn2(self.good(torch.relu(self.bn(x))))
            return self.one(torch.relu(y)) + self.two(x)

    model, x = Bypass().eval(), torch.randn(1, 3, 4, 4)
    model.bn.weight.data *= 0.01
    with pytest.raises(UnsupportedError, match="nothing to slim"):
        slim(model, x, 0.5, exclude="good")
    result = slim(model, x, 0.5)
    assert result.channels == {"good": (4, 2)}
    assert result.left_out == ("conv",)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build_net", "ratio"),
    [(vgg19, 0.7), (lambda: preactivation_resnet(164), 0.4), (lambda: resnet(110), 0.4)],
    ids=["vgg19", "resnet164", "resnet110"],
)
def test_full_size_removed_equals_masked(build_net: Callable[[], nn.Module], ratio: float) -> None:
    model, x = settled(build_net())
    original = copy.deepcopy(model)
    edits = slim(model, x, ratio).edits
    kept = {edit.name: edit.kept for edit in edits.tensors}
    going = {}
    for name, module in original.named_modules():
        if isinstance(module, NORMS):
            going[name] = torch.ones(len(module.weight), dtype=torch.bool)
            going[name][list(kept.get(f"{name}.weight", range(len(module.weight))))] = False
    if build_net is vgg19:  # no channels are shared, so all of the smallest go
        assert all(torch.equal(going[name], mask) for name, mask in small(original, ratio).items())
    expected = masked(original, going)(x)
    assert any(mask.any() for mask in going.values())
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5 * float(expected.detach().abs().max()))
