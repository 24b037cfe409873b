"""The pass ``fisher``: estimates the block-diagonal empirical Fisher of the Linear sites.

oBERT (arXiv 2203.07259, section 3.2) averages ``g g^T`` over gradients of mini-batches and updates
the inverse once per gradient. Here every example gives a gradient, all from one batched forward and
backward pass, and F itself is summed by batched GEMMs (`obert_compiler.passes.fisher_gradients`);
it is inverted once, by whoever reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from obert_compiler.errors import NumericsError, UsageError
from obert_compiler.graph.graph import Graph, Stage
from obert_compiler.passes.fisher_blocks import BlockLayout
from obert_compiler.passes.fisher_estimation import Estimation, group_sites
from obert_compiler.passes.fisher_objective import Objective
from obert_compiler.passes.fisher_statistics import FisherStatistics
from obert_compiler.passes.site_selection import select_sites
from obert_compiler.pipeline.contract import Context, Pass, PassResult, Skip

if TYPE_CHECKING:
    from obert_compiler.data.batches import Batch, Batches
    from obert_compiler.graph.linear import LinearSite

__all__ = ["Fisher"]

_GB = 10**9


@dataclass(frozen=True)
class Fisher(Pass):
    """Estimate second-order information; leaves ``context.statistics["fisher"]``.

    ``context.statistics["fisher_pass"]`` is the pass itself, for whoever estimates again.

    Attributes:
        samples: examples drawn from the data, one gradient each.
        block: weights per Fisher block.
        memory: bound in GB (10^9 bytes) on what the estimation adds to a forward and backward pass:
            the triangles of F, recorded activations and gradients. Sites that do not fit together
            are estimated in groups, each by forward and backward passes of its own.
        labels: ``data`` takes the labels of the data (empirical Fisher), ``model`` draws them from
            the model's own predictions (true Fisher), ``auto`` takes ``data`` where there are any.
        include: patterns of sites to estimate instead of those in encoder layers.
        exclude: patterns of sites to leave out.
    """

    name: ClassVar[str] = "fisher"
    summary: ClassVar[str] = "estimate the block-diagonal Fisher from per-example gradients"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.DENSE, Stage.PRUNED})

    samples: int = 1024
    block: int = 32
    memory: float = 8.0
    labels: Literal["auto", "data", "model"] = "auto"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UsageError(f"fisher: expected samples of at least 1, found {self.samples}")
        if self.block < 1:
            raise UsageError(f"fisher: expected a block of at least 1, found {self.block}")
        if not 0 < self.memory < float("inf"):
            raise UsageError(f"fisher: expected memory in GB above 0, found {self.memory}")
        if self.labels not in {"auto", "data", "model"}:
            raise UsageError(f"fisher: expected labels auto, data or model, found '{self.labels}'")

    @property
    def needs_data(self) -> bool:
        """Always."""
        return True

    def requires(self, graph: Graph) -> None:
        """Check that there are sites to estimate.

        Raises:
            UsageError: a pattern matches none.
            GraphError: no site is left.
        """
        select_sites(graph, self.include, self.exclude)

    def leaves_alone(self, graph: Graph) -> tuple[Skip, ...]:
        """Sites outside the encoder layers, or not chosen by ``include`` and ``exclude``."""
        return select_sites(graph, self.include, self.exclude)[1]

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Estimate, and write the statistics into ``context.work``.

        Raises:
            UsageError: no data, or ``memory`` does not hold one site.
            NumericsError: a loss or a gradient is not finite.
        """
        import torch

        from obert_compiler.backends.torch.module import to_module

        if context.data is None:
            raise UsageError("fisher: expected data, found none; give --data FILE")
        sites, skips = select_sites(graph, self.include, self.exclude)
        _check_weights(sites)
        data = context.data.take(self.samples, context.seed)
        if len(data.examples) < self.samples:
            context.progress.say(
                f"fisher: the data has {len(data.examples)} examples, fewer than "
                f"samples={self.samples}"
            )
        module = to_module(graph)
        module.eval().requires_grad_(False)
        if torch.cuda.is_available():
            module.to(torch.device("cuda", context.processes.local_rank))
        objective = Objective(graph, context.task, self._draws_labels(data, context), context.seed)
        layouts = {s.name: BlockLayout(*s.shape, self.block) for s in sites}
        bound = int(self.memory * _GB)
        largest = _positions(next(iter(data)))
        groups = group_sites(layouts, bound, {s.name: largest * len(s.nodes) for s in sites})
        if len(groups) > 1:
            context.progress.say(
                f"fisher: {len(sites)} sites in {len(groups)} groups to stay below "
                f"memory={self.memory:g} GB; each takes forward and backward passes of its own"
            )
        processes = context.processes
        statistics = FisherStatistics.create(
            context.work, self.block, layouts, empty=processes.writer
        )
        processes.wait()
        run = Estimation(module, module.linear_sites, objective, data, bound, statistics, processes)
        for number, names in enumerate(groups, start=1):
            what = "fisher" if len(groups) == 1 else f"fisher {number} of {len(groups)}"
            group = {name: layout for name, layout in layouts.items() if name in names}
            run.estimate(group, context.progress, what)
        run.finish()
        context.statistics.update(fisher=statistics, fisher_pass=self)
        report = {
            "examples": len(data.examples),
            "labels": objective.describe(),
            "block": self.block,
            "sites": len(sites),
            "blocks": sum(layout.count for layout in layouts.values()),
            "bytes_on_disk": sum(statistics.bytes_of(name) for name in layouts),
            "memory_bound_bytes": bound,
            "memory_used_bytes": run.peak_bytes,
            "traffic_bytes": run.traffic_bytes,
            "groups": len(groups),
            "seconds": {kind: round(seconds, 3) for kind, seconds in run.seconds.items()},
            "dead_inputs": run.dead_inputs,
        }
        notes = (*skips, *run.skips, *_uses_with_constants(sites))
        return PassResult(graph, False, report, notes)

    def restore(self, context: Context) -> None:
        """Re-open the statistics that an interrupted run left.

        Raises:
            ArtefactError: they are missing or damaged.
        """
        if context.work is not None:
            context.statistics["fisher"] = FisherStatistics.open(context.work)
            context.statistics["fisher_pass"] = self

    def _draws_labels(self, data: Batches, context: Context) -> bool:
        """Whether labels are drawn from the model."""
        known = context.task is not None and data.labelled
        if self.labels == "data" and not known:
            raise UsageError(
                f"fisher: expected labels in the data (labels=data), found none in {data.origin}; "
                "give data with labels, or labels=model"
            )
        return self.labels == "model" or not known


def _uses_with_constants(sites: Sequence[LinearSite]) -> list[Skip]:
    """Sites whose weight also multiplies a constant (DeBERTa's relative positions).

    The product is one for the whole batch, and so is its gradient.
    """
    reason = "its product with a constant has one gradient for the whole batch, which is left out"
    return [
        Skip(site.name, reason)
        for site in sites
        if any(use.node not in site.nodes for use in site.weight_value.uses())
    ]


def _check_weights(sites: Sequence[LinearSite]) -> None:
    for site in sites:
        if not np.isfinite(site.weight()).all():
            raise NumericsError(
                f"site '{site.name}': expected finite weights, found NaN or infinity; repair the "
                "model before compressing it"
            )


def _positions(batch: Batch) -> int:
    """Positions of a batch: examples times tokens."""
    first = next(iter(batch.inputs.values()))
    return int(np.prod(first.shape[:2])) if first.ndim > 1 else int(first.shape[0])
