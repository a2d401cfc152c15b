"""spmm_codebook and its layer against float64, the count of multiplications, Huffman coding, damaged arguments."""

from __future__ import annotations

import pytest
import torch
from float_products import DTYPES, kernel_names
from oracle import assert_within, dense_reference
from torch import Tensor, nn
from torch.library import opcheck

from sparsecore._native import raw
from sparsecore.formats import CodebookWeight, PackedCodebookWeight
from sparsecore.nn import CodebookLinear, SparseLinear

KERNELS = kernel_names("spmm_codebook")


def shared_linear(K: int, N: int, density: float = 0.2) -> nn.Linear:
    linear = nn.Linear(K, N)
    linear.weight.data = torch.randint(-7, 8, (N, K)) * 0.37 * (torch.rand(N, K) < density)
    return linear


def sparse_x(M: int, K: int) -> Tensor:
    return torch.randn(M, K) * (torch.rand(M, K) < 0.5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("M", "K", "N"), [(1, 40, 9), (2, 1, 1), (7, 70, 33), (17, 60, 1500), (33, 5, 2100)])
def test_equals_dense_within_the_bound(kernel: str, dtype: torch.dtype, M: int, K: int, N: int) -> None:
    linear = shared_linear(K, N)
    x, residual = sparse_x(M, K).to(dtype), torch.randn(M, N).to(dtype)
    layer = CodebookLinear.from_dense(linear, activation="silu", kernel=kernel)
    with torch.no_grad():
        y = layer(x, residual)
        assert y.dtype == dtype
        assert_within(y, *dense_reference(linear, x, "silu", residual))
        single = torch.cat([layer(row) for row in x.split(1)])
        assert torch.equal(single, layer(x)), "rows do not depend on M"


@pytest.mark.parametrize("kernel", KERNELS)
def test_missing_entries_and_fillers_skip_nan(kernel: str) -> None:
    linear = shared_linear(6, 3000, 0.0005)  # many fillers
    linear.weight.data[7] = 1.0
    x = torch.randn(3, 6)
    x[1, 2], x[2, 4] = torch.nan, torch.inf
    y = CodebookLinear.from_dense(linear, kernel=kernel)(x).detach()
    terms = torch.where(linear.weight != 0, linear.weight * x[:, None], 0.0).detach()
    expected = terms.double().sum(-1) + linear.bias.detach()
    assert torch.equal(y.isnan(), expected.isnan())
    torch.testing.assert_close(y.double(), expected, equal_nan=True)
    assert bool(y[1].isfinite().any())


def test_multiplies_are_the_non_zeros_of_columns_that_are_not_zero() -> None:
    linear = shared_linear(50, 1100, 0.03)
    x = sparse_x(4, 50)
    x[0], x[1] = 0.0, 1.0
    layer = CodebookLinear.from_dense(linear)
    column_lengths = linear.weight.detach().count_nonzero(0)
    assert torch.equal(layer.count_multiplies(x), ((x != 0) * column_lengths).sum(1))
    assert layer.count_multiplies(x.view(2, 2, 50)).shape == (2, 2)


def test_the_same_on_any_number_of_threads_and_blocks() -> None:
    weight = CodebookWeight.from_dense(shared_linear(400, 5000).weight)
    for M in (1, 11):
        x, results = torch.randn(M, 400), []
        for count, block_rows in ((1, 1024), (2, 1024), (3, 100), (7, 999)):
            torch.set_num_threads(count)
            packed = PackedCodebookWeight.pack(weight, block_rows)
            results.append(raw.spmm_codebook(x, list(packed.tensors), packed.sizes, None, None, "none", ""))
        assert all(torch.equal(result, results[0]) for result in results)


def test_gradients_equal_those_of_csr() -> None:
    linear = shared_linear(30, 20)
    x, residual = torch.randn(7, 30), torch.randn(7, 20)
    results = []
    for layer in (
        CodebookLinear.from_dense(linear, activation="gelu"),
        SparseLinear.from_dense(linear, activation="gelu"),
    ):
        leaves = [x.clone().requires_grad_(), residual.clone().requires_grad_()]
        y = layer(*leaves)
        results.append((y, *torch.autograd.grad(y, [*leaves, layer.bias], torch.ones_like(y))))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    packed = PackedCodebookWeight.pack(CodebookWeight.from_dense(shared_linear(5, 18).weight))
    weight = (list(packed.tensors), packed.sizes)
    x, bias = torch.randn(4, 5).to(dtype).requires_grad_(), torch.randn(18, requires_grad=True)
    residual = torch.randn(4, 18).to(dtype).requires_grad_()
    opcheck(raw.spmm_codebook.default, (x, *weight, bias, residual, "relu", ""))
    opcheck(raw.spmm_codebook.default, (x, *weight, None, None, "none", ""))
    if dtype == torch.float32:
        opcheck(raw.codebook_multiplies.default, (x.detach(), *weight))
        opcheck(raw.unpack_codebook.default, weight)


def test_opcheck_huffman() -> None:
    symbols = torch.randint(0, 5, (50,), dtype=torch.uint8)
    counts = symbols.long().bincount()
    opcheck(raw.huffman_lengths.default, (counts,))
    lengths = raw.huffman_lengths(counts)
    opcheck(raw.huffman_encode.default, (symbols, lengths))
    opcheck(raw.huffman_decode.default, (raw.huffman_encode(symbols, lengths), lengths, 50))


