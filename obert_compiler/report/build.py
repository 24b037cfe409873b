"""report.json: what went in, what each pass did, what came out (schema: docs/artefact.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from obert_compiler import __version__
from obert_compiler.graph.graph import Graph
from obert_compiler.report.html import render_html
from obert_compiler.report.sites import part_bytes, site_rows

__all__ = ["SCHEMA", "build_report", "describe_model", "write_report"]

SCHEMA = 1
"""Version of the layout of report.json; raised when a key changes its meaning."""


def describe_model(graph: Graph) -> dict[str, Any]:
    """The ``model`` part of the report; call it before any pass changes ``graph``."""
    initializers = graph.model.graph.initializers.values()
    floats = [
        v.const_value
        for v in initializers
        if v.const_value is not None and v.const_value.dtype.is_floating_point()
    ]
    parameters = sum(tensor.size for tensor in floats)
    source = graph.source
    return {
        "kind": source.kind,
        "location": source.location,
        "task": source.task,
        "parameters": parameters,
        "fp32_bytes": source.bytes_on_disk or 4 * parameters,
    }


def build_report(
    *,
    model: Mapping[str, Any],
    graph: Graph,
    passes: Sequence[Mapping[str, Any]],
    recipe: Mapping[str, Any],
    bytes_after: int,
    metric: Mapping[str, Any] | None = None,
    latency: Mapping[str, Any] | None = None,
    engine: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    cpu: str,
    threads: int,
) -> dict[str, Any]:
    """Put the report of one compile together.

    Args:
        model: what `describe_model` said of the graph before the passes.
        graph: the graph after the passes.
        passes: one entry per pass that ran, as the pass manager records them.
        recipe: passes as text, seed and data, enough to run the compile again.
        bytes_after: size of the emitted model files, in bytes.
        metric: name, before, after and number of examples; None where nothing was evaluated.
        latency: milliseconds before and after; None where nothing was timed.
        engine: what the engine took of the emitted model; None where it was not asked.
        notes: lines the user was told.
        cpu: name of the processor that everything was measured on.
        threads: threads that it was measured with.
    """
    parts = part_bytes(graph)
    parts["other"] = max(bytes_after - parts["linear"] - parts["embeddings"], 0)
    return {
        "schema": SCHEMA,
        "obert_compiler": __version__,
        "cpu": cpu,
        "threads": threads,
        "model": dict(model),
        "recipe": dict(recipe),
        "passes": [dict(entry) for entry in passes],
        "sites": [row.to_json() for row in site_rows(graph)],
        "bytes": {"before": model["fp32_bytes"], "after": bytes_after, "parts": parts},
        "metric": None if metric is None else dict(metric),
        "latency": None if latency is None else dict(latency),
        "engine": None if engine is None else dict(engine),
        "notes": list(notes),
    }


def write_report(report: Mapping[str, Any], folder: Path) -> None:
    """Write report.json and report.html into ``folder``."""
    text = json.dumps(report, indent=2, ensure_ascii=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    (folder / "report.html").write_text(render_html(report), encoding="utf-8")
