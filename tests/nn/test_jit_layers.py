"""Layers as machine code: what they hold, and programs that go and come."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import pytest
import torch
from generated_code import HAS_GENERATOR
from torch import Tensor, nn

from sparsecore import CsrWeight
from sparsecore.formats import JitProgram
from sparsecore.nn import JitConv2d, JitLinear, SparseConv2d, SparseLinear

raw = torch.ops.sparsecore
CASES: list[tuple[Any, Any, nn.Module, Tensor]] = [
    (JitLinear, SparseLinear, nn.Linear(70, 40), torch.randn(33, 70)),
    (JitConv2d, SparseConv2d, nn.Conv2d(6, 40, 3, 2, 1), torch.randn(2, 6, 9, 11)),
    (JitConv2d, SparseConv2d, nn.Conv2d(6, 40, 1), torch.randn(2, 6, 5, 7)),
]
each_case = pytest.mark.parametrize(("kind", "csr_kind", "dense", "x"), CASES, ids=["linear", "conv", "conv 1x1"])
needs_program = pytest.mark.skipif(not HAS_GENERATOR, reason="no generator for this instruction set")


def pruned(dense: nn.Module) -> nn.Module:
    dense = copy.deepcopy(dense)
    dense.weight.data *= torch.rand(dense.weight.shape) < 0.3
    return dense


@each_case
def test_outputs_and_state_are_those_of_csr(kind: Any, csr_kind: Any, dense: nn.Module, x: Tensor) -> None:
    dense = pruned(dense)
    layer, csr = kind.from_dense(dense, activation="relu"), csr_kind.from_dense(dense, activation="relu")
    torch.testing.assert_close(layer(x), csr(x))
    assert layer.state_dict().keys() == csr.state_dict().keys()
    assert all(torch.equal(layer.state_dict()[name], tensor) for name, tensor in csr.state_dict().items())


@each_case
def test_a_state_is_a_copy(kind: Any, csr_kind: Any, dense: nn.Module, x: Tensor) -> None:
    layer = kind.from_dense(pruned(dense))
    expected, state = layer(x), layer.state_dict()
    state["values"].mul_(2)  # as an average of weights does
    assert torch.equal(layer(x), expected)
    assert torch.equal(layer.state_dict()["values"] * 2, state["values"])


@each_case
def test_loading_other_weights_generates_other_code(kind: Any, csr_kind: Any, dense: nn.Module, x: Tensor) -> None:
    layer, other = kind.from_dense(pruned(dense)), kind.from_dense(pruned(dense))
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), other(x))


@each_case
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_outlive_the_layer(kind: Any, csr_kind: Any, dense: nn.Module, x: Tensor, copied: Any) -> None:
    layer = kind.from_dense(pruned(dense))
    expected, twin = layer(x), copied(layer)
    del layer
    gc.collect()
    assert torch.equal(twin(x), expected)


def test_sixteen_bits_leave_the_code_as_it_is() -> None:
    layer = JitLinear.from_dense(pruned(nn.Linear(20, 10)))
    x = torch.randn(3, 20)
    assert torch.equal(layer.bfloat16()(x.bfloat16()), layer(x.bfloat16().float()).bfloat16())


@needs_program
def test_programs_are_freed_with_their_layer() -> None:
    layer = JitLinear.from_dense(pruned(nn.Linear(20, 10)))
    number = layer.program.number
    assert raw.jit_nbytes(number) == layer.program.nbytes > 0
    del layer
    gc.collect()
    with pytest.raises(RuntimeError, match=f"expected the number of a generated program, got {number}"):
        raw.jit_nbytes(number)


@needs_program
def test_a_program_of_another_weight_is_refused() -> None:
    small, large = JitProgram(CsrWeight.from_dense(torch.eye(3))), JitProgram(CsrWeight.from_dense(torch.eye(4)))
    arrays = small.arguments[:3]
    with pytest.raises(RuntimeError, match="expected the program of this weight, got that of one with 4 rows"):
        raw.spmm_jit(torch.ones(2, 3), *arrays, large.number, None, None, "none", "rows", "")
    with pytest.raises(RuntimeError, match="expected x with K = 3"):
        raw.spmm_jit(torch.ones(2, 4), *arrays, small.number, None, None, "none", "rows", "")


@needs_program
def test_a_program_for_another_filter_is_refused() -> None:
    dense = torch.randn(4, 18)
    weight, x = CsrWeight.from_dense(dense), torch.randn(1, 2, 5, 5)
    settings = ([1, 1], [0, 0], [1, 1], "none", "")
    for kernel_size in ((), (1, 9), (9, 1)):
        program = JitProgram(weight, kernel_size)
        with pytest.raises(RuntimeError, match="expected a program for filters of 3 x 3, got one for"):
            raw.conv2d_jit(x, *program.arguments, None, None, [3, 3], *settings)
    program = JitProgram(weight, (3, 3))
    with pytest.raises(RuntimeError, match=r"filters of 0 x 0, got one for 3 x 3 \(0 x 0: for products\)"):
        raw.spmm_jit(torch.ones(2, 18), *program.arguments, None, None, "none", "rows", "")
    for kernel_size in ((4, 3), (3,), (0, 9), (1 << 40, 1 << 40)):
        with pytest.raises(RuntimeError, match=r"expected a kernel_size \[KH, KW\] whose product divides the columns"):
            JitProgram(weight, kernel_size)


def test_filters_of_many_rows_run_as_csr() -> None:
    dense, x = pruned(nn.Conv2d(3, 5, (11, 2))), torch.randn(1, 3, 20, 9)
    layer = JitConv2d.from_dense(dense)
    assert layer.program.number == 0
    assert torch.equal(layer(x), SparseConv2d.from_dense(dense)(x))


@pytest.mark.parametrize(
    ("channels", "kernel_size"), [(3, (10, 2)), (2, (7, 7)), (4, (2, 20)), (600, (1, 1)), (30, (3, 3)), (1, (1, 64))]
)
def test_filters_of_all_sizes(channels: int, kernel_size: tuple[int, int]) -> None:
    dense = pruned(nn.Conv2d(channels, 40, kernel_size, padding=(1, 2)))
    x = torch.randn(2, channels, 12, 70)
    layer = JitConv2d.from_dense(dense)
    torch.testing.assert_close(layer(x), SparseConv2d.from_dense(dense)(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("broken", ["column", "row_ptr"])
def test_code_is_generated_from_valid_weights_alone(broken: str) -> None:
    weight = CsrWeight.from_dense(torch.eye(4))
    row_ptr, col_idx = weight.row_ptr.clone(), weight.col_idx.clone()
    if broken == "column":
        col_idx[2] = 4
    else:
        row_ptr[2] = 100
    with pytest.raises(RuntimeError, match="invalid CSR weight"):
        raw.jit_generate(row_ptr, col_idx, weight.values, 4)


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_without_a_program_the_weight_itself_is_multiplied(layout: str) -> None:
    weight = CsrWeight.from_dense(torch.randn(5, 7) * (torch.rand(5, 7) < 0.5))
    x = torch.randn(3, 7) if layout == "rows" else torch.randn(2, 7, 3)
    arrays = (weight.row_ptr, weight.col_idx, weight.values)
    y = raw.spmm_jit(x, *arrays, 0, None, None, "relu", layout, "")
    assert torch.equal(y, raw.spmm_csr(x, *arrays, None, None, "relu", layout, ""))


@needs_program
def test_programs_may_be_freed_while_something_is_traced() -> None:
    layers = [JitLinear.from_dense(pruned(nn.Linear(20, 10)))]

    class Freeing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            layers.clear()
            gc.collect()
            return x + 1

    exported = torch.export.export(Freeing(), (torch.ones(2),), strict=False)
    assert [node.name for node in exported.graph.nodes if node.op == "call_function"] == ["add"]
