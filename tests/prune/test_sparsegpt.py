"""SparseGPT against optimal brain surgery by brute force in float64, and its exact properties."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparsecore.errors import FormatError
from sparsecore.prune import Masks, SparseGPT, prune, sparsegpt
from sparsecore.prune.sparsegpt import inverse_factor

Matrix = NDArray[np.float64]


def correlated(samples: int, K: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(K, K, generator=generator, dtype=torch.float64) / K**0.5
    scale = torch.rand(K, generator=generator, dtype=torch.float64) + 0.1
    return ((torch.randn(samples, K, generator=generator, dtype=torch.float64) @ mix + 0.5) * scale).to(dtype)


def hessian(x: Tensor, damping: float) -> Matrix:
    H = 2 * x.double().numpy().T @ x.double().numpy()
    return H + damping * np.diag(H).mean() * np.eye(len(H))


def eliminate(inverse: Matrix, k: int) -> Matrix:
    """The inverse of the matrix without row and column k, by one step of Gaussian elimination, zeros in their place."""
    return inverse - np.outer(inverse[:, k], inverse[k, :]) / inverse[k, k]


def surgery(weight: Matrix, H: Matrix, keep: NDArray[np.bool_]) -> Matrix:
    """Column after column: remove what is not kept, move the columns behind it by the surgeon's formula."""
    weight, inverse = weight.copy(), np.linalg.inv(H)
    for k in range(weight.shape[1]):
        for row in range(weight.shape[0]):
            if not keep[row, k]:
                weight[row] -= weight[row, k] / inverse[k, k] * inverse[k]  # columns before k: the inverse is 0
                weight[row, k] = 0
        inverse = eliminate(inverse, k)
    return weight


def surgery_with_choice(
    weight: Matrix, H: Matrix, sparsity: float, windows: list[range], keep: int | None = None
) -> tuple[Matrix, NDArray[np.bool_]]:
    """The same, where the mask of each window of columns is chosen when the columns before it are done."""
    mask = np.ones(weight.shape, dtype=bool)
    for window in windows:
        current = surgery(weight, H, mask)
        variances = [np.linalg.inv(H[k:, k:])[0, 0] for k in window]
        scores = current[:, window] ** 2 / np.array(variances)
        if keep is None:
            count = round(sparsity * len(weight) * window.stop) - int((~mask).sum())
            for entry in np.argsort(scores, axis=None)[:count]:
                row, column = divmod(int(entry), len(window))
                mask[row, window[column]] = False
        else:
            for row, order in enumerate(np.argsort(scores, axis=1)):
                mask[row, [window[column] for column in order[: len(window) - keep]]] = False
    return surgery(weight, H, mask), mask


def layer_of(N: int, K: int, dtype: torch.dtype = torch.float64) -> nn.Linear:
    return nn.Linear(K, N, dtype=dtype)


def pruned_by(layer: nn.Linear, criterion: SparseGPT, x: Tensor, **arguments: Any) -> tuple[Matrix, Matrix, Any]:
    """The weight before and after, and the mask."""
    before = layer.weight.detach().double().numpy().copy()
    masks = prune(layer, criterion=criterion, batches=list(x.split(7)), **arguments)
    return before, layer.weight.detach().double().numpy(), masks["weight"].numpy()


@pytest.mark.parametrize("block_size", [1, 3, 5, 12, 128])
@pytest.mark.parametrize("damping", [0.0, 0.01, 0.5])
@pytest.mark.parametrize("pattern", ["unstructured", "2x1", "1x2", "2:4"])
def test_equals_optimal_brain_surgery_for_its_mask(block_size: int, damping: float, pattern: str) -> None:
    x = correlated(40, 12)
    sparsity = None if pattern == "2:4" else 0.6
    before, after, keep = pruned_by(
        layer_of(6, 12), SparseGPT(damping, block_size), x, sparsity=sparsity, pattern=pattern
    )
    np.testing.assert_allclose(after, surgery(before, hessian(x, damping), keep), rtol=1e-9, atol=1e-12)
    assert keep.mean() == pytest.approx(0.5 if pattern == "2:4" else 0.4, abs=1 / 12)


