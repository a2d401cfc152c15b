"""The report renders from a plain dict, needs no network, and trusts no name in it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sparsecore.bench.report import (
    busy_warning,
    format_bytes,
    format_percent,
    format_speedup,
    format_us,
    render_html,
    write_report,
)

pytest.importorskip("plotly")
pytest.importorskip("jinja2")


def without_scripts(html: str) -> str:
    return re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)


def figures(html: str) -> dict[str, Any]:
    match = re.search(r"const figures = (\{.*\});\n", html)
    assert match
    return json.loads(match[1])


def test_writes_both_files(report: dict[str, Any], tmp_path: Path) -> None:
    json_path, html_path = write_report(report, tmp_path / "new" / "folder")
    assert json.loads(json_path.read_text(encoding="utf-8")) == report
    assert html_path.read_text(encoding="utf-8") == render_html(report)


def test_page_needs_no_network(report: dict[str, Any]) -> None:
    html = render_html(report)
    tags = re.findall(r"<[a-z][^>]*>", without_scripts(html))
    assert tags
    assert not [tag for tag in tags if re.search(r"\b(src|href|srcset|data)\s*=", tag)]
    assert "url(" not in without_scripts(html)
    assert "@import" not in without_scripts(html)
    assert "Plotly" in html


def test_names_are_escaped_in_tables_and_scripts(report: dict[str, Any]) -> None:
    evil = "<script>alert(1)</script>"
    report["resnet50"]["layers"][1]["name"] = evil
    report["digits"]["versions"][1]["name"] = evil
    report["machine"]["cpu"] = evil
    html = render_html(report)
    assert evil not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert figures(html)["resnet-layers"]["data"][0]["x"][1] == evil


def test_every_plot_has_its_place(report: dict[str, Any]) -> None:
    html = render_html(report)
    for name in figures(html):
        assert f'<div id="{name}">' in html


def test_tables_show_every_version_and_layer(report: dict[str, Any]) -> None:
    text = without_scripts(render_html(report))
    for section in ("digits", "resnet50"):
        for version in report[section]["versions"]:
            assert f'<td class="text what">{version["name"]}<br>' in text
    for layer in report["resnet50"]["layers"]:
        assert f'<td class="text">{layer["name"]}</td>' in text


def test_losses_are_marked(report: dict[str, Any]) -> None:
    text = without_scripts(render_html(report))
    assert '<td class="loss">0.63x</td>' in text
    assert '<td class="win">2.50x</td>' in text
    assert '<td class="">1.00x</td>' in text


@pytest.mark.parametrize("section", ["digits", "resnet50", "limits"])
def test_a_missing_section_is_left_out(report: dict[str, Any], section: str) -> None:
    del report[section]
    html = render_html(report)
    assert "The machine" in html
    assert section not in html.split("<script>")[0]


def test_a_busy_machine_is_told(report: dict[str, Any]) -> None:
    report["digits"]["versions"][0]["timings"][0]["q75_us"] *= 2
    assert "The machine was busy" in busy_warning(report)
    assert "The machine was busy" in render_html(report)


def test_a_quiet_machine_is_not_mentioned(report: dict[str, Any]) -> None:
    assert busy_warning(report) == ""
    assert busy_warning({}) == ""
    assert "busy: " not in without_scripts(render_html(report))


def test_unmeasured_values_show_as_a_dash(report: dict[str, Any]) -> None:
    report["resnet50"]["layers"][2] |= {"time_us": None, "dense_us": None, "speedup": None}
    row = re.search(r'<tr>\s*<td class="text">fc</td>.*?</tr>', render_html(report), re.DOTALL)
    assert row
    assert row[0].count(">-</td>") == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_bytes(0), "0 B"),
        (format_bytes(999), "999 B"),
        (format_bytes(1234), "1.2 kB"),
        (format_bytes(102_400_000), "102.4 MB"),
        (format_bytes(5e9), "5.0 GB"),
        (format_us(None), "-"),
        (format_us(1.234), "1.23 us"),
        (format_us(56_780), "56.8 ms"),
        (format_us(2_500_000), "2.5 s"),
        (format_speedup(2.345), "2.35x"),
        (format_speedup(None), "-"),
        (format_percent(0.9876), "98.8%"),
        (format_percent(0.9, 0), "90%"),
        (format_percent(None), "-"),
    ],
)
def test_formats(text: str, expected: str) -> None:
    assert text == expected
