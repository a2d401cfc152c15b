"""Quantization-aware training: what is simulated is what is deployed, and the gradients are straight through."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from int8_oracle import quantized
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import sparsecore as sc
from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.nn import Int8Conv2d, Int8Linear, SparseInt8Linear
from sparsecore.prune import prune
from sparsecore.quantize import (
    convert_qat,
    fold_qat,
    freeze_ranges,
    prepare_binary,
    prepare_qat,
    quantize,
)
from sparsecore.quantize.affine import affine_range

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(33, 9), (4, 5, 33)),
    "long sums": (lambda: nn.Linear(3000, 3, bias=False), (2, 3000)),
    "padded, strided": (lambda: nn.Conv2d(3, 8, 3, stride=2, padding=1), (2, 3, 9, 7)),
    "dilated, same": (lambda: nn.Conv2d(4, 6, 3, padding="same", dilation=2, bias=False), (2, 4, 8, 8)),
    "grouped, one image": (lambda: nn.Conv2d(8, 4, (1, 3), groups=4), (8, 5, 5)),
}


def train(model: nn.Module, x: Tensor, steps: int = 3, optimizer: torch.optim.Optimizer | None = None) -> None:
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.05)
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        (model(x * (1 + 0.1 * step)) - 1).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("activations", ["static", "dynamic"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("steps", ["range", "learned"])
def test_deployed_equals_simulated(name: str, activations: Any, bits: int, steps: Any) -> None:
    make, shape = LAYERS[name]
    batches = [torch.randn(shape)] if steps == "learned" and activations == "static" else None
    settings = {"bits": bits, "activation_bits": 8, "activations": activations, "steps": steps}
    model, x = prepare_qat(nn.Sequential(make()), batches, **settings), None
    train(model, torch.randn(shape))
    x = torch.randn(shape) * 1.5  # some of it outside of the range
    with torch.no_grad():
        simulated = [model.eval()(x), model(x.bfloat16())]
        assert convert_qat(model) is model
        assert type(model[0]) in (Int8Linear, Int8Conv2d)
        deployed = [model(x), model(x.bfloat16())]
    assert all(torch.equal(a, b) for a, b in zip(simulated, deployed, strict=True))
    largest = int(model[0].weight_format.q.abs().max())
    limit = 2 ** (bits - 1) - 1
    assert largest == limit if steps == "range" else largest <= limit


def test_training_differs_from_evaluation_by_rounding_alone() -> None:
    model, x = prepare_qat(nn.Sequential(nn.Linear(600, 7))), torch.randn(20, 600)
    train(model, x)
    in_training = model(x)
    layer, in_evaluation = model[0], model.eval()(x)
    q, scale = quantized(x, *affine_range(*layer.simulation.seen_range()))
    values = layer.simulation.values(layer.weight).double()
    magnitude = (q.abs() * scale[0].double()) @ values.abs().T + layer.bias.double().abs()
    assert bool(((in_training - in_evaluation).abs() <= magnitude * 602 * 2.0**-24).all())


@pytest.mark.parametrize("activations", ["static", "dynamic"])
def test_gradients_are_straight_through(activations: Any) -> None:
    model = prepare_qat(
        nn.Sequential(nn.Linear(20, 6)),
        [torch.randn(64, 20)] if activations == "static" else None,
        activations=activations,
    )
    layer, x, g = model[0], (torch.randn(8, 20) * 1.5).requires_grad_(), torch.randn(8, 6)
    layer(x).backward(g)
    static = affine_range(*layer.simulation.seen_range()) if activations == "static" else ()
    q, scale = quantized(x.detach(), *static)
    x_hat = q * scale[:, None].double()
    inside = torch.ones_like(x_hat)
    if static:
        ends = [static[0] * (end - static[1]) for end in (-128, 127)]
        inside = ((x.detach() >= ends[0]) & (x.detach() <= ends[1])).double()
        assert 0 < inside.mean() < 1
    values = layer.simulation.values(layer.weight).detach().double()
    tolerance = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(x.grad.double(), g.double() @ values * inside, **tolerance)
    torch.testing.assert_close(layer.weight.grad.double(), g.double().T @ x_hat, **tolerance)
    torch.testing.assert_close(layer.bias.grad, g.sum(0))


def test_the_range_is_a_moving_average_that_evaluation_and_nan_leave_alone() -> None:
    model = prepare_qat(nn.Sequential(nn.Linear(2, 2)))
    simulation = model[0].simulation
    with pytest.raises(ValueError, match=r"0 has no range of activations.*exclude='0'"):
        model.eval()(torch.ones(1, 2))
    model.train()
    for low, high, expected in ((-1.0, 2.0, (-1.0, 2.0)), (-3.0, 0.5, (-1.2, 1.85)), (torch.nan, 1.0, (-1.2, 1.85))):
        model(torch.tensor([[low, high]]))
        assert simulation.seen_range() == pytest.approx(expected)
    model.eval()(torch.full((1, 2), 100.0))
    model.train()(torch.ones(0, 2))
    assert simulation.seen_range() == pytest.approx((-1.2, 1.85))


def test_gradients_of_learned_steps() -> None:
    """The paper's eq. 3 in float64: round(v / s) - v / s inside, the limit outside; times the scale of its sec. 2.2."""
    x = torch.rand(6, 5) * 2 - 1
    model = prepare_qat(nn.Sequential(nn.Linear(5, 3)), [x], bits=3, activation_bits=4, steps="learned")
    simulation, weight, g = model[0].simulation, model[0].weight.detach().double(), torch.randn(6, 3)
    expected_start = 2 * weight.abs().mean(1) / 3**0.5
    torch.testing.assert_close(simulation.weight_step.detach().double().flatten(), expected_start)
    simulation.weight_step.data[1] *= 0.2  # most of the row is beyond the limits
    x = 1.5 * x
    model(x).backward(g)

    def of_step(values: Tensor, step: Tensor, least: int, largest: int) -> tuple[Tensor, Tensor]:
        steps = values / step
        inside = (steps >= least) & (steps <= largest)
        whole = steps.round().clamp(least, largest)
        return whole * step, torch.where(inside, whole - steps, whole)

    weight_step, x_step = simulation.weight_step.detach().double(), simulation.x_step.detach().double()
    zero_point = int(simulation.x_zero_point)
    shared, weight_slope = of_step(weight, weight_step, -3, 3)
    seen, x_slope = of_step(x.double(), x_step, -8 - zero_point, 7 - zero_point)
    assert ((weight / weight_step).abs() > 3).any()
    of_weight, of_x = g.double().t() @ seen, g.double() @ shared
    expected = (of_weight * weight_slope).sum(1, keepdim=True) / (5 * 3) ** 0.5
    torch.testing.assert_close(simulation.weight_step.grad.double(), expected, rtol=1e-5, atol=1e-6)
    expected = (of_x * x_slope).sum() / (5 * 7) ** 0.5
    torch.testing.assert_close(simulation.x_step.grad.double(), expected, rtol=1e-5, atol=1e-5)
    outside = (weight / weight_step).abs() > 3
    torch.testing.assert_close(model[0].weight.grad.double(), of_weight.masked_fill(outside, 0), rtol=1e-5, atol=1e-6)


