"""save() and load() of compiled models: the same outputs and the same interface, or nothing is loaded."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import NETWORKS, Classifier, Residual, SqueezeExcite, image, sparse_, tensors
from torch import Tensor, nn

import sparsecore as sc
from sparsecore import bundle, io_compiled
from sparsecore.errors import BundleError, UnsupportedError
from sparsecore.graph.compiled import CompiledModule
from sparsecore.graph.prepare import prepare
from sparsecore.nn import DepthwiseConv2d


def compiled(model: nn.Module, x: Any, **options: Any) -> Any:
    return sc.compile(model, x, **{"policy": "model", "cache": False, **options})


def assert_equal(got: Any, want: Any) -> None:
    assert type(got) is type(want)
    assert len(tensors(got)) == len(tensors(want))
    assert all(torch.equal(a, b) for a, b in zip(tensors(got), tensors(want), strict=True))


def round_trip(fast: nn.Module, model_fn: Callable[[], nn.Module], path: Path) -> Any:
    sc.save(fast, path / "m.safetensors")
    loaded = sc.load(path / "m.safetensors", model_fn)
    assert isinstance(loaded, CompiledModule)
    assert str(loaded) == str(fast)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert not any(module.training for module in loaded.modules())
    assert io_compiled.describe(loaded) == io_compiled.describe(fast)  # type: ignore[arg-type]
    return loaded


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("layout", ["own", "channels_last"])
def test_loaded_model_is_exactly_equal(name: str, layout: str, tmp_path: Path) -> None:
    make, channels = NETWORKS[name]
    model = sparse_(make(), 0.9)
    if layout == "own":
        fast = compiled(model, image(1, channels))
    else:
        fast = CompiledModule(prepare(copy.deepcopy(model), image(1, channels)).dense)
    loaded = round_trip(fast, make, tmp_path)
    for batch in (2, 3):
        x = image(batch, channels, seed=batch)
        assert_equal(loaded(x), fast(x))
        x.requires_grad_()
        assert_equal(loaded(x), fast(x))  # the graph itself
    assert all("not measured here" in row.reason for row in sc.explain(loaded))
    assert [row.name for row in sc.explain(loaded)] == list(dict.fromkeys(fast.layers_of_nodes().values()))


@pytest.mark.parametrize("form", ["csr", "panel", "jit", "int8", "lookup int8", "4x1"])
def test_formats(form: str, tmp_path: Path) -> None:
    model = sparse_(Residual(), 0.9)
    if form == "4x1":
        model.conv1.weight.data = torch.rand(16, 16, 3, 3) * (torch.rand(4, 16, 3, 3) < 0.2).repeat_interleave(4, 0)
    policy = {"conv1": form, "project": "csr"}
    loaded = round_trip(fast := compiled(model, image(1), policy=policy), Residual, tmp_path)
    assert sc.explain(loaded).rows[0].format == form
    assert_equal(loaded(image(2)), fast(image(2)))


def test_depthwise_layers(tmp_path: Path) -> None:
    fast = compiled(sparse_(SqueezeExcite()), image(1), policy={"depthwise": "depthwise"})
    loaded = round_trip(fast, SqueezeExcite, tmp_path)
    layer = loaded.graph_module.get_submodule("depthwise")
    assert isinstance(layer, DepthwiseConv2d)
    assert layer.activation == "silu"
    assert_equal(loaded(image(2)), fast(image(2)))


@pytest.mark.parametrize("quantized", [False, True])
def test_quantized_before(quantized: bool, tmp_path: Path) -> None:
    """The graph of an int8 model is that of the dense one where no BatchNorm could have been folded."""

    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 4), nn.GELU())

    fast = compiled(sc.quantize(sparse_(make(), 0.5)), image(1, 3, 5, 5), policy={"0": "dense"})
    loaded = round_trip(fast, lambda: sc.quantize(make()) if quantized else make(), tmp_path)
    assert_equal(loaded(image(2, 3, 5, 5)), fast(image(2, 3, 5, 5)))


def test_quantized_with_batchnorm_needs_the_quantized_model(tmp_path: Path) -> None:
    fast = compiled(sc.quantize(sparse_(Residual())), image(1))
    round_trip(fast, lambda: sc.quantize(Residual().eval()), tmp_path)
    with pytest.raises(BundleError, match="model_fn must build the model that was compressed"):
        sc.load(tmp_path / "m.safetensors", Residual)


def test_bfloat16(tmp_path: Path) -> None:
    fast = compiled(sparse_(Residual(), 0.9).bfloat16(), image(1).bfloat16())
    loaded = round_trip(fast, lambda: Residual().bfloat16(), tmp_path)
    assert_equal(loaded(image(2).bfloat16()), fast(image(2).bfloat16()))
    with pytest.raises(BundleError, match="cannot be captured as it was"):
        sc.load(tmp_path / "m.safetensors", Residual)


def test_a_pruned_model_and_one_layer(tmp_path: Path) -> None:
    layer = nn.Linear(8, 4).eval()
    nn.utils.prune.random_unstructured(layer, "weight", 0.9)
    loaded = round_trip(fast := compiled(layer, torch.randn(2, 8)), lambda: nn.Linear(8, 4), tmp_path)
    x = torch.randn(3, 8)
    assert_equal(loaded(x), fast(x))


class Tied(nn.Module):
    """Token ids, a weight that is used twice, a constant, a mask that state_dict() does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("mask", torch.ones(5, 5).tril(), persistent=False)

    def forward(self, ids: Tensor, *, scale: Tensor, mode: str = "mean", bias: float = 0.0) -> dict[str, Tensor]:
        x = self.mask @ self.embedding(ids) * scale
        return {mode: self.head(x) + bias}


