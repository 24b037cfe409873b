"""Measure the metric of a model's task on labelled data.

MODEL_OR_OUT is what 'obertc compile' made, a .onnx file, a folder or a hub id.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from obert_compiler.cli.console import Console
from obert_compiler.errors import UsageError

if TYPE_CHECKING:
    from obert_compiler.cli.models import Model
    from obert_compiler.graph.graph import Graph
    from obert_compiler.runtime.engine import Engine

__all__ = ["NAME", "SUMMARY", "add_arguments", "run"]

NAME = "eval"
SUMMARY = "metric of the task on labelled data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``obertc eval`` accepts."""
    add = parser.add_argument
    add("model", metavar="MODEL_OR_OUT", help="what to evaluate")
    add("--data", metavar="FILE", required=True, help="labelled data (jsonl, csv, parquet, hub)")
    add(
        "--engine",
        metavar="NAME",
        help="obert, cpu (ONNX Runtime alone), openvino or torch (default: obert, or cpu where "
        "that is not installed)",
    )
    add("--task", metavar="TASK", help="task of the model (default: as it was compiled)")
    add("--tokenizer", metavar="DIR", help="folder of the tokenizer, where the model has none")
    add("--seq-len", type=int, default=128, metavar="N", help="longest sequence (default: 128)")
    add("--samples", type=int, metavar="N", help="rows drawn from the data (default: all)")
    add("--batch", type=int, default=16, metavar="N", help="sequences in a call (default: 16)")
    add("--seed", type=int, default=0, metavar="N", help="seed of the draw (default: 0)")
    add("--threads", type=int, metavar="N", help="threads (default: the physical cores)")


def run(options: argparse.Namespace, console: Console) -> int:
    """Evaluate and print the figures."""
    from obert_compiler.cli.models import open_model
    from obert_compiler.data.batches import Batches
    from obert_compiler.runtime.engine import engine_reason
    from obert_compiler.runtime.evaluate import evaluate
    from obert_compiler.tasks import task_for

    model = open_model(options.model, task=options.task, tokenizer=options.tokenizer)
    task = task_for(model.source, options.task)
    if task is None:
        raise UsageError(f"model '{options.model}': its task is not known; give --task")
    tokenizer = options.tokenizer or model.source.folder
    if tokenizer is None:
        raise UsageError(f"model '{options.model}': it has no tokenizer; give --tokenizer DIR")
    data = Batches.open(
        options.data,
        task,
        tokenizer,
        batch_size=options.batch,
        max_length=options.seq_len,
        limit=options.samples,
        seed=options.seed,
    )
    engine = _engine(model, options)
    reason = engine_reason(engine)
    if reason:
        console.say(f"the engine is not used: {reason}")
    found = evaluate(engine, data, threads=options.threads, progress=console)
    console.result(found.to_dict() | {"model": options.model, "data": options.data})
    rows = [(name, f"{value:.4f}") for name, value in found.metrics.items()]
    console.table(("metric", "value"), rows, numbers=" r")
    console.line()
    console.line(
        f"{found.examples} examples in {found.seconds:.1f} s, engine {found.engine}, "
        f"{found.threads} threads, {found.cpu}"
    )
    return 0


def _engine(model: Model, options: argparse.Namespace) -> Engine:
    if options.engine == "torch":
        from obert_compiler.cli.torch_engine import TorchEngine

        return TorchEngine(_graph(model), options.threads)
    from obert_compiler.runtime.engine import open_engine

    if options.engine == "openvino" and model.file is None:
        raise UsageError(
            f"engine 'openvino': expected an emitted model, found '{options.model}'; compile it "
            "first, with --passes none to leave it unchanged"
        )
    return open_engine(options.engine, model.file or _graph(model), options.threads)


def _graph(model: Model) -> Graph:
    if model.graph is not None:
        return model.graph
    from obert_compiler.frontends import lower

    return lower(str(model.file), task=model.source.task)
