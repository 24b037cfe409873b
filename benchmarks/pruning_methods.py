"""The one-shot pruning methods that benchmarks/pruning.py compares.

A method is a name of `METHODS` or the options of ``prune`` as text
(``steps=1:repair_samples=2048``), followed by other passes or not (``sparsity=0.8,quant``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import numpy as np

from obert_compiler import Graph
from obert_compiler.passes.fisher_matrix import FisherMatrix
from obert_compiler.passes.layerwise_repair import LayerwiseRepair
from obert_compiler.passes.prune import Prune
from obert_compiler.passes.site_selection import select_sites
from obert_compiler.passes.sparsity_allocation import choose_lowest, groups_to_remove
from obert_compiler.pipeline.contract import Context, Pass
from obert_compiler.pipeline.registry import passes_from_text

if TYPE_CHECKING:
    from obert_compiler.data.batches import Batches
    from obert_compiler.pipeline.processes import Processes

__all__ = ["METHODS", "pruned_at"]

PUBLISHED = "published"
PLAIN = "plain:"
_AS_TRIED = "repair_samples=768:absolute_damping=1e-7"
METHODS = {
    "magnitude": "method=magnitude",
    "oBERT, as published": PUBLISHED,
    "oBERT, joint": "repair=fisher:absolute_damping=1e-7",
    "oBERT, greedy": "repair=fisher:choice=greedy:absolute_damping=1e-7",
    "A": f"{PLAIN}steps=1:{_AS_TRIED}",
    "B": f"{PLAIN}steps=0.5+0.7+0.8+0.85+0.9:{_AS_TRIED}",
    "default, one step": "steps=1",
    "greedy, one step": "choice=greedy:steps=1",
    "cumulative, one step": "choice=cumulative:steps=1",
    "default": "",
    "greedy": "choice=greedy",
    "cumulative": "choice=cumulative",
}
"""Of oBERT: Fisher blocks of 32, 1,024 gradients of one example each, damping 1e-7. A and B repair
each matrix towards its own dense output from 768 examples, ridge 1e-3 towards zero, bias by means;
A chooses once, B in steps."""
_GROUP = 4


class PlainPrune(Prune):
    """``prune`` with plain least squares for each matrix."""

    def row_repair(self, dense: Graph, data: Batches, processes: Processes) -> LayerwiseRepair:
        """See `LayerwiseRepair.plain`."""
        return replace(super().row_repair(dense, data, processes), plain=True)


def pruned_at(
    graph: Graph, method: str, context: Context, levels: list[float]
) -> Iterator[tuple[float, Graph]]:
    """The pruned graph at each of ``levels`` (rising), in the order in which they are reached.

    A method in steps passes lower levels on its way, with the same result as if they were the goal.
    """
    text = METHODS.get(method, method)
    if text == PUBLISHED:
        yield from ((level, published(graph, context, level)) for level in levels)
        return
    prune, after = _passes(text)
    waiting = list(levels)
    while waiting:
        in_steps = len(replace(prune, sparsity=waiting[-1]).ways) > 1
        goal = waiting[-1] if in_steps else waiting[0]
        below = sorted(step for step in map(float, prune.steps) if step < goal)
        reached = [*below, goal] if in_steps else [goal]
        run = replace(prune, sparsity=goal).descend(graph.copy(), context)
        for level, result in zip(reached, run, strict=True):
            if level in waiting:
                yield level, _followed(result.graph, after, context)
        waiting = [x for x in waiting if x not in reached]


def _passes(text: str) -> tuple[Prune, list[Pass]]:
    plain = text.startswith(PLAIN)
    options, comma, after = text.removeprefix(PLAIN).partition(",")
    first, *rest = passes_from_text("prune" + (f":{options}" if options else "") + comma + after)
    if not isinstance(first, Prune):
        raise TypeError(f"expected 'prune' first, found {first}")
    given = {f.name: getattr(first, f.name) for f in fields(first)}
    return PlainPrune(**given) if plain else first, rest


def _followed(graph: Graph, after: list[Pass], context: Context) -> Graph:
    """A copy with the passes ``after`` run on it."""
    graph = graph.copy()
    for step in after:
        graph = step.run(graph, context).graph
    return graph


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
