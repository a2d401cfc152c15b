"""compile(): the model's function, its interface, and the reasons."""

from __future__ import annotations

import copy
import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from bits import assert_same_on_any_number_of_threads
from networks import NETWORKS, Classifier, DataDependent, Residual, assert_same, image, sparse_
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import sparsecore as sc
from sparsecore.graph.compiled import MAX_PROGRAMS, CompiledModule


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSECORE_CACHE_DIR", str(tmp_path))


def compiled(model: nn.Module, x: Any, **options: Any) -> Any:
    return sc.compile(model, x, **{"policy": "model", **options})


@pytest.mark.parametrize("name", NETWORKS)
def test_computes_what_the_model_does(name: str) -> None:
    make, channels = NETWORKS[name]
    model = sparse_(make(), 0.9)
    before = copy.deepcopy(model.state_dict())
    fast = compiled(model, image(1, channels))
    assert isinstance(fast, CompiledModule)
    for batch in (1, 4, 1):
        x = image(batch, channels, seed=batch)
        with torch.no_grad():
            want = model(x)
        got = fast(x)
        assert_same(got, want, 1e-4)
        assert type(got) is type(want)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_really_measured() -> None:
    fast = sc.compile(sparse_(Classifier(), 0.9), image(1, 3, 32, 32))
    explanation = sc.explain(fast)
    assert explanation.pass_us is not None
    named = {row.name: row for row in explanation}
    assert set(named) == {"stem.0", "block.conv1", "block.conv2", "block.project", "fc"}
    spent = sum(row.time_us or 0 for row in explanation) + sum(explanation.between_us.values())
    assert 0.2 * explanation.pass_us < spent  # small layers: clocks are a part of it
    text = str(explanation)
    assert "a pass takes" in text
    assert explanation.prediction_error is not None
    assert f"off by a factor of {explanation.prediction_error:.2f}" in text.replace("\n", " ")
    assert json.loads(json.dumps(explanation.to_dict()))["pass_us"] == explanation.pass_us
    assert "a pass takes" in explanation._repr_html_()


def test_not_slower_means_dense_where_there_are_no_zeros() -> None:
    model = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)).eval()
    x = image(1, 64, 28, 28)
    fast = sc.compile(model, x)
    assert {row.format for row in sc.explain(fast)} == {"dense"}
    with torch.no_grad():
        assert_same(fast(x), model(x), 1e-4)


def test_policy_fixes_layers() -> None:
    model = sparse_(Residual(), 0.9)
    kernels = [k["name"] for k in sc._C.kernels() if k["op"] == "conv2d" and k["available"]]  # type: ignore[attr-defined]
    fixed = {"conv1": "csr", "conv2": "dense", "project": "panel"}
    fast = compiled(model, image(1), policy=fixed)
    assert {row.name: row.format for row in sc.explain(fast)} == fixed
    assert all("fixed" in row.reason for row in sc.explain(fast))
    fast = sc.convert(model, image(1), policy={"conv1": kernels[-1]})
    assert {row.name: row.kernel for row in sc.explain(fast)}["conv1"] == kernels[-1]
    with pytest.raises(ValueError, match=r"nothing in the model is called \['conv9'\]"):
        compiled(model, image(1), policy={"conv9": "csr"})
    with pytest.raises(ValueError, match="conv1 cannot run as 'best'; expected one of"):
        compiled(model, image(1), policy={"conv1": "best"})
    with pytest.raises(ValueError, match=r"conv1 cannot run as '4x1': expected .*blocks"):
        compiled(model, image(1), policy={"conv1": "4x1"})
    with pytest.raises(ValueError, match="conv1 cannot run as 'csr': float64"):
        sc.convert(model.double(), image(1).double(), policy={"conv1": "csr"})
    model.float()
    with pytest.raises(ValueError, match=r"expected policy as \{layer: format or kernel\}, names both"):
        compiled(model, image(1), policy={"conv1": ["csr"]})
    with pytest.raises(ValueError, match=r"\['bn1'\] have no other form; expected some of \['conv1'"):
        compiled(model, image(1), policy={"bn1": "csr"})


@pytest.mark.usefixtures("times")
def test_times_are_a_file_that_can_be_shipped(tmp_path: Path) -> None:
    file = tmp_path / "times.json"
    model = sparse_(Residual(), 0.9)
    first = sc.compile(model, image(1), cache=file)
    content = file.read_text()
    assert "recorded" in content
    second = sc.compile(model, image(1), cache=str(file))
    assert [row.format for row in sc.explain(second)] == [row.format for row in sc.explain(first)]
    assert file.read_text() == content
    file.write_text("damaged")
    sc.compile(model, image(1), cache=file)
    assert json.loads(file.read_text())["machines"]


