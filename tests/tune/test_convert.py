"""convert() and explain(): the same numbers, nothing slower chosen, reasons given."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from generated_code import HAS_GENERATOR
from networks import with_signs_
from torch import Tensor, nn

import sparsecore as sc
from sparsecore.errors import UnsupportedError
from sparsecore.tune import cache, measure
from sparsecore.tune.candidates import candidates


def pruned_net(sparsity: float = 0.8) -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 1),
        nn.Flatten(),
        nn.Linear(16 * 36, 10),
    ).eval()
    sc.prune(model, sparsity)
    return model


X = torch.randn(2, 3, 6, 6)


def formats(model: nn.Module) -> dict[str, str]:
    return {row.name: row.format for row in sc.explain(model).rows}


def test_same_outputs_and_the_model_stays(times: dict[str, float]) -> None:
    model = pruned_net()
    before = copy.deepcopy(model.state_dict())
    fast = sc.convert(model, X)
    torch.testing.assert_close(fast(X), model(X), rtol=1e-4, atol=1e-5)
    assert formats(fast) == {"0": "csr", "3": "csr", "5": "csr"}
    assert isinstance(fast[1], nn.Identity)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_panels_where_they_are_fastest(times: dict[str, float], tmp_path: Path) -> None:
    times["panel"] = 20.0
    model = pruned_net()
    fast = sc.convert(model, X)
    assert formats(fast) == {"0": "panel", "3": "panel", "5": "panel"}
    torch.testing.assert_close(fast(X), model(X), rtol=1e-4, atol=1e-5)
    sc.save(fast, tmp_path / "m.safetensors")
    loaded = sc.load(tmp_path / "m.safetensors", pruned_net)
    assert torch.equal(loaded(X), fast(X))
    other = sc.convert(pruned_net(0.6), X, cache=False)
    other.load_state_dict(fast.state_dict())
    assert torch.equal(other(X), fast(X)), "state_dict holds CSR, of any number of entries"


@pytest.mark.parametrize(("form", "block_rows"), [("4x1", 4), ("8x1", 8)])
def test_blocks_where_they_are_fastest(form: str, block_rows: int, times: dict[str, float], tmp_path: Path) -> None:
    times[form] = 20.0
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, 24)).eval()
    sc.prune(model, 0.8, pattern=form)
    fast = sc.convert(model, X)
    assert formats(fast) == {"0": form, "3": form}
    assert fast[0].block_rows == fast[3].block_rows == block_rows
    assert [row.kernel.rpartition("_")[0] for row in sc.explain(fast).rows] == ["conv2d_block_f32", "spmm_block_f32"]
    torch.testing.assert_close(fast(X), model(X), rtol=1e-4, atol=1e-5)
    sc.save(fast, tmp_path / "m.safetensors")
    assert formats(sc.load(tmp_path / "m.safetensors", lambda: copy.deepcopy(model))) == formats(fast)


def test_bitmaps_for_few_rows(times: dict[str, float], tmp_path: Path) -> None:
    times["bitmap"] = 20.0
    model = nn.Sequential(nn.Linear(64, 24)).eval()
    sc.prune(model, 0.6)
    for shape, format_name in (((1, 64), "bitmap"), ((2, 8, 64), "bitmap"), ((17, 64), "csr")):
        x = torch.randn(shape)
        fast = sc.convert(model, x)
        assert formats(fast) == {"0": format_name}
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    fast = sc.convert(model, torch.randn(1, 64))
    assert sc.explain(fast).rows[0].kernel.startswith("spmm_bitmap_f32_")
    assert formats(sc.convert(fast, torch.randn(1, 64))) == {"0": "bitmap"}
    sc.save(fast, tmp_path / "m.safetensors")
    loaded = sc.load(tmp_path / "m.safetensors", lambda: copy.deepcopy(model))
    assert formats(loaded) == {"0": "bitmap"}
    assert torch.equal(loaded(x), fast(x))


def test_the_cost_model_takes_bitmaps_for_few_rows_only() -> None:
    model = nn.Sequential(nn.Linear(64, 24)).eval()
    sc.prune(model, 0.6)
    assert formats(sc.convert(model, torch.randn(1, 64), policy="model")) == {"0": "bitmap"}
    for x in (torch.randn(17, 64), None):
        assert formats(sc.convert(model, x, policy="model"))["0"] != "bitmap"


def test_blocks_are_for_weights_that_were_pruned_in_them(times: dict[str, float]) -> None:
    times["4x1"] = times["8x1"] = 1.0
    unstructured = pruned_net()
    fast = sc.convert(unstructured, X)
    assert set(formats(fast).values()) == {"csr"}
    assert not any("x1" in row.reason for row in sc.explain(fast).rows), "not even measured"
    odd = nn.Linear(64, 12)  # blocks of 4, but not of 8
    sc.prune(odd, 0.8, pattern="4x1")
    fast = sc.convert(odd, torch.randn(3, 64))
    assert sc.explain(fast).rows[0].format == "4x1"
    assert "8x1" not in sc.explain(fast).rows[0].reason
    wide = nn.Linear(64, 16)
    sc.prune(wide, 0.8, pattern="8x1")
    fast = sc.convert(wide, torch.randn(3, 64))
    assert sc.explain(fast).rows[0].format in {"4x1", "8x1"}, "blocks of 8 are blocks of 4 too"


def test_a_zero_here_and_there_does_not_matter_to_blocks(times: dict[str, float]) -> None:
    times["4x1"] = 20.0
    layer = nn.Linear(100, 40)
    sc.prune(layer, 0.8, pattern="4x1")
    kept = layer.weight.data.nonzero()
    few = kept[torch.randperm(len(kept))[: len(kept) // 20]]
    layer.weight.data[few[:, 0], few[:, 1]] = 0
    x = torch.randn(3, 100)
    fast = sc.convert(layer, x)
    assert sc.explain(fast).rows[0].format == "4x1"
    torch.testing.assert_close(fast(x), layer(x), rtol=1e-4, atol=1e-5)


def test_dense_is_kept_where_sparse_is_not_clearly_faster(times: dict[str, float]) -> None:
    times["csr"] = times["panel"] = 99.0
    fast = sc.convert(pruned_net(), X)
    assert set(formats(fast).values()) == {"dense"}
    row = sc.explain(fast).rows[0]
    assert row.time_us == row.dense_us == 100.0
    assert row.speedup == 1.0
    assert "csr 99 us" in row.reason


def test_int8_layers_choose_among_all_four(times: dict[str, float]) -> None:
    model = sc.quantize(pruned_net())
    assert set(formats(sc.convert(model, X)).values()) == {"lookup int8"}
    times["int8"] = 20.0
    assert set(formats(sc.convert(model, X, cache=False)).values()) == {"int8"}
    times["dense"] = 10.0
    fast = sc.convert(model, X, cache=False)
    assert set(formats(fast).values()) == {"dense"}
    torch.testing.assert_close(fast(X), model(X), rtol=0.1, atol=0.1)


def test_times_are_cached_on_disk(times: dict[str, float], tmp_path: Path) -> None:
    sc.convert(pruned_net(), X)
    times["csr"] = times["panel"] = 500.0
    assert formats(sc.convert(pruned_net(), X))["3"] == "csr", "from the cache"
    assert formats(sc.convert(pruned_net(), X, cache=False))["3"] == "dense", "measured anew"
    path = tmp_path / cache.FILE_NAME
    for damage in ("", "{", "[]", '{"format": 1, "machines": [1]}'):
        path.write_text(damage)
        assert formats(sc.convert(pruned_net(), X))["3"] == "dense", "a damaged file is ignored"


def test_cache_that_cannot_be_written_is_no_error(
    times: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPARSECORE_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert formats(sc.convert(pruned_net(), X))["3"] == "csr"


def test_without_example_the_cost_model_decides() -> None:
    fast = sc.convert(pruned_net(0.95))
    fastest = "jit" if HAS_GENERATOR else "panel"
    assert formats(fast) == {"0": fastest, "3": fastest, "5": fastest}
    assert isinstance(fast[1], nn.BatchNorm2d), "nothing was observed, so nothing is folded"
    assert "cost model" in sc.explain(fast).rows[0].reason
    assert set(formats(sc.convert(pruned_net(0.05))).values()) == {"dense"}


@pytest.mark.parametrize(("rows", "is_there"), [(31, False), (32, True), (None, True)])
def test_code_is_generated_for_many_rows(rows: int | None, is_there: bool) -> None:
    shape = None if rows is None else (rows, 16)
    make = candidates(nn.Linear(16, 8))["jit"]
    if is_there and HAS_GENERATOR:
        assert type(make(nn.Linear(16, 8), shape)) is sc.nn.JitLinear
    else:
        with pytest.raises(UnsupportedError, match="use panels"):
            make(nn.Linear(16, 8), shape)


def test_really_measured() -> None:
    model = nn.Sequential(nn.Linear(512, 512))
    sc.prune(model, 0.98)
    fast = sc.convert(model, torch.randn(64, 512))
    row = sc.explain(fast).rows[0]
    assert row.time_us > 0
    assert row.dense_us > 0
    assert row.time_us <= row.dense_us, "whatever was chosen is not slower than dense"
    assert 0 < row.roofline < 1.5


class Odd(nn.Module):
    """Layers that have to stay as they are, each for a reason of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 16)
        self.head = nn.Linear(16, 8, bias=False)
        self.head.weight = self.embedding.weight
        self.unused = nn.Linear(16, 16)
        self.narrow = nn.Linear(16, 16, dtype=torch.bfloat16)
        self.wide = nn.Linear(16, 16, dtype=torch.float64)
        self.dense = nn.Linear(16, 16)
        self.twice = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.twice(self.twice(self.embedding(x)))
        return self.head(self.dense(self.wide(self.narrow(y.bfloat16()).double()).float()))


