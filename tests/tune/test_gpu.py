"""Choosing for a GPU, as if there were one: layers stay on the CPU, and times come from a clock that is set."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import cast

import pytest
import torch
from torch import Tensor, nn

import sparsecore as sc
from sparsecore.nn import (
    DeltaLinear,
    DeltaWeightOnlyLinear,
    DenseLinear,
    FragmentInt4Linear,
    FragmentInt8Linear,
    FragmentLinear,
    FragmentWeightOnlyLinear,
    RowsInt8Linear,
    SemiStructuredLinear,
    SparseLinear,
    TorchInt4WeightLinear,
    TorchInt8Linear,
    TorchInt8WeightLinear,
)
from sparsecore.nn.base import CompressedModule
from sparsecore.nn.int8_linear import WeightOnlyLinear
from sparsecore.nn.semi_structured import is_2_4
from sparsecore.ops import cuda as cuda_ops
from sparsecore.tune import candidates, chooser, gpu, measure
from sparsecore.tune.candidates import format_of, kernel_of, numeric_type, weight_statistics
from sparsecore.tune.gpu import CONVOLUTIONS_STAY, relative_gpu_time


class SetClock:
    """A clock of a GPU on which a form takes the time that was set for its class."""

    def __init__(self, microseconds: dict[type, float]) -> None:
        self.microseconds = microseconds
        self.now_ns = 0.0
        self.seen: set[type] = set()

    def __call__(self) -> int:
        return round(self.now_ns)

    def timed(self, call: Callable[[], object]) -> Callable[[], object]:
        kind = type(cast("partial[Tensor]", call).func)
        self.seen.add(kind)

        def run() -> None:
            self.now_ns += self.microseconds[kind] * 1e3

        return run


@pytest.fixture
def as_if_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (candidates, chooser, measure):
        monkeypatch.setattr(module, "is_on_gpu", lambda layer: True)
    monkeypatch.setattr(chooser, "device_of", lambda layer: torch.device("cuda", 0))
    monkeypatch.setattr(chooser, "check_cuda", lambda device, what: None)


def model(sparsity: float = 0.6) -> nn.Sequential:
    layer = nn.Linear(128, 64)
    with torch.no_grad():
        layer.weight *= torch.rand(64, 128) >= sparsity
    return nn.Sequential(layer).to(torch.bfloat16).eval()


def convert(
    monkeypatch: pytest.MonkeyPatch,
    dense: nn.Module,
    rows: int,
    times: dict[type, float],
    max_error: float | None = None,
    x: Tensor | None = None,
) -> nn.Module:
    clock = SetClock(times)
    monkeypatch.setattr(measure, "device_clock", lambda layer: clock)
    x = torch.randn(rows, 128).bfloat16() if x is None else x
    fast = sc.convert(dense, x, max_error=max_error, cache=False)
    assert clock.seen == times.keys()
    return fast


@pytest.mark.usefixtures("as_if_on_gpu")
@pytest.mark.parametrize(
    ("fastest", "name"), [(FragmentLinear, "fragment"), (DeltaLinear, "delta"), (SparseLinear, "csr")]
)
def test_the_fastest_form_is_taken(monkeypatch: pytest.MonkeyPatch, fastest: type, name: str) -> None:
    times = {nn.Linear: 10.0, FragmentLinear: 9.0, DeltaLinear: 9.0, SparseLinear: 9.0} | {fastest: 4.0}
    dense = model()
    fast = cast(nn.Sequential, convert(monkeypatch, dense, 4, times))
    assert type(fast[0]) is fastest
    assert torch.equal(cast(Tensor, fast[0].weight), dense[0].weight)
    row = sc.explain(fast).rows[0]
    assert (row.format, row.kernel) == (name, f"spmm_{name}")
    assert row.time_us == pytest.approx(4.0)
    assert row.dense_us == pytest.approx(10.0)
    assert row.roofline is None
    assert row.predicted_us is not None


INTEGER_FORMS: dict[type, str] = {
    RowsInt8Linear: "int8",
    FragmentInt8Linear: "fragment int8",
    TorchInt8Linear: "torch int8",
    FragmentWeightOnlyLinear: "fragment int8 weights",
    DeltaWeightOnlyLinear: "delta int8 weights",
    TorchInt8WeightLinear: "torch int8 weights",
    FragmentInt4Linear: "fragment int4 weights",
    TorchInt4WeightLinear: "torch int4 weights",
}
INT4_FORMS = (FragmentInt4Linear, TorchInt4WeightLinear)
EXACT_TIMES: dict[type, float] = {nn.Linear: 10.0, FragmentLinear: 9.0, DeltaLinear: 9.0, SparseLinear: 9.0}


def run_densely(layer: CompressedModule, x: Tensor, residual: Tensor | None) -> Tensor:
    return cast(Tensor, layer.to_dense_module().to(x.dtype)(x))


@pytest.fixture
def int8_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers for GPUs run on the CPU, with their weights."""
    for kind in (RowsInt8Linear, FragmentInt8Linear, WeightOnlyLinear, FragmentInt4Linear, FragmentLinear):
        monkeypatch.setattr(kind, "_run", run_densely)


