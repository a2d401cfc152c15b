"""Calibration: what observers see, and that nothing is left behind on the model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparsecore import calibration
from sparsecore.quantize.calibrate import observe, observe_channels
from sparsecore.quantize.observers import OBSERVERS, MinMax, Percentile


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.fc(input=x * scale)


def test_range_over_all_batches() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    batches = [torch.randn(4, 3) for _ in range(3)]
    ranges = observe(model, {"0": model[0], "2": model[2]}, batches)
    every = torch.cat(batches)
    hidden = torch.relu(model[0](every)).detach()
    assert ranges[model[0]] == (float(every.min()), float(every.max()))
    assert ranges[model[2]] == (float(hidden.min()), float(hidden.max()))


@pytest.mark.parametrize("as_batch", [tuple, list, lambda p: {"x": p[0], "scale": p[1]}])
def test_kinds_of_batches(as_batch: object) -> None:
    model = TwoInputs()
    x = torch.randn(4, 3)
    batch = as_batch((x, torch.tensor(2.0)))  # type: ignore[operator]
    ranges = observe(model, {"fc": model.fc}, [batch])
    assert ranges[model.fc] == (float(2 * x.min()), float(2 * x.max()))


def test_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).train()
    model[1].eval()
    flags = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    observe(model, {"1": model[1]}, [torch.randn(4, 3)])
    with pytest.raises(ValueError, match=r"1: expected finite.*check"):
        observe(model, {"1": model[1]}, [torch.full((4, 3), float("nan"))])
    with pytest.raises(RuntimeError):
        observe(model, {"1": model[1]}, [torch.randn(4, 7)])
    assert [module.training for module in model.modules()] == flags
    assert not model[1]._forward_hooks
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_no_batches_and_layers_never_reached() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="at least one calibration batch"):
        observe(model, {"0": model[0]}, iter(()))
    with pytest.raises(ValueError, match=r"\['other'\]"):
        observe(model, {"0": model[0], "other": nn.Linear(1, 1)}, [torch.ones(1, 3)])
    with pytest.raises(ValueError, match=r"\['0'\]"):  # an empty batch has no range
        observe(model, {"0": model[0]}, [torch.ones(0, 3)])
    with pytest.raises(ValueError, match="observer of minmax"):
        observe(model, {"0": model[0]}, [torch.ones(1, 3)], observer="mean")


def test_observers_are_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fixed(MinMax):
        def range(self) -> tuple[float, float]:
            return -1.0, 1.0

    monkeypatch.setitem(OBSERVERS, "fixed", Fixed)
    model = nn.Sequential(nn.Linear(3, 2))
    ranges = observe(model, {"0": model[0]}, [torch.ones(1, 3)], observer="fixed")
    assert ranges == {model[0]: (-1.0, 1.0)}


def test_an_observer_is_copied_for_every_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    observer = Percentile(100.0)
    x = torch.randn(9, 3)
    for choice in (observer, MinMax):
        ranges = observe(model, {"0": model[0], "1": model[1]}, [x], observer=choice)
        assert ranges[model[0]] == (float(x.min()), float(x.max()))
        assert ranges[model[1]] != ranges[model[0]]
    assert observer.range() is None


def test_channels() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(2), nn.Linear(4, 2))
    layers = {"0": model[0], "2": model[2]}
    batches = [torch.randn(5, 2, 4, 4), torch.randn(1, 2, 4, 4)]
    absmax = observe_channels(model, layers, batches)
    every = torch.cat(batches)
    hidden = model[:2](every).detach()
    assert torch.equal(absmax[model[0]], every.abs().amax((0, 2, 3)))
    assert torch.equal(absmax[model[2]], hidden.abs().amax((0, 1)))
    scales = {model[0]: torch.tensor([2.0, 4.0])}
    ranges = observe(model, layers, batches, channel_scales=scales)
    scaled = every / torch.tensor([2.0, 4.0])[:, None, None]
    assert ranges[model[0]] == (float(scaled.min()), float(scaled.max()))
    assert ranges[model[2]] == (float(hidden.min()), float(hidden.max()))
    with pytest.raises(ValueError, match="0: expected finite"):
        observe_channels(model, layers, [torch.full((1, 2, 4, 4), float("nan"))])


@pytest.mark.parametrize("progress", [False, True])
def test_progress_only_when_it_takes_long(
    progress: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    batches = [torch.ones(1, 3)] * 4
    observe(model, {"0": model[0]}, batches, progress=progress)
    assert capsys.readouterr().err == ""
    clock = iter(range(100))
    monkeypatch.setattr(calibration.time, "monotonic", lambda: next(clock))
    observe(model, {"0": model[0]}, batches, progress=progress)
    assert ("calibrating: 4 batches" in capsys.readouterr().err) == progress
