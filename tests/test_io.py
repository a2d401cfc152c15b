"""save() and load(): the loaded model computes exactly the same, or nothing is loaded."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.utils.prune
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import fit_
from torch import Tensor, nn

from sparsecore import bundle
from sparsecore.errors import BundleError, UnsupportedError
from sparsecore.io import CLASSES, load, save
from sparsecore.nn import (
    CompressedModule,
    DepthwiseConv2d,
    Int8Linear,
    SparseConv2d,
    SparseInt8Linear,
    SparseLinear,
)
from sparsecore.prune import Masks
from sparsecore.prune.structured.resrep import Compactor
from sparsecore.quantize import convert_qat, fold_qat, prepare_binary, prepare_qat, prepare_ternary, quantize


def network() -> nn.Sequential:
    """A convolution, BatchNorm, dropout, and a layer under two names."""
    shared = nn.Linear(16, 16)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding="same", bias=False),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 16, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        shared,
        nn.Dropout(),
        nn.Sequential(shared, nn.Linear(16, 3)),
    ).eval()


def example() -> Tensor:
    return torch.randn(2, 2, 6, 5)


def prune(model: nn.Module) -> None:
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.weight *= torch.rand(module.weight.shape) < 0.4


def as_sparse(model: nn.Sequential) -> nn.Sequential:
    shared = SparseLinear.from_dense(model[5], activation="relu")
    model[0], model[2] = SparseConv2d.from_dense(model[0]), SparseConv2d.from_dense(model[2])
    model[5] = model[7][0] = shared
    return model


def as_sparse_int8(model: nn.Sequential) -> nn.Sequential:
    quantize(model)
    model[7][1] = SparseInt8Linear.from_int8(model[7][1])
    return model


def fold(model: nn.Sequential) -> nn.Sequential:
    """A convolution that stays dense gets a bias from the BatchNorm that goes."""
    model[0] = nn.utils.fuse_conv_bn_eval(model[0], model[1])
    model[1] = nn.Identity()
    return model


WAYS: dict[str, Callable[[nn.Sequential], nn.Module]] = {
    "dense": lambda model: model,
    "folded": fold,
    "sparse": as_sparse,
    "folded, sparse": lambda model: as_sparse(fold(model)),
    "int8 dynamic": quantize,
    "int8 static": lambda model: quantize(model, [example()], activations="static"),
    "int8 sparse": as_sparse_int8,
    "half": lambda model: model.bfloat16(),
    "channels last": lambda model: model.to(memory_format=torch.channels_last),
    "training": lambda model: model.train(),
}


@pytest.mark.parametrize("way", WAYS)
def test_loaded_model_is_exactly_equal(way: str, tmp_path: Path) -> None:
    model = network()
    prune(model)
    model = WAYS[way](model)
    save(model, tmp_path / "m.safetensors")
    loaded = load(str(tmp_path / "m.safetensors"), network)

    assert str(loaded) == str(model)
    assert loaded[5] is loaded[7][0]
    state = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        assert state[name].dtype == tensor.dtype
        assert state[name].stride() == tensor.stride()
        assert torch.equal(state[name], tensor)
    x = example().to(torch.bfloat16 if way == "half" else torch.float32)
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    assert torch.equal(loaded(x), expected)
    assert [m.training for m in loaded.modules()] == [m.training for m in model.modules()]


@pytest.mark.parametrize("cls", CLASSES.values())
def test_a_single_layer(cls: type[CompressedModule], tmp_path: Path) -> None:
    dense = fit_(cls, nn.Linear(6, 4) if cls.dense_type is nn.Linear else nn.Conv2d(2, 4, 3))
    layer = cls.from_dense(dense)
    save(layer, tmp_path / "m")
    loaded = load(tmp_path / "m", lambda: copy.deepcopy(dense))
    assert type(loaded) is cls
    assert str(loaded) == str(layer)
    again = load(tmp_path / "m", lambda: cls.from_dense(copy.deepcopy(dense)))
    assert str(again) == str(layer)


@pytest.mark.parametrize("activation", ["none", "hardswish"])
def test_a_depthwise_layer(activation: str, tmp_path: Path) -> None:
    def make() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding="valid", groups=4), nn.Conv2d(8, 8, 1))

    model = make()
    model[0] = DepthwiseConv2d.from_dense(model[0], activation)
    save(model, tmp_path / "m")
    loaded = load(tmp_path / "m", make)
    assert isinstance(loaded[0], DepthwiseConv2d)
    x = torch.randn(2, 4, 6, 5)
    assert torch.equal(loaded(x), model(x))
    for other in (nn.Conv2d(4, 8, 3, stride=1, groups=4), nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=4)):
        with pytest.raises(BundleError, match="layer '0'"):
            load(tmp_path / "m", lambda other=other: nn.Sequential(other, nn.Conv2d(8, 8, 1)))  # type: ignore[misc]


class Tied(nn.Module):
    def __init__(self, tie: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.register_buffer("steps", torch.tensor(0))
        if tie:
            self.head.weight = self.embedding.weight


@pytest.mark.parametrize("model_ties", [False, True])
@pytest.mark.parametrize("file_ties", [False, True])
def test_ties_are_those_of_the_saved_model(file_ties: bool, model_ties: bool, tmp_path: Path) -> None:
    model = Tied(file_ties)
    model.steps += 3
    model.embedding.weight.requires_grad_(False)
    save(model, tmp_path / "m")
    loaded = load(tmp_path / "m", lambda: Tied(model_ties))
    assert (loaded.head.weight is loaded.embedding.weight) == file_ties
    assert torch.equal(loaded.head.weight, model.head.weight)
    assert torch.equal(loaded.embedding.weight, model.embedding.weight)
    assert int(loaded.steps) == 3
    assert isinstance(loaded.head.weight, nn.Parameter)


def test_kernel_of_another_machine_is_chosen_anew(tmp_path: Path) -> None:
    model = nn.Sequential(SparseLinear.from_dense(nn.Linear(4, 2), kernel="spmm_csr_f32_other"))
    save(model, tmp_path / "m")
    loaded = load(tmp_path / "m", lambda: nn.Sequential(nn.Linear(4, 2)))
    assert loaded[0].kernel == ""
    model[0].kernel = "spmm_csr_f32_scalar"
    save(model, tmp_path / "m")
    loaded = load(tmp_path / "m", lambda: nn.Sequential(nn.Linear(4, 2)))
    assert loaded[0].kernel == "spmm_csr_f32_scalar"


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got NoneType"):
        save(None, tmp_path / "none")  # type: ignore[arg-type]

    class Custom(SparseLinear):
        pass

    with pytest.raises(UnsupportedError, match="Custom 0"):
        save(nn.Sequential(Custom.from_dense(nn.Linear(2, 2))), tmp_path / "m")
    layer = nn.Linear(2, 2)
    layer.register_buffer("extra", torch.eye(2).to_sparse())
    with pytest.raises(UnsupportedError, match=r"dense tensor.*extra"):
        save(layer, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def wider() -> nn.Sequential:
    model = network()
    model[7][1] = nn.Linear(16, 4)
    return model


def without_head() -> nn.Sequential:
    model = network()
    model[7] = nn.Flatten()
    return model


def with_other_stride() -> nn.Sequential:
    model = network()
    model[2] = nn.Conv2d(4, 16, 1, stride=2)
    return model


def with_extra() -> nn.Sequential:
    return network().append(nn.Linear(3, 3))


def with_other_class() -> nn.Sequential:
    model = network()
    model[5] = nn.Bilinear(16, 16, 16)
    return model


@pytest.mark.parametrize(
    ("model_fn", "text"),
    [
        (wider, r"'7\.1\.weight' as.*\[4, 16\].*got.*\[3, 16\]"),
        (without_head, "no module '7.0'"),
        (with_other_stride, "layer '2'.*stride"),
        (with_extra, "the file has no tensor '8"),
        (with_other_class, "layer '5'"),
    ],
)
def test_another_model(model_fn: Callable[[], nn.Sequential], text: str, tmp_path: Path) -> None:
    save(as_sparse(network()), tmp_path / "m.safetensors")
    model = model_fn()
    before = (str(model), {k: v.clone() for k, v in model.state_dict().items()})
    with pytest.raises(BundleError, match=rf"m\.safetensors: .*{text}"):
        load(tmp_path / "m.safetensors", lambda: model)
    assert str(model) == before[0]
    assert all(torch.equal(tensor, before[1][name]) for name, tensor in model.state_dict().items())


def saved(tmp_path: Path, **changes: Any) -> Path:
    """Save a small model, change what the file says, with a right checksum."""
    path = tmp_path / "m.safetensors"
    save(nn.Sequential(SparseLinear.from_dense(nn.Linear(4, 2)), nn.Linear(2, 2)), path)
    bundle.write(path, dataclasses.replace(bundle.read(path), **changes))
    return path


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2))


CONFIG: dict[str, Any] = {"weight_shape": [2, 4], "activation": "none", "kernel": ""}


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"class": "Linear", "config": CONFIG},
        {"class": "os.system", "config": CONFIG},
        {"class": ["SparseLinear"], "config": CONFIG},
        {"class": "SparseLinear"},
        {"class": "SparseLinear", "config": 1},
        {"class": "SparseLinear", "config": {}},
        {"class": "SparseLinear", "config": CONFIG | {"x_scale": 1.0}},
        {"class": "SparseLinear", "config": CONFIG | {"activation": "exec"}},
        {"class": "SparseLinear", "config": CONFIG | {"activation": ["relu"]}},
        {"class": "SparseLinear", "config": CONFIG | {"kernel": []}},
        {"class": "SparseLinear", "config": CONFIG | {"weight_shape": [2, 3]}},
        {"class": "SparseLinear", "config": CONFIG | {"weight_shape": [2, 5]}},
        {"class": "SparseLinear", "config": CONFIG | {"weight_shape": [2**40, 4]}},
        {"class": "SparseLinear", "config": CONFIG | {"weight_shape": "24"}},
        {"class": "Int8Linear", "config": CONFIG | {"x_scale": None, "x_zero_point": 0}},
        {"class": "SparseConv2d", "config": CONFIG},
        {"same_as": "1"},
        {"same_as": "0"},
        {"same_as": ["0"]},
        {"same_as": None},
    ],
    ids=str,
)
def test_tampered_entry(entry: dict[str, Any], tmp_path: Path) -> None:
    path = saved(tmp_path)
    assert isinstance(load(path, small)[0], SparseLinear)
    with pytest.raises(BundleError, match="layer '0'"):
        load(saved(tmp_path, modules={"0": entry}), small)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"modules": {}}, "no tensor '0.*"),
        ({"identities": ["9"]}, "no module '9'"),
        ({"training": ["0.weight"]}, "no module '0.weight'"),
        ({"identities": ["1"]}, "no tensor '1"),
    ],
)
def test_tampered_names(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=text):
        load(saved(tmp_path, **changes), small)


@pytest.mark.parametrize("name", ["0.row_ptr", "0.col_idx", "0.values", "0.bias", "1.weight"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_tampered_tensor(name: str, tmp_path: Path, data: st.DataObject) -> None:
    """Another tensor in its place, with a right checksum: refused, or the model runs safely."""
    tensors = dict(bundle.read(saved(tmp_path)).tensors)
    dtype = data.draw(st.sampled_from([torch.int32, torch.int64, torch.float32, torch.int8]))
    shape = data.draw(st.sampled_from([(), (1,), (2,), (3,), (8,), (9,), (2, 2), (8, 1)]))
    low, high = data.draw(st.sampled_from([(0, 4), (-(2**31), 2**31 - 1)]))
    tensors[name] = torch.randint(low, high, shape).to(dtype)
    path = saved(tmp_path, tensors=tensors)
    try:
        model = load(path, small)
    except BundleError:
        return
    assert model(torch.ones(1, 4)).shape == (1, 2)


def test_missing_and_additional_tensors(tmp_path: Path) -> None:
    tensors = bundle.read(saved(tmp_path)).tensors
    for name in tensors:
        remaining = {key: tensor for key, tensor in tensors.items() if key != name}
        if name == "0.bias":  # a layer without a bias is a layer too
            assert load(saved(tmp_path, tensors=remaining), small)[0].bias is None
            continue
        with pytest.raises(BundleError, match=name.rpartition(".")[2]):
            load(saved(tmp_path, tensors=remaining), small)
    for name in ("0.weight", "1.extra", "extra", "0.bias.bias"):
        with pytest.raises(BundleError, match="no tensor"):
            load(saved(tmp_path, tensors=tensors | {name: torch.ones(2)}), small)


def test_errors_are_one_sentence_with_the_path(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"not at all")
    with pytest.raises(BundleError) as caught:
        load(tmp_path / "m.safetensors", network)
    assert str(caught.value).startswith(str(tmp_path / "m.safetensors"))
    assert "\n" not in str(caught.value)


def test_errors_of_model_fn_are_its_own(tmp_path: Path) -> None:
    def fail() -> nn.Module:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        load(saved(tmp_path), fail)


@pytest.mark.parametrize("prepare", [prepare_qat, prepare_binary, prepare_ternary])
def test_layers_in_training_are_not_saved(prepare: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = prepare(nn.Sequential(nn.Linear(8, 4)))
    message = r"got SimulatedLinear 0: convert_qat\(\) makes its layers int8, fold_qat\(\) plain; to go on training"
    with pytest.raises(UnsupportedError, match=message):
        save(model, path)
    assert not path.exists()
    model(torch.rand(16, 8)).sum().backward()
    ready = convert_qat(model) if prepare is prepare_qat else fold_qat(model)
    save(ready.eval(), path)
    x = torch.rand(3, 8)
    assert torch.equal(load(path, lambda: nn.Sequential(nn.Linear(8, 4)))(x), ready(x))


def test_pruning_by_torch_that_is_not_plain_is_named_when_loading(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    torch.nn.utils.prune.l1_unstructured(model[0], "weight", 0.5)
    save(model, tmp_path / "m.safetensors")
    with pytest.raises(BundleError, match=r"no tensor '0.weight_(orig|mask)'; Masks.from_model\(model\) makes"):
        load(tmp_path / "m.safetensors", lambda: nn.Sequential(nn.Linear(8, 8)))
    Masks.from_model(model)
    save(model, tmp_path / "m.safetensors")
    x = torch.randn(2, 8)
    assert torch.equal(load(tmp_path / "m.safetensors", lambda: nn.Sequential(nn.Linear(8, 8)))(x), model(x))


def test_compactors_are_not_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 1), Compactor(nn.BatchNorm2d(4)))
    with pytest.raises(UnsupportedError, match=r"got Compactor 1: ResRep.merge\(\) ends it"):
        save(model, tmp_path / "model.safetensors")


def test_int8_biases_do_not_train(tmp_path: Path) -> None:
    save(nn.Sequential(Int8Linear.from_dense(nn.Linear(4, 2))), tmp_path / "m")
    loaded = load(tmp_path / "m", lambda: nn.Sequential(nn.Linear(4, 2)))
    assert not loaded[0].bias.requires_grad