def test_keyword_arguments_ties_and_constants(tmp_path: Path) -> None:
    ids, scale = torch.arange(10).view(2, 5), torch.randn(2, 1, 1)
    fast = compiled(Tied().eval(), {"scale": scale, "ids": ids, "mode": "ids", "bias": 0.5})
    loaded = round_trip(fast, Tied, tmp_path)
    for kwargs in ({"ids": ids, "scale": scale}, {"scale": scale, "ids": ids}):
        assert_equal(loaded(**kwargs, bias=0.5, mode="ids"), fast(**kwargs, bias=0.5, mode="ids"))
    assert len({id(parameter) for parameter in loaded.parameters()}) == 1
    with pytest.raises(RuntimeError, match="expected 'ids' as when compiled, got 'mean'"):
        loaded(ids=ids, scale=scale, bias=0.5, mode="mean")


class Few(nn.Module):
    """Another function from eight images on."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z = self.linear(x)
        return torch.cat([z * 2 if x.shape[0] < 8 else z * 3, y])


def test_free_sizes_stay_free_within_their_bounds(tmp_path: Path) -> None:
    loaded = round_trip(compiled(Few().eval(), (torch.ones(4, 4), torch.ones(4, 4))), Few, tmp_path)
    for x, y in ((1, 5), (7, 9)):
        assert len(loaded(torch.ones(x, 4), torch.ones(y, 4))) == x + y
    with pytest.raises(RuntimeError, match=r"x: expected shape \[\w+, 4\] as when compiled, \w+ free from 1 to 7, got"):
        loaded(torch.ones(8, 4), torch.ones(4, 4))


def test_what_cannot_be_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Nested(nn.Module):
        def forward(self, xs: list[Tensor], scale: Any = 1.0) -> Tensor:
            return xs[0] * scale + xs[1]

    x = torch.ones(2, 4)
    for arguments, came in ((([x, x],), "list"), ((x, float("inf")), "float")):
        with pytest.raises(UnsupportedError, match=rf"tensors, numbers, text or None.*got a {came}"):
            sc.save(compiled(Nested(), arguments), tmp_path / "m")
    fast = compiled(nn.Linear(4, 4).eval(), x)
    with pytest.raises(UnsupportedError, match="saved alone, got one inside another, 0"):
        sc.save(nn.Sequential(fast), tmp_path / "m")
    monkeypatch.setattr(io_compiled, "MOST_NUMEL", 7)
    with pytest.raises(UnsupportedError, match="inputs of at most 7 numbers"):
        sc.save(fast, tmp_path / "m")
    assert not list(tmp_path.iterdir())


# --- other models ---


class WithoutShortcut(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))) + self.project(x)


class WithGelu(Residual):
    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.project(x))


class WithBias(Residual):
    def forward(self, x: Tensor) -> Tensor:
        self.offset: Tensor
        return super().forward(x) + self.offset

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.ones(1))


@pytest.mark.parametrize(
    "model_fn",
    [Classifier, lambda: Residual(8), WithoutShortcut, WithGelu, WithBias, nn.Identity, lambda: nn.Conv2d(16, 16, 1)],
)
def test_another_model(model_fn: Callable[[], nn.Module], tmp_path: Path) -> None:
    sc.save(compiled(sparse_(Residual(), 0.9), image(1)), tmp_path / "m")
    model = model_fn()
    before = (str(model), copy.deepcopy(model.state_dict()), [module.training for module in model.modules()])
    with pytest.raises(BundleError, match="model_fn must build the model that was compressed"):
        sc.load(tmp_path / "m", lambda: model)
    assert str(model) == before[0]
    assert all(torch.equal(value, before[1][name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == before[2]


def test_the_model_is_not_touched(tmp_path: Path) -> None:
    sc.save(compiled(sparse_(Residual(), 0.9), image(1)), tmp_path / "m")
    model = Residual()
    before = copy.deepcopy(model.state_dict())
    sc.load(tmp_path / "m", lambda: model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- files that were changed ---


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2))


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bundle.Bundle:
    path = tmp_path_factory.mktemp("bundle") / "m.safetensors"
    sc.save(compiled(small().eval(), torch.ones(3, 4), policy={"0": "csr", "2": "dense"}), path)
    return bundle.read(path)


def load_changed(content: bundle.Bundle, path: Path, **changes: Any) -> nn.Module:
    """Load what a file would say, with a right checksum."""
    bundle.write(path / "m", dataclasses.replace(content, **changes))
    return sc.load(path / "m", small)


def test_readers_without_compiled_models_refuse(content: bundle.Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="the model has no module 'graph_module"):
        load_changed(content, tmp_path, compiled=None)


def changed(described: dict[str, Any], *path: Any, value: Any) -> dict[str, Any]:
    described = json.loads(json.dumps(described))
    place = described
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return described


SHAPE = ("inputs", 0, "shape")
LAYER = ("layers", "0")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("more",), 1),
        (("layout",), "other"),
        (("layout",), ["own"]),
        (("inputs",), "x"),
        (("inputs",), []),
        (("inputs",), [{"value": 1}]),
        (("inputs",), [{"value": float("nan")}]),
        (("inputs",), [{"value": 10**30}]),
        (("inputs",), [{"value": []}]),
        (("inputs",), [{"dtype": "float32", "shape": [3, 4]}] * 2),
        (("inputs",), [{"dtype": "float32", "shape": [3, 4]}] * 65),
        (("inputs",), {"y": {"dtype": "float32", "shape": [3, 4]}}),
        (("inputs",), {"x=print(1)": {"dtype": "float32", "shape": [3, 4]}}),
        (("inputs",), {"class": {"dtype": "float32", "shape": [3, 4]}}),
        (("inputs", 0, "dtype"), "Tensor"),
        (("inputs", 0, "dtype"), ["float32"]),
        (("inputs", 0, "more"), 1),
        (SHAPE, "34"),
        (SHAPE, []),
        (SHAPE, [1] * 17),
        (SHAPE, [3, 5]),
        (SHAPE, [3, -4]),
        (SHAPE, [3, 4.0]),
        (SHAPE, [True, 4]),
        (SHAPE, ["other", 4]),
        (SHAPE, [[3], 4]),
        (SHAPE, [2**40, 4]),
        (SHAPE, [2**80, 4]),
        (("free",), {}),
        (("free",), []),
        (("free",), {"s": [1, 2]}),
        (("free",), {"": [1, 5, 3]}),
        (("layers",), {}),
        (("layers",), []),
        (LAYER, None),
        ((*LAYER, "activation"), "relu"),
        ((*LAYER, "calls"), [2]),
        ((*LAYER, "calls"), 1),
    ],
    ids=str,
)
def test_tampered_description(path: Any, value: Any, content: bundle.Bundle, tmp_path: Path) -> None:
    assert content.compiled is not None
    with pytest.raises(BundleError, match="in the metadata 'compiled'|" + io_compiled.WRONG_MODEL):
        load_changed(content, tmp_path, compiled=changed(content.compiled, *path, value=value))


@pytest.mark.parametrize("bounds", [[0, 9, 3], [1, 2, 3], [-1, 9, 3], [4, 9, 3], [1, 2**63, 3], [1, 9, "3"], [1, 9], 3])
def test_tampered_bounds(bounds: Any, content: bundle.Bundle, tmp_path: Path) -> None:
    assert content.compiled is not None
    (name,) = content.compiled["free"]
    with pytest.raises(BundleError, match="compiled|" + io_compiled.WRONG_MODEL):
        load_changed(content, tmp_path, compiled=changed(content.compiled, "free", name, value=bounds))


@pytest.mark.parametrize("name", sorted(io_compiled._DTYPES))
def test_tampered_dtype(name: str, content: bundle.Bundle, tmp_path: Path) -> None:
    """torch.export lets some of them through; then layers run in it or say what is wrong."""
    assert content.compiled is not None
    try:
        loaded = load_changed(content, tmp_path, compiled=changed(content.compiled, "inputs", 0, "dtype", value=name))
    except BundleError:
        return
    x = torch.ones(3, 4).to(getattr(torch, name))
    try:
        assert loaded(x).shape == (3, 2)  # layers that take it
    except RuntimeError as error:
        assert "type" in str(error) or "float" in str(error)  # noqa: PT017


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to all values in JSON but itself."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [path] if path else []
    return found + [place for key, child in items for place in places(child, (*path, key))]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.integers() | st.floats() | st.text(max_size=4),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=4), children, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_change_is_refused_or_harmless(content: bundle.Bundle, tmp_path: Path, data: st.DataObject) -> None:
    described = json.loads(json.dumps(content.compiled))
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(places(described)))
        owner = described
        for key in path[:-1]:
            owner = owner[key]
        if data.draw(st.booleans()):
            owner[path[-1]] = data.draw(JSON)
        else:
            del owner[path[-1]]
        if not places(described):
            break
    try:
        loaded = load_changed(content, tmp_path, compiled=described)
    except BundleError:
        return
    x = torch.ones(3, 4)
    try:
        y = loaded(x)
    except RuntimeError:  # bounds that are narrower
        return
    assert torch.equal(y, load_changed(content, tmp_path)(x))


@pytest.mark.parametrize("name", ["modules", "identities", "training"])
def test_tampered_names(name: str, content: bundle.Bundle, tmp_path: Path) -> None:
    changes = {"modules": {"graph_module": {"same_as": ""}}, "identities": ["graph_module.2"], "training": ["0"]}
    with pytest.raises(BundleError):
        load_changed(content, tmp_path, **{name: changes[name]})


@pytest.mark.parametrize("text", ["{", "[]", "null", "1", '{"layout": '])
def test_compiled_is_an_object(text: str, content: bundle.Bundle, tmp_path: Path) -> None:
    bundle.write(tmp_path / "m", content)
    stored = bundle.read(tmp_path / "m").tensors
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(tmp_path / "m", framework="pt") as file:
        metadata = {**file.metadata(), "compiled": text}
    metadata["sha256"] = bundle._digest(metadata, stored)
    save_file(stored, tmp_path / "m", metadata=metadata)
    with pytest.raises(BundleError, match="JSON in the metadata 'compiled'"):
        sc.load(tmp_path / "m", small)


def test_damage_is_found(content: bundle.Bundle, tmp_path: Path) -> None:
    bundle.write(tmp_path / "m", content)
    raw = (tmp_path / "m").read_bytes()
    (tmp_path / "m").write_bytes(raw.replace(b"own", b"OWN"))
    with pytest.raises(BundleError, match="checksum"):
        sc.load(tmp_path / "m", small)
