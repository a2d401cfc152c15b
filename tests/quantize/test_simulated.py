"""Layers in training: what is swapped, what stays the same object, and that a failure changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.quantize import fold_qat, prepare_binary, prepare_qat, prepare_ternary
from sparsecore.quantize.simulated import SimulatedConv2d, SimulatedLinear

Prepare = Callable[..., nn.Module]
PREPARE = pytest.mark.parametrize("prepare", [prepare_qat, prepare_binary, prepare_ternary])


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3)
    )


def state(model: nn.Module) -> list[object]:
    """What must not change on an error: the modules, the parameters and their values."""
    modules = [(id(module), type(module), module.training) for module in model.modules()]
    return [*modules, *((id(p), p.detach().clone().nan_to_num(7).tolist()) for p in model.parameters())]


@PREPARE
def test_parameters_stay_and_training_changes_them(prepare: Prepare) -> None:
    model = network()
    parameters, hooked = list(model.parameters()), []
    model[3].register_forward_hook(lambda *_: hooked.append(1))
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    before = copy.deepcopy(model.state_dict())
    assert prepare(model) is model
    assert [type(model[i]) for i in (0, 3, 5)] == [SimulatedConv2d, SimulatedLinear, SimulatedLinear]
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    model(torch.randn(8, 2, 4, 4)).square().mean().backward()
    optimizer.step()
    assert hooked == [1]
    assert all(not torch.equal(model.state_dict()[name], value) for name, value in before.items())


@PREPARE
def test_fold_gives_plain_layers_with_the_values_of_evaluation(prepare: Prepare) -> None:
    model, x = prepare(network()), torch.randn(5, 2, 4, 4)
    weight = model[0].weight
    model.train()(x)
    model.eval()
    values = {name: model[int(name)].simulation.values(model[int(name)].weight).detach() for name in "035"}
    assert fold_qat(model) is model
    assert [type(model[i]) for i in (0, 3, 5)] == [nn.Conv2d, nn.Linear, nn.Linear]
    assert model[0].weight is weight
    assert all(torch.equal(model[int(name)].weight, value) for name, value in values.items())
    assert model.state_dict().keys() == network().state_dict().keys()
    if prepare is not prepare_qat:  # whose activations are quantized
        exact = nn.functional.conv2d(x.double(), values["0"].double(), model[0].bias.double(), padding=1)
        torch.testing.assert_close(model[0](x).double(), exact, rtol=1e-5, atol=1e-5)


@PREPARE
def test_shared_modules_are_swapped_once_and_subclasses_stay(prepare: Prepare) -> None:
    class Special(nn.Linear):
        pass

    model = nn.Sequential(layer := nn.Linear(4, 4), nn.ReLU(), layer, Special(4, 4))
    prepare(model)
    assert model[0] is model[2]
    assert isinstance(model[0], SimulatedLinear)
    assert type(model[3]) is Special
    fold_qat(model)
    assert model[0] is model[2]
    assert type(model[0]) is nn.Linear


@PREPARE
def test_exclude_and_skip_ends(prepare: Prepare) -> None:
    assert isinstance(prepare(network(), exclude="3")[0], SimulatedConv2d)
    model = prepare(network(), skip_ends=True)
    assert [type(model[i]) for i in (0, 3, 5)] == [nn.Conv2d, SimulatedLinear, nn.Linear]


def nan_weight(model: nn.Sequential) -> None:
    model[5].weight.data[1, 2] = torch.nan


def tied(model: nn.Sequential) -> None:
    model.append(nn.Embedding(3, 16))
    model[6].weight = model[5].weight


def torch_pruned(model: nn.Sequential) -> None:
    torch_prune.l1_unstructured(model[5], "weight", 0.5)


@PREPARE
@pytest.mark.parametrize(
    ("spoil", "error", "match"),
    [
        (nan_weight, FormatError, r"5\.weight is NaN or infinite in 1 of 48"),
        (tied, UnsupportedError, "5 shares its weight with 6.*exclude='5'"),
        (torch_pruned, UnsupportedError, "5.weight is computed.*exclude='5'"),
    ],
)
def test_what_is_refused_changes_nothing(
    prepare: Prepare, spoil: Callable[[nn.Module], None], error: type[Exception], match: str
) -> None:
    model = network()
    spoil(model)
    before = state(model)
    with pytest.raises(error, match=match):
        prepare(model)
    assert state(model) == before
    prepare(model, exclude="5")
    assert isinstance(model[0], SimulatedConv2d)


@PREPARE
def test_wrong_models(prepare: Prepare) -> None:
    with pytest.raises(UnsupportedError, match="a single Linear"):
        prepare(nn.Linear(2, 2))
    with pytest.raises(UnsupportedError, match="nothing to quantize"):
        prepare(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match="nothing in the model is called 'fc'"):
        prepare(network(), exclude="fc")
    with pytest.raises(UnsupportedError, match="between the first and the last"):
        prepare(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), skip_ends=True)
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got NoneType"):
        prepare(None)
    with pytest.raises(TypeError, match="names, patterns or module types in exclude, got 3"):
        prepare(network(), exclude=3)
    narrow = nn.Sequential(nn.Linear(2, 2).to(torch.float8_e4m3fn))
    with pytest.raises(FormatError, match=r"0\.weight: expected floating point of 16 to 64 bits, got torch\.float8"):
        prepare(narrow)
    assert type(narrow[0]) is nn.Linear
    with pytest.raises(UnsupportedError, match="without layers in training"):
        fold_qat(network())
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got str"):
        fold_qat("model")


@PREPARE
def test_fold_refuses_what_training_has_broken(prepare: Prepare) -> None:
    model = prepare(network())
    nan_weight(model)
    before = state(model)
    with pytest.raises(FormatError, match=r"5\.weight is NaN or infinite in 1 of 48"):
        fold_qat(model)
    assert state(model) == before


@PREPARE
def test_a_second_preparation_takes_the_layers_that_are_left(prepare: Prepare) -> None:
    model = prepare_ternary(network(), exclude="0")
    prepare(model)
    assert isinstance(model[0], SimulatedConv2d)
    with pytest.raises(UnsupportedError, match="nothing to quantize"):
        prepare(model)


@PREPARE
def test_runs_under_torch_compile_and_autocast_and_is_copied(prepare: Prepare) -> None:
    model, x = prepare(network()), torch.randn(5, 2, 4, 4)
    model(x)
    copied = copy.deepcopy(model)
    for module in (model, torch.compile(copied, fullgraph=True, backend="aot_eager")):
        module(x / 2).square().sum().backward()
    gradients = [(a.grad, b.grad) for a, b in zip(model.parameters(), copied.parameters(), strict=True)]
    for expected, found in gradients:
        torch.testing.assert_close(found, expected)
    for (name, expected), found in zip(model.state_dict().items(), copied.state_dict().values(), strict=True):
        assert torch.equal(found, expected), name
    with torch.autocast("cpu", torch.bfloat16):
        model(x).float().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


@PREPARE
def test_a_transformer_calls_its_layers_in_evaluation(prepare: Prepare) -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
    x = torch.randn(2, 3, 8)
    prepare(model)
    model.train()(x)
    simulation, called = model.layers[0].linear2.simulation, []
    forward = simulation.forward
    simulation.forward = lambda *args: called.append(1) or forward(*args)  # a hook would keep torch from its fast path
    with torch.no_grad():
        model.eval()(x)
    assert called == [1]
