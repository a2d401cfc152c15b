"""A batch in slices gives what the whole batch gives; only samples that do not depend on each other are cut."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from networks import NETWORKS, assert_same, image, sparse_
from torch import Tensor, nn

import sparsecore as sc
from sparsecore._threads import use_threads
from sparsecore.graph import slices
from sparsecore.graph.compiled import CompiledModule
from sparsecore.graph.slices import SlicedProgram, are_samples_independent


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of one sample, as networks of full size get them; only values of a few numbers count as small."""
    monkeypatch.setattr(slices, "SLICE_BYTES", 1)
    monkeypatch.setattr(slices, "WEIGHT_SHARE", 0.0)
    monkeypatch.setattr(slices, "SMALL_VALUE_BYTES", 256)


def compiled(model: nn.Module, x: Tensor) -> CompiledModule:
    fast = sc.compile(model, x, policy="model")
    assert isinstance(fast, CompiledModule)
    return fast


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize("name", NETWORKS)
def test_slices_compute_what_the_model_does(name: str) -> None:
    make, channels = NETWORKS[name]
    model = sparse_(make())
    fast = compiled(model, image(1, channels))
    for batch in (5, 2):
        x = image(batch, channels, seed=batch)
        with torch.no_grad():
            assert_same(fast(x), model(x), 1e-4)
        assert isinstance(fast.program_for([x]), SlicedProgram)


@pytest.mark.usefixtures("small_slices")
def test_small_values_run_at_once() -> None:
    model = sparse_(
        nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8))
    )
    fast = compiled(model, image(1))
    rows: list[int] = []
    layer = fast.get_submodule("graph_module.4")
    layer.register_forward_hook(lambda module, args, output: rows.append(args[0].shape[0]))
    program = fast.program_for([image(5)])
    assert isinstance(program, SlicedProgram)
    assert program.sizes == (1, 1, 1, 1, 1)
    assert rows[-1] == 5
    assert program.profile([image(5)], 2).keys() >= fast.layers_of_nodes().keys()


def test_slices_share_a_batch_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sparse_(nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 1)))
    fast = compiled(model, image(1))
    one = fast.program_for([image(1)]).num_bytes
    monkeypatch.setattr(slices, "SLICE_BYTES", 3 * one)

    def sizes(batch: int, threads: int) -> tuple[int, ...] | None:
        with use_threads(threads), torch.no_grad():
            assert_same(fast(image(batch)), model(image(batch)), 1e-4)
            return getattr(fast.program_for([image(batch)]), "sizes", None)

    assert [sizes(batch, threads=1) for batch in (3, 4, 7)] == [None, (2, 2), (3, 2, 2)]
    assert [sizes(batch, threads=2) for batch in (3, 4, 7)] == [None, (2, 2), (2, 2, 2, 1)]
    assert sizes(4, threads=3) == (2, 2)  # three threads would wait for one


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_with_slices_of_their_own_change_no_bit(threads: int) -> None:
    fast = compiled(sparse_(NETWORKS["residual"][0]()), image(1))
    x = image(9)
    with torch.no_grad(), use_threads(threads):
        alone = torch.cat([fast(one) for one in x.split(1)])
        program = fast.program_for([x])
        assert torch.equal(fast(x), alone)
        times = program.profile([x], 2)
    assert times.keys() >= fast.layers_of_nodes().keys()


@pytest.mark.usefixtures("small_slices")
def test_a_sliced_program_runs_once_at_a_time() -> None:
    model = sparse_(NETWORKS["residual"][0]())
    fast = compiled(model, image(1))
    batches = [image(6, seed=seed) for seed in range(8)] * 5
    with torch.no_grad(), use_threads(2), ThreadPoolExecutor(4) as pool:
        for got, x in zip(pool.map(fast, batches), batches, strict=True):
            assert_same(got, model(x), 1e-4)


def test_small_batches_run_at_once() -> None:
    fast = compiled(sparse_(nn.Sequential(nn.Conv2d(16, 16, 3))), image(1))
    assert not isinstance(fast.program_for([image(8)]), SlicedProgram)


COUPLED: dict[str, Callable[[Tensor], Tensor]] = {
    "mean of the batch": lambda x: x - x.mean(0),
    "largest of the batch": lambda x: x / x.amax(),
    "order": lambda x: x.flip(0),
    "sorted": lambda x: x[x.flatten(1).sum(1).argsort()],
    "sign of a sum": lambda x: torch.where(x.sum() > 0, x, 2 * x),
    "place in the batch": lambda x: x + torch.arange(len(x)).view(-1, *[1] * (x.dim() - 1)) + len(x),
    "another shape": lambda x: x.flatten()[None],
}


@pytest.mark.parametrize("name", COUPLED)
def test_samples_that_depend_on_each_other_are_seen(name: str) -> None:
    for seed in range(5):
        assert not are_samples_independent(lambda x: (COUPLED[name](x),), [image(2, seed=seed)])


@pytest.mark.parametrize("norm", [nn.LayerNorm(9), nn.InstanceNorm2d(3), nn.GroupNorm(1, 3), nn.Softmax(1)])
def test_samples_that_do_not_are_seen(norm: nn.Module) -> None:
    assert are_samples_independent(lambda x: (norm(x),), [torch.randn(2, 3, 9, 9)])


@pytest.mark.usefixtures("small_slices")
def test_a_model_that_mixes_its_batch_runs_at_once() -> None:
    class Centered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(16, 16, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(x)
            return y - y.mean(0, keepdim=True)

    model = sparse_(Centered())
    fast = compiled(model, image(1))
    x = image(4)
    with torch.no_grad():
        assert_same(fast(x), model(x), 1e-4)
    assert not isinstance(fast.program_for([x]), SlicedProgram)


def test_integer_inputs_stay_in_range() -> None:
    embedding = nn.Embedding(7, 4)
    assert are_samples_independent(lambda x: (embedding(x),), [torch.tensor([[0, 6, 3], [1, 2, 3]])])
