from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsecore.bench.models import digits_data, digits_net, resnet50, settle_batchnorm


def test_resnet50_is_the_published_one() -> None:
    model = resnet50().eval()
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


def test_settled_batchnorm_keeps_activations_in_range() -> None:
    torch.manual_seed(0)
    model = resnet50(num_classes=10)
    x = torch.randn(2, 3, 64, 64)
    settle_batchnorm(model, x)
    assert not model.training
    norm = model.bn1
    assert norm.momentum == 0.1
    assert norm.running_mean is not None
    assert norm.weight.std() > 0.1
    assert norm.running_mean.abs().max() > 0
    with torch.inference_mode():
        assert 0.01 < model(x).std() < 100


def test_settled_batchnorm_depends_on_the_seed_only() -> None:
    x = torch.randn(2, 3, 4, 4)
    models = [nn.Sequential(nn.BatchNorm2d(3)) for _ in range(3)]
    for model, seed in zip(models, (7, 7, 8), strict=True):
        settle_batchnorm(model, x, seed)
    weights = [model[0].weight for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_digits_net() -> None:
    net = digits_net().eval()
    assert net(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    kinds = {type(module) for module in net.modules()}
    assert {nn.Conv2d, nn.BatchNorm2d, nn.Linear} <= kinds


def test_digits_data() -> None:
    pytest.importorskip("sklearn")
    data = digits_data(seed=3)
    assert data.train_x.shape == (1437, 1, 8, 8)
    assert data.test_x.shape == (360, 1, 8, 8)
    assert data.train_x.dtype == torch.float32
    assert (float(data.train_x.min()), float(data.train_x.max())) == (0.0, 1.0)
    assert set(data.test_y.tolist()) == set(range(10))
    assert torch.equal(digits_data(seed=3).test_y, data.test_y)
    assert not torch.equal(digits_data(seed=4).test_y, data.test_y)
