"""Gradual pruning follows its formula, never goes back and resumes exactly."""

from copy import deepcopy
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sparsecore.errors import FormatError
from sparsecore.prune import GradualPruner, Masks, cubic_sparsity, fits_pattern, prune

SHARE = st.floats(0, 1, exclude_max=True)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 50), st.integers(1, 50), SHARE, SHARE)
def test_formula_and_monotony(begin: int, length: int, one: float, two: float) -> None:
    initial, final = sorted((one, two))
    end = begin + length
    curve = [cubic_sparsity(step, begin, end, initial, final) for step in range(end + 5)]
    for step, sparsity in enumerate(curve):
        t = min(max(Fraction(step - begin, length), Fraction(0)), Fraction(1))
        exact = Fraction(final) + (Fraction(initial) - Fraction(final)) * (1 - t) ** 3
        assert sparsity == pytest.approx(float(exact), abs=1e-15, rel=1e-14)
    assert curve == sorted(curve)
    assert curve[end:] == [final] * 5
    assert all(0 <= sparsity < 1 for sparsity in curve)


@pytest.mark.parametrize(
    ("begin", "end", "initial", "final"),
    [
        (5, 5, 0, 0.9),
        (-1, 5, 0, 0.9),
        (6, 5, 0, 0.9),
        (0, 5, 0.9, 0.5),
        (0, 5, 0, 1),
        (0, 5, -1, 0),
    ],
)
def test_bad_schedule(begin: int, end: int, initial: float, final: float) -> None:
    with pytest.raises(ValueError, match="expected 0 <="):
        cubic_sparsity(0, begin, end, initial, final)


class Training:
    """A model, its optimizer and its pruner; every step is determined by its number."""

    def __init__(self, seed: int = 0, sparsity: Any = 0.9, **arguments: Any) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 5))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        schedule = {"begin": 4, "end": 20, "frequency": 3, **arguments}
        self.pruner = GradualPruner(self.model, self.optimizer, sparsity, **schedule)

    def run(self, first: int, last: int) -> list[Masks]:
        """Train steps first..last and return the masks after each."""
        history = []
        for step in range(first, last + 1):
            x = torch.randn(16, 12, generator=torch.Generator().manual_seed(step))
            self.optimizer.zero_grad()
            self.model(x).square().mean().backward()
            self.optimizer.step()
            self.pruner.step()
            history.append(Masks(self.model, self.pruner.masks))
            for name, mask in self.pruner.masks.items():
                parameter = self.model.get_parameter(name)
                state = self.optimizer.state[parameter]
                for tensor in (parameter, state["exp_avg"], state["exp_avg_sq"]):
                    assert not tensor[~mask].any()
        return history

    def snapshot(self) -> dict[str, Any]:
        return {
            "model": deepcopy(self.model.state_dict()),
            "optimizer": deepcopy(self.optimizer.state_dict()),
            "pruner": self.pruner.state_dict(),
        }


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("initial", [0.0, 0.3])
def test_prunes_along_the_curve(scope: str, initial: float) -> None:
    training = Training(scope=scope, initial_sparsity=initial)
    masks = training.pruner.masks
    history = training.run(1, 25)
    assert training.pruner.masks is masks
    numels = [12 * 20, 20 * 5] if scope == "layer" else [12 * 20 + 20 * 5]
    last = 0
    for step, now in enumerate(history, start=1):
        if step in (7, 10, 13, 16, 19, 20):  # begin + 3 i, and the end
            last = step
        target = cubic_sparsity(last, 4, 20, initial, 0.9)
        pruned = sum(row.numel - row.num_kept for row in now.statistics().values())
        assert pruned == sum(round(target * numel) for numel in numels)
    for earlier, later in pairwise(history):
        assert later & earlier == later  # what is pruned stays pruned


def test_sparsity_for_each_layer() -> None:
    training = Training(sparsity={"0": 0.5, "2": 0.8})
    training.run(1, 20)
    assert [row.sparsity for row in training.pruner.masks.statistics().values()] == [0.5, 0.8]


def test_exclude_may_be_an_iterator() -> None:
    training = Training(exclude=iter(["2"]), begin=0, end=2, frequency=1)
    training.run(1, 2)
    assert list(training.pruner.masks) == ["0.weight"]


def test_earlier_masks_stay() -> None:
    torch.manual_seed(0)
    model = nn.Linear(10, 10)
    earlier = prune(model, 0.5, criterion=lambda name, weight: -weight.abs())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = GradualPruner(model, optimizer, 0.7, end=2, frequency=1, masks=earlier)
    assert pruner.masks == earlier
    pruner.step()
    pruner.step()
    assert pruner.masks.sparsity() == pytest.approx(0.7)
    assert pruner.masks & earlier == pruner.masks


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_blocks_along_the_curve(scope: str) -> None:
    """Layers of [20, 12] and [5, 20]: in the second one row of blocks has a single row."""
    training = Training(scope=scope, pattern="4x1")
    history = training.run(1, 25)
    numels = [240, 100] if scope == "layer" else [340]
    last = 0
    for step, now in enumerate(history, start=1):
        if step in (7, 10, 13, 16, 19, 20):
            last = step
        target = cubic_sparsity(last, 4, 20, 0.0, 0.9)
        pruned = sum(row.numel - row.num_kept for row in now.statistics().values())
        assert abs(pruned - sum(target * numel for numel in numels)) <= 2 * len(numels)
        assert all(fits_pattern(mask, "4x1") for mask in now.values())
    for earlier, later in pairwise(history):
        assert later & earlier == later
    assert all(fits_pattern(training.model[i].weight, "4x1") for i in (0, 2))


