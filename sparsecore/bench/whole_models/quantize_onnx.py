"""``python -m sparsecore.bench.whole_models.quantize_onnx FLOAT.onnx X.npy INT8.onnx``."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from sparsecore.bench.peers.vnni import is_exact_at_8_bits


class _OneInput(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, x: Any) -> None:
        self.left = [{"x": x}]

    def get_next(self) -> Any:
        return self.left.pop() if self.left else None


def main(onnx: str, x: str, path: str) -> None:
    """Static int8: uint8 activations calibrated on one input, int8 weights with a scale per output.

    Where the kernels of the peers would saturate at 8 bits, weights have 7.
    """
    prepared = f"{path}.prepared"
    quant_pre_process(onnx, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        path,
        _OneInput(np.load(x, allow_pickle=False)),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=not is_exact_at_8_bits(),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
