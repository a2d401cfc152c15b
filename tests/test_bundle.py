"""The file: what comes back is what went in, and damage is found."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sparsecore import bundle
from sparsecore.bundle import Bundle
from sparsecore.errors import BundleError


def content() -> Bundle:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 4, 5, generator=generator)
    tied = torch.randn(4, 6, generator=generator)
    tensors = {
        "float": image,
        "channels_last": image.contiguous(memory_format=torch.channels_last),
        "half": torch.randn(3, generator=generator).half(),
        "bfloat16": torch.randn(3, generator=generator).bfloat16(),
        "int8": torch.arange(-128, 128, dtype=torch.int8),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "tied": tied,
        "tied_too": tied,
        "transposed": tied.T,
        "view": tied[1:, 2:],
    }
    modules = {"fc": {"class": "SparseLinear", "config": {"x_scale": 0.1}}, "ü": {"same_as": "fc"}}
    return Bundle(tensors, modules, ["bn"], ["", "fc"])


def assert_same(found: Bundle, expected: Bundle) -> None:
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        other = found.tensors[name]
        assert other.dtype == tensor.dtype
        assert torch.equal(other, tensor), name
    assert (found.modules, found.identities, found.training) == (
        expected.modules,
        expected.identities,
        expected.training,
    )


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    bundle.write(path, content())
    found = bundle.read(path)
    assert_same(found, content())
    assert found.tensors["tied"] is found.tensors["tied_too"]
    assert found.tensors["tied"] is not found.tensors["transposed"]
    assert found.tensors["channels_last"].is_contiguous(memory_format=torch.channels_last)
    assert found.tensors["float"].is_contiguous()
    assert "tied_too" not in load_file(path)  # any reader opens it, and it is stored once


def test_digest_is_as_documented(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    bundle.write(path, Bundle({"b": torch.ones(2, 1), "a": torch.tensor(1, dtype=torch.int8)}, {}, [], []))
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    metadata = header.pop("__metadata__")
    sha256 = hashlib.sha256()
    for key in sorted(set(metadata) - {"sha256"}):
        sha256.update(json.dumps([key, metadata[key]]).encode() + b"\n")
    for name, shape, dtype in (("a", [], "int8"), ("b", [2, 1], "float32")):
        begin, end = header[name]["data_offsets"]
        sha256.update(json.dumps([name, dtype, shape]).encode() + b"\n")
        sha256.update(raw[8 + size + begin : 8 + size + end])
    assert metadata["sha256"] == sha256.hexdigest()
    assert (metadata["format"], metadata["version"]) == ("sparsecore-bundle", "1")


def test_memory_is_not_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    bundle.write(path, content())
    found = bundle.read(path)
    with path.open("r+b") as file:
        file.seek(-2000, os.SEEK_END)
        file.write(b"\xff" * 2000)
    assert_same(found, content())


def test_write_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    bundle.write(path, content())
    before = path.read_bytes()

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk full")

    for name in ("sparsecore.bundle.save_file", "os.replace"):
        with monkeypatch.context() as patch:
            patch.setattr(name, fail)
            with pytest.raises(OSError, match="disk full"):
                bundle.write(path, Bundle({}, {}, [], []))
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["m.safetensors"]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_file_mode_obeys_umask(tmp_path: Path) -> None:
    bundle.write(tmp_path / "a", content())
    (tmp_path / "b").touch()
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == (tmp_path / "b").stat().st_mode & 0o777


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("bundle") / "m.safetensors"
    bundle.write(path, content())
    return path.read_bytes()


fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(data=st.data())
def test_truncated(raw: bytes, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw) - 1))])
    with pytest.raises(BundleError):
        bundle.read(path)


@fuzz
@given(data=st.data())
def test_changed_bytes(raw: bytes, tmp_path: Path, data: st.DataObject) -> None:
    """Either it is refused, or the change means nothing (a space of padding in the header)."""
    path = tmp_path / "m.safetensors"
    damaged = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        found = bundle.read(path)
    except BundleError:
        return
    assert_same(found, content())


def test_appended_bytes(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(raw + b"\0")
    with pytest.raises(BundleError, match="not a complete safetensors file"):
        bundle.read(tmp_path / "m")


@pytest.mark.parametrize("junk", [b"", b"PK\x03\x04", b"\x80\x04" * 40, b"\xff" * 64])
def test_other_files(junk: bytes, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(junk)
    with pytest.raises(BundleError, match="not a complete safetensors file"):
        bundle.read(tmp_path / "m")
    with pytest.raises(FileNotFoundError):
        bundle.read(tmp_path / "missing")


def rewrite(path: Path, changes: dict[str, str | None]) -> None:
    """Change metadata and compute the checksum anew."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() | {key: value for key, value in changes.items() if value}
    for key, value in changes.items():
        if value is None:
            del metadata[key]
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    metadata["sha256"] = bundle._digest(metadata, tensors)
    save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format": "pt"}, "other safetensors"),
        ({"format": None}, "other safetensors"),
        ({"version": "2"}, "version 1, got '2'.*release"),
        ({"version": None}, "version 1, got None"),
        ({"modules": None}, "JSON in the metadata 'modules'"),
        ({"modules": "{"}, "JSON in the metadata 'modules'"),
        ({"modules": "[" * 100_000}, "JSON in the metadata 'modules'"),
        ({"modules": "[]"}, "other JSON"),
        ({"modules": '{"a": 1}'}, "other JSON"),
        ({"identities": '{"a": 1}'}, "other JSON"),
        ({"training": "[1]"}, "other JSON"),
        ({"aliases": '{"a": ["float"]}'}, "other JSON"),
        ({"aliases": '{"a": "missing"}'}, "'a' to be an alias"),
        ({"aliases": '{"float": "int8"}'}, "'float' to be an alias"),
        ({"aliases": '{"a": "b", "b": "float"}'}, "'a' to be an alias"),
        ({"channels_last": '["int8"]'}, "4-d tensor 'int8'"),
        ({"channels_last": '["missing"]'}, "4-d tensor 'missing'"),
    ],
)
def test_tampered_metadata(changes: dict[str, str | None], text: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    bundle.write(path, content())
    rewrite(path, {})
    assert_same(bundle.read(path), content())
    rewrite(path, changes)
    with pytest.raises(BundleError, match=text):
        bundle.read(path)


def test_checksum_covers_metadata(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    bundle.write(path, content())
    path.write_bytes(path.read_bytes().replace(b'[\\"bn\\"]', b'[\\"bm\\"]'))
    with pytest.raises(BundleError, match="checksum"):
        bundle.read(path)