@pytest.mark.parametrize("pattern", ["unstructured", "4x1"])
@pytest.mark.parametrize("stop", [2, 7, 11, 20, 23])
def test_exact_resume(stop: int, pattern: str) -> None:
    straight = Training(pattern=pattern)
    straight.run(1, 25)

    first = Training(pattern=pattern)
    first.run(1, stop)
    saved = first.snapshot()
    first.run(stop + 1, stop + 1)  # the masks saved do not move on
    second = Training(seed=1, pattern=pattern)
    second.model.load_state_dict(saved["model"])
    second.optimizer.load_state_dict(saved["optimizer"])
    second.pruner.load_state_dict(saved["pruner"])
    second.run(stop + 1, 25)

    assert second.pruner.masks == straight.pruner.masks
    ours, theirs = second.model.state_dict(), straight.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_remove_lets_weights_free() -> None:
    training = Training(end=6)
    training.run(1, 6)
    training.pruner.remove()
    training.optimizer.zero_grad()
    training.model(torch.randn(16, 12)).square().mean().backward()
    training.optimizer.step()
    mask: Tensor = training.pruner.masks["0.weight"]
    assert training.model[0].weight[~mask].any()


def test_a_removed_pruner_prunes_no_more() -> None:
    pruner = GradualPruner(model := nn.Linear(4, 4), torch.optim.SGD(model.parameters(), lr=0.1), 0.5, end=1)
    pruner.remove()
    with pytest.raises(RuntimeError, match="this pruner was removed"):
        pruner.step()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"frequency": 0}, "frequency as a number of steps, 1 or more, got 0"),
        ({"frequency": 2.5}, "frequency as a number of steps"),
        ({"end": "10"}, "end as a number of steps"),
        ({"begin": 9, "end": 9}, "begin < end"),
        ({"sparsity": 1.5}, "final < 1"),
        ({"sparsity": {"0": 0.9, "1": 0.5}}, "'1' matches no weight"),
        ({"initial_sparsity": 0.95}, "initial <= final"),
        ({"exclude": "fc"}, "called 'fc'"),
        ({"scope": "model"}, "scope"),
        ({"pattern": "4"}, "expected pattern"),
        ({"pattern": "2:4"}, "2:4 has one sparsity"),
        ({"pattern": "5x1"}, "5x1 does not fit 0.weight"),
        ({"optimizer": torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)}, "holds none"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_bad_arguments_change_nothing(arguments: dict[str, Any], text: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    before = model[0].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    defaults = {"optimizer": optimizer, "sparsity": 0.9, "end": 9, "initial_sparsity": 0.4}
    with pytest.raises(ValueError, match=text):
        GradualPruner(model, **{**defaults, **arguments})
    assert torch.equal(model[0].weight, before)
    assert not optimizer._optimizer_step_post_hooks


_STATE = Training().pruner.state_dict()


@pytest.mark.parametrize(
    "state",
    [
        {**_STATE, "masks": Masks.from_model(nn.Linear(2, 2)).state_dict()},
        {
            **_STATE,
            "masks": Masks.from_model(nn.Sequential(nn.Linear(20, 12), nn.ReLU(), nn.Linear(5, 20))).state_dict(),
        },
        {name: value for name, value in _STATE.items() if name != "step"},
        {"round": 3, "qualities": {}, "masks": _STATE["masks"], "settings": _STATE["settings"]},
        None,
        {**_STATE, "settings": None},
        *(
            Training(**other).pruner.state_dict()
            for other in (
                {"end": 21},
                {"begin": 3},
                {"frequency": 4},
                {"initial_sparsity": 0.1},
                {"sparsity": 0.8},
                {"sparsity": {"0": 0.9, "2": 0.9}},
                {"scope": "global"},
                {"pattern": "4x1"},
                {"criterion": lambda name, weight: weight.abs()},
            )
        ),
    ],
)
def test_state_of_another_changes_nothing(state: Any) -> None:
    straight, training = Training(), Training()
    straight.run(1, 12)
    training.run(1, 7)
    with pytest.raises(FormatError):
        training.pruner.load_state_dict(state)
    training.run(8, 12)
    assert training.pruner.masks == straight.pruner.masks


def test_scores_are_asked_for_when_something_goes() -> None:
    """A pruner by gradients is made before there are any, and prunes by them when it is due."""
    training = Training(criterion="taylor")
    assert training.pruner.masks.sparsity() == 0
    training.run(1, 7)
    due = {name: parameter.grad * parameter for name, parameter in training.model.named_parameters()}
    assert training.pruner.masks.sparsity() > 0
    for name, mask in training.pruner.masks.items():  # by the gradients of step 7: the kept scores are the larger ones
        scores = due[name].abs()
        assert scores[mask].min() > 0
        assert not training.model.get_parameter(name)[~mask].any()
    with pytest.raises(FormatError, match="no gradient"):
        Training(criterion="taylor", initial_sparsity=0.1)


def test_a_weight_that_is_nan_prunes_nothing() -> None:
    """A NaN gradient makes a weight NaN; the pruner says so when it is due, and counts no step."""
    training = Training()
    training.run(1, 6)
    weight = training.model[2].weight
    weight.grad[tuple(training.pruner.masks["2.weight"].nonzero()[0])] = float("nan")
    training.optimizer.step()
    before = deepcopy(training.model.state_dict())
    saved = {"step": 6, "masks": dict(training.pruner.masks)}
    with pytest.raises(FormatError, match=r"2\.weight: the weight is NaN or infinite in 1 of 100"):
        training.pruner.step()
    assert training.pruner.state_dict()["step"] == saved["step"]
    assert training.pruner.masks == saved["masks"]
    for name, tensor in training.model.state_dict().items():
        assert torch.equal(tensor.nan_to_num(7), before[name].nan_to_num(7))
