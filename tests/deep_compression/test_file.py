"""The file of Deep Compression: exact round trips, every byte accounted for, refusals that change nothing."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import prune as torch_prune

import sparsecore as sc
from sparsecore import bundle
from sparsecore.deep_compression import file
from sparsecore.deep_compression.file import FORMAT, VERSION
from sparsecore.errors import BundleError, FormatError, UnsupportedError
from sparsecore.nn import CodebookLinear, SparseLinear


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(576, 40), nn.ReLU(), nn.Linear(40, 10)
    )


def share(model: nn.Module, num_values: int = 15, density: float = 0.2) -> nn.Module:
    """Few different weights in every layer, and running statistics that are not the initial ones."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            shape = module.weight.shape
            module.weight.data = torch.randn(num_values)[torch.randint(0, num_values, shape)]
            module.weight.data *= torch.rand(shape) < density
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.num_batches_tracked += 7
    return model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("huffman", [False, True])
@pytest.mark.parametrize("gap_bits", [None, 3, {"3.weight": 5}])
def test_round_trip_with_every_byte_accounted_for(path: Path, gap_bits: Any, huffman: bool) -> None:
    model = share(net())
    report = sc.save_compressed(model, path, gap_bits=gap_bits, huffman=huffman)
    assert report.file_bytes == path.stat().st_size
    assert report.dense_bytes == sum(tensor.nbytes for tensor in model.state_dict().values())
    loaded = sc.load_compressed(path, net)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    for row in report.weights:
        weight = model.get_parameter(row.name)
        assert row.shape == tuple(weight.shape)
        assert (row.numel, row.nnz) == (weight.numel(), int(weight.count_nonzero()))
        assert row.record.total <= row.field_bytes
        assert huffman or row.record.total == row.field_bytes
        assert load_file(path)[row.name].numel() == row.record.total
    if gap_bits == 3:
        assert {row.gap_bits for row in report.weights} == {3}
    assert report.field_bytes >= report.file_bytes
    text = str(report)
    assert all(row.name in text for row in report.weights)
    assert f"{report.file_bytes:,} bytes" in text
    assert json.loads(json.dumps(report.to_dict()))["file_bytes"] == report.file_bytes


def test_runs_from_the_codes(path: Path) -> None:
    model = share(net()).eval()
    sc.save_compressed(model, path)
    x = torch.randn(2, 3, 8, 8)
    fast = sc.load_compressed(path, lambda: net().eval(), run_compressed=True)
    assert [type(fast[i]) for i in (0, 3, 5)] == [nn.Conv2d, CodebookLinear, CodebookLinear]
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x))
    single = share(nn.Linear(9, 4))
    sc.save_compressed(single, path)
    assert isinstance(sc.load_compressed(path, lambda: nn.Linear(9, 4), run_compressed=True), CodebookLinear)


def test_layers_on_codes_are_explained(path: Path) -> None:
    model = share(net())
    sc.save_compressed(model, path)
    fast = sc.load_compressed(path, net, run_compressed=True)
    rows = sc.explain(fast).rows
    assert [(row.name, row.op, row.format) for row in rows] == [(i, "linear", "codebook") for i in ("3", "5")]
    assert all(row.kernel.startswith("spmm_codebook") for row in rows)
    assert [row.sparsity for row in rows] == [
        1 - float(model[i].weight.count_nonzero()) / model[i].weight.numel() for i in (3, 5)
    ]


def test_codebook_layers_in_a_bundle(path: Path) -> None:
    layer = CodebookLinear.from_dense(share(nn.Linear(30, 20)), activation="relu")
    sc.save(nn.Sequential(layer), path)
    loaded = sc.load(path, lambda: nn.Sequential(nn.Linear(30, 20)))
    x = torch.randn(3, 30)
    assert torch.equal(loaded(x), layer(x))
    assert layer.count_nonzero() == int(layer.weight.count_nonzero())
    again = CodebookLinear.from_dense(share(nn.Linear(30, 20), 3))
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again.to_dense_module().weight, layer.to_dense_module().weight)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    assert layer.half()(x.half()).dtype == torch.float16


