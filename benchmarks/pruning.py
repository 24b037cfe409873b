"""One-shot pruning methods beside each other: the table of docs/pruning.md.

    python benchmarks/pruning.py MODEL --data train.jsonl.gz --eval-data dev.jsonl.gz --seeds 0 1 2

Every method prunes the same model without training, each seed draws other training examples, and
the metric is that of the emitted graph in ONNX Runtime. A method is a name of `METHODS` or the
options of ``prune`` as text (``steps=4:repair_samples=2048``).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from obert_compiler import Batches, Graph, PassManager, emit, lower
from obert_compiler.passes.fisher import Fisher
from obert_compiler.passes.fisher_matrix import FisherMatrix
from obert_compiler.passes.site_selection import select_sites
from obert_compiler.passes.sparsity_allocation import choose_lowest, groups_to_remove
from obert_compiler.pipeline.contract import Context
from obert_compiler.runtime.cpu import cpu_name
from obert_compiler.runtime.evaluate import evaluate
from obert_compiler.tasks import task_for
from obert_compiler.tasks.base import Task

PUBLISHED = "published"
METHODS = {
    "magnitude": "method=magnitude",
    "oBERT, as published": PUBLISHED,
    "oBERT, joint": "repair=fisher:absolute_damping=1e-7",
    "A": "steps=1:absolute_damping=1e-7",
    "default": "",
}
_GROUP = 4


def published(graph: Graph, data: Batches, task: Task | None, sparsity: float, seed: int) -> Graph:
    """oBERT's own one-shot: the updates of all removed groups added up (equation 5 of the paper).

    Fisher blocks of 32, damping 1e-7. The groups that were removed are set to zero at the end.
    """
    graph = graph.copy()
    context = Context(task=task, data=data, seed=seed)
    Fisher().run(graph, context)
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


def main() -> None:
    """Prune and measure each cell, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--task")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval-data", required=True)
    parser.add_argument("--samples", type=int, default=1024, help="training examples of a seed")
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
    dense = measured(graph, held_out)
    print(f"{options.model}, {len(held_out.examples)} examples, dense {dense:.4f}, {cpu_name()}")
    for method in options.methods:
        means = []
        start = time.perf_counter()
        for sparsity in options.sparsity:
            values = []
            for seed in options.seeds:
                data = Batches.open(options.data, task, folder, limit=options.samples, seed=seed)
                text = METHODS.get(method, method)
                if text == PUBLISHED:
                    pruned = published(graph, data, task, sparsity, seed)
                else:
                    passes = f"prune:sparsity={sparsity}" + (f":{text}" if text else "")
                    pruned = PassManager(passes).run(graph, data=data, task=task, seed=seed)
                values.append(measured(pruned, held_out))
            means.append(statistics.mean(values))
            shown = " ".join(f"{value:.4f}" for value in values)
            print(f"{method:28} {sparsity:.0%}  {means[-1]:.4f}  ({shown})", flush=True)
        seconds = (time.perf_counter() - start) / len(options.sparsity) / len(options.seeds)
        mean = statistics.mean(means)
        print(
            f"{method:28} mean {mean:.4f}  dense {mean - dense:+.4f}  {seconds:.0f} s", flush=True
        )


def measured(graph: Graph, held_out: Batches) -> float:
    """The metric of ``graph`` as it is emitted."""
    with tempfile.TemporaryDirectory() as name:
        return evaluate(str(emit(graph, "onnx", Path(name) / "out")), held_out).value


if __name__ == "__main__":
    main()
