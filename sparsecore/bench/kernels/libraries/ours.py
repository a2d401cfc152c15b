"""sparsecore: every format in ``tune``'s table, and dense PyTorch, which layers stay where it is faster."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparsecore.bench import probes
from sparsecore.bench.kernels.libraries.pytorch import dense_layer
from sparsecore.bench.kernels.problem import Problem
from sparsecore.bench.peers.candidate import FLOAT32, INT4, INT8, Builders, Candidate
from sparsecore.bench.peers.pytorch import numpy_of, prepare
from sparsecore.graph.program import layer_program
from sparsecore.nn import CompressedModule, Int8Conv2d, Int8Linear
from sparsecore.tune.candidates import candidates as formats_of
from sparsecore.tune.candidates import format_of, kernel_of, numeric_type
from sparsecore.tune.makers import DENSE

__all__ = ["candidates", "fma_gflops", "prepare"]

Maker = Callable[[nn.Module, tuple[int, ...] | None], nn.Module]
TYPES = {"int8": INT8, "lookup int4": INT4}
# Where activations come and go as int8, beside int8 layers that take and give float32.
INT8_TO_INT8 = ("int8", "lookup int8")


def candidates(problem: Problem) -> Builders:
    """Every format of a float layer, those of integers among them."""
    layer = dense_layer(problem)
    x = torch.from_numpy(problem.x)
    builders: dict[str, Callable[[], Candidate]] = {
        name: partial(_candidate, layer, make, x) for name, make in formats_of(layer, with_integers=True).items()
    }
    int8 = Int8Conv2d if problem.is_conv else Int8Linear
    return builders | {f"{name} to int8": partial(_int8_to_int8, int8, layer, name, x) for name in INT8_TO_INT8}


def _int8_to_int8(int8: type[Int8Linear] | type[Int8Conv2d], dense: nn.Module, name: str, x: Tensor) -> Candidate:
    """As inside an int8 network: activations come and go as int8, channels last, with scales known beforehand."""
    scales = {f"{end}_scale": float(t.abs().max()) / 127 or 1.0 for end, t in (("x", x), ("y", dense(x)))}
    source = int8.from_dense(dense, **scales)
    layer = formats_of(source)[name](source, tuple(x.shape))
    q = (x / scales["x_scale"]).round().to(torch.int8)
    if q.dim() == 4:
        q = q.contiguous(memory_format=torch.channels_last)
    call = partial(layer, q)
    return Candidate(
        call,
        lambda: numpy_of(call().float() * scales["y_scale"]),
        dtype=INT8,
        sparse=format_of(layer) != "int8",
        note=f"{kernel_of(layer)}, x and y int8",
        weight_bytes=_weight_bytes(layer),
    )


def _candidate(source: nn.Module, make: Maker, x: Tensor) -> Candidate:
    layer = make(source, tuple(x.shape))
    name = format_of(layer)
    # As a compiled model runs it, into memory that was planned before, which other runtimes do too.
    program = layer_program(layer, (x,))
    steps = program.only_steps

    def output() -> NDArray[Any]:
        results = program.try_run((x,))
        assert results is not None  # no other thread runs it
        return numpy_of(results[0])

    return Candidate(
        partial(layer, x) if steps is None else partial(steps.run, (x,)),
        output,
        dtype=TYPES.get(numeric_type(name), FLOAT32),
        sparse=name not in (DENSE, "int8"),
        note=kernel_of(layer),
        weight_bytes=_weight_bytes(layer),
    )


def _weight_bytes(layer: nn.Module) -> int:
    tensors = layer.buffers() if isinstance(layer, CompressedModule) else [cast(Tensor, layer.weight)]
    return sum(tensor.nbytes for tensor in tensors)


def fma_gflops(threads: int, seconds: float) -> float:
    """The float32 multiply-add peak, 10^9 operations per second."""
    return probes.fma_gflops(threads, seconds)
