"""Checks and times every CUDA kernel on the GPU of this machine, beside what PyTorch has.

    python benchmarks/gpu.py --build --quick             # some minutes
    python benchmarks/gpu.py --sanitize                  # accesses and races, by compute-sanitizer; no timing
    python benchmarks/gpu.py --out benchmarks/results    # GPU.json and a table; goes on where it stopped

First every kernel is checked element by element against float64: fresh random inputs, surrounded by NaN, into memory
that was filled with NaN. Only then anything is timed: CUDA graphs whose nodes use copies of the weight in turn, three
times as large together as the second-level cache. What is timed is one layer; packing is not in it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).parent.parent
# [N, K] of large language models' linear layers.
SHAPES = (
    (4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336), (10240, 8192), (57344, 8192), (8192, 28672),
    (12288, 4096), (22016, 4096), (4096, 11008), (28672, 7168), (7168, 28672), (37888, 3584), (3584, 18944),
)  # fmt: skip
QUICK_SHAPES = ((4096, 4096), (28672, 4096), (8192, 28672))
SPARSITIES = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
QUICK_SPARSITIES = (0.5, 0.7, 0.9)
ROWS = (1, 8, 16, 32, 64, 128, 256, 4096)
QUICK_ROWS = (1, 16, 64, 128)
Call = Callable[[], Tensor]


def fail(message: str) -> None:
    sys.exit(f"gpu.py: {message}")


# --- inputs ---


def mask_of(N: int, K: int, sparsity: float, kind: str, seed: int) -> Tensor:
    """Which entries stay: random; the same number in every row; or from none to twice as many."""
    generator = torch.Generator("cuda").manual_seed(seed)
    chance = torch.rand(N, K, generator=generator, device="cuda")
    if kind == "uniform":
        kept = round((1 - sparsity) * K)
        return chance >= chance.kthvalue(K - kept, dim=1, keepdim=True).values if 0 < kept < K else chance >= sparsity
    if kind == "skewed":
        rows = torch.rand(N, 1, generator=generator, device="cuda")
        return chance < (1 - sparsity) * 2 * rows
    return chance >= sparsity


def guarded(tensor: Tensor) -> Tensor:
    """A copy with NaN (or 0xff) before and behind it."""
    room = 4096 // tensor.element_size()
    fill: Any = float("nan") if tensor.dtype.is_floating_point else 255 if tensor.dtype == torch.uint8 else -1
    memory = torch.full((tensor.numel() + 2 * room,), fill, dtype=tensor.dtype, device="cuda")
    result = memory[room : room + tensor.numel()].view(tensor.shape)
    result.copy_(tensor)
    return result


def poison(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Leave NaN in the memory that the allocator gives to the next tensor of this size."""
    torch.full(shape, float("nan"), dtype=dtype, device="cuda")


# --- checks ---


def bound(x: Tensor, weight: Tensor, expected: Tensor, dtype: torch.dtype) -> Tensor:
    """What float32 sums in any order may differ by; tensor cores cut off where float32 rounds, so twice that."""
    terms = (weight != 0).sum(1) + 64
    unit = terms.double() * 2**-24
    magnitude = x.double().abs() @ weight.double().abs().T
    rounding = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}[dtype]
    smallest = {torch.float32: 2.0**-149, torch.float16: 2.0**-25, torch.bfloat16: 2.0**-134}[dtype]
    return 2 * unit / (1 - unit) * magnitude + rounding * expected.abs() * 1.01 + smallest


def check_one(name: str, got: Tensor, x: Tensor, weight: Tensor) -> str | None:
    """What is wrong with x @ weight^T, or None."""
    expected = x.double() @ weight.double().T
    wrong = ~((got.double() - expected).abs() <= bound(x, weight, expected, got.dtype))
    if not bool(wrong.any()):
        return None
    at = wrong.nonzero()[0].tolist()
    first = f"first at {at}: {got[tuple(at)]} for {expected[tuple(at)]}"
    return f"{name}: {int(wrong.sum())} of {wrong.numel()} wrong, {first}"


