"""The one-shot pruning methods that benchmarks/pruning.py compares.

A method is a name of `METHODS` or the options of ``prune`` as text
(``steps=1:repair_samples=2048``), followed by other passes or not (``sparsity=0.8,quant``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import TYPE_CHECKING

from obert_compiler import Graph
from obert_compiler.passes.layerwise_repair import LayerwiseRepair
from obert_compiler.passes.prune import Prune
from obert_compiler.pipeline.contract import Context, Pass
from obert_compiler.pipeline.registry import passes_from_text

if TYPE_CHECKING:
    from obert_compiler.data.batches import Batches
    from obert_compiler.pipeline.processes import Processes

__all__ = ["METHODS", "pruned_at"]

PLAIN = "plain:"
_DISTIL = "finetune:steps=300:hidden=1.0:learning_rate=3e-4:evaluate=false"
_AS_TRIED = "repair_samples=768:absolute_damping=1e-7:repair_head=false"
_RANKED = "choice=single"
METHODS = {
    "magnitude": "method=magnitude",
    "oBERT, as published": "repair=sum:absolute_damping=1e-7",
    "oBERT, joint": "repair=fisher:absolute_damping=1e-7",
    "oBERT, greedy": "repair=fisher:choice=greedy:absolute_damping=1e-7",
    "A": f"{PLAIN}{_RANKED}:steps=1:{_AS_TRIED}",
    "B": f"{PLAIN}{_RANKED}:steps=0.5+0.7+0.8+0.85+0.9:{_AS_TRIED}",
    "default": "",
    "default, one step": "steps=1",
    "default, one step, 2 turns": "steps=1:turns=2",
    "default, one step, 8 turns": "steps=1:turns=8",
    "default, without the head": "repair_head=false",
    "default, single weights": "block=1",
    "default, 2 of 4": "nm=2of4",
    "default, then 300 steps of distillation": f",{_DISTIL}",
    "ranked": f"{_RANKED}:steps=1",
    "ranked, in steps": _RANKED,
    "ranked, 2 even steps": f"{_RANKED}:steps=2",
    "ranked, 4 even steps": f"{_RANKED}:steps=4",
    "ranked, 8 even steps": f"{_RANKED}:steps=8",
    "ranked, in steps, single weights": f"{_RANKED}:block=1",
    "ranked, 2 of 4": f"{_RANKED}:nm=2of4",
    "ranked, then 300 steps of distillation": f"{_RANKED}:steps=1,{_DISTIL}",
    "ranked, in steps, then 300 steps of distillation": f"{_RANKED},{_DISTIL}",
    "ranked, without the head": f"{_RANKED}:steps=1:repair_head=false",
    "ranked, in steps, without the head": f"{_RANKED}:repair_head=false",
    "greedy, without the head": "choice=greedy:steps=1:repair_head=false",
    "greedy, in steps, without the head": "choice=greedy:repair_head=false",
    "cumulative, without the head": "choice=cumulative:steps=1:repair_head=false",
    "cumulative, in steps, without the head": "choice=cumulative:repair_head=false",
}
"""Of oBERT: Fisher blocks of 32, 1,024 gradients of one example each, damping 1e-7. "Ranked" are
those that take what a ranking by the Fisher over all matrices takes. A and B do as well, and repair
each matrix towards its own dense output from 768 examples, ridge 1e-3 towards zero, bias by means;
A chooses once, B in steps."""


class PlainPrune(Prune):
    """``prune`` with plain least squares for each matrix."""

    def row_repair(self, dense: Graph, data: Batches, processes: Processes) -> LayerwiseRepair:
        """See `LayerwiseRepair.plain`."""
        return replace(super().row_repair(dense, data, processes), plain=True)


def pruned_at(
    graph: Graph, method: str, context: Context, levels: list[float]
) -> Iterator[tuple[float, Graph]]:
    """The pruned graph at each of ``levels``, in the order in which they are reached.

    A method in steps passes lower levels on its way, with the same result as if they were the goal.
    """
    text = METHODS.get(method, method)
    prune, after = _passes(text)
    waiting = sorted(levels)
    while waiting:
        goal = waiting[-1]
        run = replace(prune, sparsity=goal)
        for way, result in zip(run.ways, run.descend(graph.copy(), context), strict=True):
            reached = [x for x in waiting if math.isclose(x, 1 - (1 - goal) ** way)]
            for level in reached:
                waiting.remove(level)
                yield level, _followed(result.graph, after, context)


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
