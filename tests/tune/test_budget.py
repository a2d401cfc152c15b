"""convert(max_error=...): int8 only where it is faster and fits, and every error is what a recomputation gives."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsecore as sc
from sparsecore.graph import fold_batchnorm
from sparsecore.nn import SparseInt4Linear, SparseLinear
from sparsecore.tune import measure
from sparsecore.tune.budget import Option, excessive, keep_within
from sparsecore.tune.candidates import INTEGER_FORMATS

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
NAMES = ("0", "3", "6", "8")


def net() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 64, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    ).eval()
    sc.prune(model, 0.7)
    return model


@pytest.fixture
def fast_int8(times: dict[str, float]) -> dict[str, float]:
    times["lookup int8"] = 20.0
    return times


@torch.no_grad()
def error_of(fast: nn.Module, model: nn.Module, x: Any = X) -> float:
    """Relative error of the worst output in float64."""

    def tensors(output: Any) -> Iterable[Tensor]:
        if isinstance(output, Tensor):
            return [output]
        return [t for part in (output.values() if isinstance(output, dict) else output) for t in tensors(part)]

    pairs = zip(tensors(fast(x)), tensors(model(x)), strict=True)
    return max(float((y.double() - exact.double()).norm() / exact.double().norm()) for y, exact in pairs)


def int8_names(fast: nn.Module) -> set[str]:
    return {row.name for row in sc.explain(fast) if row.format in INTEGER_FORMATS}


@pytest.mark.parametrize("max_error", [1e-6, 0.0005, 0.001, 0.0015, 0.002, 0.0025, 1000.0])
def test_the_output_stays_within_the_budget(max_error: float, fast_int8: dict[str, float]) -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    fast = sc.convert(model, X, max_error=max_error)
    budget = sc.explain(fast).budget
    error = error_of(fast, model)
    assert error <= max_error
    assert budget.error == pytest.approx(error, rel=1e-6, abs=1e-9)
    assert budget.max_error == max_error
    assert budget.num_given_up == 4 - len(int8_names(fast))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_tiny_budgets_give_float_and_huge_ones_the_fastest(fast_int8: dict[str, float]) -> None:
    model = net()
    tiny, huge, none = (sc.convert(model, X, max_error=e) for e in (1e-9, 1e9, None))
    assert {row.format for row in sc.explain(tiny)} == {row.format for row in sc.explain(none)} == {"csr"}
    assert torch.equal(tiny(X), none(X))
    for row in sc.explain(tiny):
        assert "int8 ruled out (own error 0." in row.reason
        assert "alone exceeds max_error" in row.reason
        assert "lookup int8" not in row.reason
    assert "none of 4 layers in integers; 4 held back by it" in str(sc.explain(tiny))
    assert {row.format for row in sc.explain(huge)} == {"lookup int8"}
    assert sc.explain(none).budget is None
    whole = sc.explain(huge).budget.error
    between = [sc.convert(model, X, max_error=share * whole) for share in (0.1, 0.5, 0.9, 1.0)]
    counts = [len(int8_names(fast)) for fast in between]
    assert counts == sorted(counts)
    assert counts[-1] == 4
    assert any(0 < count < 4 for count in counts), "some budgets are in between"
    given_up = [row for row in sc.explain(between[2]) if row.format == "csr"]
    assert given_up, "each fits alone, not all together"
    assert all("without lookup int8, which would exceed max_error" in row.reason for row in given_up)


def test_int8_is_never_taken_where_it_is_slower(times: dict[str, float]) -> None:
    for time in (55.0, 49.0):  # csr takes 50, and less than 3% is noise
        times["lookup int8"] = time
        fast = sc.convert(net(), X, max_error=1e9, cache=False)
        assert {row.format for row in sc.explain(fast)} == {"csr"}
        assert sc.explain(fast).budget.num_given_up == 0
        reason = sc.explain(fast).rows[0].reason
        assert f"lookup int8 {time:.0f} us (error " in reason, "what it would have cost is said"


def test_explained_errors_equal_a_recomputation(fast_int8: dict[str, float]) -> None:
    model = net()
    whole = sc.explain(sc.convert(model, X, max_error=1e9)).budget.error
    nearly_all = sc.explain(sc.convert(model, X, max_error=0.9 * whole)).rows
    fast = sc.convert(model, X, max_error=1e9)
    folded = fold_batchnorm(model, X)
    inputs: dict[str, Tensor] = {}
    for name in NAMES:
        folded[int(name)].register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
    with torch.no_grad():
        folded(X)
        for row, again in zip(sc.explain(fast), nearly_all, strict=True):
            layer = folded[int(row.name)]
            kind = sc.nn.Int8Conv2d if isinstance(layer, nn.Conv2d) else sc.nn.Int8Linear
            expected = error_of(kind.from_dense(layer), layer, inputs[row.name])
            assert 0 < expected < 0.05
            assert row.error == pytest.approx(expected, rel=1e-5)
            if again.format == "csr":
                assert again.error == 0.0
                assert f"lookup int8 20 us (error {expected:.3%})" in again.reason
            else:
                assert again.error == row.error


def test_layers_without_zeros_become_dense_int8(times: dict[str, float]) -> None:
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    x = torch.randn(5, 64)
    fast = sc.convert(model, x, max_error=0.1)
    assert [row.format for row in sc.explain(fast)] == ["int8", "int8"]
    assert error_of(fast, model, x) <= 0.1
    reason = sc.explain(fast).rows[0].reason
    assert "dense 100 us" in reason
    assert "fewer than 30% zeros" in reason
    assert "csr" not in reason, "sparse formats are not even measured"
    for row in sc.explain(sc.convert(model, x)):
        assert row.format == "dense"
        assert "fewer than 30% zeros" in row.reason


class Outputs(nn.Module):
    """A good output and one that int8 spoils, for it is the small difference of large numbers."""

    def __init__(self, make: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.other, self.make = nn.Linear(64, 64), nn.Linear(64, 64), make
        self.other.weight.data.copy_(self.layer.weight + 1e-3 * torch.randn(64, 64))

    def forward(self, x: Tensor) -> Any:
        y = self.layer(x)
        return self.make(y, y - self.other(x))


@pytest.mark.parametrize("make", [lambda a, b: (a, [b]), lambda a, b: {"a": a, "b": b}], ids=["tuple", "dict"])
def test_the_worst_of_several_outputs_counts(make: Callable[[Tensor, Tensor], Any], times: dict[str, float]) -> None:
    model, x = Outputs(make).eval(), torch.randn(6, 64)
    with torch.no_grad():
        model.other.bias.copy_(model.layer.bias)
    loose = sc.convert(model, {"x": x}, max_error=100.0)
    assert int8_names(loose) == {"layer", "other"}
    error = error_of(loose, model, x)
    assert error > 0.05
    assert sc.explain(loose).budget.error == pytest.approx(error, rel=1e-6)
    assert not int8_names(sc.convert(model, (x,), max_error=0.05)), "though the first output is good"


def test_shared_layers_stay_shared(fast_int8: dict[str, float]) -> None:
    layer = nn.Linear(64, 64)
    model = nn.Sequential(layer, nn.ReLU(), layer).eval()
    sc.prune(model, 0.7)
    x = torch.randn(20, 64)
    fast = sc.convert(model, x, max_error=0.1)
    assert isinstance(fast[0], sc.nn.SparseInt8Linear)
    assert fast[0] is fast[2]
    (row,) = sc.explain(fast)
    assert row.time_us == 40.0, "two calls of 20"
    assert sc.explain(fast).budget.error == pytest.approx(error_of(fast, model, x), rel=1e-6)
    with torch.no_grad():
        inputs = [x, model[:2](x)]
        y, int8 = (torch.cat([form(part) for part in inputs]) for form in (layer, fast[0]))
    assert row.error == pytest.approx(float((int8 - y).norm() / y.norm()), rel=1e-4)


@pytest.mark.parametrize("layer", [nn.Linear(64, 32), nn.Conv2d(4, 8, 3)], ids=["linear", "conv"])
def test_a_model_that_is_one_layer(layer: nn.Module, fast_int8: dict[str, float]) -> None:
    sc.prune(nn.Sequential(layer), 0.7)
    x = torch.randn(20, 64) if isinstance(layer, nn.Linear) else torch.randn(2, 4, 9, 9)
    fast = sc.convert(layer, x, max_error=0.1)
    assert isinstance(fast, sc.nn.SparseInt8Linear | sc.nn.SparseInt8Conv2d)
    assert sc.explain(fast).rows[0].error == pytest.approx(error_of(fast, layer, x), rel=1e-6)


def test_sparse_float_layers_become_int8_too(fast_int8: dict[str, float]) -> None:
    layer = nn.Linear(64, 32)
    sc.prune(nn.Sequential(layer), 0.7)
    model = nn.Sequential(sc.nn.SparseLinear.from_dense(layer, activation="relu")).eval()
    fast = sc.convert(model, torch.randn(20, 64), max_error=0.1)
    assert isinstance(fast[0], sc.nn.SparseInt8Linear)
    assert fast[0].activation == "relu"


def test_quantized_models_choose_as_without_a_budget(times: dict[str, float]) -> None:
    model = sc.quantize(net())
    assert {row.format for row in sc.explain(sc.convert(model, X, max_error=0.1))} == {"lookup int8"}
    times["dense"] = 5.0
    fast = sc.convert(model, X, max_error=0.1, cache=False)
    assert {row.format for row in sc.explain(fast)} == {"dense"}
    assert all(0 < row.error < 0.05 for row in sc.explain(fast)), "float32 activations are another type here"
    assert error_of(fast, model) <= 0.1
    strict = sc.convert(model, X, max_error=1e-6, cache=False)
    assert {row.format for row in sc.explain(strict)} == {"lookup int8"}
    for row in sc.explain(strict):
        assert row.dense_us == 5.0, "timed to compare with"
        assert "float ruled out (own error " in row.reason
        assert "without dense" not in row.reason
    assert sc.explain(strict).budget.error == 0.0


def test_16_bit_models(fast_int8: dict[str, float]) -> None:
    model, x = net().bfloat16(), X.bfloat16()
    fast = sc.convert(model, x, max_error=0.1)
    assert len(int8_names(fast)) == 4
    assert fast(x).dtype == torch.bfloat16
    assert error_of(fast, model, x) <= 0.1


def test_the_cost_model_measures_the_error_too() -> None:
    model = net()
    fast = sc.convert(model, X, policy="model", max_error=1e9)
    assert len(int8_names(fast)) == 4
    assert sc.explain(fast).budget.error == pytest.approx(error_of(fast, model), rel=1e-6)
    assert all(row.error > 0 for row in sc.explain(fast))
    assert all("cost model" in row.reason for row in sc.explain(fast))
    assert not int8_names(sc.convert(model, X, policy="model", max_error=1e-9))
    assert error_of(sc.convert(model, X, policy="model", max_error=0.001), model) <= 0.001


def test_progress_ends_at_1(times: dict[str, float]) -> None:
    shares: list[float] = []
    sc.convert(net(), X, max_error=0.01, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert shares.count(1.0) == 1


@pytest.mark.parametrize("max_error", [0, -0.1, math.nan, math.inf, "a", True, torch.ones(2)])
def test_bad_budgets(max_error: Any) -> None:
    with pytest.raises(ValueError, match="expected max_error as a finite number above 0"):
        sc.convert(net(), X, max_error=max_error)


@pytest.mark.parametrize("policy", [None, "model"])
def test_an_error_cannot_be_measured_without_an_example(policy: Any) -> None:
    with pytest.raises(ValueError, match="max_error needs example_inputs"):
        sc.convert(net(), policy=policy, max_error=0.01)


def test_outputs_that_are_not_numbers() -> None:
    with pytest.raises(ValueError, match="expected numbers from the model, got NaN"):
        sc.convert(net(), torch.full_like(X, math.nan), max_error=0.01)


def test_weights_that_int8_cannot_hold_stay_float(fast_int8: dict[str, float]) -> None:
    layer = nn.Linear(64, 32)
    sc.prune(nn.Sequential(layer), 0.7)
    layer.weight.data[3, 5] = math.inf
    fast = sc.convert(layer, torch.rand(20, 64) + 1, max_error=0.1)
    assert sc.explain(fast).rows[0].format == "csr"
    assert "int8" not in sc.explain(fast).rows[0].reason


def test_times_of_int8_in_the_cache_do_not_disturb(times: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    fixed = measure._measure
    monkeypatch.setattr(measure, "_measure", lambda forms, *rest: measured.append(set(forms)) or fixed(forms, *rest))
    model = net()
    sc.convert(model, X, max_error=0.01)
    count = len(measured)
    assert count == 4
    for max_error in (None, 0.01):
        sc.convert(model, X, max_error=max_error)
    assert len(measured) == count, "all from the cache"


def test_the_table_fits_100_columns_and_json(fast_int8: dict[str, float], tmp_path: Path) -> None:
    fast = sc.convert(net(), X, max_error=0.0015)
    explanation = sc.explain(fast)
    text = str(explanation)
    assert max(map(len, text.splitlines())) <= 100
    assert text.splitlines()[0].endswith("error")
    assert f"\noutput error {explanation.budget.error:.3%} of 0.150% allowed" in text
    assert explanation._summary()[0] in explanation._repr_html_()
    data = json.loads(json.dumps(explanation.to_dict()))
    assert data["budget"]["max_error"] == 0.0015
    assert [row["error"] for row in data["rows"]] == [row.error for row in explanation]
    assert str(sc.explain(copy.deepcopy(fast))) == text
    sc.save(fast, tmp_path / "m.safetensors")
    loaded = sc.load(tmp_path / "m.safetensors", net)
    assert torch.equal(loaded(X), fast(X))
    assert {row.error for row in sc.explain(loaded)} == {None}, "not measured there"


Options = dict[nn.Module, list[Option]]


def options_of(errors: Iterable[float], saved: Iterable[float]) -> Options:
    """Layers that are exact in 1000, or faster with an error."""
    pairs = list(zip(errors, saved, strict=True))
    forms = [
        [Option("own", nn.Identity(), 1000.0, 0.0), Option("fast", nn.Identity(), 1000.0 - time, error)]
        for error, time in pairs
    ]
    return {nn.Identity(): form for form in forms}


class Sums:
    """A model whose error is the root of the sum of the squares of its layers' errors."""

    def __init__(self, options: Options) -> None:
        self.errors = {option.form: option.error for of_layer in options.values() for option in of_layer}
        self.runs = 0

    def __call__(self, forms: Mapping[nn.Module, nn.Module]) -> float:
        self.runs += 1
        return math.hypot(*(self.errors[form] for form in forms.values()))