SMALL_SHAPES = ((1, 1), (63, 65), (64, 64), (130, 1000), (1000, 130), (300, 2051))


def sanitize(seed: int) -> None:
    """The checks on small shapes under compute-sanitizer: accesses outside of arrays, races in shared memory."""
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if tool is None:
        fail("expected compute-sanitizer on the PATH; it comes with the CUDA toolkit")
    # An allocation of its own for each tensor, or what lies between tensors is seen as one array.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for check in ("memcheck", "racecheck"):
        command = [tool, "--tool", check, "--error-exitcode", "1", sys.executable, __file__]
        command += ["--check-only", "--small", "--seed", str(seed)]
        if subprocess.run(command, env=environment).returncode != 0:
            fail(f"compute-sanitizer's {check} found problems")
        print(f"{check}: nothing found")


def check_kernels(seed: int, shapes: Sequence[tuple[int, int]]) -> list[str]:
    """Every kernel on odd and even shapes at all densities; the problems found."""
    from sparsecore.formats import CsrWeight

    problems: list[str | None] = []
    for number, (N, K) in enumerate(shapes):
        for sparsity in (0.0, 0.3, 0.5, 0.7, 0.9, 0.97, 1.0):
            torch.manual_seed(seed + number)
            kept = mask_of(N, K, sparsity, "skewed" if number % 2 else "random", seed + number)
            dense = torch.randn(N, K, device="cuda") * kept
            label = f"[{N}, {K}] sparsity {sparsity}"
            for dtype in (torch.float16, torch.bfloat16):
                problems += check_packed(CsrWeight.from_dense(dense.to(dtype).cpu()), f"{dtype} {label}")
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                problems += check_csr(CsrWeight.from_dense(dense.to(dtype).cpu()), f"{dtype} {label}")
            problems += check_int8(CsrWeight.from_dense(dense.cpu()).quantize(), label)
    return [problem for problem in problems if problem is not None]


def on_gpu(weight: Any) -> Any:
    """The packed weight on the GPU, its arrays guarded."""
    return replace(weight, **{field: guarded(t.cuda()) for field, t in vars(weight).items() if isinstance(t, Tensor)})


def check_packed(csr: Any, label: str) -> list[str | None]:
    """The fragment and the delta format, for all numbers of bits; their outputs twice."""
    from sparsecore.formats import DeltaWeight, FragmentWeight
    from sparsecore.ops.cuda import expand_packed, spmm_packed

    int8 = csr.to(torch.float32).quantize()
    forms = {
        "fragment 16": FragmentWeight.pack(csr),
        "fragment 8": FragmentWeight.pack(int8),
        "fragment 4": FragmentWeight.pack_int4(csr),
        "delta 16": DeltaWeight.pack(csr),
        "delta 8": DeltaWeight.pack(int8),
    }
    problems: list[str | None] = []
    N, K = csr.shape
    for name, form in forms.items():
        exact, weight = form.unpack().to_dense().cuda().float(), on_gpu(form)
        for M in (1, 2, 3, 8, 9, 16, 17, 32, 33, 64, 100, 129, 300):
            x = guarded(torch.randn(M, K, device="cuda").to(csr.dtype))
            poison((M, N), csr.dtype)
            y = spmm_packed(x, weight)
            problems.append(check_one(f"{name} {label} M={M}", y, x, exact))
            if not torch.equal(y, spmm_packed(x, weight)):
                problems.append(f"{name} {label} M={M}: two runs differ")
        if not torch.equal(expand_packed(x, weight), exact.to(csr.dtype)):
            problems.append(f"{name} {label}: expanding does not give the weight")
    return problems