@pytest.mark.usefixtures("as_if_on_gpu", "int8_on_cpu")
@pytest.mark.parametrize("fastest", INTEGER_FORMS)
def test_integers_are_taken_within_the_error(monkeypatch: pytest.MonkeyPatch, fastest: type) -> None:
    times = EXACT_TIMES | dict.fromkeys(INTEGER_FORMS, 8.0) | {fastest: 4.0}
    fast = cast(nn.Sequential, convert(monkeypatch, model(), 20, times, max_error=0.3))
    assert type(fast[0]) is fastest
    row = sc.explain(fast).rows[0]
    assert row.format == INTEGER_FORMS[fastest]
    assert row.error is not None
    assert 0 < row.error < 0.3
    assert f"1 of 1 layers in {numeric_type(row.format)}" in str(sc.explain(fast))
    for form, name in INTEGER_FORMS.items():
        assert form is fastest or f"{name} 8 us (error " in row.reason, "each with its error"


@pytest.mark.usefixtures("as_if_on_gpu", "int8_on_cpu")
def test_the_fastest_type_that_fits_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    integers = {**dict.fromkeys(INTEGER_FORMS, 8.0), RowsInt8Linear: 5.0, FragmentWeightOnlyLinear: 6.0}
    int4 = {FragmentInt4Linear: 2.0, TorchInt4WeightLinear: 3.0}
    times = EXACT_TIMES | integers | int4
    dense, x = model(), torch.randn(20, 128, generator=torch.Generator().manual_seed(2)).bfloat16()
    loose = cast(nn.Sequential, convert(monkeypatch, dense, 20, times, 0.5, x))
    assert type(loose[0]) is FragmentInt4Linear
    (error,) = [row.error for row in sc.explain(loose)]
    with torch.no_grad():
        y, exact = loose(x).double(), dense(x).double()
    assert error == pytest.approx(float((y - exact).norm() / exact.norm()), rel=1e-6)
    without_int4 = {kind: time for kind, time in times.items() if kind not in INT4_FORMS}
    middle = cast(nn.Sequential, convert(monkeypatch, dense, 20, without_int4, 0.05, x))
    assert type(middle[0]) is RowsInt8Linear
    reason = sc.explain(middle).rows[0].reason
    assert f"fragment int4 weights ruled out (own error {error:.3%}, alone exceeds max_error)" in reason
    exact_only = cast(nn.Sequential, convert(monkeypatch, dense, 20, EXACT_TIMES, 1e-6, x))
    assert type(exact_only[0]) in EXACT_TIMES
    assert sc.explain(exact_only).budget.num_given_up == 1
    assert "int8 weights ruled out" in sc.explain(exact_only).rows[0].reason


