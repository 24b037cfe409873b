"""Time a model, and another one in turn with it, on random inputs.

Both see the same machine at the same time: trust the ratio more than the milliseconds.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack

from obert_compiler.cli.console import Console

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
    add("--engine", default="cpu", metavar="NAME", help="cpu (ONNX Runtime) or openvino")
    add("--task", metavar="TASK", help="task of a model that is not compiled yet")


def run(options: argparse.Namespace, console: Console) -> int:
    """Time and print the figures."""
    from obert_compiler.cli.models import open_model
    from obert_compiler.runtime.bench import bench

    with ExitStack() as stack:
        texts = [text for text in (options.model, options.against) if text is not None]
        files = [open_model(text, task=options.task).saved(stack) for text in texts]
        found = bench(
            *files,
            batch=options.batch,
            sequence=options.seq,
            threads=options.threads,
            runs=options.runs,
            engine=options.engine,
            progress=console,
        )
    console.result(
        found.to_dict() | {"model": options.model, "against": options.against},
    )
    timed = [(options.model, found.model)]
    if found.against is not None:
        timed.append((options.against, found.against))
    rows = [(n, f"{t.median_ms:.2f} ms", f"{t.min_ms:.2f} ms") for n, t in timed]
    console.table(("model", "median", "min"), rows, numbers=" rr")
    console.line()
    if found.ratio is not None:
        console.line(f"{found.ratio:.2f}x the speed of {options.against} (medians)")
    if found.products is not None:
        products, names = found.products, found.products.floating
        console.line(f"{products.integer} products in integers, {len(names)} in float")
        for name in names if products.integer else ():
            console.line(f"    in float: {name}")
    console.line(
        f"batch {found.batch} x {found.sequence} tokens, {found.runs} runs, {found.threads} "
        f"threads, {found.engine}, {found.cpu}"
    )
    return 0