def check_csr(csr: Any, label: str) -> list[str | None]:
    """CSR in both layouts."""
    from sparsecore._native import raw

    problems: list[str | None] = []
    N, K = csr.shape
    arrays = [guarded(t.cuda()) for t in (csr.row_ptr, csr.col_idx, csr.values)]
    exact = csr.to_dense().cuda().float()
    for M in (1, 7, 40):
        x = guarded(torch.randn(M, K, device="cuda").to(csr.dtype))
        poison((M, N), csr.dtype)
        y = raw.spmm_csr(x, *arrays, None, None, "none", "rows", "")
        problems.append(check_one(f"spmm_csr rows {label} M={M}", y, x, exact))
        columns = guarded(x.T.contiguous().unsqueeze(0))
        poison((1, N, M), csr.dtype)
        y = raw.spmm_csr(columns, *arrays, None, None, "none", "columns", "")[0].T
        problems.append(check_one(f"spmm_csr columns {label} M={M}", y, x, exact))
    return problems


def check_int8(csr: Any, label: str) -> list[str | None]:
    """Sparse and dense int8 against exact sums: with scales of 1 and an output in float32 they are equal."""
    from sparsecore.formats import Int8Weight, PackedInt8Weight
    from sparsecore.ops import linear_int8

    problems: list[str | None] = []
    N, K = csr.shape
    dense = csr.to_dense(dequantize=False)
    exact = dense.cuda().double()
    for format in ("rows", "fragment"):
        packed = PackedInt8Weight.pack(Int8Weight(dense, torch.ones(N)), format)
        weight = replace(on_gpu(packed), tensors=tuple(guarded(tensor.cuda()) for tensor in packed.tensors))
        for M in (1, 3, 8, 9, 16, 17, 33, 100, 300):
            x = guarded(torch.randint(-128, 128, (M, K), dtype=torch.int8, device="cuda"))
            for zero_point in (0, 9):
                expected = ((x.double() - zero_point) @ exact.T).float()
                poison((M, N), torch.float32)
                if not torch.equal(linear_int8(x, weight, x_scale=1.0, x_zero_point=zero_point), expected):
                    problems.append(f"linear_int8 {format} {label} M={M} zero point {zero_point}: not exact")
            problems.append(check_quantizing(x, weight, label))
    return problems


def check_quantizing(x: Tensor, weight: Any, label: str) -> str | None:
    """Float activations that are integers, with 127 in each row: their dynamic scale is 1."""
    from sparsecore.ops import linear_int8

    if x.numel() == 0:
        return None
    whole = x.clamp(-127, 127).float()
    whole[:, 0] = 127
    same = torch.equal(linear_int8(whole, weight), linear_int8(whole.to(torch.int8), weight, x_scale=1.0))
    return None if same else f"linear_int8 {weight.format} {label} M={len(x)}: quantizing x changes it"


# --- timing ---


