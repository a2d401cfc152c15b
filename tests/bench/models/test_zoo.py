"""Networks of the zoo: the published sizes, and outputs that depend on their inputs."""

from __future__ import annotations

import pytest
import torch

from sparsecore.bench.models import ZOO, create, load_model

# torchvision's documentation of each model; MobileNetV1: Keras Applications' weights without BatchNorm's statistics.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "resnext50_32x4d": 25_028_904,
    "regnet_y_400mf": 4_344_144,
    "mobilenet_v1": 4_231_976,
    "mobilenet_v2": 3_504_872,
    "mobilenet_v3_small": 2_542_856,
    "mobilenet_v3_large": 5_483_032,
    "efficientnet_b0": 5_288_548,
    "vgg16": 138_357_544,
    "densenet121": 7_978_856,
    "convnext_tiny": 28_589_128,
}


def test_sizes_are_the_published_ones() -> None:
    with torch.device("meta"):
        assert {name: sum(p.numel() for p in create(name).parameters()) for name in ZOO} == PARAMETERS


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "regnet_y_400mf", "resnet18"])
def test_outputs_are_in_range_and_depend_on_the_input(name: str) -> None:
    check_outputs(name, 64)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ZOO])
def test_outputs_at_full_size(name: str) -> None:
    check_outputs(name, 224)


def check_outputs(name: str, size: int) -> None:
    model, (x,) = load_model(name, shape=(2, 3, size, size))
    assert not any(module.training for module in model.modules())
    with torch.inference_mode():
        y = model(x)
    assert y.shape == (2, 1000)
    assert 0.05 < y.std() < 20
    # A bias that hides everything would make both samples alike; VGG, with no BatchNorm, comes closest (0.09).
    assert (y[0] - y[1]).norm() > 0.05 * y[0].norm()


def test_resnet50_is_the_published_one() -> None:
    model = create("resnet50").eval()
    state = model.state_dict()
    assert sum(parameter.numel() for parameter in model.parameters()) == 25_557_032
    assert len(state) == 320
    # torchvision's names, one of each kind
    for name, shape in {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_var": (64,),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer1.0.downsample.1.num_batches_tracked": (),
        "layer2.3.conv2.weight": (128, 128, 3, 3),
        "layer3.5.bn3.bias": (1024,),
        "layer4.0.conv3.weight": (2048, 512, 1, 1),
        "fc.weight": (1000, 2048),
    }.items():
        assert state[name].shape == shape
    assert model.get_submodule("layer2.0.conv2").stride == (2, 2)
    assert model.get_submodule("layer2.0.conv1").stride == (1, 1)
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
