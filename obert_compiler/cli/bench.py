"""Time a model, and another one in turn with it, on random inputs.

Both see the same machine at the same time: trust the ratio more than the milliseconds. Where the
engine runs OUT and nothing else is named, OUT is compared with itself in ONNX Runtime alone.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from obert_compiler.cli.console import Console

if TYPE_CHECKING:
    from obert_compiler.runtime.bench import BenchResult

__all__ = ["NAME", "SUMMARY", "add_arguments", "run"]

NAME = "bench"
SUMMARY = "latency of a model, alone or against another one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``obertc bench`` accepts."""
    add = parser.add_argument
    add("model", metavar="OUT", help="what to time: an artefact, .onnx file, folder or hub id")
    add("--against", metavar="MODEL_OR_OUT", help="what to compare with")
    add("--batch", type=int, default=1, metavar="N", help="sequences in a call (default: 1)")
    add("--seq", type=int, default=128, metavar="N", help="tokens in a sequence (default: 128)")
    add("--threads", type=int, metavar="N", help="threads (default: the physical cores)")
    add("--runs", type=int, default=30, metavar="N", help="timed calls of each (default: 30)")
    add(
        "--engine",
        metavar="NAME",
        help="what runs OUT: obert, cpu (ONNX Runtime alone) or openvino (default: obert, or cpu "
        "where that is not installed)",
    )
    add(
        "--against-engine",
        metavar="NAME",
        help="what runs the other one (default: cpu for obert, otherwise as --engine)",
    )
    add("--task", metavar="TASK", help="task of a model that is not compiled yet")


def run(options: argparse.Namespace, console: Console) -> int:
    """Time and print the figures."""
    from obert_compiler.cli.models import open_model
    from obert_compiler.runtime.bench import bench
    from obert_compiler.runtime.provider import engine_absence

    against, against_engine = options.against, options.against_engine
    if options.engine == "obert" or (options.engine is None and engine_absence() is None):
        against, against_engine = against or options.model, against_engine or "cpu"
    with ExitStack() as stack:
        model = open_model(options.model, task=options.task).saved(stack)
        other: Path | None = None if against is None else model
        if against is not None and against != options.model:
            other = open_model(against, task=options.task).saved(stack)
        found = bench(
            model,
            other,
            batch=options.batch,
            sequence=options.seq,
            threads=options.threads,
            runs=options.runs,
            engine=options.engine,
            against_engine=against_engine,
            progress=console,
        )
    if found.reason:
        console.say(f"the engine is not used: {found.reason}")
    console.result(found.to_dict() | {"model": options.model, "against": against})
    timed = [(options.model, found.engine, found.model)]
    if found.against is not None:
        timed.append((against, found.against_engine, found.against))
    rows = [(n, e, f"{t.median_ms:.2f} ms", f"{t.min_ms:.2f} ms") for n, e, t in timed]
    console.table(("model", "engine", "median", "min"), rows, numbers="  rr")
    console.line()
    if found.ratio is not None:
        console.line(f"{found.ratio:.2f}x the speed of {against}, {found.against_engine} (medians)")
    _print_products(found, console)
    console.line(
        f"batch {found.batch} x {found.sequence} tokens, {found.runs} runs, {found.threads} "
        f"threads, {found.cpu}"
    )
    return 0


def _print_products(found: BenchResult, console: Console) -> None:
    """What ran in integers and in the engine, and what did not and why."""
    if found.products is not None:
        products, names = found.products, found.products.floating
        console.line(f"{products.integer} products in integers, {len(names)} in float")
        for name in names if products.integer else ():
            console.line(f"    in float: {name}")
    if found.claims is not None:
        for line in found.claims.describe():
            console.line(line)