@pytest.mark.usefixtures("as_if_on_gpu", "int8_on_cpu")
def test_less_exact_types_are_for_what_they_save(monkeypatch: pytest.MonkeyPatch) -> None:
    times = EXACT_TIMES | dict.fromkeys(INTEGER_FORMS, 4.0) | dict.fromkeys(INT4_FORMS, 3.9)
    fast = cast(nn.Sequential, convert(monkeypatch, model(), 20, times, max_error=0.3))
    assert numeric_type(sc.explain(fast).rows[0].format) in ("int8", "int8 weights", "torch int8 weights"), "noise"


@pytest.mark.usefixtures("as_if_on_gpu", "int8_on_cpu")
def test_few_rows_are_not_for_pytorch_s_int8_product(monkeypatch: pytest.MonkeyPatch) -> None:
    forms = dict.fromkeys(INTEGER_FORMS.keys() - {TorchInt8Linear}, 4.0)
    convert(monkeypatch, model(), 16, EXACT_TIMES | forms, max_error=0.3)


@pytest.mark.usefixtures("as_if_on_gpu", "int8_on_cpu")
def test_many_rows_are_for_pytorch_s_int8_product(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = convert(monkeypatch, model(), 129, {nn.Linear: 10.0, TorchInt8Linear: 4.0}, max_error=0.1)
    assert type(cast(nn.Sequential, fast)[0]) is TorchInt8Linear


@pytest.mark.usefixtures("as_if_on_gpu", "int8_on_cpu")
def test_an_int8_layer_may_lose_its_zeros_or_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = RowsInt8Linear.from_dense(model().float()[0])
    times: dict[type, float] = {RowsInt8Linear: 9.0, FragmentInt8Linear: 4.0, DenseLinear: 10.0}
    fast = cast(nn.Sequential, convert(monkeypatch, nn.Sequential(layer), 4, times))
    assert type(fast[0]) is FragmentInt8Linear
    assert torch.equal(cast(Tensor, fast[0].weight), layer.weight)


@pytest.mark.usefixtures("as_if_on_gpu")
def test_dense_stays_where_it_is_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {nn.Linear: 10.0, FragmentLinear: 9.9, DeltaLinear: 12.0, SparseLinear: 50.0}
    fast = cast(nn.Sequential, convert(monkeypatch, model(), 4, times))
    assert type(fast[0]) is nn.Linear
    assert "fastest; fragment 10 us" in sc.explain(fast).rows[0].reason


@pytest.mark.usefixtures("as_if_on_gpu")
def test_many_rows_are_left_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = cast(nn.Sequential, convert(monkeypatch, model(), 129, {nn.Linear: 10.0}))
    assert type(fast[0]) is nn.Linear


@pytest.mark.usefixtures("as_if_on_gpu")
def test_float32_has_csr_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SetClock({nn.Linear: 10.0, SparseLinear: 2.0})
    monkeypatch.setattr(measure, "device_clock", lambda layer: clock)
    fast = cast(nn.Sequential, sc.convert(model(0.9).float(), torch.randn(2, 128), cache=False))
    assert type(fast[0]) is SparseLinear


@pytest.mark.usefixtures("as_if_on_gpu")
def test_2_4_is_timed_where_the_weight_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda weight: weight)
    dense = model()
    with torch.no_grad():
        dense[0].weight[:, 0::4] = 0
        dense[0].weight[:, 3::4] = 0
    times = {nn.Linear: 10.0, FragmentLinear: 9.0, DeltaLinear: 9.0, SparseLinear: 9.0, SemiStructuredLinear: 3.0}
    fast = cast(nn.Sequential, convert(monkeypatch, dense, 4, times))
    assert type(fast[0]) is SemiStructuredLinear
    assert (format_of(fast[0]), kernel_of(fast[0])) == ("2:4", "torch")
    assert weight_statistics(fast[0]) == weight_statistics(dense[0])
    assert fast[0].bias is not None
    stored = fast[0].to_stored()
    assert type(stored) is nn.Linear
    assert torch.equal(stored.weight, dense[0].weight)
    assert stored.bias is fast[0].bias


