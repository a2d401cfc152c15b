"""Replacing layers in a model: which, what the rows say, and that errors change nothing."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from sparsecore.bench.models import digits_net
from sparsecore.cost import count_multiply_adds
from sparsecore.errors import UnsupportedError
from sparsecore.train import replace_by_low_rank, replace_by_separable


def test_separable_in_a_model() -> None:
    model = digits_net().eval()
    x = torch.randn(2, 1, 8, 8)
    before = count_multiply_adds(model, x)
    rows = replace_by_separable(model, exclude="stem")
    assert [row.layer for row in rows] == ["spatial.0"]
    (row,) = rows
    assert (row.before, row.after) == (9 * 64 * 128, 64 * (9 + 128))
    assert before - count_multiply_adds(model, x) == (row.before - row.after) * 2 * 64
    assert 0 < row.error < 1
    assert model(x).shape == (2, 10)
    assert not model.spatial[0].training


def test_enough_filters_change_nothing() -> None:
    model = digits_net().eval()
    x = torch.randn(2, 1, 8, 8)
    expected = model(x)
    with torch.no_grad():  # spatial filters of rank 3, which is less than 9
        filters = torch.randn(64, 128, 3) @ torch.randn(64, 3, 9)
        model.spatial[0].weight.copy_(filters.transpose(0, 1).reshape(128, 64, 3, 3) / 50)
    expected = model(x)
    (row,) = replace_by_separable(model, multiplier=3, exclude="stem")
    assert row.error < 1e-5
    torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-4)


def test_low_rank_in_a_model() -> None:
    model = digits_net().eval()
    x = torch.randn(2, 1, 8, 8)
    before = count_multiply_adds(model, x)
    dense = {
        name: module.weight.detach().flatten(1).double() for name, module in model.named_modules() if _is_layer(module)
    }
    rows = {row.layer: row for row in replace_by_low_rank(model, rank=20)}
    assert rows.keys() == dense.keys()
    assert {name for name, row in rows.items() if row.form == "rank 20"} == {"spatial.0", "pointwise.0", "hidden"}
    assert rows["classifier"].form == "stays: factors would not cost less"
    positions = {"spatial.0": 64, "pointwise.0": 16, "hidden": 1}
    saved = 0
    for name, row in rows.items():
        N, K = dense[name].shape
        assert row.before == N * K
        assert row.after == (20 * (N + K) if name in positions else N * K)
        singular = torch.linalg.svdvals(dense[name])
        expected = singular[20:].norm() / singular.norm() if name in positions else 0.0
        assert row.error == pytest.approx(float(expected), rel=1e-4)
        saved += 2 * positions.get(name, 0) * (row.before - row.after)
    assert before - count_multiply_adds(model, x) == saved
    assert model(x).shape == (2, 10)


def test_low_rank_by_error() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(64, 5) @ torch.randn(5, 64))
    rows = replace_by_low_rank(model, error=0.01)
    assert [row.form for row in rows] == ["rank 5", "stays: factors would not cost less"]
    assert all(row.error <= 0.01 for row in rows)


def test_shared_layers_stay_shared() -> None:
    layer = nn.Linear(32, 32)
    model = nn.ModuleDict({"one": nn.Sequential(layer), "two": nn.Sequential(layer, nn.Linear(32, 4))})
    rows = replace_by_low_rank(model, rank=2, exclude="two.1")
    assert [row.layer for row in rows] == ["one.0"]
    assert model["one"][0] is model["two"][0]
    assert isinstance(model["one"][0], nn.Sequential)


def test_transformer_layers_call_the_factors() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 64, batch_first=True, dropout=0.0), 1).eval()
    x = torch.randn(2, 5, 16)
    before = model(x)
    replace_by_low_rank(model, rank=1)
    with torch.no_grad():
        fast, slow = model(x), model.train()(x)
    torch.testing.assert_close(fast, slow)
    assert not torch.allclose(fast, before, atol=1e-3)


def test_rows_print_and_go_to_json() -> None:
    model = nn.Sequential(nn.Conv2d(16, 64, 3), nn.Conv2d(64, 64, 3, groups=64))
    rows = replace_by_separable(model)
    assert str(rows).splitlines()[2].split()[:7] == ["0", "depthwise", "x", "1,", "pointwise", "9,216", "1,168"]
    assert json.loads(json.dumps(rows.to_dict()))["rows"][1]["form"] == "stays: it has groups"
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 3, "exclude": "nowhere"}, "exclude: nothing in the model is called 'nowhere'"),
        ({}, "got neither"),
        ({"rank": 60}, "nothing to replace in Sequential: 0 stays: factors would not cost less"),
    ],
)
def test_errors_leave_the_model_as_it_is(settings: dict[str, object], message: str) -> None:
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 64))
    before, layers = copy.deepcopy(model.state_dict()), list(model)
    with pytest.raises((ValueError, UnsupportedError), match=message):
        replace_by_low_rank(model, **settings)
    assert list(model) == layers
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_bad_layer_behind_a_good_one_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 64))
    nn.init.constant_(model[1].weight, torch.inf)
    layers = list(model)
    with pytest.raises(ValueError, match=r"1.weight is NaN or infinite in 2048 of 2048"):
        replace_by_low_rank(model, rank=2)
    assert list(model) == layers


def test_what_cannot_be_separated() -> None:
    with pytest.raises(ValueError, match=r"multiplier of at least 1, got 0"):
        replace_by_separable(digits_net(), multiplier=0)
    with pytest.raises(UnsupportedError, match=r"there are no such layers"):
        replace_by_separable(nn.Sequential(nn.Conv2d(4, 4, 1)))
    with pytest.raises(UnsupportedError, match=r"0 stays: a pair would not cost less"):
        replace_by_separable(nn.Sequential(nn.Conv2d(4, 1, 3)))
    with pytest.raises(UnsupportedError, match=r"a single Conv2d"):
        replace_by_separable(nn.Conv2d(4, 4, 3))


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Conv2d)


def test_hooks_and_shared_weights_stay() -> None:
    """A pair in place of the layer would lose the hook, and pairs in place of two layers what ties them."""
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(4)))
    model[1].weight = model[0].weight
    model[2].register_forward_hook(lambda *_: None)
    before = model[:3]
    forms = {row.layer: row.form for row in replace_by_low_rank(model, rank=2)}
    assert forms["0"] == forms["1"] == "stays: it shares its weight with another layer"
    assert forms["2"] == "stays: it has hooks"
    assert isinstance(model[3], nn.Sequential)
    assert list(before) == list(model[:3])
    assert model[0].weight is model[1].weight


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": "2"}, "rank of at least 1, got '2'"),
        ({"rank": True}, "rank of at least 1, got True"),
        ({"error": "a"}, r"error in \[0, 1\), got 'a'"),
    ],
)
def test_numbers_are_numbers(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace_by_low_rank(nn.Sequential(nn.Linear(16, 16)), **arguments)
    with pytest.raises(ValueError, match="multiplier of at least 1, got 'a'"):
        replace_by_separable(nn.Sequential(nn.Conv2d(3, 8, 3)), multiplier="a")
    with pytest.raises(TypeError, match="expected a torch"):
        replace_by_low_rank([nn.Linear(16, 16)], rank=2)
