"""Models by name, and what is said where there is none."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import sparsecore as sc
from sparsecore.bench.models import create, find_model, load_model
from sparsecore.errors import MissingExtraError, ModelError

SMALL = (1, 3, 32, 32)
DIGITS = "sparsecore.bench.models:digits_net"


def test_the_zoo() -> None:
    model, (x,) = load_model("resnet18")
    assert x.shape == (1, 3, 224, 224)
    again, (same,) = load_model("resnet18", seed=0)
    other, (different,) = load_model("resnet18", batch=2, shape=SMALL, seed=1)
    assert different.shape == (2, *SMALL[1:])
    assert torch.equal(x, same)
    state, other_state = again.state_dict(), other.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(state["fc.weight"], other_state["fc.weight"])
    assert not torch.equal(state["bn1.running_var"], torch.ones(64))


def test_the_random_state_outside_stays() -> None:
    before = torch.get_rng_state()
    load_model(DIGITS, shape=(1, 1, 8, 8))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet51", "no model is called 'resnet51', perhaps you meant resnet50"),
        ("nothing-like-it", "expected a name of the zoo, torchvision:NAME"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("sparsecore:no_such_function", "no_such_function"),
        (":", 'expected "module:attribute"'),
        ("resnet18@/no/such/file", "expected a file of weights behind @"),
        (__file__, "is a file; a file holds weights only"),
        ("", "no model is called ''"),
    ],
)
def test_names_that_mean_nothing(name: str, words: str) -> None:
    with pytest.raises(ModelError, match=words) as failure:
        find_model(name)
    assert "\n" not in str(failure.value)


def test_a_function_needs_a_shape_and_returns_a_module() -> None:
    with pytest.raises(ModelError, match="--input"):
        load_model(DIGITS)
    with pytest.raises(ModelError, match=r"to return a torch\.nn\.Module, got str"):
        load_model("os:getcwd", shape=(1, 2))
    model, (x,) = load_model(DIGITS, shape=(3, 1, 8, 8))
    assert model(x).shape == (3, 10)


def save_bundle(model: nn.Module, path: Path) -> None:
    sc.prune(model, 0.9)
    sc.save(sc.convert(model), path)


def save_safetensors(model: nn.Module, path: Path) -> None:
    save_file(model.state_dict(), path)


def save_state(model: nn.Module, path: Path) -> None:
    torch.save(model.state_dict(), path)


@pytest.mark.parametrize(
    ("save", "file"), [(save_bundle, "b.safetensors"), (save_safetensors, "s.safetensors"), (save_state, "s.pt")]
)
def test_weights_from_a_file(save: Callable[[nn.Module, Path], None], file: str, tmp_path: Path) -> None:
    expected = create("resnet18", num_classes=1000).eval()
    save(expected, tmp_path / file)
    model, (x,) = load_model(f"resnet18@{tmp_path / file}", shape=SMALL)
    assert not any(isinstance(module, sc.nn.CompressedModule) for module in model.modules())
    with torch.inference_mode():
        y, expected_y = model(x), expected(x)
    assert (y - expected_y).norm() < 1e-5 * expected_y.norm()


def test_a_compiled_model_from_a_file(tmp_path: Path) -> None:
    expected, (x,) = load_model("resnet18", shape=SMALL)
    sc.prune(expected, 0.9)
    sc.save(sc.compile(expected, x, policy="model", cache=False), tmp_path / "b.safetensors")
    model, (x,) = load_model(f"resnet18@{tmp_path / 'b.safetensors'}", batch=2, shape=SMALL)
    assert not any(isinstance(module, sc.nn.CompressedModule) for module in model.modules())
    with torch.inference_mode():
        y, expected_y = model(x), expected(x)
    assert (y - expected_y).norm() < 1e-4 * expected_y.norm()


def test_a_compiled_model_says_what_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the model of its library does; here a stand-in."""

    class TimmNet(nn.Sequential):
        pretrained_cfg = {"input_size": (3, 16, 16)}  # noqa: RUF012

    def create_model(name: str, pretrained: bool) -> nn.Module:
        return TimmNet(nn.Conv2d(3, 4, 3), nn.GELU())

    stand_in = ModuleType("timm")
    vars(stand_in).update(is_model=lambda name: True, create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", stand_in)
    expected, (x,) = load_model("timm:net")
    sc.save(sc.compile(expected, x, policy={"0": "csr"}, cache=False), tmp_path / "b.safetensors")
    model, (x,) = load_model(f"timm:net@{tmp_path / 'b.safetensors'}")
    assert x.shape == (1, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), expected(x))


