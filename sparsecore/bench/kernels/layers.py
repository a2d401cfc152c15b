"""The layers that kernels are measured on: real networks, and sizes that fit no kernel."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

LINEAR = "linear"
FEW_ROWS = "linear, 2-15 rows"
ONE_ROW = "linear, 1 row"
POINTWISE = "conv 1x1"
SPATIAL = "conv kxk"
KINDS = (LINEAR, POINTWISE, SPATIAL, ONE_ROW, FEW_ROWS)
MANY_ROWS = 16  # from here on a linear layer is LINEAR; with fewer rows, reading the weight takes most of the time


@dataclass(frozen=True)
class Layer:
    """A linear layer or a convolution, and the size of its input.

    Attributes:
        network: Where it is from.
        N: Output features or channels.
        C: Input features or channels.
        size: Rows M of a linear layer's input, side of a convolution's image.
        kernel: Side of the filter; 0 is a linear layer.
        stride: Of the filter, in pixels.
        batch: Images; 1 for a linear layer.
        quick: Among the layers that a quick run measures.
    """

    network: str
    N: int
    C: int
    size: int
    kernel: int = 0
    stride: int = 1
    batch: int = 1
    quick: bool = False

    @property
    def name(self) -> str:
        if not self.kernel:
            return f"linear {self.N}x{self.C}, {self.size}"
        stride = f"/{self.stride}" if self.stride > 1 else ""
        batch = f" b{self.batch}" if self.batch > 1 else ""
        return f"conv {self.kernel}x{self.kernel}{stride} {self.C}->{self.N} @{self.size}{batch}"

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        if not self.kernel:
            few = ONE_ROW if self.size == 1 else FEW_ROWS
            return few if self.size < MANY_ROWS else LINEAR
        return POINTWISE if self.kernel == 1 else SPATIAL

    @property
    def K(self) -> int:
        """Columns of the weight as a matrix ``[N, K]``."""
        return self.C * max(self.kernel, 1) ** 2

    @property
    def padding(self) -> int:
        return self.kernel // 2

    @property
    def out_size(self) -> int:
        """Side of the output image."""
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def columns(self) -> int:
        """M of a linear layer, P (pixels of all output images) of a convolution."""
        return self.batch * self.out_size**2 if self.kernel else self.size

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.N, self.C, self.kernel, self.kernel) if self.kernel else (self.N, self.C)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.batch, self.C, self.size, self.size) if self.kernel else (self.size, self.C)

    def describe(self) -> dict[str, Any]:
        """The fields and what follows from them, for JSON."""
        return asdict(self) | {"name": self.name, "kind": self.kind, "K": self.K, "columns": self.columns}


def _linear(network: str, N: int, K: int, M: int, quick: bool = False) -> Layer:
    return Layer(network, N, K, M, quick=quick)


def _conv(
    network: str, C: int, N: int, size: int, kernel: int = 1, stride: int = 1, batch: int = 1, quick: bool = False
) -> Layer:
    return Layer(network, N, C, size, kernel, stride, batch, quick)


LAYERS = (
    _linear("BERT-base", 768, 768, 128, quick=True),
    _linear("BERT-base", 3072, 768, 128, quick=True),
    _linear("BERT-base", 768, 3072, 128, quick=True),
    _linear("BERT-large", 1024, 1024, 128),
    _linear("BERT-large", 4096, 1024, 128),
    _linear("BERT-large", 1024, 4096, 128),
    _linear("BERT-large", 1024, 1024, 384),
    _linear("BERT-large", 4096, 1024, 384),
    _linear("BERT-large", 1024, 4096, 384),
    _linear("Llama", 4096, 4096, 16, quick=True),
    _linear("Llama", 11008, 4096, 16),
    _linear("Llama", 4096, 11008, 16),
    _linear("Llama", 14336, 4096, 16),
    _linear("Llama", 4096, 4096, 1, quick=True),
    _linear("Llama", 11008, 4096, 1, quick=True),
    _linear("Llama", 4096, 11008, 1),
    _linear("Llama", 14336, 4096, 1),
    *(
        _linear("Llama", N, K, M)
        for N, K in ((4096, 4096), (11008, 4096), (4096, 11008), (14336, 4096))
        for M in (2, 4, 8)
    ),
    _conv("ResNet-50", 64, 256, 56, quick=True),
    _conv("ResNet-50", 128, 512, 28, quick=True),
    _conv("ResNet-50", 256, 1024, 14, quick=True),
    _conv("ResNet-50", 512, 2048, 7, quick=True),
    _conv("ResNet-50", 256, 64, 56),
    _conv("ResNet-50", 512, 128, 28),
    _conv("ResNet-50", 1024, 256, 14),
    _conv("ResNet-50", 2048, 512, 7),
    _conv("ResNet-50", 256, 512, 56, stride=2),
    _conv("ResNet-50", 512, 1024, 28, stride=2),
    _conv("ResNet-50", 1024, 2048, 14, stride=2),
    _conv("ResNet-50", 64, 64, 56, 3, quick=True),
    _conv("ResNet-50", 128, 128, 28, 3, quick=True),
    _conv("ResNet-50", 256, 256, 14, 3, quick=True),
    _conv("ResNet-50", 512, 512, 7, 3, quick=True),
    _conv("ResNet-50", 128, 128, 56, 3, stride=2),
    _conv("ResNet-50", 256, 256, 28, 3, stride=2),
    _conv("ResNet-50", 512, 512, 14, 3, stride=2),
    _conv("ResNet-50", 256, 1024, 14, batch=16),
    _conv("ResNet-50", 128, 128, 28, 3, batch=16),
    _conv("MobileNetV1", 512, 512, 14, quick=True),
    _conv("MobileNetV1", 1024, 1024, 7, quick=True),
    _conv("MobileNetV2", 96, 24, 56),
    _conv("MobileNetV2", 144, 32, 28),
    _conv("MobileNetV2", 192, 64, 14),
    _conv("MobileNetV2", 576, 160, 7),
    _conv("MobileNetV2", 320, 1280, 7),
    _conv("EfficientNet-B0", 240, 40, 28),
    _conv("EfficientNet-B0", 480, 80, 14),
    _conv("EfficientNet-B0", 672, 112, 14),
    _conv("EfficientNet-B0", 1152, 192, 7),
    _conv("VGG-16", 128, 128, 112, 3),
    _conv("VGG-16", 256, 256, 56, 3),
    _conv("VGG-16", 512, 512, 28, 3),
    _linear("odd sizes", 1001, 999, 33),
    _linear("odd sizes", 77, 130, 17),
    _conv("odd sizes", 37, 53, 19, 3),
)


def select(shapes: str) -> tuple[Layer, ...]:
    """Find layers by name.

    Args:
        shapes: ``"quick"``, ``"all"``, or a part of the name of layers or of their network, in any case.

    Returns:
        The layers, in the order of `LAYERS`.

    Raises:
        ValueError: No layer has that in its name.
    """
    if shapes == "all":
        return LAYERS
    if shapes == "quick":
        return tuple(layer for layer in LAYERS if layer.quick)
    found = tuple(layer for layer in LAYERS if shapes and shapes.lower() in f"{layer.network} {layer.name}".lower())
    if not found:
        networks = ", ".join(dict.fromkeys(layer.network for layer in LAYERS))
        raise ValueError(
            f"expected quick, all, or a part of a layer's name such as 'conv 3x3', or of {networks}; got {shapes!r}"
        )
    return found