@pytest.mark.parametrize(("block_size", "sparsity"), [(12, 0.5), (5, 0.3), (4, 0.75), (1, 0.5)])
def test_chooses_by_block_of_columns(block_size: int, sparsity: float) -> None:
    x = correlated(40, 12, seed=1)
    before, after, keep = pruned_by(layer_of(6, 12), SparseGPT(0.01, block_size), x, sparsity=sparsity)
    windows = [range(begin, min(begin + block_size, 12)) for begin in range(0, 12, block_size)]
    weight, mask = surgery_with_choice(before, hessian(x, 0.01), sparsity, windows)
    assert np.array_equal(keep, mask)
    np.testing.assert_allclose(after, weight, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("pattern", "block_size"), [("2:4", 128), ("2:4", 4), ("2:4", 6), ("1:3", 5)])
def test_chooses_every_group_when_the_columns_reach_it(pattern: str, block_size: int) -> None:
    x = correlated(40, 12, seed=2)
    keep_count, group = map(int, pattern.split(":"))
    before, after, keep = pruned_by(layer_of(6, 12), SparseGPT(0.01, block_size), x, pattern=pattern)
    windows = [range(begin, begin + group) for begin in range(0, 12, group)]
    weight, mask = surgery_with_choice(before, hessian(x, 0.01), 0, windows, keep_count)
    assert np.array_equal(keep, mask)
    np.testing.assert_allclose(after, weight, rtol=1e-9, atol=1e-12)


def test_float32_is_close_to_float64() -> None:
    x = correlated(200, 48, dtype=torch.float32)
    before, after, keep = pruned_by(layer_of(16, 48, torch.float32), SparseGPT(), x, sparsity=0.5)
    expected = surgery(before, hessian(x, 0.01), keep)
    # Rounding errors grow with the condition of H, here a few hundred with the damping.
    np.testing.assert_allclose(after, expected, atol=1e-4 * np.abs(before).max())


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.77, 0.9])
@pytest.mark.parametrize("block_size", [3, 8, 128])
def test_exact_count(sparsity: float, block_size: int) -> None:
    _, after, keep = pruned_by(layer_of(7, 20), SparseGPT(block_size=block_size), correlated(50, 20), sparsity=sparsity)
    assert (~keep).sum() == (after == 0).sum() == round(sparsity * 140)


def test_no_sparsity_changes_nothing() -> None:
    before, after, keep = pruned_by(layer_of(4, 8), SparseGPT(), correlated(20, 8), sparsity=0.0)
    assert keep.all()
    assert np.array_equal(before, after)


def test_zeros_stay_zero_and_masks_apply() -> None:
    layer, x = layer_of(6, 16), correlated(50, 16)
    zeros = torch.rand(6, 16) < 0.3
    layer.weight.data[zeros] = 0
    forbidden = torch.rand(6, 16) < 0.2
    before = layer.weight.detach().numpy().copy()
    masks = prune(layer, 0.1, criterion="sparsegpt", batches=[x], masks=Masks(layer, {"weight": ~forbidden}))
    gone = zeros | forbidden
    assert not layer.weight.detach()[gone].any()
    assert bool(layer.weight.detach()[~gone].all())
    assert not masks["weight"][forbidden].any()
    expected = surgery(before, hessian(x, 0.01), ~gone.numpy())
    np.testing.assert_allclose(layer.weight.detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_entries_of_dead_inputs_go_first_and_the_rest_is_as_if_they_were_not_there() -> None:
    x = correlated(50, 12)
    x[:, [2, 7]] = 0
    alive = [k for k in range(12) if k not in (2, 7)]
    layer = layer_of(5, 12)
    alone = nn.Linear(10, 5, dtype=torch.float64)
    alone.weight.data = layer.weight.detach()[:, alive].clone()
    masks = prune(layer, 1 / 2, criterion="sparsegpt", batches=[x])
    assert not masks["weight"][:, [2, 7]].any()
    expected = prune(alone, 20 / 50, criterion="sparsegpt", batches=[x[:, alive]])
    assert torch.equal(masks["weight"][:, alive], expected["weight"])
    torch.testing.assert_close(layer.weight[:, alive], alone.weight, rtol=1e-9, atol=1e-12)


def test_kept_entries_of_dead_inputs_keep_their_values() -> None:
    x = correlated(50, 6)
    x[:, :4] = 0
    before, after, keep = pruned_by(layer_of(5, 6), SparseGPT(), x, sparsity=0.5)
    assert not (before != after)[keep & (np.arange(6) < 4)].any()
    assert keep[:, :4].sum() == 5  # 15 of the 20 go: no others


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    layer, x = layer_of(6, 16, dtype), correlated(50, 16, dtype=dtype)
    single = layer_of(6, 16, torch.float32)
    single.weight.data = layer.weight.detach().float()
    masks = prune(layer, 0.5, criterion="sparsegpt", batches=[x])
    assert masks["weight"].equal(prune(single, 0.5, criterion="sparsegpt", batches=[x.float()])["weight"])
    assert torch.equal(layer.weight, single.weight.to(dtype))


def test_factor_is_that_of_the_inverse() -> None:
    x = correlated(50, 9)
    gram = x.t() @ x
    factor = inverse_factor(gram.clone(), 0.0)
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor.t() @ factor, torch.linalg.inv(gram))


