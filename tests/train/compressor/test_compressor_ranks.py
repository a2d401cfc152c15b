"""Two processes: each sees half of every batch, and both end with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

pytest.importorskip("pydantic")
pytest.importorskip("torch_pruning")

import tiny

from sparsecore.errors import SparsecoreError
from sparsecore.train.compressor import report, result
from sparsecore.train.compressor.data import TrainingData
from sparsecore.train.compressor.ranks import Ranks

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs torch.distributed with gloo")
RANKS = 2


def _in_process(rank: int, folder: str, work: Any) -> None:
    torch.set_num_threads(1)
    result._MIN_TIME_S = 0.0
    report._draw = lambda rows, path: None
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    try:
        torch.save(work(Path(folder)), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What everything below returns in each process; starting processes takes longest."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_in_process, (str(folder), everything), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def stateless() -> nn.Module:
    """Neither BatchNorm nor Dropout: the gradient of a batch is the sum of those of its parts."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 3))


def stop_in_epoch_four(model: nn.Module, batch: Any, loss: Any) -> Tensor:
    x, y = batch
    if model.training and any(type(module).__name__.startswith("Simulated") for module in model):
        raise KeyboardInterrupt
    return loss(model(x), y, x)


def trained(folder: Path) -> dict[str, Any]:
    """A run with many strategies; and the same stopped and gone on with."""
    recipe = tiny.recipe(tiny.MANY, checkpoint_every=2)
    whole = tiny.compress(recipe, folder / "whole")
    with pytest.raises(KeyboardInterrupt):
        tiny.compress(recipe, folder / "stopped", training_step=stop_in_epoch_four)
    resumed = tiny.compressor(recipe, folder / "stopped").run(resume=True)
    return {
        "whole": {name: value for name, value in whole.model.state_dict().items() if isinstance(value, Tensor)},
        "is_resumed_equal": tiny.same_state(whole.model, resumed.model),
        "metrics": [row.metric for row in whole.report.rows],
    }


def test_the_same_weights_in_every_process(outcomes: list[dict[str, Any]]) -> None:
    first, second = (outcome["trained"] for outcome in outcomes)
    assert first["whole"].keys() == second["whole"].keys()
    assert all(torch.equal(value, second["whole"][name]) for name, value in first["whole"].items())
    assert first["is_resumed_equal"]
    assert second["is_resumed_equal"]
    assert first["metrics"] == second["metrics"]


def of_stateless(folder: Path) -> dict[str, Tensor]:
    recipe = tiny.recipe([{"name": "gradual", "sparsity": 0.5, "frequency": 2}], epochs=2, batch=20)
    return tiny.compress(recipe, folder / "run", model=stateless()).model.state_dict()


def test_two_processes_train_as_one_does(outcomes: list[dict[str, Any]], tmp_path: Path) -> None:
    """The last batch of 16 is split too; sums are in another order."""
    for name, value in of_stateless(tmp_path).items():
        torch.testing.assert_close(outcomes[0]["of_stateless"][name], value, rtol=1e-4, atol=1e-5)


def different_criterion(name: str, weight: Tensor) -> Tensor:
    return weight.abs() if dist.get_rank() == 0 else -weight.abs()


def pruned_differently(folder: Path) -> str:
    entry = {"name": "criterion", "criterion": "test_compressor_ranks:different_criterion", "sparsity": 0.5}
    try:
        tiny.compress(tiny.recipe([entry], epochs=1), folder / "run", model=stateless())
    except SparsecoreError as error:
        return str(error)
    return ""


def test_masks_that_differ_are_an_error_everywhere(outcomes: list[dict[str, Any]]) -> None:
    for outcome in outcomes:
        assert "expected the same masks on every rank" in outcome["pruned_differently"]


def failing_metric(model: nn.Module) -> float:
    return float("nan")


def refused(folder: Path) -> str:
    try:
        tiny.compress(tiny.recipe([]), folder / "run", metric=failing_metric)
    except SparsecoreError as error:
        return str(error)
    return ""


def scanned(folder: Path) -> dict[str, Any]:
    """What the first process finds out by the metric is done in all, also where it knows the scores from a file."""
    strategies = [
        {"name": "filters-to-target", "reduce_by": 0.4, "start": 1, "sensitivity": {"ratios": [0.5, 0.9]}},
        {"name": "iterative", "sparsity": 0.5, "rounds": 2, "start": 2, "sensitivity": {"sparsities": [0.5, 0.9]}},
    ]
    recipe = tiny.recipe(strategies, epochs=3)
    first = tiny.compress(recipe, folder / "a")
    dist.barrier()
    for path in (folder / "a" / "checkpoints").glob("*"):
        path.unlink(missing_ok=True)
    dist.barrier()
    for name in ("model.safetensors", "report.json"):
        (folder / "a" / name).unlink(missing_ok=True)
    dist.barrier()
    again = tiny.compress(recipe, folder / "a")
    return {"is_equal": tiny.same_state(first.model, again.model), "model": again.model.state_dict()}


def test_scans_of_the_first_process_serve_all(outcomes: list[dict[str, Any]]) -> None:
    first, second = (outcome["scanned"] for outcome in outcomes)
    assert first["is_equal"]
    assert second["is_equal"]
    assert all(torch.equal(value, second["model"][name]) for name, value in first["model"].items())
    assert float((first["model"]["9.weight"] == 0).double().mean()) > 0.2


def everything(folder: Path) -> dict[str, Any]:
    works = (trained, scanned, of_stateless, pruned_differently, refused)
    return {work.__name__: work(folder / work.__name__) for work in works}


def test_an_error_of_the_first_process_is_one_of_all(outcomes: list[dict[str, Any]]) -> None:
    for outcome in outcomes:
        assert "metric: expected a finite number" in outcome["refused"]


def test_a_batch_is_split_without_rest() -> None:
    shares = [TrainingData(tiny.images(), 20, 0, rank, 3).epoch(1) for rank in range(3)]
    whole = TrainingData(tiny.images(), 20, 0).epoch(1)
    for step, parts in enumerate(zip(*shares, strict=True)):
        rows = [row for part in parts for row in part.rows]
        assert sorted(rows) == sorted(whole[step].rows)
        assert sum(part.weight for part in parts) == pytest.approx(1)
        assert all(part.weight == len(part.rows) / len(rows) for part in parts)


def test_alone() -> None:
    ranks = Ranks()
    assert (ranks.rank, ranks.count, ranks.gathered(3), ranks.from_first(lambda: 4)) == (0, 1, [3], 4)
