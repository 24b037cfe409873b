"""The pass ``finetune``: trains what pruning has left, towards a teacher and the labels.

oBERT (arXiv 2203.07259, section 4) trains with the teacher's predictions alone; so does the default
here (``hardness=1``), with the graph before the passes as teacher, which needs no labels. Pruned
weights are held at exactly zero (`obert_compiler.passes.training.masks`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from obert_compiler.graph.graph import Graph, Stage
from obert_compiler.passes.training import TrainingOptions, train
from obert_compiler.pipeline.contract import Context, PassResult, Skip

__all__ = ["Finetune"]


@dataclass(frozen=True)
class Finetune(TrainingOptions):
    """Train all parameters, pruned weights held at zero; distils from the graph before the passes,
    or from --teacher.
    """

    name: ClassVar[str] = "finetune"
    summary: ClassVar[str] = "train with a teacher and the labels, pruned weights held at zero"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.DENSE, Stage.PRUNED})

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Train, in place.

        Raises:
            as `obert_compiler.passes.training.train`.
        """
        result = train(graph, context, self, name=self.name)
        skips: tuple[Skip, ...] = ()
        if not result.report["masked_sparsity"]:
            skips = (Skip("masks", "no weight is pruned: all of them train"),)
        return PassResult(graph, result.steps > 0, result.report, skips)
