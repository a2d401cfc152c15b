"""The scan: what it predicts is what a cut costs, and what it remembers is what it computed."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from structured_nets import Concat, Grouped, Residual, build

from sparsecore.errors import BundleError
from sparsecore.prune.structured import ChannelSensitivity, channel_sensitivity, prune_channels

pytest.importorskip("torch_pruning")

RATIOS = (0.25, 0.5, 0.75)


class Score:
    """Minus the distance from the outputs that the model had, counting its calls."""

    def __init__(self, model, x, stop_after=None):
        self.y, self.x, self.calls, self.stop_after = model(x).detach(), x, 0, stop_after

    def __call__(self, model):
        if self.calls == self.stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        return -float((model(self.x) - self.y).square().mean())


@pytest.mark.parametrize("kind", [Residual, Concat, Grouped])
def test_prediction_is_the_loss_of_the_cut_model(kind):
    model, x = build(kind)
    score = Score(model, x)
    before = copy.deepcopy(model.state_dict())
    scan = channel_sensitivity(model, x, score, RATIOS)
    assert scan.whole == 0.0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert len(scan.scores) > 1
    for name, scores in scan.scores.items():
        for ratio, predicted in scores.items():
            cut = copy.deepcopy(model)
            prune_channels(cut, x, {name: ratio})
            assert score(cut) == pytest.approx(predicted, rel=1e-4, abs=1e-9)
    assert len({score for scores in scan.scores.values() for score in scores.values()}) > len(scan.scores)


def test_cached_equals_recomputed_and_resumes(tmp_path):
    model, x = build(Residual)
    path = tmp_path / "scan.json"
    with pytest.raises(KeyboardInterrupt):
        channel_sensitivity(model, x, Score(model, x, stop_after=4), RATIOS, file=path)
    assert len(json.loads(path.read_text())["scores"]) == 4
    again = Score(model, x)
    resumed = channel_sensitivity(model, x, again, RATIOS, file=path)
    assert again.calls == 1 + 3 * 3 - 4
    assert resumed == channel_sensitivity(model, x, Score(model, x), RATIOS)
    none = Score(model, x, stop_after=0)
    assert channel_sensitivity(model, x, none, RATIOS, file=path) == resumed


def test_file_of_another_model_or_criterion(tmp_path):
    model, x = build(Residual)
    path = tmp_path / "scan.json"
    channel_sensitivity(model, x, Score(model, x), [0.5], file=path)
    with pytest.raises(BundleError, match="other criterion"):
        channel_sensitivity(model, x, Score(model, x), [0.5], file=path, criterion="l2")
    with torch.no_grad():
        model.bn.running_mean[0] += 1
    with pytest.raises(BundleError, match="other tensors"):
        channel_sensitivity(model, x, Score(model, x), [0.5], file=path)
    path.write_text("{")
    with pytest.raises(BundleError, match="not the file of a sensitivity scan"):
        channel_sensitivity(model, x, Score(model, x), [0.5], file=path)


def test_error_in_evaluate_leaves_the_model():
    model, x = build(Residual)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyboardInterrupt):
        channel_sensitivity(model, x, Score(model, x, stop_after=2), RATIOS)
    with pytest.raises(ValueError, match="expected a finite number from evaluate, got nan"):
        channel_sensitivity(model, x, lambda model: float("nan"), RATIOS)
    with pytest.raises(TypeError, match="expected evaluate as a function"):
        channel_sensitivity(model, x, None, RATIOS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("ratios", [[], [0.0, 0.5], [1.0], [-0.5]])
def test_bad_ratios(ratios):
    model, x = build(Residual)
    with pytest.raises(ValueError, match=r"expected (a ratio in \[0, 1\)|ratios in \(0, 1\))"):
        channel_sensitivity(model, x, Score(model, x), ratios)


def test_curve():
    scan = ChannelSensitivity(1.0, {"a": {0.2: 0.9, 0.4: 0.95, 0.8: 0.5}}, {"a": ()})
    losses = [scan.loss_at("a", ratio) for ratio in (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8)]
    assert losses == pytest.approx([0.0, 0.05, 0.1, 0.1, 0.1, 0.3, 0.5])
    with pytest.raises(ValueError, match=r"at most 0.8, as far as a was scanned, got 0.9"):
        scan.loss_at("a", 0.9)
    assert "80.0%" in str(scan)