def test_layers_that_stay_say_why(times: dict[str, float]) -> None:
    model = Odd()
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and name != "dense":
            layer.weight.data *= torch.rand(layer.weight.shape) < 0.2
    x = torch.tensor([[1, 2, 3]])
    fast = sc.convert(model, x)
    reasons = {row.name: row.reason for row in sc.explain(fast).rows}
    assert "shares its weight" in reasons["head"]
    assert "did not run" in reasons["unused"]
    assert next(row for row in sc.explain(fast) if row.name == "narrow").format == "csr", "bfloat16 has kernels"
    assert "float64" in reasons["wide"]
    assert "zeros" in reasons["dense"]
    twice = next(row for row in sc.explain(fast) if row.name == "twice")
    assert twice.format == "csr"
    assert twice.time_us == 100.0, "two calls of 50"
    torch.testing.assert_close(fast(x), model(x), rtol=1e-2, atol=1e-2)  # narrow rounds to 8 bits


def test_a_model_that_is_one_layer_and_torch_pruning(times: dict[str, float]) -> None:
    linear = nn.Linear(8, 8)
    torch.nn.utils.prune.l1_unstructured(linear, "weight", 0.5)
    fast = sc.convert(linear, torch.randn(3, 8))
    assert isinstance(fast, sc.nn.SparseLinear)
    assert hasattr(linear, "weight_orig"), "the model itself stays"
    assert sc.explain(fast).rows[0].name == "(model)"


