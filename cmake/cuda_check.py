"""Compiles the CUDA back end, where there may be neither a GPU nor a CUDA build of torch.

Every kernel with nvcc, and the operations that launch them with the C++ compiler and the headers of any torch. Keeps
the assembler's report (registers, shared memory, spills) and fails if a kernel spills registers to memory: all are
meant to be fast. Without nvcc it fails and says how to get it; ``--install`` gets it from NVIDIA's packages.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent.resolve()
PACKAGES = ("nvidia-cuda-nvcc", "nvidia-cuda-runtime", "nvidia-cuda-cccl")
# What is built: machine code for Ampere and Hopper, and PTX for whatever comes later.
TARGETS = ("sm_80", "sm_90a", "compute_90")


def find_nvcc() -> str | None:
    """NVCC, the PATH, the usual folder, then what pip installs."""
    site = Path(sysconfig.get_path("purelib"))
    candidates = [os.environ.get("NVCC"), shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    candidates += [str(path) for path in sorted(site.glob("nvidia/*/bin/nvcc"), reverse=True)]
    return next((path for path in candidates if path and Path(path).exists()), None)


def install() -> None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)


def compile_one(nvcc: str, source: Path, target: str, out: Path) -> str:
    """Compile one source for one target; returns the assembler's report."""
    kind = "ptx" if target.startswith("compute") else "cubin"
    name = f"{source.stem}.{target}"
    command = [nvcc, "-std=c++20", "-O3", f"-arch={target}", f"-{kind}", "-Xptxas", "-v", "-lineinfo"]
    command += [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc/include'}", str(source), "-o", str(out / f"{name}.{kind}")]
    result = subprocess.run(command, capture_output=True, text=True)
    report = result.stdout + result.stderr
    (out / f"{name}.txt").write_text(report)
    if result.returncode != 0 or "warning" in report:
        sys.exit(f"sparsecore: cuda-check: {source.name} does not compile cleanly for {target}:\n{report}")
    return report


def torch_includes() -> list[str]:
    if importlib.util.find_spec("torch") is None:
        sys.exit("sparsecore: cuda-check: expected torch for the operations of csrc/torch/cuda; `pip install torch`")
    from torch.utils import cpp_extension

    return [flag for folder in cpp_extension.include_paths() for flag in ("-isystem", folder)]


def compile_operations(source: Path, includes: list[str]) -> None:
    """Compile one file of operations as setup.py does beside a torch with CUDA, and throw the result away."""
    command = [*os.environ.get("CXX", "c++").split(), "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Wshadow"]
    command += ["-Werror", "-DTORCH_STABLE_ONLY", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DUSE_CUDA"]
    command += [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc/include'}", *includes, str(source)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"sparsecore: cuda-check: {source.name} does not compile cleanly:\n{result.stderr}")


def spills(report: str) -> list[str]:
    """The functions of a report that spill, one line each."""
    found, function = [], "?"
    for line in report.splitlines():
        if match := re.search(r"(?:Compiling entry function|Function properties for) '?(\S+?)'?(?: |$)", line):
            function = match[1]
        stores = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line)
        if stores and (int(stores[1]) or int(stores[2])):
            found.append(f"{function}: {line.strip()}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="install nvcc with pip if it is not there")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "cuda-check", help="folder of reports and code")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="compilers at a time")
    arguments = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None and arguments.install:
        install()
        nvcc = find_nvcc()
    if nvcc is None:
        sys.exit(
            "sparsecore: cuda-check: expected nvcc (CUDA 12.8 or later) on the PATH or in NVCC; "
            f"`pip install {' '.join(PACKAGES)}` or run with --install"
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    sources = sorted((ROOT / "csrc").rglob("*.cu"))
    operations = sorted((ROOT / "csrc/torch/cuda").glob("*.cpp"))
    includes = torch_includes()
    work = [(source, target) for source in sources for target in TARGETS]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda source: compile_operations(source, includes), operations))
        reports = list(pool.map(lambda job: compile_one(nvcc, *job, arguments.out), work))
    problems = [
        f"{source.name}, {target}: {line}"
        for (source, target), report in zip(work, reports, strict=True)
        for line in spills(report)
    ]
    kernels = sum(report.count("Compiling entry function") for report in reports)
    if problems:
        sys.exit("sparsecore: cuda-check: expected kernels that do not spill registers, got\n" + "\n".join(problems))
    print(
        f"cuda-check: {len(operations)} files of operations, {len(sources)} of kernels, {kernels} kernels for "
        f"{', '.join(TARGETS)}: none spills; {arguments.out}"
    )


if __name__ == "__main__":
    main()
