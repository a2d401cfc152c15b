"""FSP matrices against plain loops, and what layers give as features."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparsecore.train import Teacher, fsp_matrix


def by_loops(first: Tensor, second: Tensor) -> Tensor:
    B, C1, C2 = len(first), first.shape[1], second.shape[1]
    result = torch.zeros(B, C1, C2, dtype=torch.float64)
    for b in range(B):
        for i in range(C1):
            for j in range(C2):
                products = first[b, i].double().flatten() * second[b, j].double().flatten()
                result[b, i, j] = products.sum() / products.numel()
    return result


@pytest.mark.parametrize("size", [(5,), (3, 4), (2, 3, 2)])
def test_fsp_matrix(size: tuple[int, ...]) -> None:
    first, second = torch.randn(2, 3, *size), torch.randn(2, 4, *size)
    torch.testing.assert_close(fsp_matrix(first, second).double(), by_loops(first, second), rtol=1e-5, atol=1e-6)


def test_larger_images_are_pooled_by_maximum() -> None:
    first, second = torch.randn(2, 3, 8, 6), torch.randn(2, 4, 4, 3)
    pooled = first.unflatten(3, (3, 2)).unflatten(2, (4, 2)).amax((3, 5))
    torch.testing.assert_close(fsp_matrix(first, second).double(), by_loops(pooled, second), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fsp_matrix(second, first), fsp_matrix(first, second).transpose(1, 2))


@pytest.mark.parametrize("shapes", [((2, 3), (2, 3)), ((2, 3, 4), (2, 3, 4, 4)), ((2, 3, 4), (1, 3, 4))])
def test_wrong_features(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"expected features \[B, C, \.\.\.\]"):
        fsp_matrix(*(torch.zeros(shape) for shape in shapes))


class Stack(nn.Module):
    """A layer that gives a tuple, as those of transformers do, and one that gives a number."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.RNN(4, 3, batch_first=True)
        self.number = Number()

    def forward(self, x: Tensor) -> Tensor:
        y = self.recurrent(x)[0][:, -1]
        return y * self.number()


class Number(nn.Module):
    def forward(self) -> float:
        return 2.0


def test_the_first_of_a_tuple_is_the_feature() -> None:
    model, x = Stack(), torch.randn(2, 5, 4)
    teacher = Teacher(model, ["recurrent"])
    teacher(x)
    assert torch.equal(teacher.features["recurrent"], model.recurrent(x)[0])


def test_a_layer_that_gives_no_tensor() -> None:
    with pytest.raises(ValueError, match=r"expected a tensor from layer 'number', got float"):
        Teacher(Stack(), ["number"])(torch.randn(2, 5, 4))


def test_close_names_are_named() -> None:
    with pytest.raises(ValueError, match=r"no layer 'recurent', perhaps you meant recurrent"):
        Teacher(Stack(), ["recurent"])
