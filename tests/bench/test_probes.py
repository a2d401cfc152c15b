from __future__ import annotations

import json

import pytest

from sparsecore import _C
from sparsecore.bench import probes


@pytest.fixture(autouse=True)
def rates(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Probes that answer at once and note the buffer sizes they were asked for."""
    sizes: list[int] = []

    def read(buffer_bytes: int, seconds: float) -> float:
        sizes.append(buffer_bytes)
        return 10.0

    monkeypatch.setattr(_C, "probe_fma_gflops", lambda seconds: 70.0)
    monkeypatch.setattr(_C, "probe_read_gbps", read)
    return sizes


def test_rates_are_summed_over_threads() -> None:
    assert probes.fma_gflops(threads=3) == 210.0
    assert probes.read_gbps(4096, threads=2) == 20.0


def test_no_thread_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one thread"):
        probes.fma_gflops(threads=0)


def test_limits_go_from_near_to_far(rates: list[int]) -> None:
    limits = probes.limits(threads=2)
    assert [level.level for level in limits.bandwidth] == ["L1", "L2", "L3", "DRAM"]
    sizes = [level.buffer_bytes for level in limits.bandwidth]
    assert sizes == sorted(set(sizes))
    assert sorted(set(rates)) == sizes
    assert json.loads(json.dumps(limits.to_dict()))["fma_gflops"] == 140.0


@pytest.mark.parametrize("threads", [1, 2, 64])
@pytest.mark.parametrize("l3", [4, 32, 512])
def test_buffers_fit_their_level(threads: int, l3: int) -> None:
    l1_bytes, l2_bytes, l3_bytes = 32 * probes.KIB, 512 * probes.KIB, l3 * probes.MIB
    sizes = probes._buffer_bytes((l1_bytes, l2_bytes, l3_bytes), threads)
    assert sizes["L1"] < l1_bytes < sizes["L2"] < l2_bytes < sizes["L3"] < sizes["DRAM"]


def test_machine_and_installation_are_json() -> None:
    machine = probes.machine()
    assert {"cpu", "cores", "threads", "isa", "torch", "sparsecore", "commit", "date"} <= set(machine)
    installation = json.loads(json.dumps(probes.installation()))
    assert installation["machine"]["cpu"] == machine["cpu"]


def test_the_first_available_kernel_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(name: str, available: bool) -> dict[str, object]:
        return {"op": "spmm", "name": name, "isa": name, "available": available}

    table = [kernel("amx", False), kernel("avx2", True), kernel("scalar", True)]
    monkeypatch.setattr(_C, "kernels", lambda: table)
    assert [(row["name"], row["in_use"]) for row in probes.operations()["spmm"]] == [
        ("amx", False),
        ("avx2", True),
        ("scalar", False),
    ]


def test_real_kernels_end_with_scalar() -> None:
    for operation, kernels in probes.operations().items():
        if operation.endswith("_jit"):  # code is generated for an instruction set
            continue
        assert kernels[-1]["isa"] == "scalar"
        assert sum(kernel["in_use"] for kernel in kernels) == 1