@pytest.mark.parametrize("max_error", [1e-9, 0.01, 0.05, 0.1, 0.2, 1.0])
def test_a_run_for_every_layer_and_a_bisection_give_up_no_more_than_needed(max_error: float) -> None:
    random = torch.rand(2, 100, generator=torch.Generator().manual_seed(0)).tolist()
    options = options_of((0.03 * e for e in random[0]), (1 + 100 * t for t in random[1]))
    error_with = Sums(options)
    chosen, error = keep_within(options, error_with, max_error)
    assert error <= max_error
    assert error == pytest.approx(math.hypot(*(option.error for option in chosen.values())))
    assert error_with.runs <= 1 + len(options) + 8
    fast = [of_layer[1] for of_layer in options.values()]
    order = sorted(fast, key=lambda option: -(option.error**2) / (1000.0 - option.time))
    kept = [option for option in order if option in chosen.values()]
    assert kept == order[len(order) - len(kept) :], "those that add most error for their time went"
    if len(kept) < len(options):
        one_more = order[len(order) - len(kept) - 1 :]
        assert math.hypot(*(option.error for option in one_more)) > max_error


def test_what_a_layer_does_to_the_output_decides_and_not_its_own_error() -> None:
    options = options_of([0.01] * 20, [100.0] * 20)
    growth = {of_layer[1].form: 10.0 if at < 4 else 0.1 for at, of_layer in enumerate(options.values())}
    own = Sums(options)

    def error_with(forms: Mapping[nn.Module, nn.Module]) -> float:
        return math.hypot(*(own.errors[form] * growth.get(form, 1.0) for form in forms.values()))

    shares: list[float] = []
    chosen, error = keep_within(options, error_with, 0.01, shares.append)
    assert [option.name for option in chosen.values()] == ["own"] * 4 + ["fast"] * 16
    assert error == pytest.approx(0.004)
    assert shares == [(done + 1) / 20 for done in range(20)]


