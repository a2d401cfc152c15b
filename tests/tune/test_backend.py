"""torch.compile(model, backend="sparsecore"): Dynamo's graphs, compiled."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, Residual, assert_same, image, sparse_
from torch import Tensor, nn

from sparsecore.graph.compiled import CompiledModule
from sparsecore.tune import backend as backend_module

QUICK = {"policy": "model", "cache": False}


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """What the backend compiled."""
    models: list[nn.Module] = []
    compile = backend_module.compile

    def remember(*arguments: Any, **options: Any) -> nn.Module:
        models.append(compile(*arguments, **options))
        return models[-1]

    monkeypatch.setattr(backend_module, "compile", remember)
    return models


def compiled(model: nn.Module, **options: Any) -> Any:
    return torch.compile(model, backend="sparsecore", options={**QUICK, **options})


@pytest.mark.parametrize(("name", "sparsity"), [*((name, 0.9) for name in NETWORKS), ("classifier", 0.0)])
def test_computes_what_the_model_does(name: str, sparsity: float, made: list[nn.Module]) -> None:
    make, channels = NETWORKS[name]
    model = sparse_(make(), sparsity)
    fast = compiled(model)
    with torch.no_grad():
        for batch in (2, 5, 1):
            x = image(batch, channels, seed=batch)
            got, want = fast(x), model(x)
            assert_same(got, want, 1e-4)
            assert type(got) is type(want)
    assert made
    assert all(isinstance(model, CompiledModule) for model in made)


class Breaks(nn.Module):
    """Python looks at numbers in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = Residual(), Residual()

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if y.sum() > 1e9:
            return y
        return self.last(y)


def test_graph_break(made: list[nn.Module]) -> None:
    model = sparse_(Breaks(), 0.9)
    fast = compiled(model)
    with torch.no_grad():
        for batch in (1, 3):
            assert_same(fast(image(batch)), model(image(batch)), 1e-4)
    assert len(made) >= 2


def test_gradients_are_right(made: list[nn.Module]) -> None:
    model = sparse_(Residual(), 0.5)
    twin = copy.deepcopy(model)
    fast = compiled(model)
    x, y = (image(2).requires_grad_() for _ in range(2))
    fast(x).square().sum().backward()
    twin(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    for mine, its in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad)
    assert not made


def test_gradients_after_inference_and_back(made: list[nn.Module]) -> None:
    model = sparse_(Residual(), 0.9)
    fast = compiled(model)
    with torch.no_grad():
        assert_same(fast(image(2)), model(image(2)), 1e-4)
    fast(image(2)).sum().backward()
    assert model.conv1.weight.grad is not None
    with torch.no_grad():
        assert_same(fast(image(2)), model(image(2)), 1e-4)
    assert len(made) == 1


def test_training_goes_on(made: list[nn.Module]) -> None:
    model = sparse_(Residual()).train()
    twin = copy.deepcopy(model)
    fast = compiled(model)
    for network in (fast, twin):
        network(image(4)).sum().backward()
    torch.testing.assert_close(model.bn1.running_mean, twin.bn1.running_mean)
    assert not made


class Buffers(nn.Module):
    """A buffer, a constant that is no parameter, a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.other = nn.Linear(8, 8)
        self.other.weight = self.linear.weight
        self.register_buffer("mask", (torch.arange(8.0) % 3))
        self.register_buffer("hidden", torch.arange(8.0), persistent=False)
        self.plain = torch.full((8,), 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.other(self.linear(x) * self.mask)) + self.hidden * self.plain


@pytest.mark.parametrize("sparsity", [0.0, 0.9])
def test_buffers(sparsity: float, made: list[nn.Module]) -> None:
    model = sparse_(Buffers(), sparsity)
    fast = compiled(model)
    with torch.no_grad():
        for batch in (3, 1, 4):
            x = torch.randn(batch, 8)
            assert_same(fast(x), model(x))
    assert made


class Counter(nn.Module):
    """A buffer that changes from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x)


