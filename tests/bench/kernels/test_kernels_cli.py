"""``sparsecore kernels``: what it passes on, what it writes, and errors in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from click.testing import CliRunner, Result

from sparsecore.bench import probes
from sparsecore.bench.kernels.libraries import PEERS
from sparsecore.bench.kernels.weights import MASKS
from sparsecore.cli import cli

ENDINGS = (".json", ".md", ".svg", "-formats.svg")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["kernels", *arguments], prog_name="sparsecore")


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch, report: dict[str, Any]) -> list[Any]:
    """Plans that were measured; the report is always the same."""
    seen: list[Any] = []

    def measure(plan: Any, progress: Any) -> dict[str, Any]:
        seen.append(plan)
        progress(0, 1, None)
        progress(1, 1, report["cells"][0])
        return report | {"machine": report["machine"] | {"threads": plan.threads}}

    monkeypatch.setattr("sparsecore.bench.kernels.run.measure", measure)
    return seen


def test_list() -> None:
    result = run("list")
    assert result.exit_code == 0, result.output
    assert all(operation in result.stdout for operation in probes.operations())
    assert json.loads(run("list", "--json", "-").stdout) == probes.operations()


def test_bench_passes_its_options_on(plans: list[Any]) -> None:
    arguments = "--threads 1 --threads 4 --sparsity 0.8 --shapes vgg --mask random --peers torch --time 1.4"
    result = run("bench", *arguments.split())
    assert result.exit_code == 0, result.output
    assert [plan.threads for plan in plans] == [1, 4]
    plan = plans[0]
    assert {layer.network for layer in plan.layers} == {"VGG-16"}
    assert (plan.sparsities, plan.mask, plan.peers, plan.rounds) == ((0.8,), "random", [PEERS["torch"]], 70)
    assert "90% zeros, 1 thread" in result.stdout
    assert "90% zeros, 4 threads" in result.stdout
    assert "A peer is faster:" in result.stdout
    assert "Which format wins, 4 threads" in result.stdout
    assert "int8, 4 threads" in result.stdout
    assert "70% linear 768x768, 128: 1.11x over torch, 0.89x over onnxruntime int8  [1/2, 0 s left]" in result.stderr


def test_bench_defaults(plans: list[Any]) -> None:
    result = run("bench", "--peers", "none")
    assert result.exit_code == 0, result.output
    (plan,) = plans
    assert (plan.threads, plan.mask, plan.peers, plan.rounds, len(plan.layers)) == (1, "magnitude", [], 7, 16)
    assert plan.sparsities == (0.5, 0.7, 0.8, 0.9, 0.95)


@pytest.mark.parametrize("mask", MASKS)
def test_every_mask_is_a_choice(mask: str, plans: list[Any]) -> None:
    result = run("bench", "--mask", mask, "--peers", "none")
    assert result.exit_code == 0, result.output
    assert plans[0].mask == mask


def test_a_mask_of_groups_has_its_own_sparsity_and_layers(plans: list[Any]) -> None:
    result = run("bench", "--mask", "4:16", "--peers", "none", "--shapes", "odd sizes")
    assert (result.exit_code, plans) == (2, [])
    assert "K must be a multiple of 16" in result.stderr
    assert run("bench", "--mask", "4:16", "--sparsity", "0.9").exit_code == 2
    result = run("bench", "--mask", "4:16", "--peers", "none", "--shapes", "all")
    assert "mask 4:16 does not fit linear 1001x999, 33" in result.stderr
    assert plans[0].sparsities == (0.75,)
    assert all(layer.network != "odd sizes" for layer in plans[0].layers)


def test_bench_writes_files_that_plot_reads(plans: list[Any], tmp_path: Path) -> None:
    out, both, svg = tmp_path / "out", tmp_path / "both.json", tmp_path / "both.svg"
    result = run("bench", "--threads", "1", "--threads", "2", "--out", str(out), "--json", str(both))
    assert result.exit_code == 0, result.output
    stems = ("kernels-avx2-1-threads", "kernels-avx2-2-threads")
    assert {path.name for path in out.iterdir()} == {f"{stem}{end}" for stem in stems for end in ENDINGS}
    assert len(json.loads(both.read_text(encoding="utf-8"))["reports"]) == 2
    assert run("plot", str(both), str(out / f"{stems[0]}.json"), "--out", str(svg)).exit_code == 0
    assert svg.read_text(encoding="utf-8").count("Some CPU, avx2") == 3
    formats = (tmp_path / "both-formats.svg").read_text(encoding="utf-8")
    assert formats.count("Some CPU, avx2") == 6
    assert "convolutions, Some CPU, avx2, 1 thread<" in formats


def test_json_on_stdout_is_nothing_but_json(plans: list[Any]) -> None:
    assert json.loads(run("bench", "--json", "-").stdout)["reports"][0]["mask"] == "magnitude"


@pytest.mark.parametrize(
    "arguments",
    [
        "nonsense",
        "bench --shapes nonsense",
        "bench --peers nonsense",
        "bench --threads 0",
        "bench --sparsity 1",
        "bench --mask nonsense",
        "bench --time 0",
        f"bench --out {__file__}",
        "bench --json /no/such/folder/a.json",
        "plot --out a.svg",
        "plot /no/such/file.json --out a.svg",
        f"plot {__file__} --out a.svg",
        f"plot {__file__}",
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(arguments: str, plans: list[Any]) -> None:
    result = run(*arguments.split())
    assert result.exit_code == 2
    assert result.stdout == ""
    assert re.fullmatch(r"error: .+\n", result.stderr)
    assert plans == []


def test_plot_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "empty.json"
    path.write_text('{"schema": 1, "cells": []}', encoding="utf-8")
    result = run("plot", str(path), "--out", str(tmp_path / "a.svg"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "got none" in result.stderr


@pytest.mark.parametrize(
    ("option", "value"), [("--sparsity", "nan"), ("--time", "nan"), ("--time", "inf"), ("--shapes", "")]
)
def test_no_numbers_and_no_names(option: str, value: str) -> None:
    result = run("bench", option, value)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: Invalid value for")


def test_an_interrupted_run_keeps_what_it_measured(plans: list[Any], report: dict[str, Any], tmp_path: Path) -> None:
    report["complete"] = False
    result = run("bench", "--threads", "1", "--threads", "2", "--json", str(tmp_path / "r.json"))
    assert result.exit_code == 130
    assert "stopped" in result.stderr
    assert len(json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["reports"]) == 1


def test_the_same_sparsity_twice_is_once(plans: list[Any]) -> None:
    run("bench", "--sparsity", "0.9", "--sparsity", "0.9")
    assert plans[0].sparsities == (0.9,)
