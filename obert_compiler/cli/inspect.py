"""Show every Linear site of a model: shape, sparsity, bits, bytes, and what passes would do.

MODEL_OR_OUT is a folder, a hub id, a .onnx file or what 'obertc compile' made.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from obert_compiler.cli.console import Console
from obert_compiler.cli.models import emitted_file
from obert_compiler.errors import ObertError

if TYPE_CHECKING:
    from obert_compiler.graph.graph import Graph

__all__ = ["NAME", "SUMMARY", "add_arguments", "run"]

NAME = "inspect"
SUMMARY = "shape, sparsity, bits and bytes of every site, and what passes would do"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``obertc inspect`` accepts."""
    parser.add_argument("model", metavar="MODEL_OR_OUT", help="folder, hub id or .onnx file")
    parser.add_argument(
        "--task", metavar="TASK", help="task of the model, where its config is mute"
    )


def run(options: argparse.Namespace, console: Console) -> int:
    """Print the tables."""
    from obert_compiler.frontends import lower
    from obert_compiler.graph.layers import find_encoder_layers
    from obert_compiler.graph.linear import find_linear_sites
    from obert_compiler.report.sites import part_bytes, site_rows
    from obert_compiler.report.summary import format_bytes

    file = emitted_file(options.model)
    graph = lower(options.model if file is None else file, task=options.task)
    sites = find_linear_sites(graph)
    rows = site_rows(graph, sites)
    layers = find_encoder_layers(graph)
    parts = part_bytes(graph)
    unmatched = [*sites.unmatched, *layers.unmatched]
    previews = list(_previews(graph))
    console.result(
        {
            "model": options.model,
            "stage": graph.stage.value,
            "layers": len(layers.layers),
            "sites": [row.to_json() for row in rows],
            "bytes": parts,
            "unmatched": [dataclasses.asdict(item) for item in unmatched],
            "passes": previews,
        }
    )
    console.line(f"stage {graph.stage.value}, {len(layers.layers)} encoder layers")
    console.line(", ".join(f"{part} {format_bytes(count)}" for part, count in parts.items()))
    console.line()
    console.table(
        ("site", "layer", "out x in", "zeros", "zero 4-blocks", "bits", "bytes", "stored as"),
        [
            (
                row.name,
                "-" if row.layer is None else str(row.layer),
                f"{row.shape[0]} x {row.shape[1]}",
                f"{row.sparsity:.1%}",
                "-" if row.block_sparsity is None else f"{row.block_sparsity:.1%}",
                str(row.bits),
                f"{row.bytes}",
                row.scheme,
            )
            for row in rows
        ],
        numbers=" rrrrrr",
    )
    console.line()
    if unmatched:
        console.line("not matched, and why:")
        for item in unmatched:
            console.line(f"    {item.name}: {item.reason}")
        console.line()
    console.line(f"passes on this {graph.stage.value} model:")
    for preview in previews:
        console.line(f"    {preview['pass']}: {preview['would']}")
        for skip in preview.get("skips", ()):
            console.line(f"        not {skip['subject']}: {skip['reason']}")
    return 0


def _previews(graph: Graph) -> Iterator[dict[str, Any]]:
    """What each registered pass with its default options would do to ``graph``, or why not."""
    from obert_compiler.pipeline.plan import accepted_stages, plan
    from obert_compiler.pipeline.registry import PASSES, load, names

    for name in names(PASSES):
        kind = load(PASSES, name)
        missing = [f.name for f in dataclasses.fields(kind) if _required(f)]
        if missing:
            yield {"pass": name, "runs": None, "would": f"needs {', '.join(missing)}"}
            continue
        if graph.stage not in kind.accepts:
            would = f"not run: takes a {accepted_stages(kind)} model"
            yield {"pass": name, "runs": False, "would": would}
            continue
        try:
            steps = plan([kind()], graph)
        except ObertError as error:
            yield {"pass": name, "runs": False, "would": f"not run: {error}"}
            continue
        before = ", ".join(str(step.run) for step in steps[:-1])
        would = f"run after {before}" if before else "run"
        skips = [dataclasses.asdict(skip) for skip in steps[-1].run.leaves_alone(graph)]
        yield {"pass": name, "runs": True, "would": f"{would} ({kind.summary})", "skips": skips}


def _required(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing
