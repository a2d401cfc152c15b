"""Networks by name: full size, as in the papers, with random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from sparsecore.bench.models import mobile, plain, resnet
from sparsecore.bench.models.initialise import initialise

ZOO: Mapping[str, Callable[[int], nn.Module]] = MappingProxyType(
    {
        make.__name__: make
        for make in (
            resnet.resnet18,
            resnet.resnet50,
            resnet.resnext50_32x4d,
            resnet.regnet_y_400mf,
            mobile.mobilenet_v1,
            mobile.mobilenet_v2,
            mobile.mobilenet_v3_small,
            mobile.mobilenet_v3_large,
            mobile.efficientnet_b0,
            plain.vgg16,
            plain.densenet121,
            plain.convnext_tiny,
        )
    }
)


def create(name: str, num_classes: int = 1000) -> nn.Module:
    """Build a network of the zoo with random weights, from torch's random numbers.

    Args:
        name: One of `ZOO`.
        num_classes: Outputs of the classifier.

    Returns:
        A model for ``[B, 3, H, W]`` images, in training mode. Its BatchNorm is new; see `settle_batchnorm`.

    Raises:
        KeyError: There is no such network.
    """
    model = ZOO[name](num_classes)
    initialise(model)
    return model