def random_options(seed: int, layers: int) -> Options:
    """Up to five forms for each layer, some of them as fast, as exact or worse in both; the last one is exact."""
    draw = torch.Generator().manual_seed(seed)

    def some() -> list[Option]:
        count = int(torch.randint(0, 5, (), generator=draw))
        times = torch.randint(1, 8, (count,), generator=draw).tolist()
        errors = (torch.randint(1, 8, (count,), generator=draw) / 10).tolist()
        worst = [math.inf] if count and seed % 5 == 0 else []
        errors[: len(worst)] = worst
        forms = [Option(f"{i}", nn.Identity(), t, e) for i, (t, e) in enumerate(zip(times, errors, strict=True))]
        return [*forms, Option("own", nn.Identity(), 8.0, 0.0)]

    return {nn.Identity(): some() for _ in range(layers)}


@pytest.mark.parametrize("seed", range(40))
def test_one_layer_gets_the_fastest_of_its_forms_that_fits(seed: int) -> None:
    options = random_options(seed, layers=1)
    ((layer, forms),) = options.items()
    for max_error in (0.05, *(option.error for option in forms), 0.35, 0.75):
        chosen, error = keep_within(options, Sums(options), max_error)
        fitting = [option for option in forms if option.error <= max_error]
        assert chosen[layer].time == min(option.time for option in fitting)
        assert error == chosen[layer].error <= max_error


