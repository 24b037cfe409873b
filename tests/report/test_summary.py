"""The table of before and after, and report.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from obert_compiler.graph.graph import Graph, Source
from obert_compiler.report import build_report, describe_model, summary_rows, write_report
from obert_compiler.report.summary import format_bytes


def test_rows_of_a_full_report(report: dict[str, Any]) -> None:
    rows = {row.what: (row.before, row.after, row.change) for row in summary_rows(report)}
    assert rows == {
        "accuracy (872 examples)": ("0.9100", "0.9050", "-0.0050"),
        "bytes on disk": ("4.9 MB", "400.0 kB", "12.35x smaller"),
        "latency, 1 x 128, 2 threads": ("10.00 ms (cpu)", "4.00 ms (obert)", "2.50x faster"),
    }


def test_what_was_not_measured_has_no_row(report: dict[str, Any]) -> None:
    rows = summary_rows(report | {"metric": None, "latency": None})
    assert [row.what for row in rows] == ["bytes on disk"]


def test_what_got_worse_is_said(report: dict[str, Any]) -> None:
    report["bytes"]["after"] = 2 * report["bytes"]["before"]
    report["latency"]["ratio"] = 0.5
    changes = [row.change for row in summary_rows(report)]
    assert changes == ["-0.0050", "2.00x larger", "2.00x slower"]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (90_400_000, "90.4 MB"), (2.5e9, "2.50 GB")],
)
def test_format_bytes(count: float, text: str) -> None:
    assert format_bytes(count) == text


def test_report_of_a_graph_is_written_whole(tmp_path: Path) -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["": 21]>\n'
        "agraph (float[n, 8] x) => (float[n, 4] y) <float[8, 4] w = {"
        + ", ".join(["0.5"] * 32)
        + "}> { y = MatMul(x, w) }"
    )
    graph = Graph(model, Source("onnx", location="m.onnx"))
    described = describe_model(graph)
    assert described["parameters"] == 32
    assert described["fp32_bytes"] == 128
    report = build_report(
        cpu="a processor",
        threads=2,
        model=described,
        graph=graph,
        passes=[],
        recipe={"passes": [], "seed": 0},
        bytes_after=200,
    )
    assert report["bytes"] == {
        "before": 128,
        "after": 200,
        "parts": {"linear": 128, "embeddings": 0, "other": 72},
    }
    write_report(report, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert np.isclose(report["sites"][0]["sparsity"], 0.0)
