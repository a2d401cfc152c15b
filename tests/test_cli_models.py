"""``sparsecore bench`` and ``sparsecore explain``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner, Result

from sparsecore.cli import cli

DIGITS = "sparsecore.bench.models:digits_net"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments), prog_name="sparsecore")


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Plans that would be measured."""

    def measure(plan: Any, progress: Any) -> dict[str, Any]:
        found.append(plan)
        row = {"library": "sparsecore", "name": "compiled", "dtype": "float32", "error": 1e-6, "wrong": False}
        row |= {"us": {"median_us": 5000.0}}
        cell = {"batch": 1, "threads": 1, "sparsity": 0.9, "zeros": 0.9, "pruned": "all pruned", "failures": []}
        cell |= {"candidates": [row]}
        return {"model": plan.source.name, "missing": [], "cells": [cell], "complete": plan.rounds != 3}

    found: list[Any] = []
    monkeypatch.setattr("sparsecore.bench.whole_models.run.measure", measure)
    return found


def test_bench_passes_its_options_on(plans: list[Any]) -> None:
    lists = "bench resnet18 --sparsity 0 0.7 --sparsity 0.9 --batch 1 16 --threads 1 2"
    others = "--input 1x3x64x64 --no-peers --int8 0.05 --time 0 --seed 4"
    result = run(*f"{lists} {others}".split())
    assert result.exit_code == 0, result.output
    (plan,) = plans
    assert plan.source.name == "resnet18"
    assert (plan.sparsities, plan.batches, plan.threads) == ((0.0, 0.7, 0.9), (1, 16), (1, 2))
    assert (plan.shape, plan.peers, plan.max_error, plan.turn_seconds, plan.seed) == ((1, 3, 64, 64), [], 0.05, 0, 4)
    assert "resnet18, batch 1, 1 thread" in result.stdout
    assert "5 ms" in result.stdout
    assert "all pruned" in result.stdout


def test_numbers_may_stand_before_the_model(plans: list[Any]) -> None:
    assert run("bench", "--batch", "2", "4", "resnet18", "--sparsity=0.5").exit_code == 0
    assert (plans[0].batches, plans[0].sparsities, plans[0].source.name) == ((2, 4), (0.5,), "resnet18")


def test_bench_defaults(plans: list[Any]) -> None:
    assert run("bench", "resnet18").exit_code == 0
    (plan,) = plans
    assert (plan.sparsities, plan.batches, plan.shape, plan.max_error) == ((), (), (), None)
    assert [peer.name for peer in plan.peers] == ["PyTorch eager", "ONNX Runtime", "OpenVINO"]
    assert plan.pattern == "unstructured"
    assert run("bench", "resnet18", "--torch-compile", "--pattern", "4:16").exit_code == 0
    assert plans[1].pattern == "4:16"
    assert "torch.compile" in {peer.name for peer in plans[1].peers}


def test_an_interrupted_run_keeps_what_it_measured(plans: list[Any], tmp_path: Path) -> None:
    result = run("bench", "resnet18", "--rounds", "3", "--json", str(tmp_path / "r.json"))
    assert result.exit_code == 130
    assert "stopped" in result.stderr
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["cells"]


@pytest.mark.parametrize(
    "arguments",
    [
        "bench",
        "bench resnet51",
        "bench no_such_module:f --input 1x3",
        "bench sparsecore:no_such_function --input 1x3",
        "bench : --input 1x3",
        f"bench {DIGITS}",
        f"bench {DIGITS} --input 1,3",
        f"bench {DIGITS} --input 1x0",
        "bench resnet18 --sparsity 1",
        "bench resnet18 --sparsity nan",
        "bench resnet18 --sparsity 0.5 2",
        "bench resnet18 --batch 0",
        "bench resnet18 --pattern 4of16",
        "bench resnet18 --pattern 4:16 --sparsity 0.75",
        "explain resnet18 --pattern 2:4 --sparsity 0.5",
        "explain resnet18 --pattern 4x1",
        "bench resnet18 --threads many",
        "bench resnet18 --int8 0",
        f"bench resnet18 --out {__file__}",
        "bench resnet18 --json /no/such/folder/a.json",
        "bench resnet18@/no/such/file",
        "explain",
        "explain resnet51",
        f"explain {DIGITS}",
        "explain resnet18 --sparsity -1",
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(arguments: str) -> None:
    result = run(*arguments.split())
    assert result.exit_code == 2
    assert result.stdout == ""
    assert re.fullmatch(r"error: .+\n", result.stderr)


def test_explain() -> None:
    result = run("explain", DIGITS, "--input", "1x1x8x8", "--sparsity", "0.9", "--threads", "1")
    assert result.exit_code == 0, result.output
    assert "speed-up" in result.stdout
    assert "3 layers pruned by magnitude" in result.stdout


def test_explain_json() -> None:
    result = run("explain", DIGITS, "--input", "1x1x8x8", "--batch", "2", "--json", "-")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["input"], report["zeros"], report["pruned"]) == ([2, 1, 8, 8], 0.0, "weights as they are")
    assert report["rows"]
