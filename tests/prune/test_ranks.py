"""Two processes: the same masks on every rank, under DistributedDataParallel and fully_shard, with different data."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW, Optimizer

from sparsecore.errors import FormatError
from sparsecore.prune import (
    CRITERIA,
    GradualPruner,
    IterativePruner,
    Masks,
    averaged_over_ranks,
    prune,
    pruning_sensitivity,
)

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs torch.distributed with gloo")
RANKS = 2


def net() -> nn.Sequential:
    """The 5 rows of the last weight are not a multiple of the ranks."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.ReLU(), nn.Linear(16, 5))


def batch(step: int, rank: int) -> Tensor:
    return torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(100 * step + rank))


def train_step(model: nn.Module, optimizer: Optimizer, step: int) -> None:
    optimizer.zero_grad()
    model(batch(step, dist.get_rank())).square().mean().backward()
    optimizer.step()


def random_scores(seed: int, name: str, weight: Tensor) -> Tensor:
    return torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed + len(name) + weight.numel()))


def taylor(name: str, weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return (weight * weight.grad).abs()


def evaluate(model: nn.Module) -> float:
    return -float(model(batch(0, 0)).square().mean())


def pruned_gradually(model: nn.Module) -> dict[str, Any]:
    optimizer = AdamW(model.parameters(), lr=0.01)
    pruner = GradualPruner(model, optimizer, {"0": 0.5, "3": 0.8}, end=4, frequency=2)
    for step in range(6):
        train_step(model, optimizer, step)
        pruner.step()
    pruner.masks.require_same_on_all_ranks()
    return {"masks": pruner.masks.state_dict(), "zeros": Masks.from_model(model).state_dict()}


def data_parallel() -> dict[str, Any]:
    model = DistributedDataParallel(net())
    found = {"gradual": pruned_gradually(model)}
    optimizer = AdamW(model.parameters(), lr=0.01)
    pruner = IterativePruner(model, optimizer, 0.9, rounds=2)
    for number in pruner:
        train_step(model, optimizer, number)
    found["taylor"] = {"masks": prune(model, 0.95, criterion=taylor).state_dict()}
    found["iterative"] = {"masks": pruner.masks.state_dict(), "weight": model.module[3].weight.detach()}
    return found


def different_masks() -> dict[str, Any]:
    own = partial(random_scores, dist.get_rank())
    try:
        prune(net(), 0.5, criterion=own).require_same_on_all_ranks()
        message = ""
    except FormatError as error:
        message = str(error)
    masks = prune(net(), 0.5, criterion=averaged_over_ranks(own))
    masks.require_same_on_all_ranks()
    return {"message": message, "masks": masks.state_dict()}


def fully_sharded() -> dict[str, Any]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = net()
    mesh = init_device_mesh("cpu", (RANKS,))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    found: dict[str, Any] = {"scan": pruning_sensitivity(model, evaluate, [0.5, 0.9]).to_dict()}
    optimizer = AdamW(model.parameters(), lr=0.01)
    evaluate(model)  # leaves the root's weights whole
    masks = prune(model, 0.6, scope="global")
    found["global"] = masks.state_dict()
    found["output"] = model(batch(0, 0)).detach()
    masks.attach(optimizer)
    for step in range(3):
        train_step(model, optimizer, step)
    found["zeros"] = Masks.from_model(model).state_dict()
    found["state"] = {
        name: [t.full_tensor() for t in optimizer.state[model.get_parameter(name)].values() if t.dim()]
        for name in masks
    }
    found["parts"] = [list(model.get_parameter(name).to_local().shape) for name in masks]
    found["taylor"] = prune(model, 0.8, criterion=taylor, masks=masks).state_dict()
    found["gradual"] = pruned_gradually(model)
    return found


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    found = {"ddp": data_parallel(), "different": different_masks(), "fsdp": fully_sharded()}
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank found."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, (str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(RANKS)]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def kept(masks: dict[str, Tensor]) -> list[int]:
    return [int(mask.sum()) for mask in masks.values()]


def test_data_parallel_masks_are_the_same_on_every_rank(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["ddp"] for rank in ranks)
    for how in ("gradual", "taylor", "iterative"):
        assert same(first[how]["masks"], second[how]["masks"])
        assert list(first[how]["masks"]) == ["0.weight", "3.weight"]  # without "module."
    assert same(first["gradual"]["masks"], first["gradual"]["zeros"])
    assert kept(first["gradual"]["masks"]) == [18, 16]
    assert sum(kept(first["iterative"]["masks"])) == 116 - round(0.9 * 116)
    assert torch.equal(first["iterative"]["weight"], second["iterative"]["weight"])


def test_different_masks_are_named_on_every_rank(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["different"]["message"] for rank in ranks)
    assert first == second
    hashes = [prune(net(), 0.5, criterion=partial(random_scores, rank)).hash()[:8] for rank in range(RANKS)]
    assert f"{hashes[0]} on [0], {hashes[1]} on [1]" in first


def test_averaged_scores_are_the_mean(ranks: list[dict[str, Any]]) -> None:
    def mean(name: str, weight: Tensor) -> Tensor:
        return (random_scores(0, name, weight) + random_scores(1, name, weight)) / 2

    expected = prune(net(), 0.5, criterion=mean).state_dict()
    assert all(same(rank["different"]["masks"], expected) for rank in ranks)


def test_sharded_weights_are_pruned_as_whole_ones(ranks: list[dict[str, Any]]) -> None:
    model = net()
    scan = pruning_sensitivity(model, evaluate, [0.5, 0.9])
    masks = prune(model, 0.6, scope="global")
    output = model(batch(0, 0)).detach()
    for rank, found in enumerate(ranks):
        sharded = found["fsdp"]
        assert sharded["scan"] == scan.to_dict()
        assert same(sharded["global"], masks.state_dict())
        torch.testing.assert_close(sharded["output"], output)
        assert sharded["parts"] == [[2, 1, 3, 3], [3 - rank, 16]]


def test_sharded_zeros_stay_in_training(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        sharded = found["fsdp"]
        assert same(sharded["zeros"], sharded["global"])
        for name, mask in sharded["global"].items():
            assert len(sharded["state"][name]) == 2
            assert all(state[mask].any() and not state[~mask].any() for state in sharded["state"][name])
        assert same(sharded["gradual"]["masks"], sharded["gradual"]["zeros"])
        assert kept(sharded["gradual"]["masks"]) == [18, 16]
    assert same(ranks[0]["fsdp"]["taylor"], ranks[1]["fsdp"]["taylor"])
    assert kept(ranks[0]["fsdp"]["taylor"]) == [36 - round(0.8 * 36), 16]


def test_a_single_process_agrees_with_itself() -> None:
    model = net()
    masks = prune(copy.deepcopy(model), 0.5, criterion=averaged_over_ranks(CRITERIA["magnitude"]))
    masks.require_same_on_all_ranks()
    assert masks == prune(model, 0.5)