@pytest.mark.parametrize("seed", range(40))
def test_several_forms_of_many_layers(seed: int) -> None:
    options = random_options(seed, layers=30)
    order: list[float] = []
    for max_error in (0.01, 0.1, 0.5, 1.0, 2.0, 4.0, math.inf):
        error_with = Sums(options)
        chosen, error = keep_within(options, error_with, max_error)
        assert error == error_with({layer: option.form for layer, option in chosen.items()}) <= max_error
        for layer, option in chosen.items():
            others = [o for o in options[layer] if o.time <= option.time and o.error <= option.error]
            assert {(o.time, o.error) for o in others} == {(option.time, option.error)}, "none is better in both"
        order.append(sum(option.time for option in chosen.values()))
    assert order == sorted(order, reverse=True), "more error allowed never costs time"


def test_forms_that_cannot_fit_are_found_in_few_runs() -> None:
    errors = {"a": 0.3, "b": 0.001, "c": 0.2, "d": 0.02}
    alone = {"a": 0.1, "b": 1.0, "c": 0.02, "d": 0.005}
    runs: list[str] = []

    def error_alone(form: str) -> float:
        runs.append(form)
        return alone[form]

    assert excessive(errors, error_alone, 0.01) == {"a", "c"}
    assert runs == ["d", "c"], "b is within the budget by itself, and a is less exact than c"
    assert excessive(errors, error_alone, 0.5) == set()
    assert len(runs) == 2