def test_learned_steps_keep_zeros_and_end_in_plain_layers() -> None:
    model, x = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(8, 32)
    masks = prune(model, 0.6)
    model[0].weight.data[3] = 0  # a row with nothing to start from
    prepare_qat(model, [x], bits=2, steps="learned")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    masks.attach(optimizer)
    before = model[0].simulation.weight_step.detach().clone()
    train(model, x, 3, optimizer)
    assert not torch.equal(model[0].simulation.weight_step, before)
    model[2].simulation.x_step.data.neg_()  # an optimizer may take it across zero
    assert model.eval()(x).isfinite().all()
    fold_qat(model)
    for name, mask in masks.items():
        assert not model.get_parameter(name)[~mask].any()
    assert all(len(row.unique()) <= 3 for index in (0, 2) for row in model[index].weight)


def test_learned_steps_that_cannot_be() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.raises(ValueError, match='calibration batches for steps="learned"'):
        prepare_qat(model, steps="learned")
    with pytest.raises(ValueError, match=r"expected steps .* got 'best'"):
        prepare_qat(model, steps="best")  # type: ignore[arg-type]
    model[1].weight = model[0].weight
    with pytest.raises(UnsupportedError, match='cannot have the learned steps of both; take steps="range"'):
        prepare_qat(model, [torch.ones(1, 4)], steps="learned")
    assert type(model[0]) is nn.Linear
    model = prepare_qat(nn.Sequential(nn.Linear(4, 4)), [torch.ones(1, 4)], steps="learned")
    model[0].simulation.weight_step.data[0] = torch.nan
    with pytest.raises(FormatError):
        convert_qat(model)
    assert type(model[0]) is not Int8Linear