def test_compiles_without_a_graph_break() -> None:
    layer = CodebookLinear.from_dense(shared_linear(12, 8), activation="relu")
    x = torch.randn(3, 12)
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))


def test_damaged_weights_are_found_in_every_call_or_harmless() -> None:
    packed = PackedCodebookWeight.pack(CodebookWeight.from_dense(shared_linear(30, 40).weight), 16)
    x, plain = torch.randn(3, 30), (None, None, "none", "")
    for place, value in ((0, -1), (3, 10**6), (5, 0)):
        tensors = list(packed.tensors)
        tensors[3] = tensors[3].clone()
        tensors[3][place] = value
        with pytest.raises(RuntimeError, match="invalid codebook weight: segment_ptr must rise"):
            raw.spmm_codebook(x, tensors, packed.sizes, *plain)
        with pytest.raises(RuntimeError, match="invalid codebook weight"):
            raw.codebook_multiplies(x, tensors, packed.sizes)
    for index in (1, 2, 4):
        tensors = list(packed.tensors)
        tensors[index] = torch.full_like(tensors[index], 255)
        assert bool(raw.spmm_codebook(x, tensors, packed.sizes, *plain).isfinite().all())


@pytest.mark.parametrize(
    ("index", "size", "message"),
    [(0, 40.5, ""), (0, 41, ""), (1, 31, ""), (2, 10**9, ""), (3, 9, "1 to 8 bits"), (4, 0, "1 to 8 bits"),
     (5, 0, "blocks of 1 to 1024"), (5, 1025, "blocks of 1 to 1024"), (0, -1, "N, K and entries")],
)  # fmt: skip
def test_sizes_that_do_not_fit(index: int, size: float, message: str) -> None:
    packed = PackedCodebookWeight.pack(CodebookWeight.from_dense(shared_linear(30, 40).weight), 8)
    sizes = list(packed.sizes)
    sizes[index] = size  # type: ignore[call-overload]
    with pytest.raises(RuntimeError, match=message or "fit together|int"):
        raw.spmm_codebook(torch.randn(3, 30), list(packed.tensors), sizes, None, None, "none", "")


def test_wrong_arguments() -> None:
    packed = PackedCodebookWeight.pack(CodebookWeight.from_dense(shared_linear(30, 40).weight))
    tensors, sizes, plain = list(packed.tensors), packed.sizes, (None, None, "none", "")
    for x, weight, message in (
        (torch.randn(3, 31), tensors, "K = 30"),
        (torch.randn(3, 30).double(), tensors, "expected float32, float16 or bfloat16 x"),
        (torch.randn(3, 30), tensors[:4], "5 tensors"),
        (torch.randn(3, 30), [tensors[0].double(), *tensors[1:]], "expected float32 codebook"),
        (torch.randn(3, 30), [tensors[0], tensors[1].int(), *tensors[2:]], "expected uint8 codes|codes"),
    ):
        with pytest.raises(RuntimeError, match=message):
            raw.spmm_codebook(x, weight, sizes, *plain)
    with pytest.raises(RuntimeError, match="expected a kernel"):
        raw.spmm_codebook(torch.randn(3, 30), tensors, sizes, None, None, "none", "spmm_csr_f32_scalar")


def test_huffman_refuses_what_is_no_code() -> None:
    byte = torch.uint8
    for symbols, lengths, message in (
        ([0, 2], [1, 1], "a code for every symbol, got 2"),
        ([0, 1], [1, 0], "a code for every symbol, got 1"),
        ([0, 1], [1, 2], "invalid Huffman code"),
    ):
        with pytest.raises(RuntimeError, match=message):
            raw.huffman_encode(torch.tensor(symbols, dtype=byte), torch.tensor(lengths, dtype=byte))
    with pytest.raises(RuntimeError, match="counts in"):
        raw.huffman_lengths(torch.tensor([-1]))
    with pytest.raises(RuntimeError, match="at most 256 symbols"):
        raw.huffman_lengths(torch.ones(257, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="number of symbols"):
        raw.huffman_decode(torch.zeros(1, dtype=byte), torch.ones(2, dtype=byte), -1)


@pytest.mark.parametrize("seed", range(3))
def test_damaged_huffman_streams_are_refused_or_decoded(seed: int) -> None:
    """The C++ tests do this with guarded memory; here it goes through the binding."""
    generator = torch.Generator().manual_seed(seed)
    symbols = torch.randint(0, 40, (3000,), generator=generator).square().remainder(37).to(torch.uint8)
    lengths = raw.huffman_lengths(symbols.long().bincount())
    stream = raw.huffman_encode(symbols, lengths)
    accepted = 0
    for _ in range(200):
        damaged = stream.clone()
        place = torch.randint(0, stream.numel(), (2,), generator=generator)
        damaged[place] = torch.randint(0, 256, (2,), generator=generator).to(torch.uint8)
        try:
            decoded = raw.huffman_decode(damaged, lengths, symbols.numel())
        except RuntimeError:
            continue
        accepted += 1
        assert torch.equal(raw.huffman_encode(decoded, lengths), damaged)
    assert accepted < 200
