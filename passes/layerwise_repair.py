"""The walk of row repair over a graph: layer by layer, on the activations of the pruned part.

Two runs over the same examples go side by side, one of the dense graph and one of the pruned graph
(`obert_compiler.passes.graph_stages`). At every stage the second moments of what its sites read are
summed, the kept weights of the sites are solved for (`obert_compiler.passes.row_repair`), and the
pruned run goes on with the new weights: the error of earlier layers is an input of later ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from obert_compiler.errors import NumericsError
from obert_compiler.graph.graph import Graph
from obert_compiler.graph.linear import LinearSite, find_linear_sites
from obert_compiler.passes.activation_moments import ActivationMoments
from obert_compiler.passes.calibration_run import real_rows
from obert_compiler.passes.graph_stages import GraphStages, StagedRun, WalkStage, cut_into_stages
from obert_compiler.passes.row_repair import repair_rows, solve_operations

if TYPE_CHECKING:
    from obert_compiler.data.batches import Batches
    from obert_compiler.pipeline.contract import Progress

__all__ = ["LayerwiseRepair"]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]


@dataclass
class LayerwiseRepair:
    """Repairs a pruned graph towards a dense one.

    Attributes:
        dense: the graph with the weights and activations to aim at.
        data: examples.
        damping: ridge, as a share of the mean diagonal of ``H`` of each site.
        held_bytes: bound on activations kept in memory between stages.
        importance: for each site the weight of every position in the least squares, batch by
            batch, ``[batch, positions]``; None counts all alike.
        operations: multiply-adds of the factorisations of each site.
        rows: positions in the least squares.
    """

    dense: Graph
    data: Batches
    damping: float
    held_bytes: int
    importance: Mapping[str, Sequence[FloatArray]] | None = None
    operations: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    _feeds: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = [value.name or "" for value in self.dense.model.graph.inputs]
        self._feeds = [batch.feed(names) for batch in self.data]

    def repair(self, graph: Graph, kept: Mapping[str, BoolArray], progress: Progress) -> None:
        """Set the weights and biases of the sites in ``kept`` (masks ``[out, in]``).

        Raises:
            NumericsError: activations are not finite, or a site has no input that differs from 0.
        """
        sites = {s.name: s for s in find_linear_sites(graph) if s.name in kept}
        dense = {s.name: s for s in find_linear_sites(self.dense) if s.name in kept}
        stages = cut_into_stages(graph, list(sites.values()))
        runs = [
            StagedRun(g, stages, self._feeds, self.held_bytes // 2) for g in (self.dense, graph)
        ]
        for stage in progress.track(stages.stages, "layers", len(stages.stages)):
            moments = self._moments(stages, stage, runs)
            for name in stage.sites:
                self._repair_site(
                    sites[name], dense[name], kept[name], moments[self._key(stages, name)]
                )

    def _key(self, stages: GraphStages, site: str) -> str:
        return stages.inputs[site] if self.importance is None else site

    def _moments(
        self,
        stages: GraphStages,
        stage: WalkStage,
        runs: Sequence[StagedRun],
    ) -> dict[str, ActivationMoments]:
        """Moments of the inputs of a stage, one for all sites that read the same input."""
        moments: dict[str, ActivationMoments] = {}
        batches = zip(*(run.advance(stage) for run in runs), strict=True)
        for number, (wanted, found) in enumerate(batches):
            mask = self._feeds[number].get("attention_mask")
            done: set[str] = set()
            for name in stage.sites:
                key = self._key(stages, name)
                if key in done:
                    continue
                done.add(key)
                x_dense, x = real_rows(wanted[name], mask), real_rows(found[name], mask)
                if not np.isfinite(x).all():
                    raise NumericsError(
                        f"site '{name}': expected finite activations in the pruned model, found "
                        "NaN or infinity; lower the sparsity, or raise the damping"
                    )
                weights = None
                if self.importance is not None:
                    weights = real_rows(self.importance[name][number][..., None], mask)[:, 0]
                if key not in moments:
                    moments[key] = ActivationMoments(x.shape[-1])
                moments[key].add(x, x_dense, weights)
        return moments

    def _repair_site(
        self, site: LinearSite, dense: LinearSite, kept: BoolArray, moments: ActivationMoments
    ) -> None:
        W = dense.weight()
        bias = dense.bias()
        moments.flush()
        self.rows = max(self.rows, moments.rows)
        H, C = (moments.H, moments.C) if bias is None else moments.centred()
        repaired = repair_rows(
            H,
            C @ W.T.astype(np.float64),
            kept,
            W,
            damping=self.damping,
            where=f"site '{site.name}'",
        )
        site.set_weight(repaired.astype(np.float32))
        self.operations[site.name] = solve_operations(kept)
        if bias is not None:
            mean, mean_dense = moments.means()
            site.set_bias((bias + W @ mean_dense - repaired @ mean).astype(np.float32))
