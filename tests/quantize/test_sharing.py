"""Weight sharing: few values, and steps that are those of a codebook's parameters."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import prune as torch_prune

from sparsecore.errors import FormatError
from sparsecore.prune import Masks, prune
from sparsecore.quantize import SharedWeights, share_weights


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))


def loss(y: Tensor) -> Tensor:
    return (y.sin() + y.square()).mean()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: list[Tensor]) -> None:
    for x in inputs:
        optimizer.zero_grad()
        loss(model(x)).backward()
        optimizer.step()


def count_values(model: nn.Module) -> list[int]:
    return [len(weight[weight != 0].unique()) for weight in (model[0].weight, model[3].weight)]


@pytest.mark.parametrize("bits", [1, 4, 5])
def test_few_values_zeros_stay_and_nearest_is_chosen(bits: int) -> None:
    model = network()
    prune(model, 0.7)
    before = copy.deepcopy(model)
    shared = share_weights(model, bits)
    assert list(shared) == ["0.weight", "3.weight"]
    assert max(count_values(model)) <= 2**bits
    for name, codes in shared.items():
        weight, real, values = model.get_parameter(name), before.get_parameter(name), shared.codebooks()[name]
        assert torch.equal(weight == 0, real == 0)
        assert torch.equal(codes == 0, real == 0)
        kept = real[real != 0]
        nearest = values[(kept[:, None] - values).abs().argmin(1)]
        assert torch.equal(weight[real != 0], nearest)
        assert torch.equal(weight[real != 0], values[codes[real != 0].long() - 1])
    assert torch.equal(model[0].bias, before[0].bias)
    again = copy.deepcopy(model)
    share_weights(again, bits)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.005),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.001, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, momentum=0.5),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_training_the_codebook_as_parameters(name: str) -> None:
    model, inputs = network().double(), list(torch.randn(6, 4, 1, 8, 8).double())
    prune(model, 0.5)
    shared = share_weights(model, 4)
    # The oracle: weights are gathered from parameters, and autograd sums their gradients.
    books = {key: nn.Parameter(values.clone()) for key, values in shared.codebooks().items()}
    codes = {key: value.long() for key, value in shared.items()}
    others = {key: nn.Parameter(p.detach().clone()) for key, p in model.named_parameters() if key not in books}
    oracle = OPTIMIZERS[name]([*books.values(), *others.values()])
    for x in inputs:
        oracle.zero_grad()
        weights = {key: torch.where(codes[key] == 0, 0.0, books[key][codes[key] - 1]) for key in books}
        loss(functional_call(model, {**weights, **others}, (x,))).backward()
        oracle.step()

    optimizer = OPTIMIZERS[name](model.parameters())
    shared.attach(optimizer)
    train(model, optimizer, inputs)
    for key, values in books.items():
        expected = torch.where(codes[key] == 0, 0.0, values[codes[key] - 1])
        torch.testing.assert_close(model.get_parameter(key).detach(), expected.detach(), rtol=1e-10, atol=1e-12)
    for key, value in others.items():
        torch.testing.assert_close(model.get_parameter(key), value, rtol=1e-10, atol=1e-12)


def test_a_dense_layer_uses_all_values() -> None:
    model = network()
    share_weights(model, 4)
    assert count_values(model) == [16, 16]


def test_gradients_are_sums_over_the_cluster() -> None:
    model = nn.Sequential(nn.Linear(4, 1))
    model[0].weight.data.copy_(torch.tensor([[1.0, 0.0, 1.0, -2.0]]))
    shared = share_weights(model, 2)
    model[0].weight.grad = torch.tensor([[1.0, 20.0, 300.0, 4000.0]])
    shared.sum_gradients()
    assert model[0].weight.grad.tolist() == [[301.0, 0.0, 301.0, 4000.0]]


@pytest.mark.parametrize("shared_first", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_members_stay_equal_and_zeros_zero_under_masks(name: str, shared_first: bool) -> None:
    model, inputs = network(), list(torch.randn(8, 4, 1, 8, 8))
    masks, optimizer = prune(model, 0.6), OPTIMIZERS[name](model.parameters())
    train(model, optimizer, inputs)  # state from before
    masks.apply(optimizer)
    shared = share_weights(model, 3)
    for attached in (shared, masks) if shared_first else (masks, shared):
        attached.attach(optimizer)
    for x in inputs:
        before = model[3].weight.detach().clone()
        train(model, optimizer, [x])
        assert max(count_values(model)) <= 8
        assert not torch.equal(model[3].weight, before)
        for key, mask in masks.items():
            assert bool((model.get_parameter(key)[~mask] == 0).all())
            weight, codes = model.get_parameter(key), shared[key]
            assert all(len(weight[codes == code].unique()) == 1 for code in codes.unique())
    tighter = Masks(model, {"3.weight": masks["3.weight"] & (torch.rand(10, 288) < 0.5)})
    tighter.apply(optimizer)
    train(model, optimizer, inputs)  # what was pruned later stays zero too
    assert torch.equal(model[3].weight != 0, tighter["3.weight"])


def test_state_from_before_is_cleared() -> None:
    model, inputs = network(), list(torch.randn(4, 4, 1, 8, 8))
    used = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    train(model, used, inputs)
    codes = share_weights(model, 4)
    twin = copy.deepcopy(model)
    fresh = torch.optim.SGD(twin.parameters(), lr=0.001, momentum=0.9)
    codes.attach(used)
    SharedWeights(twin, codes).attach(fresh)
    for index in (0, 3):
        used.state[model[index].bias]["momentum_buffer"].zero_()
    train(model, used, inputs)
    train(twin, fresh, inputs)
    assert torch.equal(model[3].weight, twin[3].weight)


def test_members_follow_the_first_where_an_optimizer_parts_them() -> None:
    class Noisy(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            super().step(closure)
            for parameter in self.param_groups[0]["params"]:
                parameter += torch.randn(parameter.shape)

    model = network()
    shared, optimizer = share_weights(model, 3), Noisy(model.parameters(), lr=0.001)
    shared.attach(optimizer)
    train(model, optimizer, list(torch.randn(1, 4, 1, 8, 8)))
    assert count_values(model) == [8, 8]


def test_accumulated_gradients_and_skipped_steps() -> None:
    model, inputs = network().double(), torch.randn(2, 4, 1, 8, 8).double()
    shared = share_weights(model, 4)
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shared.attach(optimizer)
    for x in inputs:
        (loss(model(x)) / 2).backward()
    optimizer.step()
    whole = torch.optim.SGD(twin.parameters(), lr=0.1)
    SharedWeights(twin, shared).attach(whole)
    train(twin, whole, [inputs.flatten(0, 1)])
    torch.testing.assert_close(model[3].weight, twin[3].weight, rtol=1e-10, atol=1e-12)

    before = model[3].weight.detach().clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    scaler.scale(loss(model(inputs[0]))).backward()
    model[0].weight.grad[0, 0, 0, 0] = torch.inf
    scaler.step(optimizer)
    assert torch.equal(model[3].weight, before)


@pytest.mark.parametrize("by_name", [True, False])
def test_gradients_from_a_closure_are_summed_too(by_name: bool) -> None:
    model, x = network(), torch.randn(4, 1, 8, 8)
    shared = share_weights(model, 4)
    twin = copy.deepcopy(model)
    optimizer, other = (OPTIMIZERS["momentum"](module.parameters()) for module in (model, twin))
    shared.attach(optimizer)
    SharedWeights(twin, shared).attach(other)
    train(model, optimizer, [x])

    def closure() -> Tensor:
        other.zero_grad()
        value = loss(twin(x))
        value.backward()
        return value

    returned = other.step(closure=closure) if by_name else other.step(closure)
    assert returned is not None
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_nan_gradients_are_an_error_before_the_step() -> None:
    model = network()
    shared, optimizer = share_weights(model, 4), torch.optim.SGD(model.parameters(), lr=0.1)
    shared.attach(optimizer)
    before = copy.deepcopy(model.state_dict())
    loss(model(torch.randn(2, 1, 8, 8))).backward()
    model[3].weight.grad[1, 1] = torch.nan
    with pytest.raises(FormatError, match=r"3\.weight: the gradient is NaN or infinite in 1 of 2880"):
        optimizer.step()
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


def test_handle_ends_it() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    share_weights(model, 2).attach(optimizer).remove()
    train(model, optimizer, list(torch.randn(1, 4, 1, 8, 8)))
    assert min(count_values(model)) > 4


def test_training_resumes_exactly() -> None:
    inputs = list(torch.randn(6, 4, 1, 8, 8))

    def start(codes: dict[str, Tensor] | None = None) -> Any:
        torch.manual_seed(1)
        model = network()
        prune(model, 0.5)
        shared = share_weights(model, 4) if codes is None else SharedWeights(model, codes)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        return model, shared, optimizer

    model, shared, optimizer = start()
    shared.attach(optimizer)
    train(model, optimizer, inputs[:3])
    file = io.BytesIO()
    torch.save([part.state_dict() for part in (model, shared, optimizer)], file)
    train(model, optimizer, inputs[3:])
    for late in (False, True):  # attached before or after loading
        file.seek(0)
        states = torch.load(file, weights_only=True)
        resumed, others, other_optimizer = start()
        if not late:
            others.attach(other_optimizer)
        for part, state in zip((resumed, others, other_optimizer), states, strict=True):
            part.load_state_dict(state)
        if late:
            others.attach(other_optimizer)
        train(resumed, other_optimizer, inputs[3:])
        assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), model.parameters(), strict=True))


def test_bits_for_each_layer_and_exclude() -> None:
    model = network()
    shared = share_weights(model, {"0": 2, nn.Linear: 3})
    assert count_values(model) == [4, 8]
    assert list(share_weights(network(), {"3": 2})) == ["3.weight"]
    assert list(share_weights(network(), 2, exclude="3")) == ["0.weight"]
    assert repr(shared).splitlines()[1].split() == ["0.weight", "4", "values"]


def test_bad_input_changes_nothing() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    for bits in (0, 9, 2.5, True):
        with pytest.raises(ValueError, match="expected bits from 1 to 8"):
            share_weights(model, bits)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bits: 'fc' matches no weight"):
        share_weights(model, {"fc": 4})
    with pytest.raises(ValueError, match="at least one layer"):
        share_weights(model, {})
    with pytest.raises(ValueError, match="expected an init"):
        share_weights(model, init="best")
    with pytest.raises(TypeError, match=r"torch\.Generator or None, got int"):
        share_weights(model, init="random", generator=3)  # type: ignore[arg-type]
    model[3].weight.data[0, 0] = before["3.weight"][0, 0] = torch.inf
    with pytest.raises(FormatError, match=r"3\.weight: the weight is NaN or infinite in 1 of 2880"):
        share_weights(model)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())

    model = network()
    shared = share_weights(model, 4)
    codes = shared.state_dict()
    for bad, match in (
        ({"fc": codes["0.weight"]}, "no parameter 'fc'"),
        ({"0.weight": codes["3.weight"]}, "codes of shape"),
        ({"0.weight": codes["0.weight"].float()}, "integer codes"),
        ({"0.weight": codes["0.weight"] - 300}, "codes from 0 to 256"),
    ):
        with pytest.raises(FormatError, match=match):
            SharedWeights(model, bad)
    with pytest.raises(FormatError, match="same weights"):
        shared.load_state_dict({"0.weight": codes["0.weight"]})
    with pytest.raises(ValueError, match="holds none of the masked weights"):
        shared.attach(torch.optim.SGD(network().parameters(), lr=0.1))


def test_zero_and_tiny_layers_and_torch_pruning() -> None:
    model = network()
    model[0].weight.data.zero_()
    torch_prune.random_unstructured(model[3], "weight", 0.5)
    shared = share_weights(model, 3)
    assert count_values(model) == [0, 8]
    assert int((shared["3.weight"] == 0).sum()) == 1440
    assert isinstance(model[3].weight, nn.Parameter)
    shared.apply()
    assert count_values(model) == [0, 8]