def test_an_error_budget_allows_int8(times: dict[str, float]) -> None:
    times |= {"int8": 1.0, "lookup int8": 2.0, "bitmap int8": 2.0}
    model = sparse_(Residual(), 0.5)
    fast = sc.compile(model, image(4), max_error=0.05)
    assert {row.format for row in sc.explain(fast)} == {"int8"}
    assert all(0 < (row.error or 0) < 0.05 for row in sc.explain(fast))  # residuals are a part of the output
    with torch.no_grad():
        x = image(4, seed=3)
        assert (fast(x) - model(x)).norm() <= 0.1 * model(x).norm()


def test_what_cannot_be_captured_is_converted_with_the_reason() -> None:
    model = nn.Sequential(DataDependent(), nn.Linear(8, 8)).eval()
    with pytest.warns(UserWarning, match=r"converted layer by layer, since it cannot be captured: torch.export"):
        fast = compiled(model, torch.ones(2, 8))
    assert not isinstance(fast, CompiledModule)
    assert "cannot be captured" in sc.explain(fast).note
    assert "cannot be captured" in str(sc.explain(fast))
    with torch.no_grad():
        assert_same(fast(-torch.ones(2, 8)), model(-torch.ones(2, 8)))


class Branches(nn.Module):
    """Something else for one image than for several."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] == 1 else x * 3


def test_a_model_that_looks_at_its_batch() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Branches()).eval()
    several, one = torch.randn(2, 4), torch.randn(1, 4)
    fast = compiled(model, several)
    assert_same(fast(several), model(several))
    with pytest.raises(RuntimeError, match=r"expected shape \[batch, 4\]"):
        fast(one)
    with pytest.warns(UserWarning, match="the graph computes something else"):
        fast = compiled(model, one)
    assert_same(fast(one), model(one))
    assert_same(fast(several), model(several))


def test_bad_input() -> None:
    fast = compiled(sparse_(Classifier()), image(1, 3, 32, 32))
    with pytest.raises(
        RuntimeError, match=r"x: expected shape \[batch, 3, 32, 32\] as when compiled.*got \[1, 3, 32, 31\]"
    ):
        fast(image(1, 3, 32, 31))
    with pytest.raises(RuntimeError, match=r"expected shape"):
        fast(image(0, 3, 32, 32))
    with pytest.raises(RuntimeError, match=r"expected a torch.float32 tensor, got torch.float64"):
        fast(image(1, 3, 32, 32).double())
    with pytest.raises(TypeError, match="expected the arguments that the model was compiled with"):
        fast()
    with pytest.raises(TypeError, match="expected the arguments that the model was compiled with"):
        fast(image(1, 3, 32, 32), 3)
    with pytest.raises(sc.UnsupportedError, match=r"compile the model in that dtype"):
        fast.half()
    for wrong in ({"policy": "guess"}, {"exclude": ["nothing"]}, {"max_error": -1.0}):
        with pytest.raises(ValueError, match=r"expected|nothing in the model"):
            sc.compile(Classifier().eval(), image(1, 3), **wrong)
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module"):
        sc.compile("model", image(1, 3))  # type: ignore[arg-type]


class FewAndMany(nn.Module):
    """Something else from eight images on."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] < 8 else x * 3


def test_largest_batch() -> None:
    model = nn.Sequential(nn.Linear(4, 4), FewAndMany()).eval()
    fast = compiled(model, torch.randn(4, 4))
    x = torch.randn(7, 4)
    assert_same(fast(x), model(x))
    with pytest.raises(RuntimeError, match=r"free from 1 to 7, got \[8, 4\]"):
        fast(torch.randn(8, 4))


