"""What stands for the inputs of a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsecore.calibration import run_batches
from sparsecore.calls import Call, as_arguments, call_model

X, Y = torch.ones(2), torch.full((2,), 3.0)


class Difference(nn.Module):
    def forward(self, x: Tensor, y: Tensor = X) -> Tensor:
        return x - y


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [(Y, Y - X), ((Y, Y), X - X), ([X, Y], X - Y), ({"y": Y, "x": X}, X - Y), (Call((Y,), {"y": Y}), X - X)],
    ids=["tensor", "tuple", "list", "dict", "Call"],
)
def test_every_kind_of_inputs(inputs: Any, expected: Tensor) -> None:
    assert torch.equal(call_model(Difference(), inputs), expected)
    (output,) = run_batches(Difference(), [inputs])
    assert torch.equal(output, expected)


@pytest.mark.parametrize("inputs", [3, None, "x"])
def test_other_inputs_are_refused(inputs: Any) -> None:
    with pytest.raises(TypeError, match=f"expected the model's inputs as a tensor.* got {type(inputs).__name__}"):
        as_arguments(inputs)