def test_a_buffer_that_changes_is_the_models() -> None:
    model = sparse_(Counter())
    fast = compiled(model)
    x = torch.randn(2, 8)
    outputs = []
    with torch.no_grad():
        with pytest.warns(UserWarning, match="runs as it is, since it cannot be captured: the model changes"):
            outputs.append(fast(x))
        outputs += [fast(x), fast(x)]
        assert_same(outputs, [F.linear(x, model.linear.weight, model.linear.bias)] * 3)
    assert model.calls == 3


def test_options(made: list[nn.Module]) -> None:
    model = sparse_(Residual(), 0.9)
    with torch.no_grad():
        assert_same(compiled(model, max_error=0.9)(image(2)), model(image(2)), 1.0)
    assert len(made) == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [({"polcy": "model"}, r"\['polcy'\]"), ({"policy": "guess"}, "'guess'"), ({"example_inputs": 1}, "expected opt")],
)
def test_wrong_options(options: dict[str, Any], text: str) -> None:
    fast = torch.compile(nn.Linear(4, 4), backend="sparsecore", options=options)
    with torch.no_grad(), pytest.raises(Exception, match=text):
        fast(torch.ones(2, 4))


@pytest.mark.parametrize("name", ["residual", "classifier"])
def test_inference_mode(name: str, made: list[nn.Module]) -> None:
    make, channels = NETWORKS[name]
    model = sparse_(make(), 0.9)
    fast = compiled(model)
    with torch.inference_mode():
        for batch in (2, 1, 2):
            x = image(batch, channels, seed=batch)
            assert_same(fast(x), model(x), 1e-4)
    with torch.no_grad():
        assert_same(fast(image(2, channels)), model(image(2, channels)), 1e-4)
    assert made


def test_bfloat16(made: list[nn.Module]) -> None:
    model = sparse_(Residual(), 0.9).bfloat16()
    fast = compiled(model)
    x = image(2).bfloat16()
    with torch.no_grad():
        assert_same(fast(x), model(x), 0.1)
    assert made


def test_a_function_without_inputs(made: list[nn.Module]) -> None:
    fast = torch.compile(lambda: torch.ones(3) * 2, backend="sparsecore")
    with torch.no_grad():
        assert torch.equal(fast(), torch.full((3,), 2.0))
    assert not made


class TakesSize(nn.Module):
    """A plain number among the arguments, which Dynamo may leave open."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, factor: int) -> Tensor:
        return self.linear(x) * factor + torch.zeros(x.shape[0], 8)


def test_numbers_that_change() -> None:
    model = sparse_(TakesSize(), 0.9)
    fast = compiled(model)
    with torch.no_grad():
        for batch, factor in ((2, 1), (3, 2), (4, 3), (1, 4)):
            x = torch.randn(batch, 8)
            assert_same(fast(x, factor), model(x, factor))


def test_dynamic_sizes() -> None:
    model = sparse_(TakesSize(), 0.9)
    fast = torch.compile(model, backend="sparsecore", dynamic=True, options=QUICK)
    with torch.no_grad():
        for batch in (2, 5, 1):
            x = torch.randn(batch, 8)
            assert_same(fast(x, 2), model(x, 2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x))


def test_modules_of_one_class_keep_their_own_weights() -> None:
    models = [Block().eval() for _ in range(3)]
    x = torch.randn(4, 16)
    with torch.no_grad():
        for _ in range(2):
            for model in models:
                fast = torch.compile(model, backend="sparsecore", options={"policy": "model"})
                assert_same(fast(x), model(x))


def test_changed_weights_are_seen() -> None:
    model = Block().eval()
    fast = torch.compile(model, backend="sparsecore", options={"policy": "model"})
    x = torch.randn(4, 16)
    with torch.no_grad():
        fast(x)
        model.linear.bias.add_(1)
        with pytest.warns(UserWarning, match="weights changed since they were compiled"):
            got = fast(x)
        assert_same(got, model(x))
        model.linear.weight = nn.Parameter(torch.randn(16, 16))
        assert_same(fast(x), model(x))


class ChangesItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x.add_(1)
        return self.linear(x)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_inputs_change_once() -> None:
    model = ChangesItsInput().eval()
    x = torch.zeros(2, 8)
    with torch.no_grad():
        got = torch.compile(model, backend="sparsecore", options={"policy": "model"})(x)
        assert torch.equal(x, torch.ones(2, 8))
        assert_same(got, model.linear(x))
