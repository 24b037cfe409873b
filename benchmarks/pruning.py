"""One-shot pruning methods beside each other: the table of docs/pruning.md.

    python benchmarks/pruning.py MODEL --data train.jsonl.gz --eval-data dev.jsonl.gz --seeds 0 1 2

Every method prunes the same model without training, each seed draws other training examples, and
the metric is that of the emitted graph in ONNX Runtime. A method is a name of `METHODS` or the
options of ``prune`` as text (``steps=1:repair_samples=2048``). All methods of a seed share one
Fisher of the dense model, and a method in steps is measured at every step that is asked for.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from obert_compiler import Batches, Graph, emit, lower
from obert_compiler.passes.fisher import Fisher
from obert_compiler.passes.fisher_matrix import FisherMatrix
from obert_compiler.passes.prune import Prune
from obert_compiler.passes.site_selection import select_sites
from obert_compiler.passes.sparsity_allocation import choose_lowest, groups_to_remove
from obert_compiler.pipeline.contract import Context
from obert_compiler.pipeline.registry import passes_from_text
from obert_compiler.runtime.cpu import cpu_name
from obert_compiler.runtime.evaluate import evaluate
from obert_compiler.tasks import task_for

PUBLISHED = "published"
METHODS = {
    "magnitude": "method=magnitude",
    "oBERT, as published": PUBLISHED,
    "oBERT, joint": "repair=fisher:absolute_damping=1e-7",
    "rows, one step": "steps=1",
    "default": "",
}
_GROUP = 4


def published(graph: Graph, context: Context, sparsity: float) -> Graph:
    """oBERT's own one-shot: the updates of all removed groups added up (equation 5 of the paper).

    Fisher blocks of 32, damping 1e-7. The groups that were removed are set to zero at the end.
    """
    graph = graph.copy()
    fisher = context.statistics["fisher"]
    sites, _ = select_sites(graph)
    matrices = [FisherMatrix(fisher.blocks(s.name), fisher.layouts[s.name], 1e-7) for s in sites]
    saliencies = [m.saliency(s.weight(), _GROUP) for m, s in zip(matrices, sites, strict=True)]
    count = groups_to_remove(sum(s.size for s in saliencies), sparsity)
    for site, matrix, chosen in zip(sites, matrices, choose_lowest(saliencies, count), strict=True):
        site.set_weight(sum_of_updates(matrix, site.weight(), np.repeat(chosen, _GROUP, axis=1)))
    return graph


def sum_of_updates(matrix: FisherMatrix, W: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """``w - sum_Q F^-1[:, Q] ([F^-1]_QQ)^-1 w_Q`` over the removed groups ``Q`` of each block."""
    size = matrix.layout.block
    F = matrix.F.astype(np.float64) + matrix.damping * np.eye(size)
    inverse = np.linalg.inv(F)
    w = matrix.layout.cut(W).astype(np.float64)
    lost = matrix.layout.cut(removed)
    update = np.zeros_like(w)
    for start in range(0, size, _GROUP):
        Q = slice(start, start + _GROUP)
        w_Q = np.where(lost[:, Q], w[:, Q], 0.0)[..., None]
        update -= (inverse[:, :, Q] @ np.linalg.solve(inverse[:, Q, Q], w_Q))[..., 0]
    pruned = matrix.layout.join(np.where(lost, 0.0, w + update))
    return pruned.astype(np.float32)


def pruned_at(
    graph: Graph, method: str, context: Context, levels: list[float]
) -> Iterator[tuple[float, Graph]]:
    """The pruned graph at each of ``levels``, in rising order."""
    text = METHODS.get(method, method)
    if text == PUBLISHED:
        yield from ((level, published(graph, context, level)) for level in levels)
        return
    (prune,) = passes_from_text("prune" + (f":{text}" if text else ""))
    assert isinstance(prune, Prune)
    last = replace(prune, sparsity=levels[-1])
    # A method in steps passes lower levels on its way.
    if len(last.ways) > 1 and set(levels[:-1]) <= set(map(float, prune.steps)):
        for result in last.descend(graph.copy(), context):
            reached = [x for x in levels if abs(x - result.report["sparsity"]) < 1e-4]
            yield from ((level, result.graph) for level in reached)
        return
    for level in levels:
        yield level, replace(prune, sparsity=level).run(graph.copy(), context).graph


def main() -> None:
    """Prune and measure each cell, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--task")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval-data", required=True)
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
    held_out = Batches.open(options.eval_data, task, folder)
    print(f"{options.model}, {len(held_out.examples)} examples to measure on, {cpu_name()}")
    print(f"dense {measured(graph, held_out):.4f}", flush=True)
    for seed in options.seeds:
        data = Batches.open(options.data, task, folder, limit=options.rows, seed=seed)
        context = Context(task=task, data=data, seed=seed)
        Fisher().run(graph, context)
        for method in options.methods:
            start, values = time.perf_counter(), []
            for level, pruned in pruned_at(graph, method, context, sorted(options.sparsity)):
                values.append(measured(pruned, held_out))
                print(f"seed {seed}  {method:24} {level:4.0%}  {values[-1]:.4f}", flush=True)
            seconds = time.perf_counter() - start
            mean = statistics.mean(values)
            print(f"seed {seed}  {method:24} mean  {mean:.4f}  {seconds:.0f} s", flush=True)


def measured(graph: Graph, held_out: Batches) -> float:
    """The metric of ``graph`` as it is emitted."""
    with tempfile.TemporaryDirectory() as name:
        out = emit(graph, "onnx", Path(name) / "out")
        return evaluate(str(out), held_out, engine="cpu").value


if __name__ == "__main__":
    main()
