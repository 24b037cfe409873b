"""The short table of a compile: metric, bytes on disk, latency, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["SummaryRow", "format_bytes", "format_metric", "summary_rows"]


@dataclass(frozen=True)
class SummaryRow:
    """One line of the table, as text.

    Attributes:
        what: what is measured.
        before: the model that went in.
        after: the model that came out.
        change: the difference or the ratio.
    """

    what: str
    before: str
    after: str
    change: str


def summary_rows(report: Mapping[str, Any]) -> list[SummaryRow]:
    """Rows of the figures that ``report`` (report.json) holds; what was not measured has no row."""
    rows = []
    metric = report.get("metric")
    if metric is not None:
        rows.append(_metric_row(metric))
    size = report["bytes"]
    before, after = format_bytes(size["before"]), format_bytes(size["after"])
    ratio = size["before"] / size["after"] if size["after"] else None
    change = _times(ratio, "smaller", "larger")
    rows.append(SummaryRow("bytes on disk", before, after, change))
    latency = report.get("latency")
    if latency is not None:
        rows.append(_latency_row(latency))
    return rows


def _metric_row(metric: Mapping[str, Any]) -> SummaryRow:
    before, after = metric["before"], metric["after"]
    examples = f" ({metric['examples']} examples)" if metric.get("examples") else ""
    change = "" if before is None or after is None else f"{after - before:+.4f}"
    what = f"{metric['name']}{examples}"
    return SummaryRow(what, format_metric(before), format_metric(after), change)


def _latency_row(latency: Mapping[str, Any]) -> SummaryRow:
    what = "latency, {batch} x {sequence}, {threads} threads".format(**latency)
    ratio = latency.get("ratio")
    change = _times(ratio, "faster", "slower")
    before, after = (
        f"{latency[f'{when}_ms']['median']:.2f} ms ({latency[f'{when}_engine']})"
        for when in ("before", "after")
    )
    return SummaryRow(what, before, after, change)


def _times(ratio: float | None, more: str, less: str) -> str:
    """``2.50x smaller``; a ratio below 1 is turned round, ``2.00x larger``."""
    if not ratio:
        return ""
    return f"{ratio:.2f}x {more}" if ratio >= 1 else f"{1 / ratio:.2f}x {less}"


def format_metric(value: float | None) -> str:
    """Four decimals; a dash for what was not measured."""
    return "-" if value is None else f"{value:.4f}"


def format_bytes(count: float) -> str:
    """``12.3 MB`` (powers of 1000, as file managers and registries count)."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
