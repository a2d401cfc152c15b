"""A model as ONNX, float32 and int8."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsecore.bench.whole_models.problem import first_tensor
from sparsecore.errors import UnsupportedError

QUANTIZE_TIMEOUT_S = 1800.0


class _FirstOutput(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return first_tensor(self.model(x))


def export_onnx(model: nn.Module, x: Tensor, path: Path) -> None:
    """Write a model as ONNX with the input ``x`` and the output ``y``; the exporter folds BatchNorm.

    Args:
        model: In eval mode.
        x: Its input; the exported model takes this shape only.
        path: The file.

    Raises:
        UnsupportedError: torch cannot export it.
    """
    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"]}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that the exporter is the older one, and what tracing warns of
        try:
            # The newer exporter needs onnxscript.
            torch.onnx.export(_FirstOutput(model), (x,), str(path), dynamo=False, **names)
        except Exception as error:
            raise UnsupportedError(f"torch.onnx.export: {' '.join(str(error).split())[:300]}") from error


def quantize_onnx(onnx: Path, x: Path, path: Path) -> None:
    """Quantize an ONNX model in a process of its own, whose threads end with it.

    Args:
        onnx: The float32 model.
        x: The input as .npy, which activations are calibrated on.
        path: The file to write.

    Raises:
        UnsupportedError: ONNX Runtime cannot quantize it.
    """
    command = [sys.executable, "-m", "sparsecore.bench.whole_models.quantize_onnx", str(onnx), str(x), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=QUANTIZE_TIMEOUT_S, check=False)
    if done.returncode:
        raise UnsupportedError(f"ONNX Runtime's quantizer: {' '.join(done.stderr.split())[-300:]}")