class Tied(nn.Module):
    """Two layers with one weight, and biases of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu()) + self.second.bias


def test_a_weight_of_two_layers() -> None:
    model, x = Tied().eval(), torch.randn(9, 16)
    fast = compiled(model, x)
    assert isinstance(fast, CompiledModule)
    assert_same(fast(x), model(x))
    assert [row.name for row in sc.explain(fast)] == ["first", "second"]


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, *, scale: Tensor, double: bool = False) -> dict[str, Tensor]:
        y = self.linear(x) * scale
        return {"y": y * 2 if double else y}


class Difference(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, a: Tensor, b: Tensor, pair: tuple[Tensor, Tensor] | None = None) -> Tensor:
        y = self.linear(a) - b
        return y if pair is None else y + pair[0] * pair[1]


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a"), ()])
def test_arguments_by_position_or_by_name(names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """However the model was compiled, it takes what the model itself takes; flat ones without walking through trees."""
    model = sparse_(Difference())
    given = {"a": torch.randn(3, 8), "b": torch.randn(3, 8)}
    a, b = given.values()
    fast = compiled(model, {name: given[name] for name in names} if names else (a, b))
    with torch.no_grad():
        want = model(a, b)
        assert_same(fast(a, b), want)
        monkeypatch.setattr("torch.utils._pytree.tree_flatten", None)
        for call in (fast(a, b), fast(a, b=b), fast(a=a, b=b), fast(b=b, a=a)):
            assert torch.equal(call, fast(a, b))
    monkeypatch.undo()
    for arguments, further in (
        ((), {"a": a}),
        ((a,), {"a": a}),
        ((a, b), {"b": b}),
        ((a, b, a), {}),
        ((a, b), {"c": b}),
    ):
        with pytest.raises(TypeError, match="expected the arguments that the model was compiled with"):
            fast(*arguments, **further)


def test_arguments_that_hold_tensors_by_position_or_by_name() -> None:
    model = sparse_(Difference())
    a, b, c = (torch.randn(3, 8) for _ in range(3))
    fast = compiled(model, (a, b, (b, c)))
    with torch.no_grad():
        want = fast(a, b, (b, c))
        assert_same(want, model(a, b, (b, c)))
        assert torch.equal(fast(a, pair=(b, c), b=b), want)
    with pytest.raises(TypeError, match="expected the arguments"):
        fast(a, b, [b, c])
    with pytest.raises(TypeError, match="expected the arguments"):
        fast(a, b, b)


def test_keyword_arguments_and_constants() -> None:
    model = sparse_(Keywords())
    x, scale = torch.randn(3, 8), torch.randn(3, 1)
    fast = compiled(model, {"x": x, "scale": scale, "double": True})
    with torch.no_grad():
        assert_same(fast(x=x, scale=scale, double=True), model(x, scale=scale, double=True))
        assert_same(fast(double=True, scale=scale, x=x), model(x, scale=scale, double=True))
    with pytest.raises(TypeError, match="expected the arguments that the model was compiled with"):
        fast(x=x, scale=scale)
    with pytest.raises(RuntimeError, match="expected True as when compiled, got False"):
        fast(x=x, scale=scale, double=False)
    with pytest.raises(RuntimeError, match="expected shape"):  # one batch size for both
        fast(x=x, scale=scale[:2], double=True)


def test_programs_are_few() -> None:
    fast = compiled(sparse_(Residual()), image(1))
    for batch in range(1, MAX_PROGRAMS + 4):
        fast(image(batch))
    assert len(fast._programs) == MAX_PROGRAMS
    oldest, second = list(fast._programs)[:2]
    fast(image(oldest[1][0]))  # used again: the next to go is the second
    fast(image(50))
    assert oldest in fast._programs
    assert second not in fast._programs


def test_gradients_reach_the_input() -> None:
    model = sparse_(Residual())
    fast = compiled(model, image(1))
    x, y = (image(2).requires_grad_() for _ in range(2))
    fast(x).square().sum().backward()
    model(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-3, atol=1e-3)


def test_copies_and_state() -> None:
    model = sparse_(Residual(), 0.9)
    fast = compiled(model, image(1))
    want = fast(image(2))
    twin = copy.deepcopy(fast)
    assert torch.equal(twin(image(2)), want)
    for value in twin.parameters():
        value.data.zero_()
    twin.load_state_dict(fast.state_dict())
    assert torch.equal(twin(image(2)), want)


def test_loading_other_weights_is_seen() -> None:
    policy = dict.fromkeys(("conv1", "conv2", "project"), "csr")
    a, b = (compiled(sparse_(Residual(), seed=seed), image(1), policy=policy) for seed in (1, 2))
    a(image(2))
    a.load_state_dict(b.state_dict())
    assert torch.equal(a(image(2)), b(image(2)))


def test_threads_at_the_same_time() -> None:
    model = sparse_(Residual(64), 0.9)
    fast = compiled(model, image(1, 64))
    inputs = [image(1, 64, seed=seed) for seed in range(8)]
    want = [fast(x) for x in inputs]
    wrong = []

    def work(i: int) -> None:
        for _ in range(50):
            if not torch.equal(fast(inputs[i]), want[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_number_of_threads_does_not_change_the_output() -> None:
    fast = compiled(sparse_(Residual(64), 0.9), image(1, 64))
    x = image(1, 64)
    assert_same_on_any_number_of_threads(lambda: [fast(x)])


def test_channels_last_inputs() -> None:
    model = sparse_(Classifier(), 0.9)
    fast = compiled(model, image(1, 3, 32, 32))
    x = image(2, 3, 32, 32)
    assert_same(fast(x.contiguous(memory_format=torch.channels_last)), fast(x))


def test_torch_compile_and_export() -> None:
    model = sparse_(Residual(), 0.9)
    fast = compiled(model, image(1))
    x = image(1)
    want = fast(x)
    with torch.no_grad():
        optimized = torch.compile(fast, backend="aot_eager", fullgraph=True)
        assert_same(optimized(x), want)
        assert sc.explain(optimized) is sc.explain(fast)
        program = torch.export.export(fast, (x,))
        assert_same(program.module()(x), want)


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x.mul_(2)
        return self.linear(x) + self.calls


def test_looking_at_a_model_changes_nothing() -> None:
    x = torch.ones(2, 8)
    with pytest.warns(UserWarning, match="changes"):
        fast = compiled(Counter().eval(), x)
    assert torch.equal(x, torch.ones(2, 8))
    assert float(fast.calls) == 0


def test_batchnorm_without_weights() -> None:
    model = sparse_(nn.Sequential(nn.Linear(16, 24), nn.BatchNorm1d(24, affine=False), nn.ReLU()))
    x = torch.randn(4, 16)
    fast = compiled(model, x)
    assert {node.target for node in fast.graph_module.graph.nodes if node.op.startswith("call")} == {"0"}
    with torch.no_grad():
        assert_same(fast(x), model(x))


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return torch.relu(self.conv(x) * gate + gate)


@pytest.mark.parametrize("batches", [(2, 1), (1, 2), (2, 2), (1, 1)])
@pytest.mark.parametrize("size", [1, 5])
def test_inputs_that_broadcast(batches: tuple[int, int], size: int) -> None:
    model = sparse_(Gate(), 0.9)
    inputs = (image(batches[0], 16, 5, 5), image(batches[1], 16, size, size))
    fast = compiled(model, inputs)
    with torch.no_grad():
        assert_same(fast(*inputs), model(*inputs), 1e-4)


class SharedWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(self.bn(self.conv(x)), self.conv.weight, padding=1)


def test_a_weight_in_two_products(tmp_path: Path) -> None:
    model = sparse_(SharedWeight(), 0.9)
    fast = compiled(model, image(2, 8))
    with torch.no_grad():
        assert_same(fast(image(1, 8)), model(image(1, 8)), 1e-4)
    sc.save(fast, tmp_path / "m.safetensors")
    loaded = sc.load(tmp_path / "m.safetensors", SharedWeight)
    assert torch.equal(loaded(image(1, 8)), fast(image(1, 8)))


def test_pickle_says_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"save it with sparsecore.save\(\)"):
        pickle.dumps(compiled(sparse_(Residual()), image(1)))


def test_shapes_without_numbers() -> None:
    fast = compiled(sparse_(Residual()), image(1))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert fast(mode.from_tensor(image(3))).shape == (3, 16, 13, 11)
    x = image(1)
    with torch.no_grad():
        traced = torch.jit.trace(fast, x)
        assert_same(traced(x), fast(x))


def test_a_compiled_model_is_not_compiled_again() -> None:
    fast = compiled(Residual(), image(1))
    with pytest.raises(ValueError, match="compile the original again"):
        compiled(fast, image(1))


def test_several_threads_compile_at_once() -> None:
    models = [sparse_(Residual(), 0.9) for _ in range(4)]
    with ThreadPoolExecutor(len(models)) as pool:
        fast = list(pool.map(lambda model: compiled(model, image(2)), models))
    assert all(isinstance(one, CompiledModule) for one in fast), "none was left uncaptured"
    with torch.no_grad():
        for one, model in zip(fast, models, strict=True):
            assert_same(one(image(2)), model(image(2)), 1e-4)
