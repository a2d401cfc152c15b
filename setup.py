"""Builds the three libraries of the package with CMake: libsparsecore, _C and _ops (see CMakeLists.txt)."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def require(condition: bool, what: str) -> None:
    """Ends the build with one line that says what to install."""
    if not condition:
        sys.exit(f"sparsecore: cannot build: {what}")


def has_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def check_requirements() -> None:
    python_h = Path(sysconfig.get_path("include")) / "Python.h"
    compiler = os.environ.get("CXX", "c++").split()[0]
    require(
        shutil.which(compiler) is not None,
        f"no C++ compiler ({compiler!r} not found); install one that knows C++20, e.g. `apt install g++`",
    )
    require(
        python_h.exists(),
        "no Python headers (Python.h); install them, e.g. `apt install python3-dev`",
    )
    require(
        has_module("torch"),
        "torch >= 2.10 is not installed here; install it first (CPU only: `pip install torch --index-url "
        "https://download.pytorch.org/whl/cpu`), then `pip install --no-build-isolation .`",
    )
    for module in ("pybind11", "cmake", "ninja"):
        require(has_module(module), f"{module} is not installed here; `pip install {module}`")


def find_nvcc() -> str | None:
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def cuda_options(torch_has_cuda: bool) -> dict[str, object]:
    """What SPARSECORE_BUILD_CUDA asks for: auto, 0 (no CUDA), or 1 (also beside a CPU torch, as a compile check)."""
    wish = os.environ.get("SPARSECORE_BUILD_CUDA", "auto")
    require(wish in ("auto", "0", "1"), f"expected SPARSECORE_BUILD_CUDA auto, 0 or 1, got {wish!r}")
    nvcc = find_nvcc()
    require(
        wish != "1" or nvcc is not None,
        "SPARSECORE_BUILD_CUDA=1 but there is no nvcc; `pip install nvidia-cuda-nvcc nvidia-cuda-runtime "
        "nvidia-cuda-cccl` and put it on the PATH",
    )
    build = wish == "1" or (wish == "auto" and nvcc is not None and torch_has_cuda)
    if build and not torch_has_cuda:
        print(
            "sparsecore: this torch has no CUDA, so the CUDA back end is compiled as a check and linked into nothing; "
            "install a torch with CUDA to run on GPUs"
        )
    options: dict[str, object] = {
        "SPARSECORE_CUDA": "ON" if build else "OFF",
        "SPARSECORE_CUDA_TORCH": "ON" if build and torch_has_cuda else "OFF",
    }
    return options | ({"CMAKE_CUDA_COMPILER": nvcc} if build else {})


class CMakeBuild(build_ext):
    """Configures and builds once for all three libraries, and copies them beside the package."""

    def run(self) -> None:
        check_requirements()
        import pybind11
        import torch
        from torch.utils import cpp_extension

        torch_version = tuple(int(part) for part in torch.__version__.split(".")[:2])
        require(torch_version >= (2, 10), f"expected torch >= 2.10, got {torch.__version__}; upgrade it")

        sanitize = os.environ.get("SPARSECORE_SANITIZE", "0") == "1"
        variant = "-sanitize" if sanitize else ""
        build_dir = (ROOT / "build" / f"cmake-{sys.implementation.cache_tag}{variant}").resolve()
        package = ROOT / "sparsecore" if self.inplace else Path(self.build_lib).resolve() / "sparsecore"
        package.mkdir(parents=True, exist_ok=True)
        options = {
            "SPARSECORE_PYTHON": "ON",
            "CMAKE_BUILD_TYPE": "Release",
            "SPARSECORE_SANITIZE": "ON" if sanitize else "OFF",
            "CMAKE_INSTALL_PREFIX": package,
            "SPARSECORE_PYTHON_INCLUDE": sysconfig.get_path("include"),
            "SPARSECORE_PYTHON_SUFFIX": sysconfig.get_config_var("EXT_SUFFIX"),
            "SPARSECORE_PYBIND11_INCLUDE": pybind11.get_include(),
            "SPARSECORE_TORCH_INCLUDE": ";".join(cpp_extension.include_paths()),
            "SPARSECORE_TORCH_LIBRARY_DIR": Path(torch.__file__).parent / "lib",
            **cuda_options(torch.version.cuda is not None),
        }
        cmake = [sys.executable, "-m", "cmake"]
        ninja = Path(sysconfig.get_path("scripts")) / "ninja"
        if ninja.exists():
            options["CMAKE_MAKE_PROGRAM"] = ninja
        commands = (
            [
                *cmake,
                "-S",
                ROOT,
                "-B",
                build_dir,
                "-G",
                "Ninja",
                *(f"-D{key}={value}" for key, value in options.items()),
            ],
            [*cmake, "--build", build_dir],
            [*cmake, "--install", build_dir, "--component", "Unspecified"],
        )
        for command in commands:
            code = subprocess.call([str(part) for part in command])
            require(code == 0, f"`{' '.join(map(str, command[2:4]))}` failed; the error is above")


setup(
    # One name is enough: the command above builds all three.
    ext_modules=[Extension("sparsecore._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