def test_2_4_patterns() -> None:
    assert is_2_4(torch.tensor([[1.0, 2, 0, 0, 0, 0, 0, 3]]))
    assert not is_2_4(torch.tensor([[1.0, 2, 0, 4, 0, 0, 0, 0]]))
    assert not is_2_4(torch.zeros(1, 6))
    for shape, dtype in (((64, 128), torch.float32), ((33, 128), torch.float16), ((64, 96), torch.float16)):
        with pytest.raises(sc.errors.UnsupportedError, match="N a multiple of 32 and K of 64"):
            SemiStructuredLinear.from_dense(nn.Linear(shape[1], shape[0]).to(dtype))
    with pytest.raises(sc.errors.UnsupportedError, match="two zeros in each four"):
        SemiStructuredLinear.from_dense(nn.Linear(64, 32).half())


@pytest.mark.usefixtures("as_if_on_gpu")
def test_convolutions_stay_and_say_why() -> None:
    conv = nn.Conv2d(4, 8, 3)
    with torch.no_grad():
        conv.weight *= torch.rand(conv.weight.shape) > 0.9
    fast = cast(nn.Sequential, sc.convert(nn.Sequential(conv).eval(), torch.randn(1, 4, 8, 8), cache=False))
    assert type(fast[0]) is nn.Conv2d
    assert sc.explain(fast).rows[0].reason == CONVOLUTIONS_STAY


@pytest.mark.usefixtures("as_if_on_gpu")
@pytest.mark.parametrize(("has_kernels", "message"), [
    (False, "expected a build with CUDA kernels for Linear on cuda:0"),
    (True, "expected a GPU of compute capability 8.0 or later, got 7.5 (Old GPU)"),
])  # fmt: skip
def test_where_kernels_do_not_run_layers_stay(has_kernels: bool, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chooser, "check_cuda", cuda_ops.check_cuda)
    monkeypatch.setattr(cuda_ops, "has_cuda_kernels", lambda: has_kernels)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
    cuda_ops._check_capability.cache_clear()
    fast = cast(nn.Sequential, sc.convert(model(), torch.randn(2, 128).bfloat16(), cache=False))
    cuda_ops._check_capability.cache_clear()
    assert type(fast[0]) is nn.Linear
    assert message in sc.explain(fast).rows[0].reason


@pytest.mark.usefixtures("as_if_on_gpu")
@pytest.mark.parametrize(("sparsity", "kind"), [(0.4, FragmentLinear), (0.95, DeltaLinear)])
def test_the_cost_model_goes_by_bytes(sparsity: float, kind: type) -> None:
    fast = cast(nn.Sequential, sc.convert(model(sparsity)))
    assert type(fast[0]) is kind


@pytest.mark.parametrize("rows", [1, 8, 64, 128, 4096])
def test_predictions_rise_with_what_is_stored(rows: int) -> None:
    for name in ("fragment", "delta", "csr", *INTEGER_FORMS.values()):
        times = [relative_gpu_time(name, density, rows) for density in (0.05, 0.3, 0.5, 1.0)]
        assert times == sorted(times)
        assert times[0] > 0
    assert relative_gpu_time("dense", 0.5, rows) == 1.0


@pytest.mark.usefixtures("as_if_on_gpu")
def test_compile_converts_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SetClock({nn.Linear: 10.0, FragmentLinear: 4.0, DeltaLinear: 9.0, SparseLinear: 9.0})
    monkeypatch.setattr(measure, "device_clock", lambda layer: clock)
    monkeypatch.setattr(sys.modules[sc.compile.__module__], "is_on_gpu", lambda layer: True)
    fast = cast(nn.Sequential, sc.compile(model(), torch.randn(4, 128).bfloat16(), cache=False))
    assert type(fast[0]) is FragmentLinear
    assert "torch.compile() can fuse" in sc.explain(fast).note


def test_devices_are_those_of_the_weight() -> None:
    assert gpu.device_of(nn.Linear(2, 2, device="meta")).type == "meta"
    assert gpu.device_of(SparseLinear.from_dense(nn.Linear(2, 2))).type == "cpu"
    assert not gpu.is_on_gpu(nn.ReLU())
