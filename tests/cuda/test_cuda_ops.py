"""CUDA operations: float64 on the device, epilogues, streams, graphs, torch.compile, refusals."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import sparsecore as sc
from sparsecore._native import raw
from sparsecore.errors import UnsupportedError
from sparsecore.formats import CsrWeight, DeltaWeight, FragmentWeight, Int8Weight, PackedInt8Weight
from sparsecore.nn import (
    BitmapInt8Linear,
    DeltaLinear,
    DeltaWeightOnlyLinear,
    FragmentInt4Linear,
    FragmentLinear,
    FragmentWeightOnlyLinear,
    Int8Linear,
    PanelLinear,
    SparseInt8Linear,
    SparseLinear,
    TorchInt4WeightLinear,
)
from sparsecore.nn.dense import activate
from sparsecore.ops import ACTIVATIONS, linear_int8
from sparsecore.ops.cuda import expand_packed, spmm_packed

DTYPES = (torch.float16, torch.bfloat16)
HALF_STEP = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}


def pruned(N: int, K: int, dtype: torch.dtype, density: float = 0.4) -> Tensor:
    return (torch.randn(N, K) * (torch.rand(N, K) < density)).to(dtype)


def assert_product(y: Tensor, x: Tensor, weight: Tensor) -> None:
    """Float32 sums in any order; tensor cores cut off where float32 rounds, so twice their bound."""
    x, weight = x.double().cpu(), weight.double().cpu()
    expected, magnitude = x @ weight.T, x.abs() @ weight.abs().T
    terms = (weight != 0).sum(1) + 64
    bound = 2 * terms * 2**-24 * magnitude + 1.01 * HALF_STEP[y.dtype] * expected.abs() + 2**-24
    assert bool(((y.double().cpu() - expected).abs() <= bound).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("M", [1, 8, 9, 16, 17, 33, 65, 129, 300])
@pytest.mark.parametrize("shape", [(1, 1), (64, 64), (65, 130), (300, 1000)])
def test_fragment(shape: tuple[int, int], M: int, dtype: torch.dtype) -> None:
    csr = CsrWeight.from_dense(pruned(*shape, dtype))
    x = torch.randn(M, shape[1]).to(dtype).cuda()
    for weight in (
        FragmentWeight.pack(csr),
        FragmentWeight.pack(csr.to(torch.float32).quantize()),
        FragmentWeight.pack_int4(csr),
    ):
        y = spmm_packed(x, weight.to("cuda"))
        assert_product(y, x, weight.unpack().to_dense())
        assert torch.equal(y, spmm_packed(x, weight.to("cuda")))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("M", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("shape", [(1, 1), (65, 4096), (300, 9000)])
def test_delta(shape: tuple[int, int], M: int, dtype: torch.dtype) -> None:
    csr = CsrWeight.from_dense(pruned(*shape, dtype, 0.1))
    x = torch.randn(M, shape[1]).to(dtype).cuda()
    for weight in (DeltaWeight.pack(csr), DeltaWeight.pack(csr.to(torch.float32).quantize())):
        y = spmm_packed(x, weight.to("cuda"))
        assert_product(y, x, weight.unpack().to_dense())
        assert torch.equal(y, spmm_packed(x, weight.to("cuda")))


INT8_SETTINGS = [
    {},
    {"x_scale": 0.02, "x_zero_point": -5},
    {"x_scale": 0.02, "y_scale": 0.1, "y_zero_point": 3},
]


@pytest.mark.parametrize("format", ["rows", "fragment"])
@pytest.mark.parametrize("zero_point", [0, -7])
@pytest.mark.parametrize("M", [1, 8, 17, 64, 100, 300])
@pytest.mark.parametrize("shape", [(1, 1), (65, 130), (300, 1000)])
def test_int8_is_exact(shape: tuple[int, int], M: int, zero_point: int, format: str) -> None:
    q = torch.randint(-127, 128, shape, dtype=torch.int8) * (torch.rand(shape) < 0.4)
    weight = PackedInt8Weight.pack(Int8Weight(q, torch.ones(shape[0])), format).to("cuda")
    x = torch.randint(-128, 128, (M, shape[1]), dtype=torch.int8)
    expected = ((x.double() - zero_point) @ q.double().T).float()  # below 2^24
    y = linear_int8(x.cuda(), weight, x_scale=1.0, x_zero_point=zero_point)
    assert torch.equal(y.cpu(), expected)


@pytest.mark.parametrize("kind", [Int8Linear, SparseInt8Linear, BitmapInt8Linear])
@pytest.mark.parametrize("dtype", [torch.float32, *DTYPES], ids=str)
@pytest.mark.parametrize("settings", INT8_SETTINGS, ids=str)
def test_int8_layers_give_what_they_give_on_the_cpu(kind: type, dtype: torch.dtype, settings: dict[str, float]) -> None:
    dense = nn.Linear(1000, 70)
    dense.weight.data = pruned(70, 1000, torch.float32)
    layer, x = kind.from_dense(dense, activation="relu", **settings), torch.randn(2, 9, 1000).to(dtype)
    expected = layer(x)
    y = layer.to("cuda")(x.cuda()).cpu()
    assert y.dtype == expected.dtype
    # The same integers; the last bit of the outputs may differ.
    step = 1 if y.dtype == torch.int8 else 2 * HALF_STEP[y.dtype] * expected.double().abs() + 1e-6
    assert bool(((y.double() - expected.double()).abs() <= step).all())
    assert torch.equal(layer.to("cpu")(x), expected)


def test_int8_rows_with_nan_and_zeros() -> None:
    layer = Int8Linear.from_dense(nn.Linear(100, 70, bias=False)).to("cuda")
    x = torch.randn(3, 100).cuda()
    x[0, 5], x[1] = float("nan"), 0.0
    y = layer(x)
    assert bool(y[0].isnan().all())
    assert not bool(y[1].any())
    assert bool(y[2].isfinite().all())


@pytest.mark.parametrize("kind", [FragmentWeightOnlyLinear, DeltaWeightOnlyLinear])
def test_weight_only_layers(kind: type) -> None:
    dense = nn.Linear(1000, 70)
    dense.weight.data = pruned(70, 1000, torch.float32)
    layer = kind.from_dense(dense).to("cuda")
    x = torch.randn(5, 1000).half().cuda()
    expected = layer.to_dense_module().double().cpu()(x.double().cpu())
    torch.testing.assert_close(layer(x).double().cpu(), expected, atol=1e-2, rtol=2e-3)


@pytest.mark.parametrize("rows", [1, 9, 40, 200])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_int4_layers(dtype: torch.dtype, rows: int) -> None:
    dense = nn.Linear(1000, 70)
    dense.weight.data = pruned(70, 1000, torch.float32)
    dense = dense.to(dtype)
    layer = FragmentInt4Linear.from_dense(dense).to("cuda")
    x = torch.randn(rows, 1000).to(dtype).cuda()
    expected = x.double().cpu() @ layer.weight.double().cpu().T + dense.bias.double()
    step = 2 * HALF_STEP[dtype]  # of the weight that is expanded for many rows of x
    torch.testing.assert_close(layer(x).double().cpu(), expected, atol=100 * step, rtol=step)
    on_cpu = copy.deepcopy(layer).to("cpu")
    assert type(on_cpu) is SparseLinear
    assert torch.equal(on_cpu.weight, layer.weight.cpu())


@pytest.mark.parametrize("shape", [(16, 128), (64, 1024)])
def test_pytorch_s_int4_product_is_that_of_the_rounded_weight(shape: tuple[int, int]) -> None:
    N, K = shape
    dense = nn.Linear(K, N).bfloat16()
    dense.weight.data = torch.randint(-7, 8, shape).bfloat16()
    dense.weight.data[:, ::128] = 7  # so that scales are 1
    layer = TorchInt4WeightLinear.from_dense(dense.cuda())
    x = torch.randint(-3, 4, (5, K)).bfloat16().cuda()
    expected = (x.double() @ dense.weight.double().T).bfloat16() + dense.bias
    torch.testing.assert_close(layer(x), expected, atol=0.0, rtol=2**-6)
    assert torch.equal(layer.to_stored().weight, dense.weight)
    with pytest.raises(UnsupportedError, match="stay on cuda"):
        layer.cpu()


def test_convert_takes_integers_within_the_error() -> None:
    dense = nn.Linear(4096, 1024).bfloat16().cuda()
    with torch.no_grad():
        dense.weight *= torch.rand(1024, 4096, device="cuda") >= 0.6
    x = torch.randn(4, 4096).bfloat16().cuda()
    for max_error in (1e-6, 0.02, 0.3):
        fast = sc.compile(nn.Sequential(dense), x, max_error=max_error, cache=False)
        error = float((fast(x) - dense(x)).double().norm() / dense(x).double().norm())
        assert error <= max(max_error, 2**-7), "bfloat16 rounds what float formats give"
        assert sc.explain(fast).budget.max_error == max_error


@pytest.mark.slow
@pytest.mark.parametrize("name", ["csr", "fragment", "delta", "rows"])
def test_weights_of_more_than_2_31_entries(name: str) -> None:
    """Entries in the first and the last column of the first and the last row; expanded, they are 4.3 GB."""
    N = K = 46_400
    if name == "rows":
        q = torch.zeros(N, K, dtype=torch.int8, device="cuda")
        q[0, 0] = q[0, -1] = q[-1, 0] = q[-1, -1] = 2
        weight = PackedInt8Weight.pack(Int8Weight(q, torch.ones(N, device="cuda")), "rows")
        x = torch.ones(2, K, dtype=torch.int8, device="cuda")
        y = linear_int8(x, weight, x_scale=1.0)
    else:
        row_ptr = torch.full((N + 1,), 2, dtype=torch.int32)
        row_ptr[0], row_ptr[-1] = 0, 4
        columns = torch.tensor([0, K - 1, 0, K - 1], dtype=torch.int32)
        csr = CsrWeight(row_ptr, columns, torch.full((4,), 2.0).half(), (N, K))
        x = torch.ones(2, K, dtype=torch.float16, device="cuda")
        if name == "csr":
            arrays = csr.to("cuda")
            y = raw.spmm_csr(x, arrays.row_ptr, arrays.col_idx, arrays.values, None, None, "none", "rows", "")
        else:
            packed = (FragmentWeight if name == "fragment" else DeltaWeight).pack(csr).to("cuda")
            y = spmm_packed(x, packed)
            dense = expand_packed(x, packed)
            assert dense[[0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [2.0] * 4
            assert int(dense.count_nonzero()) == 4
    assert y[:, [0, -1]].tolist() == [[4.0, 4.0]] * 2
    assert int(y.count_nonzero()) == 4


@pytest.mark.parametrize("sparsity", [0.6, 0.97])
def test_convert_chooses_on_the_gpu(sparsity: float) -> None:
    dense = nn.Linear(4096, 1024).half().cuda()
    with torch.no_grad():
        dense.weight *= torch.rand(1024, 4096, device="cuda") >= sparsity
    x = torch.randn(4, 4096).half().cuda()
    fast = sc.compile(nn.Sequential(dense), x, cache=False)
    torch.testing.assert_close(fast(x), dense(x), atol=1e-2, rtol=1e-2)
    row = sc.explain(fast).rows[0]
    assert row.time_us is not None
    assert row.dense_us is not None
    assert row.time_us <= row.dense_us


@pytest.mark.parametrize("dtype", [torch.float32, *DTYPES], ids=str)
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_csr(layout: str, dtype: torch.dtype) -> None:
    csr = CsrWeight.from_dense(pruned(70, 130, dtype)).to("cuda")
    x = torch.randn(2, 130, 9).to(dtype).cuda()
    given = x if layout == "columns" else x.transpose(1, 2).contiguous()
    y = raw.spmm_csr(given, csr.row_ptr, csr.col_idx, csr.values, None, None, "none", layout, "")
    rows = (y.transpose(1, 2) if layout == "columns" else y).reshape(-1, 70)
    assert_product(rows, x.transpose(1, 2).reshape(-1, 130), csr.to_dense())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_epilogues(activation: str) -> None:
    csr = CsrWeight.from_dense(pruned(70, 130, torch.float16))
    x, bias = torch.randn(5, 130).half().cuda(), torch.randn(70).cuda()
    residual = torch.randn(5, 70).half().cuda()
    expected = activate((x.float() @ csr.to_dense().float().cuda().T + bias + residual).float(), activation)
    weight = FragmentWeight.pack(csr).to("cuda")
    got = spmm_packed(x, weight, bias, residual=residual, activation=activation)
    torch.testing.assert_close(got.float(), expected, atol=2e-2, rtol=2e-3)
    arrays = csr.to("cuda")
    got = raw.spmm_csr(x, arrays.row_ptr, arrays.col_idx, arrays.values, bias, residual, activation, "rows", "")
    torch.testing.assert_close(got.float(), expected, atol=2e-2, rtol=2e-3)


@pytest.mark.parametrize("rows", [0, 1, 48, 49, 128, 129])
def test_layers(rows: int) -> None:
    dense = nn.Linear(100, 70).half()
    dense.weight.data = pruned(70, 100, torch.float16)
    x = torch.randn(rows, 100).half().cuda()
    for cls in (FragmentLinear, DeltaLinear, SparseLinear):
        layer = cls.from_dense(dense, activation="relu").to("cuda")
        expected = torch.relu(x.float() @ dense.weight.float().cuda().T + dense.bias.float().cuda())
        torch.testing.assert_close(layer(x).float(), expected, atol=1e-2, rtol=2e-3)
        assert torch.equal(layer.cpu().weight, dense.weight)


@pytest.mark.parametrize("N", [0, 5])
@pytest.mark.parametrize("K", [0, 7])
@pytest.mark.parametrize("M", [0, 3])
def test_sizes_of_zero(M: int, K: int, N: int) -> None:
    csr = CsrWeight.from_dense(torch.ones(N, K).half())
    x, bias = torch.ones(M, K).half().cuda(), torch.ones(N).cuda()
    for kind in (FragmentWeight, DeltaWeight):
        assert torch.equal(spmm_packed(x, kind.pack(csr).to("cuda"), bias).cpu(), torch.full((M, N), K + 1).half())
    for format in ("rows", "fragment"):
        weight = PackedInt8Weight.pack(Int8Weight.from_dense(torch.ones(N, K)), format).to("cuda")
        y = linear_int8(x, weight, bias)
        torch.testing.assert_close(y.cpu(), torch.full((M, N), K + 1).half())


def test_tampered_arrays_stay_inside_their_memory() -> None:
    weight = FragmentWeight.pack(CsrWeight.from_dense(pruned(130, 200, torch.float16)))
    delta = DeltaWeight.pack(CsrWeight.from_dense(pruned(130, 200, torch.float16)))
    x = torch.randn(3, 200).half().cuda()
    for wrong in (-(2**31), -1, 7, 2**31 - 1):
        for name in ("tile_ptr", "block_ptr", "row_block"):
            array = torch.full_like(getattr(weight, name), wrong)
            spmm_packed(x, replace(weight, **{name: array}).to("cuda"))
        for name in ("quad_ptr", "block_ptr"):
            array = torch.full_like(getattr(delta, name), wrong)
            spmm_packed(x, replace(delta, **{name: array}).to("cuda"))
        torch.cuda.synchronize()  # an illegal access would be reported here
    with pytest.raises(RuntimeError, match="fit together"):
        spmm_packed(x, replace(weight, tile_ptr=weight.tile_ptr[:-1]).to("cuda"))


def test_expanding_gives_the_weight() -> None:
    dense = pruned(130, 70, torch.float16)
    x = torch.empty(0, 70).half().cuda()
    csr = CsrWeight.from_dense(dense)
    assert torch.equal(expand_packed(x, FragmentWeight.pack(csr).to("cuda")).cpu(), dense)
    assert torch.equal(expand_packed(x, DeltaWeight.pack(csr).to("cuda")).cpu(), dense)


def test_streams_graphs_and_compile() -> None:
    weight = FragmentWeight.pack(CsrWeight.from_dense(pruned(256, 512, torch.float16))).to("cuda")
    x = torch.randn(4, 512).half().cuda()
    expected = spmm_packed(x, weight)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        assert torch.equal(spmm_packed(x, weight), expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = spmm_packed(x, weight)
    x.copy_(torch.randn(4, 512))
    graph.replay()
    assert torch.equal(y, spmm_packed(x, weight))
    compiled = torch.compile(lambda a: spmm_packed(a, weight) + 1, fullgraph=True)
    assert torch.equal(compiled(x), y + 1)
    arguments = (x, list(weight.tensors), weight.sizes, None, None, "none")
    torch.library.opcheck(raw.spmm_fragment.default, arguments)


@pytest.mark.parametrize("name", ["fragment", "int4", "delta"])
def test_opcheck(name: str) -> None:
    csr = CsrWeight.from_dense(pruned(70, 130, torch.float16))
    pack = {"fragment": FragmentWeight.pack, "int4": FragmentWeight.pack_int4, "delta": DeltaWeight.pack}[name]
    weight = pack(csr).to("cuda")
    multiply, expand = (
        (raw.spmm_delta, raw.expand_delta) if name == "delta" else (raw.spmm_fragment, raw.expand_fragment)
    )
    x, arguments = torch.randn(4, 130).half().cuda(), (list(weight.tensors), weight.sizes)
    bias, residual = torch.randn(70).cuda(), torch.randn(4, 70).half().cuda()
    torch.library.opcheck(multiply.default, (x, *arguments, bias, residual, "relu"))
    torch.library.opcheck(expand.default, (x, *arguments))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_the_second_device() -> None:
    weight = FragmentWeight.pack(CsrWeight.from_dense(pruned(64, 64, torch.float16)))
    x = torch.randn(4, 64).half()
    assert torch.equal(
        spmm_packed(x.to("cuda:1"), weight.to("cuda:1")).cpu(), spmm_packed(x.cuda(), weight.to("cuda")).cpu()
    )


def test_refusals() -> None:
    weight = FragmentWeight.pack(CsrWeight.from_dense(pruned(64, 64, torch.float16)))
    on_gpu, x = weight.to("cuda"), torch.randn(4, 64).half().cuda()
    with pytest.raises(UnsupportedError, match="on a CUDA device, got cpu"):
        spmm_packed(x.cpu(), on_gpu)
    with pytest.raises(RuntimeError, match="on the device of x"):
        spmm_packed(x, weight)
    with pytest.raises(RuntimeError, match="of the weight's dtype"):
        spmm_packed(x.bfloat16(), on_gpu)
    with pytest.raises(RuntimeError, match="float16 or bfloat16 x"):
        spmm_packed(x.float(), on_gpu)
    with pytest.raises(RuntimeError, match="K = 64"):
        spmm_packed(x[:, :32].contiguous(), on_gpu)
    misaligned = replace(on_gpu, blob=torch.cat([on_gpu.blob[:1], on_gpu.blob])[1:])
    with pytest.raises(RuntimeError, match="aligned to 16 bytes"):
        spmm_packed(x, misaligned)
    delta = DeltaWeight.pack(CsrWeight.from_dense(pruned(64, 64, torch.float16))).to("cuda")
    with pytest.raises(RuntimeError, match="of the weight's dtype"):
        spmm_packed(x.bfloat16(), delta)
    with pytest.raises(RuntimeError, match="aligned to 4 bytes"):
        spmm_packed(x, replace(delta, codes=torch.cat([delta.codes[:1], delta.codes])[1:]))
    q, int8 = torch.zeros(4, 64, dtype=torch.int8).cuda(), Int8Weight.from_dense(torch.randn(64, 64))
    rows = PackedInt8Weight.pack(int8, "rows").to("cuda")
    with pytest.raises(RuntimeError, match="expected an x_scale with int8 x"):
        linear_int8(q, rows)
    with pytest.raises(RuntimeError, match="K = 64"):
        linear_int8(q[:, :32].contiguous(), rows, x_scale=1.0)
    with pytest.raises(RuntimeError, match="weight_sum of shape"):
        linear_int8(q, replace(rows, weight_sum=rows.weight_sum[:3]), x_scale=1.0)
    with pytest.raises(RuntimeError, match="rows or fragment, got 'int8'"):
        linear_int8(q, PackedInt8Weight.pack(int8).to("cuda"), x_scale=1.0)
    with pytest.raises(RuntimeError, match="positive finite y_scale"):
        linear_int8(q, rows, x_scale=1.0, y_scale=-1.0)
    with pytest.raises(RuntimeError, match="no kernel name on CUDA"):
        linear_int8(q, rows, x_scale=1.0, kernel="gemm")
    with pytest.raises(RuntimeError, match="bias of shape"):
        spmm_packed(x, on_gpu, torch.zeros(63).cuda())
    with pytest.raises(UnsupportedError, match="kernels for PanelLinear"):
        PanelLinear.from_dense(nn.Linear(8, 8)).to("cuda")
