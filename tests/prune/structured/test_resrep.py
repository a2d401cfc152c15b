"""ResRep: identity start, gradients reset, masks by multiply-adds, and an exact merge."""

from __future__ import annotations

import copy

import pytest
import torch
from cifar_nets import resnet, settled
from structured_nets import Residual, build
from torch import Tensor, nn

from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.prune.structured import Compactor, ResRep, count_costs

pytest.importorskip("torch_pruning")


def net(dtype: torch.dtype = torch.float32) -> tuple[nn.Sequential, Tensor]:
    """Convolutions with and without a bias, and a linear layer, each before BatchNorm."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(12 * 36, 10),
        nn.BatchNorm1d(10),
        nn.ReLU(),
        nn.Linear(10, 5),
    ).to(dtype)
    for norm in (model[1], model[4], model[8]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return model.eval(), torch.randn(4, 3, 6, 6, dtype=dtype)


def spoil(resrep: ResRep, zero_rows: int = 0) -> None:
    """Compactors as if they had been trained, some rows zero."""
    for compactor in resrep.compactors.values():
        weight = compactor.weight.data
        weight += 0.3 * torch.randn_like(weight)
        weight[1 : 1 + zero_rows] = 0


def assert_near(got: Tensor, expected: Tensor, tolerance: float) -> None:
    atol = tolerance * float(expected.detach().abs().max())
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=atol)


def test_identity_start_leaves_outputs_unchanged() -> None:
    model, x = net()
    expected = model(x)
    resrep = ResRep(model, x, 0.5, begin=0)
    assert list(resrep.compactors) == ["0", "3", "7"]
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_merged_equals_unmerged(dtype: torch.dtype, tolerance: float) -> None:
    model, x = net(dtype)
    fresh = copy.deepcopy(model)
    resrep = ResRep(model, x, 0.5, begin=0)
    spoil(resrep, zero_rows=3)
    expected = model(x)
    edits = resrep.merge()
    assert not any(isinstance(module, Compactor) for module in model.modules())
    assert [model[i].out_channels for i in (0, 3)] + [model[7].out_features] == [5, 9, 7]
    torch.testing.assert_close(
        model(x), expected, rtol=tolerance, atol=tolerance * float(expected.detach().abs().max())
    )
    edits.apply(fresh)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))
    with pytest.raises(UnsupportedError, match="merged already"):
        resrep.merge()


def test_shared_channels_have_no_compactor() -> None:
    model, x = build(Residual)
    with pytest.raises(UnsupportedError, match="no layer of Residual"):
        ResRep(model, x, 0.1, begin=0)
    block, x = settled(resnet(8))
    resrep = ResRep(block, x, 0.2, begin=0)
    assert list(resrep.compactors) == ["1.conv1", "2.conv1", "3.conv1"]


def test_gradients_are_reset_and_penalized() -> None:
    model, x = net(torch.float64)
    resrep = ResRep(model, x, 0.5, begin=0, strength=0.25)
    spoil(resrep)
    optimizer = torch.optim.SGD(resrep.parameter_groups(), lr=1.0)
    optimizer.param_groups[1]["momentum"] = 0.0
    resrep.attach(optimizer)
    model(x).square().mean().backward()
    expected = {}
    for layer, compactor in resrep.compactors.items():
        compactor.kept[::2] = False
        Q, gradient = compactor.weight.detach().clone(), compactor.weight.grad.clone()
        rows = []
        for row, g, kept in zip(Q, gradient, compactor.kept, strict=True):
            length = sum(float(q) ** 2 for q in row) ** 0.5
            rows.append((g if kept else torch.zeros_like(g)) + 0.25 * row / (length + 1e-8))
        expected[layer] = Q - torch.stack(rows)
    before = model[0].weight.detach() - model[0].weight.grad
    optimizer.step()
    assert torch.equal(model[0].weight, before)
    for layer, compactor in resrep.compactors.items():
        torch.testing.assert_close(compactor.weight.detach(), expected[layer], rtol=1e-12, atol=1e-12)


def test_masks_take_the_shortest_rows_until_the_multiply_adds_are_reached() -> None:
    model, x = net()
    original = copy.deepcopy(model)
    total = count_costs(original, x).multiply_adds
    resrep = ResRep(model, x, 0.5, begin=3, frequency=2, rows=4)
    lengths = {}
    for layer, compactor in resrep.compactors.items():
        compactor.weight.data *= torch.rand(len(compactor.kept), 1)
        lengths[layer] = compactor.row_norms()
    numbers = []
    for _ in range(40):
        resrep.step()
        numbers.append(sum(resrep.masked().values()))
    assert numbers[:7] == [0, 0, 0, 4, 4, 8, 8]
    assert numbers[7:] == [numbers[7]] * 33
    masked = numbers[-1]
    gone = sorted(float(x) for layer, c in resrep.compactors.items() for x in lengths[layer][~c.kept])
    everything = sorted(float(x) for rows in lengths.values() for x in rows.sort().values[:-1])
    assert gone == everything[:masked]

    def left(rows: dict[str, int]) -> int:
        """By hand: 36 positions of two 3x3 convolutions, then two linear layers."""
        a, b, c = 8 - rows["0"], 12 - rows["3"], 10 - rows["7"]
        return len(x) * (36 * 9 * (3 * a + a * b) + 36 * b * c + 5 * c)

    assert left(dict.fromkeys(lengths, 0)) == total
    assert left(resrep.masked()) <= 0.5 * total
    last = next(layer for layer in lengths if float(everything[masked - 1]) in lengths[layer].tolist())
    assert left({layer: n - (layer == last) for layer, n in resrep.masked().items()}) > 0.5 * total


def test_masks_leave_each_layer_a_row() -> None:
    model, x = net()
    resrep = ResRep(model, x, 0.7, begin=0, rows=100)
    resrep.compactors["7"].weight.data *= 0.01
    resrep.step()
    assert resrep.masked()["7"] == 9


def test_masked_rows_shrink_and_kept_rows_do_not() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(256, 6)
    y = x[:, :3].argmax(1)
    resrep = ResRep(model, x, 0.4, begin=20, frequency=5, rows=1, strength=0.01)
    optimizer = torch.optim.SGD(resrep.parameter_groups(lr=0.05, momentum=0.9), lr=0.005)
    resrep.attach(optimizer)
    (compactor,) = resrep.compactors.values()
    for step in range(800):
        optimizer.param_groups[1]["lr"] = 0.005 * (1 - step / 800)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        resrep.step()
    lengths = compactor.row_norms()
    assert 0 < int((~compactor.kept).sum()) < 8
    assert float(lengths[~compactor.kept].max()) < 0.01
    assert float(lengths[compactor.kept].min()) > 0.5


def test_training_goes_on_after_a_restart_bit_for_bit() -> None:
    def train(model: nn.Module, resrep: ResRep, steps: int, state: dict | None = None) -> dict:
        optimizer = torch.optim.SGD(resrep.parameter_groups(), lr=0.1)
        resrep.attach(optimizer)
        if state:
            optimizer.load_state_dict(state)
        for _ in range(steps):
            torch.manual_seed(resrep.steps)
            optimizer.zero_grad()
            model(torch.randn(4, 3, 6, 6)).square().mean().backward()
            optimizer.step()
            resrep.step()
        return optimizer.state_dict()

    def fresh() -> tuple[nn.Module, ResRep]:
        model, x = net()
        return model, ResRep(model, x, 0.5, begin=1, frequency=3, rows=2, strength=0.1)

    through, resrep = fresh()
    train(through, resrep, 10)
    first, stopped = fresh()
    state = train(first, stopped, 5)
    second, resumed = fresh()
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(stopped.state_dict())
    train(second, resumed, 5, state)
    assert sum(resumed.masked().values()) > 0
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in through.state_dict().items())
    with pytest.raises(FormatError, match="state_dict"):
        resumed.load_state_dict({"step": 1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reduce_by": 1.0}, r"\[0, 1\)"),
        ({"frequency": 0}, "frequency"),
        ({"strength": 0.0}, "strength above 0"),
        ({"reduce_by": 0.999}, "ask for less"),
        ({"exclude": ("0", "3", "7")}, "can have a compactor"),
    ],
)
def test_errors_leave_the_model_alone(arguments: dict, message: str) -> None:
    model, x = net()
    with pytest.raises((ValueError, UnsupportedError), match=message):
        ResRep(model, x, **{"reduce_by": 0.5, "begin": 0, **arguments})
    assert not any(isinstance(module, Compactor) for module in model.modules())


def test_a_layer_read_by_more_than_its_batchnorm_is_refused() -> None:
    class Bypass(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.bn = nn.BatchNorm2d(4)
            self.one, self.two = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.one(torch.relu(self.bn(x))) + self.two(x)

    model = Bypass()
    with pytest.raises(UnsupportedError, match="reads its output without the BatchNorm"):
        ResRep(model, torch.randn(1, 3, 4, 4), 0.1, begin=0)
    assert isinstance(model.bn, nn.BatchNorm2d)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_full_size_resnet56_merges_exactly(dtype: torch.dtype, tolerance: float) -> None:
    model, x = settled(resnet(56))
    model, x = model.to(dtype), x.to(dtype)
    resrep = ResRep(model, x, 0.4, begin=0)
    assert len(resrep.compactors) == 27
    for compactor in resrep.compactors.values():
        compactor.weight.data += 0.1 * torch.randn_like(compactor.weight) / len(compactor.weight) ** 0.5
        compactor.weight.data[::2] = 0
    expected = model(x)
    resrep.merge()
    torch.testing.assert_close(
        model(x), expected, rtol=tolerance, atol=tolerance * float(expected.detach().abs().max())
    )