def test_float64_is_tried_before_more_damping(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[torch.dtype, list[float]]] = []

    def never(matrix: Tensor) -> None:
        tried.append((matrix.dtype, matrix.diagonal().tolist()))

    monkeypatch.setattr(sparsegpt, "_inverse_factor", never)
    with pytest.raises(FormatError, match=r"even with damping 0\.25;"):
        inverse_factor(torch.diag(torch.tensor([64.0, 0.0, 192.0])), 0.25 / 10)  # the mean without the dead one is 128
    with pytest.raises(FormatError, match=r"even with damping 0\.25;"):
        inverse_factor(torch.diag(torch.tensor([64.0, 0.0, 192.0])), 0.25)
    assert [dtype for dtype, _ in tried] == [torch.float32, torch.float64] * 3
    assert [diagonal for _, diagonal in tried] == [
        pytest.approx([64 + added, 128 + added, 192 + added]) for added in (3.2, 3.2, 32, 32, 32, 32)
    ]


def test_damping_is_raised_until_it_works() -> None:
    indefinite = torch.tensor([[1.0, 1.5], [1.5, 1.0]], dtype=torch.float64)  # needs a damping above 0.5
    factor = inverse_factor(indefinite.clone(), 0.01)
    torch.testing.assert_close(torch.linalg.inv(factor.t() @ factor), indefinite + torch.eye(2, dtype=torch.float64))
    with pytest.raises(FormatError, match=r"not positive definite, even with damping 0\.2"):
        inverse_factor(indefinite.clone(), 0.2)


@pytest.mark.parametrize("scope", ["block", "network"])
def test_singular_hessian_names_the_layer_and_changes_nothing(scope: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.ReLU(), nn.Linear(6, 8), nn.Linear(8, 2)))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(FormatError, match=r"1\.2\.weight: the Hessian.*more calibration inputs.*exclude"):
        prune(
            model,
            {"0": 0.5, "1.2": 0.5},
            criterion=SparseGPT(damping=0),
            batches=[torch.randn(9, 6)],  # 8 features out of 6
            sequential=scope == "network",
        )
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("arguments", [{"damping": -0.1}, {"damping": 2}, {"damping": float("nan")}, {"block_size": 0}])
def test_arguments_out_of_range(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"expected a {next(iter(arguments))}"):
        SparseGPT(**arguments)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("arguments", [{"sparsity": 0.5}, {"sparsity": 0.8}, {"pattern": "2:4"}], ids=str)
def test_less_error_than_wanda_on_correlated_inputs(seed: int, arguments: dict[str, Any]) -> None:
    x = correlated(1000, 256, seed, torch.float32)
    torch.manual_seed(seed)
    before = nn.Linear(256, 64).weight.detach()
    errors = {}
    for criterion in ("wanda", "sparsegpt"):
        layer = nn.Linear(256, 64)
        layer.weight.data = before.clone()
        prune(layer, criterion=criterion, batches=[x], **arguments)
        errors[criterion] = float((x.double() @ (layer.weight.detach() - before).double().t()).square().sum())
    assert errors["sparsegpt"] < errors["wanda"]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"block_size": 1.5}, TypeError, r"whole number of columns, got float 1\.5"),
        ({"block_size": None}, TypeError, "whole number of columns, got NoneType"),
        ({"block_size": 0}, ValueError, "at least 1 column"),
        ({"damping": "0.1"}, TypeError, "damping as a number, got str '0.1'"),
        ({"damping": float("nan")}, ValueError, r"damping in \[0, 1\]"),
    ],
)
def test_arguments_of_another_type_are_named(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        SparseGPT(**arguments)