def test_exclude_and_progress(times: dict[str, float]) -> None:
    shares: list[float] = []
    fast = sc.convert(pruned_net(), X, exclude=["3"], progress=shares.append)
    assert formats(fast) == {"0": "csr", "3": "dense", "5": "csr"}
    assert shares[-1] == 1.0


def test_survives_deepcopy_and_bundles(times: dict[str, float], tmp_path: Path) -> None:
    fast = sc.convert(pruned_net(), X)
    assert formats(copy.deepcopy(fast)) == formats(fast)
    sc.save(fast, tmp_path / "m.safetensors")
    loaded = sc.load(tmp_path / "m.safetensors", pruned_net)
    assert torch.equal(loaded(X), fast(X))
    assert sc.explain(loaded).rows[0].reason == "not measured here"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": "fast"}, "expected policy"),
        ({"policy": "measure"}, "needs example_inputs"),
        ({"exclude": ["conv9"]}, "conv9"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sc.convert(pruned_net(), **arguments)


def test_a_model_without_values() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4))
    for make in (sc.compile, sc.convert):
        with pytest.raises(sc.UnsupportedError, match=r"0.weight has no values yet; initialise the model first"):
            make(model, torch.randn(1, 4))


def test_explain_needs_our_layers() -> None:
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got NoneType"):
        sc.explain(None)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="convert"):
        sc.explain(nn.Linear(2, 2))


def test_table_as_text_html_and_data(times: dict[str, float]) -> None:
    explanation = sc.explain(sc.convert(pruned_net(), X))
    text = str(explanation)
    assert "spmm_csr_f32" in text
    assert "2.00x" in text
    assert "<table>" in explanation._repr_html_()
    row = explanation.to_dict()["rows"][0]
    assert row["speedup"] == 2.0
    assert len(explanation) == 3


