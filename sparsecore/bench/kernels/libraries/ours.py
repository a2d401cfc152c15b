"""sparsecore: every format in ``tune``'s table, and dense PyTorch, which layers stay where it is faster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparsecore.bench import probes
from sparsecore.bench.kernels.libraries.pytorch import dense_layer
from sparsecore.bench.kernels.problem import Problem
from sparsecore.bench.peers.candidate import FLOAT32, INT8, Builders, Candidate
from sparsecore.bench.peers.pytorch import numpy_of, prepare
from sparsecore.graph.program import layer_program
from sparsecore.nn import CompressedModule, Int8Conv2d, Int8Linear
from sparsecore.tune.candidates import candidates as formats_of
from sparsecore.tune.candidates import format_of, kernel_of
from sparsecore.tune.makers import DENSE

__all__ = ["candidates", "fma_gflops", "prepare"]

Maker = Callable[[nn.Module, tuple[int, ...] | None], nn.Module]


def candidates(problem: Problem) -> Builders:
    """Every format of a float layer, and those that only an int8 layer has."""
    layer = dense_layer(problem)
    x = torch.from_numpy(problem.x)
    int8 = (Int8Conv2d if problem.is_conv else Int8Linear).from_dense
    builders: dict[str, Callable[[], Candidate]] = {}
    for make_source, makers in (
        (lambda: layer, formats_of(layer)),
        (lambda: int8(layer), _int8_formats(problem)),
    ):
        for name, make in makers.items():
            builders.setdefault(name, partial(_candidate, make_source, make, x))
    for name in ("int8", "lookup int8"):
        builders[f"{name} to int8"] = partial(_int8_to_int8, int8, layer, _int8_formats(problem)[name], x)
    return builders


def _int8_to_int8(make_int8: Callable[..., nn.Module], dense: nn.Module, make: Maker, x: Tensor) -> Candidate:
    """As inside an int8 network: activations come and go as int8, channels last, with scales known beforehand."""
    scales = {f"{name}_scale": float(t.abs().max()) / 127 or 1.0 for name, t in (("x", x), ("y", dense(x)))}
    layer = make(make_int8(dense, **scales), tuple(x.shape))
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


def _int8_formats(problem: Problem) -> Mapping[str, Maker]:
    """Formats of an int8 layer, found without making one of the problem's size."""
    tiny = Int8Conv2d.from_dense(nn.Conv2d(1, 1, 1)) if problem.is_conv else Int8Linear.from_dense(nn.Linear(1, 1))
    return formats_of(tiny)


def _candidate(make_source: Callable[[], nn.Module], make: Maker, x: Tensor) -> Candidate:
    layer = make(make_source(), tuple(x.shape))
    name = format_of(layer)
    # As a compiled model runs it, into memory that was planned before, which other runtimes do too.
    program = layer_program(layer, (x,))
    replay = program.only_replay()

    def output() -> NDArray[Any]:
        results = program.try_run((x,))
        assert results is not None  # no other thread runs it
        return numpy_of(results[0])

    return Candidate(
        partial(layer, x) if replay is None else partial(replay, (x,)),
        output,
        dtype=INT8 if "int8" in name else FLOAT32,
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