def test_frozen_ranges_stay() -> None:
    model = prepare_qat(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    model(torch.tensor([[-1.0, 2.0]]))
    before = [layer.simulation.seen_range() for layer in model]
    freeze_ranges(model)(torch.full((1, 2), 100.0)).sum().backward()
    assert [layer.simulation.seen_range() for layer in model] == before
    assert freeze_ranges(prepare_qat(nn.Sequential(nn.Linear(2, 2)), activations="dynamic")) is not None
    with pytest.raises(UnsupportedError, match=r"expected a model from prepare_qat\(\), got a Sequential"):
        freeze_ranges(prepare_binary(nn.Sequential(nn.Linear(2, 2))))
    fresh = prepare_qat(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="0 has no range of activations"):
        freeze_ranges(fresh)
    assert not fresh[0].simulation.is_range_frozen


def test_without_training_it_is_post_training_quantization() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    batches, x = [torch.rand(8, 1, 8, 8) for _ in range(3)], torch.rand(4, 1, 8, 8)
    expected = quantize(copy.deepcopy(model), batches, activations="static")(x)
    prepared = prepare_qat(model, batches)
    assert not prepared.training
    assert torch.equal(prepared(x), expected)
    assert torch.equal(convert_qat(prepared)(x), expected)
    assert str(sc.quantization_report(prepared)).startswith("2 of 2 layers in int8")


def test_masked_weights_stay_zero_up_to_the_sparse_layer() -> None:
    model, x = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(8, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    train(model, x, 2, optimizer)
    masks = prune(model, 0.9)
    masks.attach(optimizer)
    prepare_qat(model)
    train(model, x, 5, optimizer)
    assert all(bool((model.get_parameter(name)[~mask] == 0).all()) for name, mask in masks.items())
    y = model.eval()(x)
    convert_qat(model)
    assert int((model[0].weight_format.q != 0).sum()) <= int(masks["0.weight"].sum())
    for index in (0, 2):
        model[index] = SparseInt8Linear.from_int8(model[index])
    assert torch.equal(model(x), y)
    sc.convert(model, x, cache=False)


def test_4_bits_end_in_plain_layers() -> None:
    model, x = prepare_qat(nn.Sequential(nn.Linear(32, 16)), bits=4), torch.randn(8, 32)
    train(model, x)
    before = type(model[0]), model.eval()(x)
    with pytest.raises(UnsupportedError, match=r"0 has activations of 4 bits.*activation_bits=8.*fold_qat"):
        convert_qat(model)
    assert type(model[0]) is before[0]
    assert torch.equal(model(x), before[1])
    layer = fold_qat(model)[0]
    assert type(layer) is nn.Linear
    assert max(len(row.unique()) for row in layer.weight) <= 15


def test_bad_arguments() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    for arguments in ({"bits": 1}, {"bits": 9}, {"activation_bits": 16}, {"bits": True}):
        with pytest.raises(ValueError, match="from 2 to 8"):
            prepare_qat(model, **arguments)
    with pytest.raises(ValueError, match='"dynamic" or "static"'):
        prepare_qat(model, activations="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one calibration batch"):
        prepare_qat(model, [])
    with pytest.raises(ValueError, match='only with activations="static"'):
        prepare_qat(model, [torch.ones(1, 4)], activations="dynamic")
    with pytest.raises(UnsupportedError, match="0: expected padding with zeros"):
        prepare_qat(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")))
    assert type(model[0]) is nn.Linear


def test_convert_refuses_what_was_never_seen_or_is_broken() -> None:
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "unused": nn.Linear(4, 4)})
    prepare_qat(model)
    model["used"](torch.randn(2, 4))
    with pytest.raises(ValueError, match="unused has no range of activations"):
        convert_qat(model)
    model["unused"](torch.randn(2, 4))
    model["unused"].weight.data[0, 0] = torch.inf
    with pytest.raises(FormatError, match=r"unused\.weight is NaN or infinite"):
        convert_qat(model)
    assert type(model["used"]) is not Int8Linear
    with pytest.raises(UnsupportedError, match="0 was not trained for int8"):
        convert_qat(prepare_binary(nn.Sequential(nn.Linear(4, 4))))


def test_training_resumes_exactly() -> None:
    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(1)
        model = prepare_qat(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)))
        return model, torch.optim.Adam(model.parameters(), lr=0.01)

    x = torch.randn(16, 8)
    model, optimizer = start()
    train(model, x, 3, optimizer)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    train(model, x, 3, optimizer)

    file.seek(0)
    resumed, other = start()
    for target, state in zip((resumed, other), torch.load(file, weights_only=True), strict=True):
        target.load_state_dict(state)
    train(resumed, x, 3, other)
    for (name, expected), found in zip(model.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(found, expected), name


@pytest.fixture
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_distributed_data_parallel(process_group: None) -> None:
    model, x = prepare_qat(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))), torch.randn(16, 8)
    alone = copy.deepcopy(model)
    train(alone, x)
    train(DistributedDataParallel(model), x)
    for (name, expected), found in zip(alone.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(found, expected), name


def test_gradient_scaling_reaches_the_same_weights() -> None:
    model, x = prepare_qat(nn.Sequential(nn.Linear(8, 4))), torch.randn(16, 8)
    scaled = copy.deepcopy(model)
    train(model, x, 1)
    optimizer, scaler = torch.optim.SGD(scaled.parameters(), lr=0.05), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(F.mse_loss(scaled(x), torch.ones(16, 4))).backward()
    scaler.step(optimizer)
    torch.testing.assert_close(scaled[0].weight, model[0].weight)