@pytest.mark.parametrize("policy", ["measure", "model"])
def test_layers_without_entries(policy: Any) -> None:
    empty = nn.Linear(8, 8)
    empty.weight.data.zero_()
    model = nn.Sequential(empty, nn.Linear(8, 0))
    x = torch.randn(2, 8)
    torch.testing.assert_close(sc.convert(model, x, policy=policy, max_error=0.1)(x), model(x))


def test_nothing_to_choose_and_nothing_that_fits() -> None:
    assert keep_within({}, lambda forms: 0.5, 0.1) == ({}, 0.5)
    options = options_of([1.0, math.inf], [1.0, 1.0])
    chosen, error = keep_within(options, lambda forms: 0.5, 0.1)
    assert {option.name for option in chosen.values()} == {"own"}
    assert error == 0.5, "the float error is told as it is"
    one = options_of([1.0], [1.0])
    chosen, error = keep_within(one, Sums(one), 2.0)
    assert [option.name for option in chosen.values()] == ["fast"]
    assert error == 1.0


# --- 4-bit values ---


def int4_errors(times: dict[str, float], max_error: float, rows: int = 3) -> list[tuple[str, float]]:
    """Formats and errors of a model for which 4 bits are fastest, then int8, then floats."""
    times |= {"lookup int8": 20.0, "lookup int4": 10.0}
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 16)).eval()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight *= torch.rand(layer.weight.shape) < 0.4
    fast = sc.convert(model, torch.randn(rows, 64), max_error=max_error, cache=False)
    assert sc.explain(fast).budget.error <= max_error
    return [(row.format, row.error or 0.0) for row in sc.explain(fast)]