@pytest.mark.parametrize("change", ["convert", "convert without example", "quantize", "load"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_transformer_encoder_layers_call_our_layers(
    change: str, activation: str, times: dict[str, float], tmp_path: Path
) -> None:
    """Their fast path would multiply with the weights of their children itself."""

    def make() -> nn.Module:
        layer = nn.TransformerEncoderLayer(32, 4, 64, activation=activation, batch_first=True)
        return nn.TransformerEncoder(layer, 2).eval()

    model, x = make(), torch.randn(2, 5, 32)
    sc.prune(model, 0.9)
    with torch.no_grad():
        expected = model(x)
        example = None if "without" in change else x
        fast = sc.quantize(model) if change == "quantize" else sc.convert(model, example)
        if change == "load":
            sc.save(fast, tmp_path / "m.safetensors")
            fast = sc.load(tmp_path / "m.safetensors", make)
        ours = fast.layers[0].linear1
        assert isinstance(ours, sc.nn.CompressedModule)
        ran = []
        ours.register_forward_hook(lambda *_: ran.append(True))
        bound = 0.1 if change == "quantize" else 1e-4
        torch.testing.assert_close(fast(x), expected, rtol=bound, atol=bound)
        assert ran
        mask = torch.zeros(2, 5, dtype=torch.bool)
        mask[0, 3:] = True
        fast(x, src_key_padding_mask=mask)


def test_code_that_reads_a_weight_gets_the_dense_one(times: dict[str, float]) -> None:
    model = pruned_net()
    fast = sc.convert(model, None)
    torch.testing.assert_close(fast[5].weight, model[5].weight)
    assert "weight" not in fast[5].state_dict()


def test_cost_model_of_layers_without_entries() -> None:
    empty = nn.Linear(8, 8)
    empty.weight.data.zero_()
    model = nn.Sequential(empty, nn.Linear(8, 0), nn.Linear(0, 3))
    x = torch.randn(2, 8)
    torch.testing.assert_close(sc.convert(model)(x), model(x))
    torch.testing.assert_close(sc.convert(model, x)(x), model(x))


def test_noisy_times_are_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measure, "_measure", lambda forms, *_: (dict.fromkeys(forms, 10.0), 9.0))
    fast = sc.convert(pruned_net(), X)
    assert "busy" in sc.explain(fast).rows[0].reason
    assert not (tmp_path / cache.FILE_NAME).exists()


@pytest.mark.parametrize("is_conv", [False, True])
@pytest.mark.parametrize("form", ["binary", "ternary"])
def test_binary_and_ternary_weights(form: str, is_conv: bool, times: dict[str, float], tmp_path: Path) -> None:
    times[form] = 10.0
    first, x = (nn.Conv2d(4, 600, 3), torch.randn(2, 4, 5, 5)) if is_conv else (nn.Linear(64, 600), torch.randn(2, 64))
    model = nn.Sequential(with_signs_(first, form == "ternary"), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)).eval()
    model(x)
    for fast in (sc.convert(model, x), sc.convert(model, x, policy="model"), sc.compile(model, x, policy="model")):
        assert formats(fast) == {"0": form, "3": "dense"}, "and what holds other numbers stays"
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
    fixed = sc.convert(model, x, policy={"0": "spmm_planes_f32_scalar"})
    assert sc.explain(fixed).rows[0].kernel == "spmm_planes_f32_scalar"
    fast = sc.convert(model, x)
    assert formats(sc.convert(fast, x)) == {"0": form, "3": "dense"}
    sc.save(fast, tmp_path / "m.safetensors")
    loaded = sc.load(tmp_path / "m.safetensors", lambda: copy.deepcopy(model))
    assert formats(loaded) == {"0": form}
    assert torch.equal(loaded(x), fast(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_int8_models_in_16_bits(dtype: torch.dtype) -> None:
    x = torch.randn(8, 64).to(dtype)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).to(dtype).eval()
    model = sc.quantize(model, [x], activations="static", progress=False)
    for fast in (sc.convert(model, x), sc.compile(model, x)):
        got = fast(x)
        assert got.dtype == dtype
        torch.testing.assert_close(got, model(x), rtol=0.1, atol=0.05)
