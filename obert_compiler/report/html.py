"""report.html: one self-contained page, readable on a phone, in light and dark, without network."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from obert_compiler.report.charts import Bar, bar_chart
from obert_compiler.report.curves import curves_of
from obert_compiler.report.summary import format_bytes, format_metric, summary_rows

__all__ = ["render_html"]


def render_html(report: Mapping[str, Any]) -> str:
    """The page for the content of a report.json."""
    charts = {
        "sparsity": _sparsity(report["sites"]),
        "bytes": _bytes(report["bytes"]),
        "metric": _metric(report.get("metric")),
        "latency": _latency(report.get("latency")),
        "seconds": _seconds(report["passes"]),
    }
    return _template().render(
        report=report,
        rows=summary_rows(report),
        trainings=[
            (entry["name"], [(name, Markup(svg)) for name, svg in curves])  # noqa: S704 - escaped there
            for entry in report["passes"]
            if (curves := curves_of(entry["report"].get("curve", ())))
        ],
        charts={name: Markup(svg) for name, svg in charts.items()},  # noqa: S704 - escaped there
        skips=[
            (entry["name"], skip["subject"], skip["reason"])
            for entry in report["passes"]
            for skip in entry["skips"]
        ],
        bytes=format_bytes,
        engines=_ENGINES,
        title=_title(report["model"]),
    )


_ENGINES = {
    "cpu": "ONNX Runtime alone",
    "obert": "ONNX Runtime with the engine",
    "openvino": "OpenVINO",
}


@cache
def _template() -> jinja2.Template:
    source = files("obert_compiler.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source)


def _title(model: Mapping[str, Any]) -> str:
    location = model.get("location")
    return os.path.basename(str(location).rstrip("/")) if location else "model in memory"


def _sparsity(sites: Sequence[Mapping[str, Any]]) -> str:
    if not any(site["sparsity"] > 0 for site in sites):
        return ""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for site in sorted(sites, key=lambda s: (s["layer"] is None, s["layer"] or 0)):
        group = "outside the layers" if site["layer"] is None else f"layer {site['layer']}"
        groups.setdefault(group, []).append(site)
    bars = []
    for group, members in groups.items():
        shared = len(_shared_prefix([site["name"] for site in members]))
        for site in members:
            share = site["sparsity"]
            bars.append(Bar(site["name"][shared:], share, f"{share:.1%}", group))
    return bar_chart(bars, title="share of zeros in each Linear site", maximum=1.0)


def _shared_prefix(names: Sequence[str]) -> str:
    if len(names) < 2:
        return ""
    parts = zip(*(name.split(".")[:-1] for name in names), strict=False)
    shared = itertools.takewhile(lambda column: len(set(column)) == 1, parts)
    return "".join(f"{column[0]}." for column in shared)


def _bytes(size: Mapping[str, Any]) -> str:
    bars = [Bar("before, all", size["before"], format_bytes(size["before"]), tone="quiet")]
    bars.append(Bar("after, all", size["after"], format_bytes(size["after"])))
    for part, count in size["parts"].items():
        bars.append(Bar(f"after, {part}", count, format_bytes(count)))
    return bar_chart(bars, title="bytes on disk by part")


def _metric(metric: Mapping[str, Any] | None) -> str:
    if metric is None:
        return ""
    pairs = [("before", metric["before"], "quiet"), ("after", metric["after"], "main")]
    bars = [Bar(n, abs(v), format_metric(v), tone=t) for n, v, t in pairs if v is not None]
    within = all(0 <= bar.value <= 1 for bar in bars)
    return bar_chart(bars, title=str(metric["name"]), maximum=1.0 if within else None)


def _latency(latency: Mapping[str, Any] | None) -> str:
    if latency is None:
        return ""
    bars = []
    for kind in ("median", "min"):
        for name, key, tone in (("before", "before_ms", "quiet"), ("after", "after_ms", "main")):
            value = latency[key][kind]
            bars.append(Bar(name, value, f"{value:.2f} ms", kind, tone))
    return bar_chart(bars, title="latency in milliseconds")


def _seconds(passes: Sequence[Mapping[str, Any]]) -> str:
    bars = [Bar(p["name"], p["seconds"], f"{p['seconds']:.1f} s") for p in passes]
    return bar_chart(bars, title="seconds by pass")