def test_tied_weights_are_stored_once(path: Path) -> None:
    def tied() -> nn.Sequential:
        model = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30))
        model[1].weight = model[0].weight
        return model

    model = share(tied())
    report = sc.save_compressed(model, path)
    assert [row.name for row in report.weights] == ["0.weight"]
    assert report.file_bytes == path.stat().st_size
    assert report.dense_bytes == 4 * (900 + 60)
    loaded = sc.load_compressed(path, tied)
    assert loaded[1].weight is loaded[0].weight
    assert torch.equal(loaded[0].weight, model[0].weight)
    x = torch.randn(2, 30)
    assert torch.equal(sc.load_compressed(path, tied, run_compressed=True)[1].weight, model[1].weight)
    torch.testing.assert_close(sc.load_compressed(path, tied, run_compressed=True)(x), model(x))


def test_what_is_left_out_is_stored_as_it_is(path: Path) -> None:
    model = share(net())
    model[3].reset_parameters()  # too many values to share
    report = sc.save_compressed(model, path, exclude="3")
    assert [row.name for row in report.weights] == ["0.weight", "5.weight"]
    assert torch.equal(sc.load_compressed(path, net)[3].weight, model[3].weight)


def test_dtypes_are_those_of_the_model(path: Path) -> None:
    sc.save_compressed(share(net()).bfloat16(), path)
    assert sc.load_compressed(path, lambda: net().bfloat16())[0].weight.dtype == torch.bfloat16


def test_zstd_beside(path: Path) -> None:
    pytest.importorskip("zstandard")
    report = sc.save_compressed(share(net()), path, compare_zstd=True)
    assert all(0 < row.zstd_bytes < row.dense_bytes for row in report.weights if row.zstd_bytes is not None)
    assert all(row.zstd_bytes is not None for row in report.weights)
    assert "zstd" in str(report)


def masked() -> nn.Module:
    model = share(net())
    torch_prune.random_unstructured(model[3], "weight", 0.5)
    return model


def not_finite() -> nn.Module:
    model = share(net())
    model[3].weight.data[0, 0] = torch.nan
    return model


@pytest.mark.parametrize(
    ("build", "settings", "error", "message"),
    [
        (net, {}, FormatError, "0.weight: expected at most 256 different values.*k-means.*exclude='0.weight'"),
        (not_finite, {}, FormatError, "3.weight: .*finite"),
        (masked, {}, UnsupportedError, "fold_torch_pruning"),
        (lambda: nn.Sequential(SparseLinear.from_dense(nn.Linear(2, 2))), {}, UnsupportedError, "got SparseLinear 0"),
        (nn.ReLU, {}, UnsupportedError, "Linear"),
        (lambda: share(net()), {"exclude": "conv"}, ValueError, "nothing in the model is called 'conv'"),
        (lambda: share(net()), {"gap_bits": {"3": 4}}, ValueError, "names of compressed weights"),
        *(
            (lambda: share(net()), {"gap_bits": gap_bits}, ValueError, "gap_bits: expected 1 to 8, or None, got")
            for gap_bits in (9, 0, 1.5, True, {"0.weight": 9})
        ),
        (lambda: None, {}, TypeError, "expected a torch.nn.Module, got NoneType"),
    ],
)
def test_models_that_cannot_be_compressed(
    path: Path, build: Callable[[], nn.Module], settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    path.write_bytes(b"old")
    with pytest.raises(error, match=message):
        sc.save_compressed(build(), path, **settings)
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, str]], None]) -> None:
    """Damage with a digest that fits."""
    tensors, metadata = bundle.read_tensors(path, FORMAT, VERSION, "")
    del metadata["sha256"]
    change(tensors, metadata)
    bundle.write_tensors(path, tensors, metadata)


