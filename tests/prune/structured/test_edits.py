"""Edits: replayed, composed, saved, and refused where they do not fit."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from structured_nets import NETS, Grouped, Residual, build

import sparsecore as sc
from sparsecore.errors import BundleError
from sparsecore.prune.structured import AttributeEdit, Edits, TensorEdit, cut, prunable_channels

pytest.importorskip("torch_pruning")


def cut_some(model, x, start=0):
    channels = {group.name: group.channels_of(range(start, len(group.units), 3)) for group in _groups(model, x)}
    return cut(model, x, channels)


def _groups(model, x):
    return prunable_channels(model, x).prunable


@pytest.mark.parametrize("kind", NETS)
def test_replay_on_a_fresh_model(kind):
    model, x = build(kind)
    first = cut_some(model, x)
    edits = first.then(cut_some(model, x, start=1))
    edits = Edits.from_dict(json.loads(json.dumps(edits.to_dict())))
    fresh = kind()
    edits.apply(fresh)
    fresh.load_state_dict(model.state_dict())
    assert str(fresh) == str(model)
    assert torch.equal(fresh.eval()(x), model(x))


def test_twice_is_once():
    model, x = build(Residual)
    first = cut(model, x, {"conv1": [0, 3]})
    both = first.then(cut(model, x, {"conv1": [1]}))  # channel 2 of the original
    once = cut(build(Residual)[0], x, {"conv1": [0, 2, 3]}, dry_run=True)
    assert both.to_dict() == once.to_dict()
    with pytest.raises(ValueError, match="keep the edits in the order"):
        first.then(first)


@pytest.mark.parametrize("kind", [Residual, Grouped])
def test_bundle(kind, tmp_path):
    model, x = build(kind)
    edits = cut_some(model, x)
    expected = model(x)
    sc.prune(model, 0.5, exclude=[torch.nn.ConvTranspose2d])
    for name, given in (("cut", model), ("converted", sc.convert(model))):
        path = tmp_path / f"{name}.safetensors"
        sc.save(given, path, edits=edits)
        loaded = sc.load(path, lambda: kind().eval())
        assert torch.equal(loaded(x), given(x))
    assert loaded(x).shape == expected.shape
    sc.save(model, path)
    with pytest.raises(BundleError, match="model_fn must build the model that was compressed"):
        sc.load(path, lambda: kind().eval())


def test_compiled_bundle(tmp_path):
    model, x = build(Residual)
    edits = cut_some(model, x)
    fast = sc.compile(model, x)
    sc.save(fast, tmp_path / "m.safetensors", edits=edits)
    loaded = sc.load(tmp_path / "m.safetensors", lambda: build(Residual)[0])
    assert torch.equal(loaded(x), fast(x))


def test_another_model_is_refused_unchanged(tmp_path):
    model, x = build(Residual)
    edits = cut_some(model, x)
    other = Residual()
    other.fc = torch.nn.Linear(12, 6)
    before = str(other)
    with pytest.raises(BundleError, match="expected a model of the architecture that was cut"):
        edits.apply(other)
    assert str(other) == before
    sc.save(model, tmp_path / "m.safetensors", edits=edits)
    with pytest.raises(BundleError, match=r"m\.safetensors: expected a model of the architecture"):
        sc.load(tmp_path / "m.safetensors", lambda: other)


BAD = [
    lambda edits: replace(edits, tensors=(*edits.tensors, TensorEdit("stem.weight", 7, 8, (0,)))),
    lambda edits: replace(edits, tensors=(*edits.tensors, TensorEdit("nothing", 0, 8, (0,)))),
    lambda edits: replace(edits, tensors=(*edits.tensors, TensorEdit("bn2.weight", 0, 8, (0, 8)))),
    lambda edits: replace(edits, tensors=(*edits.tensors, TensorEdit("bn2.weight", 0, 8, (3, 2)))),
    lambda edits: replace(edits, tensors=(*edits.tensors, TensorEdit("bn2.weight", 0, 8, ()))),
    lambda edits: replace(edits, tensors=edits.tensors[:-1]),
    lambda edits: replace(edits, attributes=(AttributeEdit("stem", "out_channels", 9, 8),)),
    lambda edits: replace(edits, attributes=(AttributeEdit("stem", "forward", 9, 8),)),
    lambda edits: replace(edits, attributes=(AttributeEdit("stem", "training", 0, 1),)),
    lambda edits: replace(edits, attributes=(AttributeEdit("stem", "out_channels", 8, 0),)),
]


@pytest.mark.parametrize("spoil", BAD)
def test_damaged_edits(spoil):
    model, x = build(Residual)
    edits = spoil(cut(model, x, {"conv1": [0]}, dry_run=True))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(BundleError):
        edits.apply(model)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert model.stem.out_channels == 8


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tensors", None),
        ("tensors", [["stem.weight", 0, 8]]),
        ("tensors", [["stem.weight", 0, 8, [[0, 9]]]]),
        ("tensors", [["stem.weight", 0, 8, [[4, 6], [0, 2]]]]),
        ("tensors", [["stem.weight", -1, 8, [[0, 2]]]]),
        ("tensors", [["stem.weight", 0, 8, [[0, 2, 3]]]]),
        ("tensors", [["stem.weight", 0, 1e9, [[0, 2]]]]),
        ("tensors", [["stem.weight", 0, True, [[0, 1]]]]),
        ("attributes", [["stem", "out_channels", 8, "7"]]),
        ("architecture", 3),
    ],
)
def test_damaged_json(key, value):
    model, x = build(Residual)
    content = cut(model, x, {"conv1": [0]}, dry_run=True).to_dict()
    with pytest.raises(BundleError, match="expected a list of edits"):
        Edits.from_dict({**content, key: value})


def test_mask():
    model, x = build(Residual)
    edits = cut(model, x, {"conv1": [2]}, dry_run=True)
    edits.mask(model)
    assert int((model.conv1.weight.flatten(1).abs().sum(1) == 0).sum()) == 1
    assert not model.conv2.weight[:, 2].any()
