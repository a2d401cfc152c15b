"""The demo's report: report.json for machines, a self-contained report.html for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from sparsecore.errors import require_extra

# Mid tones that read on a light and on a dark page alike.
BLUE, ORANGE, GREY = "#3b82c4", "#e08a2e", "#8a939e"
GRID = "rgba(128, 128, 128, 0.25)"

# The same model timed twice in one interleaved run differs by up to 2-3% on a shared machine.
NOISE = 0.03
# Interquartile range over median: 0.05 to 0.15 on a quiet machine, 0.5 and more with others on it.
TRUSTED_SPREAD = 0.3

Figure = dict[str, Any]  # plotly's own JSON: {"data": [...], "layout": {...}}


def write_report(report: Mapping[str, Any], out_dir: str | Path) -> tuple[Path, Path]:
    """Write ``report.json`` and ``report.html``.

    Args:
        report: What `run_demo` returns.
        out_dir: Created if it does not exist; older reports in it are overwritten.

    Returns:
        Paths of the JSON and of the HTML file. The HTML file needs no network.

    Raises:
        MissingExtraError: plotly or jinja2 is not installed.
    """
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    json_path, html_path = folder / "report.json", folder / "report.html"
    json_path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    html_path.write_text(render_html(report), encoding="utf-8")
    return json_path, html_path


def render_html(report: Mapping[str, Any]) -> str:
    """Render the report as one HTML page with everything in it, plotly included.

    Args:
        report: What `run_demo` returns; a missing section is left out.

    Returns:
        The page. Every name in the report is escaped.

    Raises:
        MissingExtraError: plotly or jinja2 is not installed.
    """
    jinja2 = require_extra("jinja2", "bench")
    plotly = require_extra("plotly.offline", "bench")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "bytes": format_bytes,
        "time": format_us,
        "times": format_speedup,
        "percent": format_percent,
        "verdict": verdict,
    }
    source = resources.files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8")
    html: str = environment.from_string(source).render(
        report=report,
        warning=busy_warning(report),
        figures=_figures(report),
        plotly_js=plotly.get_plotlyjs(),
    )
    return html


def format_bytes(count: float) -> str:
    """Bytes in the decimal unit that fits: 1.2 kB, 34.5 MB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def format_us(microseconds: float | None) -> str:
    """Microseconds in the unit that fits, three digits: 12.3 us, 4.56 ms, 7.89 s."""
    if microseconds is None:
        return "-"
    for unit, factor in (("us", 1.0), ("ms", 1e3)):
        if microseconds < 1000 * factor:
            return f"{microseconds / factor:.3g} {unit}"
    return f"{microseconds / 1e6:.3g} s"


def format_speedup(ratio: float | None) -> str:
    """A speed-up with two decimals: 2.34x."""
    return "-" if ratio is None else f"{ratio:.2f}x"


def format_percent(share: float | None, digits: int = 1) -> str:
    """A share of 0 to 1 as a percentage."""
    return "-" if share is None else f"{100 * share:.{digits}f}%"


def verdict(ratio: float | None) -> str:
    """``"loss"``, ``"win"``, or ``""`` where a speed-up is within the noise of such a run."""
    if ratio is None or abs(ratio - 1) <= NOISE:
        return ""
    return "win" if ratio > 1 else "loss"


def busy_warning(report: Mapping[str, Any]) -> str:
    """One sentence if the times of some version scattered too widely to be trusted, else empty."""
    timings = [
        timing
        for section in ("digits", "resnet50")
        for version in report.get(section, {}).get("versions", ())
        for timing in version["timings"]
    ]
    spread = max(((t["q75_us"] - t["q25_us"]) / t["median_us"] for t in timings), default=0.0)
    if spread <= TRUSTED_SPREAD:
        return ""
    return (
        f"The machine was busy: the middle half of some version's times spreads over {spread:.0%} "
        "of their median. Repeat this on a quiet machine before trusting a speed-up."
    )


def _figures(report: Mapping[str, Any]) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    if digits := report.get("digits"):
        figures["digits-speedup"] = _speedup_figure(digits["versions"])
        figures["digits-accuracy"] = _accuracy_figure(digits["versions"])
    if resnet := report.get("resnet50"):
        figures["resnet-latency"] = _latency_figure(resnet["versions"])
        figures["resnet-layers"] = _layers_figure(resnet["layers"])
    return figures


def _speedup_figure(versions: Sequence[Mapping[str, Any]]) -> Figure:
    """Horizontal bars: speed-up of every version, one colour per batch size."""
    batches = [timing["batch"] for timing in versions[0]["timings"]]
    bars = [
        {
            **_horizontal_bars(versions, [v["timings"][i]["speedup"] for v in versions]),
            "name": f"batch {batch}",
            "marker": {"color": color},
            "hovertemplate": "%{y}: %{x:.2f}x<extra>%{fullData.name}</extra>",
        }
        for i, (batch, color) in enumerate(zip(batches, (BLUE, ORANGE), strict=False))
    ]
    return {"data": bars, "layout": _by_version(versions, "speed-up", one_line="x")}


