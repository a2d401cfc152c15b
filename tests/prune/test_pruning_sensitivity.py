"""The scan prunes one weight at a time and puts it back; its sparsities add up to the target."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsecore.errors import BundleError, FormatError
from sparsecore.prune import PruningSensitivity, prune, pruning_sensitivity

SHARES = (0.3, 0.6, 0.9)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.Flatten(), nn.Linear(24, 10), nn.Linear(10, 4))


class Evaluation:
    """Minus the squared distance to the outputs of another net; counts its calls, and can stop at one."""

    def __init__(self, stop_at: int | None = None) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(16, 2, 4, 4, generator=generator)
        self.y = torch.randn(16, 4, generator=generator)
        self.calls, self.stop_at = 0, stop_at

    def __call__(self, model: nn.Module) -> float:
        assert not torch.is_grad_enabled()
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.calls += 1
        return -float((model(self.x) - self.y).square().mean())


def test_scores_are_those_of_a_copy_pruned_alone() -> None:
    model, evaluate = net(), Evaluation()
    steps: list[tuple[str, float]] = []
    scan = pruning_sensitivity(model, evaluate, SHARES, progress=lambda step, share: steps.append((step, share)))
    with torch.no_grad():
        assert scan.dense == evaluate(net())
        for name, scores in scan.scores.items():
            assert list(scores) == list(SHARES)
            for share, score in scores.items():
                pruned = net()
                prune(pruned, {name: share})
                assert evaluate(pruned) == score
    assert scan.numels == {"0.weight": 108, "2.weight": 240, "3.weight": 40}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), net().parameters(), strict=True))
    assert [step for step, share in steps if share == 1] == [f"sensitivity of {name}" for name in scan.scores]


def test_blocks_and_own_criterion() -> None:
    def smallest_last(name: str, weight: torch.Tensor) -> torch.Tensor:
        return -weight.abs()

    model, evaluate = net(), Evaluation()
    scan = pruning_sensitivity(model, evaluate, [0.5], criterion=smallest_last, pattern="2x1", exclude=["0", "3"])
    prune(model, 0.5, criterion=smallest_last, pattern="2x1", exclude=["0", "3"])
    with torch.no_grad():
        assert scan.scores == {"2.weight": {0.5: evaluate(model)}}


def test_a_model_pruned_by_torch_stays_as_it_is() -> None:
    model = net()
    nn.utils.prune.l1_unstructured(model[3], "weight", amount=0.5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruning_sensitivity(model, Evaluation(), SHARES)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_an_interrupted_scan_goes_on_from_its_file(tmp_path: Path) -> None:
    file, model = tmp_path / "scan.json", net()
    first = Evaluation(stop_at=5)
    with pytest.raises(KeyboardInterrupt):
        pruning_sensitivity(model, first, SHARES, file=file)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), net().parameters(), strict=True))

    second, whole = Evaluation(), Evaluation()
    resumed = pruning_sensitivity(model, second, SHARES, file=file)
    assert resumed == pruning_sensitivity(model, whole, SHARES)
    assert first.calls + second.calls == whole.calls == 1 + 3 * len(SHARES)

    more = Evaluation()
    assert pruning_sensitivity(model, more, [0.3, 0.5], file=file).scores["0.weight"].keys() == {0.3, 0.5}
    assert more.calls == 3


def test_a_file_of_another_scan_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "scan.json"
    pruning_sensitivity(net(), Evaluation(), SHARES, file=file)
    content = file.read_text()
    with pytest.raises(BundleError, match="other weights; delete it"):
        pruning_sensitivity(net(1), Evaluation(), SHARES, file=file)
    with pytest.raises(BundleError, match="other criterion, pattern;"):
        pruning_sensitivity(
            net(), Evaluation(), SHARES, criterion=lambda name, weight: weight.abs(), pattern="2x1", file=file
        )
    assert file.read_text() == content


_DAMAGED = (
    '["", 0.0, NaN]',
    '["", 0.0, Infinity]',
    '["", NaN, 0.5]',
    '["", 1.0, 0.5]',
    '["", -0.1, 0.5]',
    '["", 0, "1"]',
)


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{}", '{"scores": [[1]], "belongs_to": {}}', '{"scores": 3}', '{"scores": [], "belongs_to": 3}'),
        '{"scores": [[3, 0.5, 0.5]], "belongs_to": {}}',
        *(f'{{"scores": [{row}], "belongs_to": {{}}}}' for row in _DAMAGED),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "scan.json"
    file.write_text(content)
    with pytest.raises(BundleError, match="is not the file of a sensitivity scan"):
        pruning_sensitivity(net(), Evaluation(), SHARES, file=file)
    assert file.read_text() == content


def test_bytes_and_folders_are_no_files_of_a_scan(tmp_path: Path) -> None:
    (tmp_path / "scan.json").write_bytes(b"\xff\x00")
    for file in (tmp_path / "scan.json", tmp_path):
        with pytest.raises(BundleError, match="is not the file of a sensitivity scan"):
            pruning_sensitivity(net(), Evaluation(), SHARES, file=file)
    evaluation = Evaluation()
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        pruning_sensitivity(net(), evaluation, SHARES, file=tmp_path / "none" / "scan.json")
    assert evaluation.calls == 0


@pytest.mark.parametrize(
    "as_number", [np.float32, np.float64, np.array, torch.tensor, lambda value: np.int64(round(value))]
)
def test_evaluate_may_return_any_kind_of_number(as_number: Callable[[float], Any], tmp_path: Path) -> None:
    scan = pruning_sensitivity(net(), lambda model: as_number(0.5), SHARES, file=tmp_path / "scan.json")
    assert scan.dense == float(as_number(0.5))
    assert type(scan.dense) is float
    assert all(type(score) is float for scores in scan.scores.values() for score in scores.values())


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"sparsities": 0.5}, TypeError, r"list of sparsities in \(0, 1\), got 0\.5"),
        ({"sparsities": []}, ValueError, r"in \(0, 1\), got \[\]"),
        ({"sparsities": [0, 0.5]}, ValueError, r"in \(0, 1\), got \[0, 0.5\]"),
        ({"sparsities": [0.5, 1]}, ValueError, r"in \[0, 1\)"),
        ({"pattern": "2:4"}, ValueError, "2:4 has one sparsity"),
        ({"pattern": "8x1"}, FormatError, "8x1 does not fit 0.weight"),
        ({"evaluate": None}, TypeError, "expected evaluate as a function that takes the model.*got NoneType"),
        ({"evaluate": 0.5}, TypeError, "got float"),
        ({"evaluate": lambda model: torch.ones(2)}, ValueError, "expected a finite number from evaluate, got tensor"),
        ({"evaluate": lambda model: torch.tensor(float("nan"))}, ValueError, r"got tensor\(nan\) for the model"),
        ({"evaluate": lambda model: np.float32("inf")}, ValueError, "inf.* for the model"),
        ({"evaluate": lambda model: float("nan")}, ValueError, "got nan for the model as it is"),
        ({"evaluate": lambda model: None}, ValueError, "got None for the model"),
        (
            {"evaluate": lambda model: 1.0 if model[2].weight.all() else float("inf")},
            ValueError,
            "got inf for 2.weight pruned to 30.0%",
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_bad_arguments_change_nothing(arguments: dict[str, object], error: type[Exception], text: str) -> None:
    model = net()
    with pytest.raises(error, match=text):
        pruning_sensitivity(model, **{"evaluate": Evaluation(), "sparsities": SHARES, **arguments})
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), net().parameters(), strict=True))


def test_nan_weight_is_refused() -> None:
    model = net()
    model[2].weight.data[0, 0] = float("nan")
    with pytest.raises(FormatError, match=r"2\.weight: the weight is NaN"):
        pruning_sensitivity(model, lambda model: 1.0, SHARES)


# Two weights of 60 and 40 entries that lose (0, 0.1) and (0.2, 0.8) at sparsities (0.5, 0.8).
SCAN = PruningSensitivity(1.0, {"a": {0.5: 1.0, 0.8: 0.9}, "b": {0.5: 0.8, 0.8: 0.2}}, {"a": 60, "b": 40})


@pytest.mark.parametrize(
    ("target", "a", "b"),
    [
        (0.0, 0.0, 0.0),
        (0.15, 0.25, 0.0),  # nothing is lost at a = 0.5: part of that
        (0.3, 0.5, 0.0),
        (0.44, 0.65, 0.125),  # a loss of 0.05: halfway from 0.5 to 0.8, a quarter of the way from 0 to 0.5
        (0.58, 0.8, 0.25),  # 0.1
        (0.68, 0.8, 0.5),  # 0.2
        (0.74, 0.8, 0.65),  # 0.5
        (0.8, 0.8, 0.8),
    ],
)
def test_one_loss_for_all(target: float, a: float, b: float) -> None:
    assert SCAN.sparsities(target) == pytest.approx({"a": a, "b": b}, abs=1e-12)


def test_a_gain_counts_as_no_loss_and_a_dip_lasts() -> None:
    """Better than dense at 0.5 is no credit; a loss at 0.7 is not undone by luck at 0.8."""
    scan = PruningSensitivity(1.0, {"a": {0.5: 1.2, 0.7: 0.6, 0.8: 0.9}, "b": {0.8: 0.2}}, {"a": 10, "b": 10})
    assert scan.sparsities(0.25) == pytest.approx({"a": 0.5, "b": 0.0})
    # At a loss of L below 0.4 they are pruned to 0.5 + L / 2 and L, at 0.4 a jumps from 0.7 to 0.8.
    assert scan.sparsities(0.45) == pytest.approx({"a": 0.5 + 0.4 / 3, "b": 0.8 / 3})
    assert scan.sparsities(0.55) == pytest.approx({"a": 0.7, "b": 0.4})
    assert scan.sparsities(0.58) == pytest.approx({"a": 0.76, "b": 0.4})
    assert scan.sparsities(0.6) == pytest.approx({"a": 0.8, "b": 0.4})


SCORES = st.dictionaries(st.sampled_from([0.2, 0.5, 0.7, 0.9]), st.floats(-1, 1), min_size=1)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(SCORES, st.integers(1, 1000)), min_size=1, max_size=5), st.floats(0, 0.99))
def test_sparsities_meet_the_target(rows: list[tuple[dict[float, float], int]], target: float) -> None:
    scores = {f"w{i}": row[0] for i, row in enumerate(rows)}
    numels = {f"w{i}": row[1] for i, row in enumerate(rows)}
    scan = PruningSensitivity(0.5, scores, numels)
    highest = sum(max(scores[name]) * numels[name] for name in scores) / sum(numels.values())
    if target > highest + 1e-9:
        with pytest.raises(ValueError, match="scanned"):
            scan.sparsities(target)
        return
    shares = scan.sparsities(min(target, highest))
    assert sum(shares[name] * numels[name] for name in shares) / sum(numels.values()) == pytest.approx(
        min(target, highest), abs=1e-9
    )
    assert all(0 <= shares[name] <= max(scores[name]) + 1e-12 for name in shares)


def test_target_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"at most 80\.0%"):
        SCAN.sparsities(0.81)
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        SCAN.sparsities(1.0)


def test_table_and_dict() -> None:
    assert str(SCAN).splitlines() == [
        "weight      dense      50.0%      80.0%",
        "a               1          1        0.9",
        "b               1        0.8        0.2",
    ]
    assert json.loads(json.dumps(SCAN.to_dict()))["numels"] == {"a": 60, "b": 40}
