"""The operations on float weights and the formats of their weights, called alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsecore import _C, CsrWeight
from sparsecore.formats import BitmapWeight, BlockCsrWeight, JitProgram, PanelWeight
from sparsecore.ops.shared import pair

raw = torch.ops.sparsecore
FORMS = ("csr", "4x1", "8x1", "panel", "jit")
SPMM = {"panel": raw.spmm_panel, "jit": raw.spmm_jit}
CONV2D = {"panel": raw.conv2d_panel, "jit": raw.conv2d_jit}
ONE_GROUP = ("panel", "jit")  # forms that have no grouped convolutions
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def kernel_names(operation: str) -> list[str]:
    return [k["name"] for k in _C.kernels() if k["op"] == operation and k["available"]]


def random_sparse(*shape: int, density: float = 0.3) -> Tensor:
    return torch.randn(shape) * (torch.rand(shape) < density)


def csr_tensors(weight: CsrWeight) -> tuple[Tensor, Tensor, Tensor]:
    return weight.row_ptr, weight.col_idx, weight.values


_PROGRAMS: list[JitProgram] = []


def _program(weight: CsrWeight, kernel_size: Sequence[int]) -> JitProgram:
    """A program that outlives the call: operations know it by a number, which does not keep it alive."""
    _PROGRAMS.append(JitProgram(weight, kernel_size))
    del _PROGRAMS[:-64]
    return _PROGRAMS[-1]


def packed(form: str, weight: CsrWeight, panel_cols: int, kernel_size: Sequence[int] = ()) -> tuple[Any, ...]:
    """What the operations take for a weight; ``kernel_size`` of a convolution's."""
    if form == "panel":
        panel = PanelWeight.pack(weight, panel_cols)
        return list(panel.tensors), panel.sizes
    if form == "jit":
        return _program(weight, kernel_size).arguments
    return csr_tensors(weight) if form == "csr" else BlockCsrWeight.pack(weight, int(form[0])).tensors


def form_kernels(operation: str, form: str) -> list[str]:
    return kernel_names(operation + {"csr": "", "panel": "_panel", "jit": "_jit"}.get(form, "_block"))


def run_spmm(
    form: str,
    x: Tensor,
    weight: CsrWeight,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    layout: str = "rows",
    kernel: str = "",
) -> Tensor:
    operation = SPMM.get(form, raw.spmm_csr)
    return operation(x, *packed(form, weight, 16), bias, residual, activation, layout, kernel)


def run_conv2d(
    form: str,
    x: Tensor,
    weight: CsrWeight,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    kernel: str = "",
    **settings: Any,
) -> Tensor:
    """Settings as of a nn.Conv2d; groups only where the format has them."""
    pairs = [
        pair(settings.get(name, usual))
        for name, usual in (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1))
    ]
    if form == "panel":
        panel_cols = 5 * pairs[0][0] * pairs[0][1]
        return raw.conv2d_panel(x, *packed(form, weight, panel_cols), bias, residual, *pairs, activation, kernel)
    if form == "jit":
        return raw.conv2d_jit(x, *packed(form, weight, 0, pairs[0]), bias, residual, *pairs, activation, kernel)
    groups = settings.get("groups", 1)
    return raw.conv2d_csr(x, *packed(form, weight, 0), bias, residual, *pairs, groups, activation, kernel)


def run_bitmap(
    x: Tensor,
    weight: CsrWeight,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    kernel: str = "",
) -> Tensor:
    bitmap = BitmapWeight.pack(weight)
    return raw.spmm_bitmap(x, list(bitmap.tensors), bitmap.sizes, bias, residual, activation, kernel)