def test_4_bits_where_the_budget_allows_them_and_int8_where_not(times: dict[str, float]) -> None:
    large, middle, tiny = (int4_errors(times, max_error) for max_error in (0.5, 0.03, 1e-5))
    assert [form for form, _ in large] == ["lookup int4"] * 2
    assert [form for form, _ in middle] == ["lookup int8"] * 2
    assert [form for form, _ in tiny] == ["csr"] * 2
    assert all(many > 3 * few > 0 for (_, many), (_, few) in zip(large, middle, strict=True))


def test_4_bits_are_for_few_rows(times: dict[str, float]) -> None:
    assert [form for form, _ in int4_errors(times, 0.5, rows=17)] == ["lookup int8"] * 2


def test_sparse_layers_become_4_bit_ones_and_stay_such(times: dict[str, float], tmp_path: Path) -> None:
    times |= {"lookup int4": 10.0}
    dense = nn.Linear(64, 48)
    model = nn.Sequential(SparseLinear.from_dense(dense, activation="relu"))
    x = torch.randn(2, 64)
    fast = sc.convert(model, x, max_error=0.5, cache=False)
    assert isinstance(fast[0], SparseInt4Linear)
    assert (fast[0].activation, fast[0].few_rows) == ("relu", True)
    again = sc.convert(fast, torch.randn(9, 64), cache=False)
    assert isinstance(again[0], SparseInt4Linear)
    assert not again[0].few_rows
    assert torch.equal(again(x), fast(x))
    assert {row.kernel.startswith("lookup") for row in sc.explain(fast)} == {True}
    sc.save(fast, tmp_path / "m.safetensors")
    assert torch.equal(sc.load(tmp_path / "m.safetensors", lambda: nn.Sequential(nn.Linear(64, 48)))(x), fast(x))


def test_the_cost_model_knows_4_bits() -> None:
    torch.manual_seed(0)
    dense = nn.Linear(512, 512)
    with torch.no_grad():
        dense.weight *= torch.rand(dense.weight.shape) < 0.1
    fast = sc.convert(nn.Sequential(dense), torch.randn(1, 512), max_error=0.9, policy="model")
    (row,) = sc.explain(fast)
    assert row.format == "lookup int4"
    assert row.error > 0