def copies_of(nbytes: int) -> int:
    """Copies of a weight that together are three times the second-level cache, at least two."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return max(2, math.ceil(3 * cache / max(nbytes, 1)))


def microseconds(calls: list[Call], repeats: int) -> tuple[float, float]:
    """Median and spread (interquartile range) of one call, from replays of a graph of all of them."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
    torch.cuda.synchronize()
    rounds = max(1, 8 // len(calls))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(repeats):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) * 1e3 / (rounds * len(calls)))
    quarters = statistics.quantiles(times, n=4)
    return statistics.median(times), quarters[2] - quarters[0]


@dataclass
class Layer:
    """A pruned layer to be timed."""

    dense: Tensor  # [N, K] on the GPU, with its zeros
    x: Tensor  # [M, K]
    packed: dict[str, Any]  # formats by name, made once per weight


def dense_calls(layer: Layer) -> list[Call]:
    weights = [layer.dense.clone() for _ in range(copies_of(layer.dense.nbytes))]
    return [lambda w=w: F.linear(layer.x, w) for w in weights]


def packed_calls(layer: Layer, name: str) -> list[Call]:
    from sparsecore.ops.cuda import spmm_packed

    weight = layer.packed[name]
    copies = [weight.to("cuda") for _ in range(copies_of(weight.nbytes))]
    return [lambda w=w: spmm_packed(layer.x, w) for w in copies]


def expand_calls(layer: Layer) -> list[Call]:
    from sparsecore.ops.cuda import expand_packed

    weight = layer.packed["fragment16"]
    copies = [weight.to("cuda") for _ in range(copies_of(weight.nbytes))]
    return [lambda w=w: F.linear(layer.x, expand_packed(layer.x, w)) for w in copies]


def own_int8_calls(layer: Layer, name: str, is_quantized: bool) -> list[Call]:
    """int8 times int8, dense or without the zeros; x is quantized before or in the call."""
    from sparsecore.ops import linear_int8

    weight = layer.packed[name]
    x_scale = float(layer.x.abs().amax()) / 127
    x = (layer.x / x_scale).round().to(torch.int8) if is_quantized else layer.x
    settings = {"x_scale": x_scale} if is_quantized else {}
    copies = [weight.to("cuda") for _ in range(copies_of(weight.nbytes))]
    return [lambda w=w: linear_int8(x, w, **settings) for w in copies]


def csr_calls(layer: Layer) -> list[Call]:
    from sparsecore._native import raw

    csr = layer.packed["csr"]
    arrays = [
        [t.cuda() for t in (csr.row_ptr, csr.col_idx, csr.values)] for _ in range(copies_of(csr.values.nbytes * 3))
    ]
    return [lambda a=a: raw.spmm_csr(layer.x, *a, None, None, "none", "rows", "") for a in arrays]


def cusparse_calls(layer: Layer) -> list[Call]:
    weights = [layer.dense.to_sparse_csr() for _ in range(copies_of(layer.packed["csr"].values.nbytes * 3))]
    columns = layer.x.T.contiguous()
    return [lambda w=w: w @ columns for w in weights]


def semi_structured_calls(layer: Layer) -> list[Call]:
    """2:4 of the same size through cuSPARSELt; other weights, since random ones do not fit the pattern."""
    from torch.sparse import to_sparse_semi_structured

    quads = layer.dense.view(layer.dense.shape[0], -1, 4).clone()
    quads[:, :, 2:] = 0
    weights = [to_sparse_semi_structured(quads.view_as(layer.dense)) for _ in range(copies_of(layer.dense.nbytes // 2))]
    return [lambda w=w: F.linear(layer.x, w) for w in weights]


def int8_calls(layer: Layer) -> list[Call]:
    """Dense int8 times int8, without quantizing x."""
    weight = torch.randint(-127, 128, layer.dense.shape, dtype=torch.int8, device="cuda")
    x = torch.randint(-127, 128, layer.x.shape, dtype=torch.int8, device="cuda")
    weights = [weight.clone().T for _ in range(copies_of(weight.nbytes))]
    return [lambda w=w: torch._int_mm(x, w) for w in weights]


def weight_only_int8_calls(layer: Layer) -> list[Call]:
    """Dense int8 weights with a scale per row, bfloat16 activations."""
    weight = torch.randint(-127, 128, layer.dense.shape, dtype=torch.int8, device="cuda")
    scale = torch.ones(layer.dense.shape[0], dtype=torch.bfloat16, device="cuda")
    x = layer.x.to(torch.bfloat16)
    copies = [weight.clone() for _ in range(copies_of(weight.nbytes))]
    return [lambda w=w: torch.ops.aten._weight_int8pack_mm(x, w, scale) for w in copies]


def int4_calls(layer: Layer) -> list[Call]:
    """Dense int4 weights in groups of 128, bfloat16 activations."""
    N, K = layer.dense.shape
    stored = torch.randint(0, 256, (N, K // 2), dtype=torch.uint8, device="cuda")
    weight = torch.ops.aten._convert_weight_to_int4pack(stored, 8)
    scales = torch.ones(K // 128, N, 2, dtype=torch.bfloat16, device="cuda")
    x = layer.x.to(torch.bfloat16)
    copies = [weight.clone() for _ in range(copies_of(weight.nbytes))]
    return [lambda w=w: torch.ops.aten._weight_int4pack_mm(x, w, 128, scales) for w in copies]


CANDIDATES: dict[str, Callable[[Layer], list[Call]]] = {
    "dense": dense_calls,
    "fragment16": lambda layer: packed_calls(layer, "fragment16"),
    "fragment8": lambda layer: packed_calls(layer, "fragment8"),
    "fragment4": lambda layer: packed_calls(layer, "fragment4"),
    "fragment8_int8": lambda layer: own_int8_calls(layer, "int8_fragment", is_quantized=True),
    "fragment8_int8_quantizing": lambda layer: own_int8_calls(layer, "int8_fragment", is_quantized=False),
    "delta16": lambda layer: packed_calls(layer, "delta16"),
    "delta8": lambda layer: packed_calls(layer, "delta8"),
    "expand16": expand_calls,
    "own_dense_int8": lambda layer: own_int8_calls(layer, "int8_rows", is_quantized=True),
    "own_dense_int8_quantizing": lambda layer: own_int8_calls(layer, "int8_rows", is_quantized=False),
    "csr": csr_calls,
    "cusparse": cusparse_calls,
    "semi_structured_2_4": semi_structured_calls,
    "dense_int8": int8_calls,
    "dense_int8_weight_only": weight_only_int8_calls,
    "dense_int4": int4_calls,
}


# Kernels that read the weight once for a few rows are not for many.
MOST_ROWS = dict.fromkeys(("csr", "delta16", "delta8", "own_dense_int8", "own_dense_int8_quantizing"), 256)


def time_case(layer: Layer, repeats: int) -> dict[str, Any]:
    """All candidates on one layer; what cannot run says why."""
    results: dict[str, Any] = {}
    for name, make in CANDIDATES.items():
        if layer.x.shape[0] > MOST_ROWS.get(name, math.inf):
            continue  # minutes
        try:
            median, spread = microseconds(make(layer), repeats)
            results[name] = {"us": median, "spread_us": spread}
        except (RuntimeError, NotImplementedError, ValueError) as error:
            results[name] = {"error": str(error).splitlines()[0][:200]}
        torch.cuda.empty_cache()
    return results


def cases(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    shapes = QUICK_SHAPES if arguments.quick else SHAPES
    for N, K in shapes:
        for sparsity in QUICK_SPARSITIES if arguments.quick else SPARSITIES:
            for kind in ("random",) if arguments.quick else ("random", "uniform", "skewed"):
                yield {"N": N, "K": K, "sparsity": sparsity, "mask": kind}


def run_cases(arguments: argparse.Namespace, report: dict[str, Any], file: Path) -> None:
    from sparsecore.formats import CsrWeight, DeltaWeight, FragmentWeight, Int8Weight, PackedInt8Weight

    done = {tuple(row[key] for key in ("N", "K", "sparsity", "mask", "M")) for row in report["cases"]}
    deadline = time.monotonic() + arguments.minutes * 60
    for case in cases(arguments):
        rows = [M for M in (QUICK_ROWS if arguments.quick else ROWS) if (*case.values(), M) not in done]
        if not rows:
            continue
        if time.monotonic() > deadline:
            print("gpu.py: time is over; run it again to go on")
            return
        mask = mask_of(case["N"], case["K"], case["sparsity"], case["mask"], arguments.seed)
        dense = (torch.randn(mask.shape, device="cuda") * mask).to(torch.float16)
        csr = CsrWeight.from_dense(dense.cpu())
        int8 = Int8Weight.from_dense(dense.cpu())
        packed = {
            "csr": csr,
            "fragment16": FragmentWeight.pack(csr),
            "fragment8": FragmentWeight.pack(int8.to_csr()),
            "fragment4": FragmentWeight.pack_int4(csr),
            "delta16": DeltaWeight.pack(csr),
            "delta8": DeltaWeight.pack(int8.to_csr()),
            "int8_rows": PackedInt8Weight.pack(int8, "rows"),
            "int8_fragment": PackedInt8Weight.pack(int8, "fragment"),
        }
        for M in rows:
            x = torch.randn(M, case["K"], device="cuda").to(torch.float16)
            row = {**case, "M": M, "packed_bytes": {name: packed[name].nbytes for name in packed if name != "csr"}}
            row["times"] = time_case(Layer(dense, x, packed), arguments.repeats)
            report["cases"].append(row)
            file.write_text(json.dumps(report, indent=1))
            times = {name: f"{entry['us']:.1f}" for name, entry in row["times"].items() if "us" in entry}
            print(case, f"M={M}", times, flush=True)


# --- results ---


def print_table(report: dict[str, Any]) -> None:
    """Geometric means of the speed-up over dense, where the packed weight has 20 MB or more."""
    print("\nspeed-up over dense, geometric mean over shapes (random masks)")
    groups: dict[tuple[str, float, int], list[float]] = {}
    for row in report["cases"]:
        dense = row["times"].get("dense", {}).get("us")
        for name, entry in row["times"].items():
            large = row["packed_bytes"].get(name, math.inf) >= 20e6
            if dense and "us" in entry and large and row["mask"] == "random":
                groups.setdefault((name, row["sparsity"], row["M"]), []).append(dense / entry["us"])
    rows = sorted({M for _, _, M in groups})
    print(f"{'kernel':22}{'zeros':>7}" + "".join(f"{f'M={M}':>9}" for M in rows))
    for name, sparsity in sorted({(name, sparsity) for name, sparsity, _ in groups}):
        means = [groups.get((name, sparsity, M)) for M in rows]
        cells = [f"{math.exp(statistics.fmean(map(math.log, mean))):9.2f}" if mean else f"{'-':>9}" for mean in means]
        print(f"{name:22}{sparsity:7.2f}" + "".join(cells))


def run_probes() -> list[dict[str, Any]]:
    """The rates of csrc/cuda/probes, built with nvcc; empty where there is none."""
    sys.path.insert(0, str(ROOT / "cmake"))
    from cuda_check import find_nvcc

    nvcc = find_nvcc()
    if nvcc is None:
        print("gpu.py: no nvcc, so no probes")
        return []
    program = ROOT / "build" / "probes"
    program.parent.mkdir(exist_ok=True)
    source = ROOT / "csrc/cuda/probes/probes.cu"
    includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc/include'}"]
    subprocess.run([nvcc, "-std=c++20", "-O3", "-arch=native", *includes, str(source), "-o", str(program)], check=True)
    output = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    print(output)
    return [json.loads(line) for line in output.splitlines()]


def commit() -> str:
    result = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return result.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", action="store_true", help="build the libraries in place first")
    parser.add_argument("--quick", action="store_true", help="three shapes")
    parser.add_argument("--check-only", action="store_true", help="no timing")
    parser.add_argument("--small", action="store_true", help="checks on small shapes alone")
    parser.add_argument(
        "--sanitize", action="store_true", help="these checks under compute-sanitizer, and nothing else"
    )
    parser.add_argument("--minutes", type=float, default=30, help="stop timing after this long")
    parser.add_argument("--repeats", type=int, default=20, help="graph replays per candidate")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of inputs; printed")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of gpu.json")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        fail("expected a GPU and a torch with CUDA, found none; nothing was run")
    if arguments.build:
        environment = os.environ | {"SPARSECORE_BUILD_CUDA": "1"}
        subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=ROOT, env=environment, check=True)
    sys.path.insert(0, str(ROOT))
    from sparsecore._native import has_cuda_kernels

    if not has_cuda_kernels():
        fail("expected a build with CUDA kernels; run with --build")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, commit {commit()}, seed {arguments.seed}")
    if arguments.sanitize:
        sanitize(arguments.seed)
        return
    problems = check_kernels(arguments.seed, SMALL_SHAPES if arguments.small else (*SMALL_SHAPES, (4096, 4096)))
    if problems:
        fail("wrong results:\n" + "\n".join(problems[:20]))
    print("every kernel is right")
    if arguments.check_only:
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "gpu.json"
    machine = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "commit": commit()}
    report: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if report.get("machine") != machine:  # figures of one build only
        report = {"machine": machine, "seed": arguments.seed, "probes": run_probes(), "cases": []}
    run_cases(arguments, report, file)
    print_table(report)


if __name__ == "__main__":
    main()