def test_models_that_fail_are_named() -> None:
    with pytest.raises(ModelError, match="math:sqrt fails without arguments: TypeError"):
        load_model("math:sqrt", shape=(1, 2))
    with pytest.raises(ModelError, match=r"does not run on an input \[1, 2, 8, 8\].*--input"):
        load_model(DIGITS, shape=(1, 2, 8, 8))


def test_a_file_that_holds_no_weights(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_text("no")
    with pytest.raises(ModelError, match=r"expected a state_dict of torch.save\(\)"):
        load_model(f"resnet18@{tmp_path / 'w.bin'}")


def test_weights_of_another_model(tmp_path: Path) -> None:
    save_state(nn.Linear(2, 3), tmp_path / "w.pt")
    with pytest.raises(ModelError, match="does not belong to this model"):
        load_model(f"resnet18@{tmp_path / 'w.pt'}")
    (tmp_path / "w.safetensors").write_bytes(b"no")
    with pytest.raises(ModelError, match="not a complete safetensors file"):
        load_model(f"resnet18@{tmp_path / 'w.safetensors'}")


@pytest.mark.parametrize("library", ["torchvision", "timm", "transformers"])
def test_missing_libraries(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=r"sparsecore\[zoo\]"):
        find_model(f"{library}:x")


def test_torchvision_and_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins with what is used of the real ones."""

    def net() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    class TimmNet(nn.Sequential):
        pretrained_cfg = {"input_size": (3, 16, 16)}  # noqa: RUF012

    torchvision, models, timm = ModuleType("torchvision"), ModuleType("torchvision.models"), ModuleType("timm")
    models.list_models = lambda: ["resnet101"]  # type: ignore[attr-defined]
    models.get_model = lambda name, weights: net()  # type: ignore[attr-defined]
    timm.is_model = lambda name: name == "resnest"  # type: ignore[attr-defined]
    timm.list_models = lambda: ["resnest"]  # type: ignore[attr-defined]
    timm.create_model = lambda name, pretrained: TimmNet(*net())  # type: ignore[attr-defined]
    for module in (torchvision, models, timm):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    model, (x,) = load_model("torchvision:resnet101")
    assert x.shape == (1, 3, 224, 224)
    assert not torch.equal(model.get_submodule("1").running_var, torch.ones(4))
    assert load_model("timm:resnest", batch=2)[1][0].shape == (2, 3, 16, 16)
    for name, close in (("torchvision:resnet100", "resnet101"), ("timm:resnext", "resnest")):
        with pytest.raises(ModelError, match=f"perhaps you meant {close}"):
            find_model(name)


@pytest.mark.slow  # imports transformers
def test_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    with pytest.raises(ModelError, match="ResNetConfig"):
        find_model("transformers:ResNetConfi")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=5)
    config.save_pretrained(tmp_path)
    model, (x,) = load_model(str(tmp_path), shape=SMALL)
    with torch.inference_mode():
        logits = model(x)[0]
    assert logits.shape == (1, 5)
    model.save_pretrained(tmp_path)
    again, _ = load_model(str(tmp_path), shape=SMALL)
    with torch.inference_mode():
        torch.testing.assert_close(again(x)[0], logits)


@pytest.mark.slow  # imports transformers
def test_transformers_of_text(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.BertConfig(vocab_size=50, **sizes).save_pretrained(tmp_path)
    model, (tokens,) = load_model(str(tmp_path), batch=2)
    assert tokens.shape == (2, 128)
    assert tokens.max() < 50
    with torch.inference_mode():
        assert model(tokens)[0].shape == (2, 128, 16)


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match=r"expected a transformers config\.json"):
        find_model(str(tmp_path))
