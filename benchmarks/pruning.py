"""One-shot pruning methods beside each other: the tables of docs/pruning.md.

    python benchmarks/pruning.py MODEL --data train.jsonl.gz --eval-data dev.jsonl.gz \
        --name sst2 --seeds 0 1 2 --results benchmarks/results

Every method prunes the same model without training, each seed draws other training examples, and
the metric is that of the emitted graph in ONNX Runtime. All methods of a seed share one Fisher of
the dense model, and a method in steps is measured at every step that is asked for.
`benchmarks/pruning_methods.py` has the methods. With ``--results`` every value goes into
``pruning-NAME.json`` as soon as it is there, what is in it is not computed again, and
`benchmarks/pruning_tables.py` makes tables of the files.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from pruning_methods import METHODS, pruned_at

from obert_compiler import Batches, Graph, emit, lower
from obert_compiler.passes.fisher import Fisher
from obert_compiler.pipeline.contract import Context
from obert_compiler.runtime.cpu import cpu_name
from obert_compiler.runtime.evaluate import evaluate
from obert_compiler.tasks import task_for


def main() -> None:
    """Prune and measure each cell, and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--task")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval-data", required=True)
    parser.add_argument("--eval-rows", type=int, help="rows to measure on, all by default")
    parser.add_argument("--max-length", type=int, default=128, help="tokens of an example")
    parser.add_argument("--name", help="of the results")
    parser.add_argument("--title", help="of the task, for the tables")
    parser.add_argument("--results", type=Path, help="folder of the results")
    parser.add_argument("--keep", type=Path, help="folder for the pruned models")
    parser.add_argument("--rows", type=int, default=4096, help="training rows of a seed")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.7, 0.8, 0.9])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="NAME or OPTIONS")
    options = parser.parse_args()

    graph = lower(options.model, task=options.task)
    task = task_for(graph.source, options.task)
    if task is None or graph.source.folder is None:
        raise SystemExit(f"{options.model}: expected a model with a task and a tokenizer")
    folder = graph.source.folder
    length = {"max_length": options.max_length}
    held_out = Batches.open(options.eval_data, task, folder, limit=options.eval_rows, **length)
    name = options.name or Path(options.model).name
    results = Results(options.results and options.results / f"pruning-{name}.json")
    if not results.cells:
        results.head = {
            "name": options.title or name,
            "model": Path(options.model).name,
            "task": task.name,
            "metric": task.metric_name,
            "examples": len(held_out.examples),
            "training_rows": options.rows,
            "cpu": cpu_name(),
            "dense": measured(graph, held_out),
        }
    print(f"{options.model}, {len(held_out.examples)} examples to measure on, {cpu_name()}")
    print(f"dense {results.head['dense']:.4f}", flush=True)
    for seed in options.seeds:
        if all(not results.missing(m, seed, options.sparsity) for m in options.methods):
            continue
        data = Batches.open(options.data, task, folder, limit=options.rows, seed=seed, **length)
        context = Context(task=task, data=data, teacher=graph, seed=seed)
        start = time.perf_counter()
        Fisher().run(graph, context)
        print(f"seed {seed}  the first Fisher: {time.perf_counter() - start:.0f} s", flush=True)
        for method in options.methods:
            levels = results.missing(method, seed, options.sparsity)
            start = time.perf_counter()
            for level, pruned in pruned_at(graph, method, context, levels) if levels else ():
                kept = options.keep and options.keep / f"{name}-{method}-{seed}-{level:g}"
                value = measured(pruned, held_out, kept)
                seconds = time.perf_counter() - start
                results.add(method, seed, level, value, seconds)
                print(f"seed {seed}  {method:24} {level:4.0%}  {value:.4f}  {seconds:.0f} s")
                sys.stdout.flush()
            values = [results.value(method, seed, level) for level in options.sparsity]
            print(f"seed {seed}  {method:24} mean  {statistics.mean(values):.4f}", flush=True)


class Results:
    """Values by method, seed and sparsity, in memory and in a JSON file where there is one.

    Attributes:
        head: what they belong to.
        cells: the values.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.head: dict[str, Any] = {}
        self.cells: list[dict[str, Any]] = []
        if path is not None and path.exists():
            self.head = json.loads(path.read_text(encoding="utf-8"))
            self.cells = self.head.pop("cells")

    def missing(self, method: str, seed: int, levels: list[float]) -> list[float]:
        """The levels that have no value yet, rising."""
        known = {c["sparsity"] for c in self.cells if (c["method"], c["seed"]) == (method, seed)}
        return sorted(set(levels) - known)

    def value(self, method: str, seed: int, level: float) -> float:
        """One value."""
        key = (method, seed, level)
        return next(
            float(c["value"]) for c in self.cells if (c["method"], c["seed"], c["sparsity"]) == key
        )

    def add(self, method: str, seed: int, level: float, value: float, seconds: float) -> None:
        """Keep a value, and write the file."""
        cell = {"method": method, "options": METHODS.get(method, method), "seed": seed}
        self.cells.append(
            {**cell, "sparsity": level, "value": round(value, 6), "seconds": round(seconds, 1)}
        )
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        cells = ",\n".join("    " + json.dumps(c) for c in self.cells)
        head = json.dumps(self.head, indent=2)[:-2]
        self._path.write_text(f'{head},\n  "cells": [\n{cells}\n  ]\n}}\n', encoding="utf-8")


def measured(graph: Graph, held_out: Batches, folder: Path | None = None) -> float:
    """The metric of ``graph`` as it is emitted, into ``folder`` if it is to stay."""
    with tempfile.TemporaryDirectory() as name:
        if folder is not None:
            folder.parent.mkdir(parents=True, exist_ok=True)
        out = emit(graph, "onnx", folder or Path(name) / "out", overwrite=True)
        return evaluate(str(out), held_out, engine="cpu").value


if __name__ == "__main__":
    main()
