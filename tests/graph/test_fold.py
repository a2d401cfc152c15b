"""BatchNorm folding: exact where it is done, not done where something else reads between."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparsecore.graph import fold_batchnorm


def settled(norm: nn.Module) -> nn.Module:
    """Statistics and weights that folding has to get right."""
    for tensor in (norm.running_mean, norm.weight.data, norm.bias.data):
        tensor.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


class Between(nn.Module):
    """conv -> norm with a choice of what else happens to the convolution's output."""

    def __init__(self, extra: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = settled(nn.BatchNorm2d(4))
        self.extra = extra

    def forward(self, x: Tensor) -> object:
        y = self.conv(x)
        if self.extra == "twice":
            return self.norm(y) + self.norm(self.conv(x + 1))
        if self.extra == "in place":
            y.mul_(2)
        z = self.norm(y)
        if self.extra == "sum":
            return z + y
        if self.extra == "returned":
            return {"z": z, "y": [y]}
        if self.extra == "shape":
            return z.view(y.shape[0], -1)
        return z


@pytest.mark.parametrize(
    ("extra", "is_folded"),
    [
        ("nothing", True),
        ("shape", True),
        ("sum", False),
        ("returned", False),
        ("twice", False),
        ("in place", False),
    ],
)
def test_folds_only_what_nothing_else_reads(extra: str, is_folded: bool) -> None:
    model = Between(extra).eval()
    x = torch.randn(2, 3, 6, 6)
    folded = fold_batchnorm(model, x)
    assert isinstance(folded.norm, nn.Identity) == is_folded
    assert isinstance(model.norm, nn.BatchNorm2d), "the model itself stays"
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "norm", "shape", "is_folded"),
    [
        (nn.Conv1d(3, 4, 2, bias=False), nn.BatchNorm1d(4), (2, 3, 9), True),
        (nn.Conv3d(3, 4, 2), nn.BatchNorm3d(4), (2, 3, 4, 4, 4), True),
        (nn.Linear(3, 4), nn.BatchNorm1d(4), (5, 3), True),
        (nn.Linear(3, 4), nn.BatchNorm1d(4), (5, 4, 3), False),
        (nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), (2, 3, 4, 4), False),
    ],
)
def test_kinds_of_layers(layer: nn.Module, norm: nn.Module, shape: tuple[int, ...], is_folded: bool) -> None:
    model = nn.Sequential(layer, settled(norm) if norm.running_mean is not None else norm).eval()
    x = torch.randn(shape)
    folded = fold_batchnorm(model, x)
    assert isinstance(folded[1], nn.Identity) == is_folded
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)


def test_zeros_stay_zeros_and_shared_weights_stay() -> None:
    conv = nn.Conv2d(3, 4, 3, padding=1)
    conv.weight.data[:, :2] = 0
    model = nn.Sequential(conv, settled(nn.BatchNorm2d(4))).eval()
    assert (fold_batchnorm(model, torch.randn(1, 3, 4, 4))[0].weight[:, :2] == 0).all()

    tied = nn.Sequential(nn.Linear(4, 4), settled(nn.BatchNorm1d(4)), nn.Linear(4, 4)).eval()
    tied[2].weight = tied[0].weight
    x = torch.randn(3, 4)
    torch.testing.assert_close(fold_batchnorm(tied, x)(x), tied(x))


def test_inputs_as_tuple_and_dict() -> None:
    model = Between("nothing").eval()
    x = torch.randn(1, 3, 6, 6)
    for inputs in ((x,), {"x": x}):
        assert isinstance(fold_batchnorm(model, inputs).norm, nn.Identity)
    with pytest.raises(TypeError, match="expected the model's inputs as a tensor"):
        fold_batchnorm(model, "x")