def shorter_record(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    tensors["3.weight"] = tensors["3.weight"][:-1].clone()


def another_shape(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    metadata["weights"] = metadata["weights"].replace("[40, 576]", "[20, 1152]")


def unknown_weight(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    metadata["weights"] = metadata["weights"].replace("3.weight", "4.weight")


def bad_shapes(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    metadata["weights"] = '{"3.weight": [-1, 4]}'


def bad_alias(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    metadata["aliases"] = '{"3.weight": "nothing"}'


def missing_tensor(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    del tensors["1.running_mean"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shorter_record, "weight '3.weight' is not valid"),
        (another_shape, r"expected '3.weight' as torch.float32 \[40, 576\]"),
        (unknown_weight, "no tensor '4.weight'"),
        (bad_shapes, "other JSON in the metadata 'weights'"),
        (bad_alias, "alias of a stored tensor"),
        (missing_tensor, "differ in .*1.running_mean"),
    ],
)
def test_damaged_files_leave_the_model_as_it_was(path: Path, change: Any, message: str) -> None:
    sc.save_compressed(share(net()), path)
    rewrite(path, change)
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(BundleError, match=message):
        sc.load_compressed(path, lambda: model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_other_files_are_refused(path: Path) -> None:
    model = share(net())
    sc.save_compressed(model, path)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="checksum"):
        sc.load_compressed(path, net)
    path.write_bytes(content[:-5])
    with pytest.raises(BundleError, match="not a complete safetensors file"):
        sc.load_compressed(path, net)
    sc.save(model, path)
    with pytest.raises(BundleError, match=r"save_compressed\(\) wrote, got one that sparsecore\.load\(\) reads"):
        sc.load_compressed(path, net)
    sc.save_compressed(model, path)
    with pytest.raises(BundleError, match=r"sparsecore\.save\(\) wrote, got one that sparsecore\.load_compressed\(\)"):
        sc.load(path, net)
    for load in (sc.load, sc.load_compressed):
        with pytest.raises(BundleError, match="wrote, got a folder"):
            load(path.parent, net)
        with pytest.raises(FileNotFoundError, match=r"nowhere/m\.safetensors"):
            load(path.parent / "nowhere" / "m.safetensors", net)
    save_file({"a": torch.ones(1)}, path, {"format": FORMAT, "version": "2"})
    with pytest.raises(BundleError, match="version 1, got '2'"):
        sc.load_compressed(path, net)
    sc.save_compressed(model, path)
    with pytest.raises(BundleError, match="save"):
        sc.load(path, net)
    with pytest.raises(BundleError, match="model_fn must build"):
        sc.load_compressed(path, lambda: nn.Linear(3, 3))


def test_places_where_nothing_can_be_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are found before the model is compressed."""
    monkeypatch.setattr(file, "_compress", None)
    model = share(net())
    with pytest.raises(IsADirectoryError, match="is a folder; name a file in it"):
        sc.save_compressed(model, path.parent)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere; make it first"):
        sc.save_compressed(model, path.parent / "nowhere" / "m.safetensors")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(PermissionError, match=r"nothing can be written in .* \(Permission denied\)"):
        sc.save_compressed(model, path)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("move", "options", "message"),
    [
        (lambda model: model.to("meta"), {}, "on the meta device"),
        (lambda model: model.double(), {"run_compressed": True}, r"in float32, bfloat16 or float16, got torch.float64"),
    ],
    ids=["meta", "float64"],
)
def test_models_that_cannot_be_filled_stay_as_they_are(
    path: Path, move: Any, options: dict[str, bool], message: str
) -> None:
    sc.save_compressed(share(net()), path)
    model = move(share(net()))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(BundleError, match=message):
        sc.load_compressed(path, lambda: model, **options)
    if "run_compressed" in options:
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
