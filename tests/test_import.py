"""Importing the package pulls in nothing but its core."""

import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import sparsecore

EXTRAS = [
    "click",
    "rich",
    "plotly",
    "jinja2",
    "sklearn",
    "scipy",
    "transformers",
    "pydantic",
    "yaml",
    "onnxruntime",
    "onnx",
    "openvino",
    "matplotlib",
]


def test_import_pulls_in_no_extra() -> None:
    # Against what torch alone brings: it imports some of them itself where they are installed.
    code = (
        "import sys, torch, safetensors.torch; before = set(sys.modules); import sparsecore; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(result.stdout.split()) & set(EXTRAS)


def test_forced_isa_is_checked_by_the_import() -> None:
    code = "import sparsecore"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"SPARSECORE_ISA": "mmx", "PATH": "/usr/bin:/bin"},
    )
    assert result.returncode != 0
    assert "SPARSECORE_ISA: expected one of scalar" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["prune", "quantize"])
def test_a_function_has_the_name_of_its_package(name: str) -> None:
    """Which wins does not depend on what is imported before or after."""
    package = importlib.import_module(f"sparsecore.{name}")
    for module in pkgutil.walk_packages(package.__path__, f"sparsecore.{name}."):
        importlib.import_module(module.name)
    assert isinstance(package, ModuleType)
    assert getattr(sparsecore, name) is getattr(package, name)
    assert callable(getattr(sparsecore, name))
    for exported in package.__all__:  # as `from sparsecore.prune import Masks` finds it
        assert hasattr(package, exported)