def _accuracy_figure(versions: Sequence[Mapping[str, Any]]) -> Figure:
    """Dots, not bars: the interesting range does not start at zero."""
    accuracies = [100 * version["accuracy"] for version in versions]
    dots = {
        **_horizontal_bars(versions, accuracies),
        "type": "scatter",
        "mode": "markers+text",
        "marker": {"color": BLUE, "size": 12},
        "text": [f"{accuracy:.1f}" for accuracy in accuracies],
        "textposition": "middle left",
        "hovertemplate": "%{y}: %{x:.2f}%<extra></extra>",
    }
    layout = _by_version(versions, "test accuracy, %")
    layout["xaxis"]["range"] = [min(*accuracies, 97.0) - 2.0, 100.0]
    return {"data": [dots], "layout": layout}


def _latency_figure(versions: Sequence[Mapping[str, Any]]) -> Figure:
    """Horizontal bars in milliseconds, with the quartiles as whiskers."""
    timings = [version["timings"][0] for version in versions]
    bars = {
        **_horizontal_bars(versions, [timing["median_us"] / 1e3 for timing in timings]),
        "marker": {"color": [GREY if v["library"] == "PyTorch" else BLUE for v in versions]},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [(t["q75_us"] - t["median_us"]) / 1e3 for t in timings],
            "arrayminus": [(t["median_us"] - t["q25_us"]) / 1e3 for t in timings],
            "color": GREY,
        },
        "hovertemplate": "%{y}: %{x:.1f} ms<extra></extra>",
    }
    return {"data": [bars], "layout": _by_version(versions, "milliseconds")}


def _layers_figure(layers: Sequence[Mapping[str, Any]]) -> Figure:
    """Two rows over the same layers: speed-up over dense, and share of the FMA peak."""
    names = [layer["name"] for layer in layers]
    colors = [GREY if layer["format"] == "dense" else BLUE for layer in layers]
    hover = [f"{layer['shape']}, {layer['format']}" for layer in layers]
    common = {
        "type": "bar",
        "x": names,
        "marker": {"color": colors},
        "customdata": hover,
        "showlegend": False,
    }
    speedups = {
        **common,
        "y": [layer["speedup"] for layer in layers],
        "hovertemplate": "%{x}<br>%{customdata}<br>%{y:.2f}x<extra></extra>",
    }
    shares = {
        **common,
        "y": [None if layer["roofline"] is None else 100 * layer["roofline"] for layer in layers],
        "yaxis": "y2",
        "hovertemplate": "%{x}<br>%{customdata}<br>%{y:.0f}% of peak<extra></extra>",
    }
    vertical = {"gridcolor": GRID, "zerolinecolor": GRID, "automargin": True}
    layout = _layout(height=520)
    layout |= {
        "xaxis": {"tickangle": -90, "tickfont": {"size": 9}, "automargin": True, "anchor": "y2"},
        "yaxis": {"title": {"text": "speed-up"}, "domain": [0.54, 1.0], **vertical},
        "yaxis2": {"title": {"text": "% of FMA peak"}, "domain": [0.0, 0.46], **vertical},
        "shapes": [_line_at_one("y")],
    }
    return {"data": [speedups, shares], "layout": layout}


def _horizontal_bars(versions: Sequence[Mapping[str, Any]], values: Sequence[float]) -> Figure:
    return {
        "type": "bar",
        "orientation": "h",
        # Two short lines leave more of a narrow screen to the bars.
        "y": [version["name"].replace(", ", ",<br>") for version in versions],
        "x": list(values),
    }


def _by_version(versions: Sequence[Mapping[str, Any]], unit: str, one_line: str = "") -> Figure:
    """Layout with one row per version, the first on top."""
    layout = _layout(height=120 + 44 * len(versions))
    layout |= {
        "xaxis": {"title": {"text": unit}, "gridcolor": GRID, "zerolinecolor": GRID},
        "yaxis": {"autorange": "reversed", "automargin": True, "ticksuffix": "  "},
        "shapes": [_line_at_one(one_line)] if one_line else [],
    }
    return layout


def _layout(height: int) -> Figure:
    return {
        "height": height,
        "margin": {"l": 8, "r": 16, "t": 32, "b": 48},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": GREY},
        "legend": {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        "bargap": 0.3,
    }


def _line_at_one(axis: str) -> Figure:
    """Dashed line where the speed-up is 1, across the whole plot."""
    other = "y" if axis == "x" else "x"
    ends = {f"{axis}0": 1, f"{axis}1": 1, f"{other}0": 0, f"{other}1": 1}
    return {
        "type": "line",
        f"{axis}ref": axis,
        f"{other}ref": f"{other} domain",
        "line": {"color": GREY, "width": 1.5, "dash": "dot"},
        **ends,
    }
