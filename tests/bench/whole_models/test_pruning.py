"""Which layers get zeros, and that activations stay in range."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from sparsecore.bench.models import ModelSource, find_model, load_model
from sparsecore.bench.whole_models.pruning import dense_layers, prune_model, require_pattern, zeros_of
from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.prune import fits_pattern

SMALL = (2, 3, 64, 64)


def source_of(model: nn.Module, is_random: bool = False) -> ModelSource:
    return ModelSource("mine", lambda: model, lambda model: None, is_random)


def test_dense_layers_of_a_mobilenet() -> None:
    model, (x,) = load_model("mobilenet_v1", shape=SMALL)
    assert Counter(dense_layers(model, x).values()) == {
        "first convolution": 1,
        "depthwise convolution": 13,
        "classifier": 1,
    }


def test_grouped_convolutions_are_pruned_and_a_last_hidden_layer_is() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(16, 16, 3, groups=8), nn.Conv2d(16, 16, 1)
    )
    assert dense_layers(model, torch.randn(1, 4, 9, 9)) == {"0": "first convolution", "1": "depthwise convolution"}


def test_magnitude_pruning_of_random_weights() -> None:
    source = find_model("mobilenet_v3_small")
    model, (x,) = load_model(source, shape=SMALL)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruned = prune_model(source, model, x, 0.9)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert abs(pruned.sparsity - 0.9) < 1e-3
    assert pruned.what == (
        "41 1x1 layers pruned by magnitude, each to the same share of zeros; "
        "dense: the first convolution, 11 depthwise convolutions, the classifier"
    )
    weights = {name: w for name, w in pruned.model.named_parameters() if not torch.equal(w, before[name])}
    convs = {name: weight for name, weight in weights.items() if weight.dim() > 1}
    assert len(convs) == 41
    for name, weight in convs.items():
        torch.testing.assert_close(weight.norm(), before[name].norm())
        kept = weight != 0
        assert before[name][kept].abs().min() >= before[name][~kept].abs().max()
    with torch.inference_mode():
        y = pruned.model(x)
    assert 0.05 < y.std() < 20
    assert (y[0] - y[1]).norm() > 0.1 * y[0].norm()


def test_given_weights_are_only_zeroed() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)).eval()
    pruned = prune_model(source_of(model), model, torch.randn(2, 8), 0.5)
    weight, dense = pruned.model.get_parameter("0.weight"), model.get_parameter("0.weight")
    assert torch.equal(weight[weight != 0], dense[weight != 0])
    assert (weight == 0).sum() == 32
    assert torch.equal(pruned.model.get_parameter("2.weight"), model.get_parameter("2.weight"))


def test_a_pattern_has_its_own_zeros_and_what_it_does_not_fit_stays_dense() -> None:
    model = nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4))
    pruned = prune_model(source_of(model), model, torch.randn(2, 32), None, pattern="4:16")
    fits = [fits_pattern(pruned.model.get_parameter(f"{at}.weight"), "4:16") for at in range(4)]
    assert fits == [True, False, True, False]
    assert pruned.sparsity == 0.75
    assert pruned.what == (
        "2 layers pruned by magnitude in the pattern 4:16; dense: the classifier; 4:16 does not fit 1.weight"
    )
    blocks = prune_model(source_of(model), model, torch.randn(2, 32), 0.5, pattern="4x1")
    assert blocks.sparsity == 0.5
    assert fits_pattern(blocks.model.get_parameter("0.weight"), "4x1")
    with pytest.raises(ValueError, match="sparsity"):
        prune_model(source_of(model), model, torch.randn(2, 32), 0.5, pattern="4:16")


def test_a_pattern_that_fits_no_layer() -> None:
    model = nn.Sequential(nn.Linear(30, 8), nn.Linear(8, 4))
    for call in (
        lambda x: prune_model(source_of(model), model, x, None, pattern="4:16"),
        lambda x: require_pattern(model, x, "4:16"),
    ):
        with pytest.raises(FormatError, match=r"4:16 does not fit 0.weight \(K = 30 is not a multiple of 16\)"):
            call(torch.randn(2, 30))
    one = prune_model(source_of(model), model, torch.randn(2, 30), 0.5, pattern="4x1")
    assert one.what == "1 layer pruned by magnitude in the pattern 4x1; dense: the classifier"


@pytest.mark.parametrize(("sparsity", "what"), [(None, "weights as they are"), (0.0, "nothing pruned")])
def test_nothing_to_do(sparsity: float | None, what: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    model.get_parameter("0.weight").data[:4] = 0
    pruned = prune_model(source_of(model), model, torch.randn(2, 8), sparsity)
    assert (pruned.what, pruned.sparsity) == (what, pytest.approx(1 / 3))
    assert pruned.model is not model


def test_nothing_prunable() -> None:
    model = nn.ReLU()
    assert zeros_of(model) == 0
    with pytest.raises(UnsupportedError):
        prune_model(source_of(model), model, torch.randn(2, 8), 0.5)
