"""CUDA operations: float64 on the device, epilogues, streams, graphs, torch.compile, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import sparsecore as sc
from sparsecore._native import raw
from sparsecore.errors import UnsupportedError
from sparsecore.formats import CsrWeight, DeltaWeight, FragmentWeight
from sparsecore.nn import DeltaLinear, FragmentLinear, PanelLinear, SparseLinear
from sparsecore.nn.dense import activate
from sparsecore.ops import ACTIVATIONS
from sparsecore.ops.cuda import (
    expand_delta,
    expand_fragment,
    linear_int8_rows,
    quantize_rows,
    spmm_delta,
    spmm_fragment,
    spmm_fragment_int8,
)

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
        y = spmm_fragment(x, weight.to("cuda"))
        assert_product(y, x, weight.unpack().to_dense())
        assert torch.equal(y, spmm_fragment(x, weight.to("cuda")))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("M", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("shape", [(1, 1), (65, 4096), (300, 9000)])
def test_delta(shape: tuple[int, int], M: int, dtype: torch.dtype) -> None:
    csr = CsrWeight.from_dense(pruned(*shape, dtype, 0.1))
    x = torch.randn(M, shape[1]).to(dtype).cuda()
    for weight in (DeltaWeight.pack(csr), DeltaWeight.pack(csr.to(torch.float32).quantize())):
        y = spmm_delta(x, weight.to("cuda"))
        assert_product(y, x, weight.unpack().to_dense())
        assert torch.equal(y, spmm_delta(x, weight.to("cuda")))


@pytest.mark.parametrize("M", [1, 8, 17, 64, 100, 300])
@pytest.mark.parametrize("shape", [(1, 1), (65, 130), (300, 1000)])
def test_int8_is_exact(shape: tuple[int, int], M: int) -> None:
    csr = CsrWeight.from_dense(pruned(*shape, torch.float32)).quantize()
    assert csr.scale is not None
    x, _ = quantize_rows(torch.randn(M, shape[1]))
    ones, dense = torch.ones(M).cuda(), csr.to_dense(dequantize=False)
    weight = FragmentWeight.pack(CsrWeight(csr.row_ptr, csr.col_idx, csr.values, csr.shape, torch.ones(shape[0])))
    expected = (x.double() @ dense.double().T).float()  # below 2^24
    y = spmm_fragment_int8(x.cuda(), ones, weight.to("cuda"), dtype=torch.float32)
    assert torch.equal(y.cpu(), expected)
    y = linear_int8_rows(x.cuda(), ones, dense.cuda(), torch.ones(shape[0]).cuda(), dtype=torch.float32)
    assert torch.equal(y.cpu(), expected)


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
    got = spmm_fragment(x, weight, bias, residual=residual, activation=activation)
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


def test_expanding_gives_the_weight() -> None:
    dense = pruned(130, 70, torch.float16)
    x = torch.empty(0, 70).half().cuda()
    csr = CsrWeight.from_dense(dense)
    assert torch.equal(expand_fragment(x, FragmentWeight.pack(csr).to("cuda")).cpu(), dense)
    assert torch.equal(expand_delta(x, DeltaWeight.pack(csr).to("cuda")).cpu(), dense)


def test_streams_graphs_and_compile() -> None:
    weight = FragmentWeight.pack(CsrWeight.from_dense(pruned(256, 512, torch.float16))).to("cuda")
    x = torch.randn(4, 512).half().cuda()
    expected = spmm_fragment(x, weight)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        assert torch.equal(spmm_fragment(x, weight), expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = spmm_fragment(x, weight)
    x.copy_(torch.randn(4, 512))
    graph.replay()
    assert torch.equal(y, spmm_fragment(x, weight))
    compiled = torch.compile(lambda a: spmm_fragment(a, weight) + 1, fullgraph=True)
    assert torch.equal(compiled(x), y + 1)
    arguments = (x, list(weight.tensors), weight.sizes, None, None, "none")
    torch.library.opcheck(raw.spmm_fragment.default, arguments)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_the_second_device() -> None:
    weight = FragmentWeight.pack(CsrWeight.from_dense(pruned(64, 64, torch.float16)))
    x = torch.randn(4, 64).half()
    assert torch.equal(
        spmm_fragment(x.to("cuda:1"), weight.to("cuda:1")).cpu(), spmm_fragment(x.cuda(), weight.to("cuda")).cpu()
    )


def test_refusals() -> None:
    weight = FragmentWeight.pack(CsrWeight.from_dense(pruned(64, 64, torch.float16)))
    on_gpu, x = weight.to("cuda"), torch.randn(4, 64).half().cuda()
    with pytest.raises(UnsupportedError, match="on a CUDA device, got cpu"):
        spmm_fragment(x.cpu(), on_gpu)
    with pytest.raises(RuntimeError, match="on the device of x"):
        spmm_fragment(x, weight)
    with pytest.raises(RuntimeError, match="of the weight's dtype"):
        spmm_fragment(x.bfloat16(), on_gpu)
    with pytest.raises(RuntimeError, match="float16 or bfloat16 x"):
        spmm_fragment(x.float(), on_gpu)
    with pytest.raises(RuntimeError, match="K = 64"):
        spmm_fragment(x[:, :32].contiguous(), on_gpu)
    misaligned = replace(on_gpu, blob=torch.cat([on_gpu.blob[:1], on_gpu.blob])[1:])
    with pytest.raises(RuntimeError, match="aligned to 16 bytes"):
        spmm_fragment(x, misaligned)
    delta = DeltaWeight.pack(CsrWeight.from_dense(pruned(64, 64, torch.float16))).to("cuda")
    with pytest.raises(RuntimeError, match="of the weight's dtype"):
        spmm_delta(x.bfloat16(), delta)
    with pytest.raises(RuntimeError, match="aligned to 4 bytes"):
        spmm_delta(x, replace(delta, codes=torch.cat([delta.codes[:1], delta.codes])[1:]))
    ones, q = torch.ones(4).cuda(), torch.zeros(4, 64, dtype=torch.int8).cuda()
    with pytest.raises(RuntimeError, match="int8 values for int8 x"):
        spmm_fragment_int8(q, ones, on_gpu)
    with pytest.raises(RuntimeError, match="x_scale of shape"):
        linear_int8_rows(q, ones[:3], q, ones)
    with pytest.raises(RuntimeError, match="float32, float16 or bfloat16"):
        linear_int8_rows(q, ones, q, ones, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="bias of shape"):
        spmm_fragment(x, on_gpu, torch.zeros(63).cuda())
    with pytest.raises(UnsupportedError, match="kernels for PanelLinear"):
        PanelLinear.from_dense(nn.Linear(8, 8)).to("cuda")
