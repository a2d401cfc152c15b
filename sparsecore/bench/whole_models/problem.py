"""What every library runs: a model with its weights and one input, in files without code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparsecore.bench.models.load import find_model


@dataclass(frozen=True)
class ModelProblem:
    """A model and its input.

    Attributes:
        model: The name that `find_model` builds the architecture from.
        state: File of the ``state_dict``.
        x: The input.
        output_shape: Of the first output.
        onnx: File of the model as ONNX, from ``x`` to ``y``; empty where there is none.
        onnx_int8: The same quantized; empty where int8 does not compete.
        max_error: Of our int8 model's output; None where int8 does not compete.
    """

    model: str
    state: str
    x: NDArray[Any]
    output_shape: tuple[int, ...]
    onnx: str = ""
    onnx_int8: str = ""
    max_error: float | None = None

    def build(self) -> nn.Module:
        """The model with its weights, in eval mode."""
        with torch.inference_mode(False):  # parameters that may be copied and folded
            model = find_model(self.model).build()
            model.load_state_dict(torch.load(self.state, weights_only=True))
        return model.eval()

    def save(self, path: Path) -> None:
        """Write a JSON file, and the input beside it."""
        fields = asdict(self) | {"x": str(path.with_suffix(".npy"))}
        np.save(fields["x"], self.x, allow_pickle=False)
        path.write_text(json.dumps(fields), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> ModelProblem:
        """Read what `save` wrote."""
        fields = json.loads(path.read_text(encoding="utf-8"))
        fields["x"] = np.load(fields["x"], allow_pickle=False)
        fields["output_shape"] = tuple(fields["output_shape"])
        return cls(**fields)


def first_tensor(output: Any) -> Tensor:
    """The first tensor of a model's output, which may be a tuple, a list or a mapping."""
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    return output
