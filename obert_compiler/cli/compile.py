"""Compile a model into one folder with a small standard ONNX file.

MODEL is a folder, a hub id or a .onnx file. OUT appears complete or not at all.

  obertc compile bert-base-uncased --passes prune,quant,pack
  obertc compile MODEL -o OUT --passes prune:sparsity=0.9:block=4,quant,pack --data train.jsonl
  obertc compile --recipe OUT/recipe.yaml -o OUT2
  torchrun --nproc-per-node N -m obert_compiler compile MODEL -o OUT
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from obert_compiler.cli.console import Console
from obert_compiler.errors import UsageError

__all__ = ["MANY_PROCESSES", "NAME", "SUMMARY", "add_arguments", "run"]

NAME = "compile"
SUMMARY = "compress a model into one folder"
MANY_PROCESSES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``obertc compile`` accepts."""
    add = parser.add_argument
    add("model", metavar="MODEL", nargs="?", help="folder, hub id or .onnx file")
    add("-o", "--out", type=Path, metavar="OUT", help="folder to make (default: NAME-compressed)")
    add(
        "--passes",
        metavar="SPEC",
        help="passes in order (default: prune,quant,pack); none: lower and emit only",
    )
    add("--recipe", type=Path, metavar="FILE", help="passes and options in YAML")
    add("--task", metavar="TASK", help="task of the model (default: read from its config)")
    add(
        "--new-head",
        metavar="CLASSES",
        help="start from an untrained head: names of its classes joined by +, or their number",
    )
    add(
        "--data",
        metavar="FILE",
        help="data for training, calibration and Fisher (jsonl, csv, parquet, hub)",
    )
    add("--eval-data", metavar="FILE", help="held-out data: report the metric before and after")
    add(
        "--teacher", metavar="MODEL", help="model to distil from (default: MODEL before the passes)"
    )
    add("--backend", metavar="NAME", help="back end: onnx (default) or torch")
    add("--tokenizer", metavar="DIR", help="folder of the tokenizer, where MODEL has none")
    add("--seq-len", type=int, metavar="N", help="longest sequence in tokens (default: 128)")
    add("--samples", type=int, metavar="N", help="examples taken from --data")
    add("--seed", type=int, metavar="N", help="seed of every random choice (default: 0)")
    add("--resume", action="store_true", help="go on where a killed run stopped")
    add("--overwrite", action="store_true", help="replace OUT once the new one is complete")
    add("--threads", type=int, metavar="N", help="threads to evaluate and time with (default: all)")
    add("--no-latency", action="store_true", help="do not measure latency")


def run(options: argparse.Namespace, console: Console) -> int:
    """Compile, then print the table of before and after."""
    from obert_compiler.compile import DEFAULT_PASSES, compile_model
    from obert_compiler.pipeline.recipe import Recipe, read_recipe
    from obert_compiler.pipeline.spec import parse_specs
    from obert_compiler.report.summary import summary_rows

    recipe = Recipe() if options.recipe is None else read_recipe(options.recipe)
    given = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(Recipe)
        if getattr(options, field.name, None) is not None
    }
    if options.passes is not None:
        items = parse_specs(options.passes)  # refuses an empty item before the text is cut up
        given["passes"] = tuple(options.passes.split(",")) if items else ()
    elif options.recipe is None:
        given["passes"] = DEFAULT_PASSES
    recipe = dataclasses.replace(recipe, **given)
    if recipe.model is None:
        raise UsageError("MODEL is missing: give a folder, a hub id or a .onnx file")
    out = options.out or Path(f"{Path(recipe.model).stem}-compressed")
    result = compile_model(
        recipe,
        out,
        resume=options.resume,
        overwrite=options.overwrite,
        latency=not options.no_latency,
        threads=options.threads,
        progress=console,
        processes=options.processes,
    )
    console.result({"folder": str(result.folder), "report": result.report})
    rows = [(row.what, row.before, row.after, row.change) for row in summary_rows(result.report)]
    console.table(("", "before", "after", "change"), rows, numbers=" rrr")
    console.line()
    console.line(f"model   {result.folder}")
    if (result.folder / "report.html").exists():
        console.line(f"report  {result.folder / 'report.html'}")
    return 0
