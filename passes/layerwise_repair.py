"""The walk of row repair over a graph: layer by layer, on the activations of the pruned part.

A site whose output is added to a residual stream aims at the sum: what earlier layers have already
lost there is added to its target, and it makes up for what of it its inputs can tell.

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
from obert_compiler.passes.graph_stages import StagedRun, WalkStage, cut_into_stages
from obert_compiler.passes.row_repair import repair_rows, solve_operations
from obert_compiler.pipeline.processes import Processes

if TYPE_CHECKING:
    from obert_compiler.data.batches import Batches
    from obert_compiler.pipeline.contract import Progress

__all__ = ["LayerwiseRepair"]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]


@dataclass
class LayerwiseRepair:
    """Repairs a pruned graph towards a dense one.

    Attributes:
        dense: the graph with the weights and activations to aim at.
        data: examples.
        damping: ridge, as a share of the mean diagonal of ``H`` of each site.
        held_bytes: bound on activations kept in memory between stages.
        processes: those that share the batches, and the rows of every site.
        operations: multiply-adds of the factorisations of each site.
        positions: rows of its least squares.
        constant: sites whose input does not vary; their kept weights are the dense ones.
    """

    dense: Graph
    data: Batches
    damping: float
    held_bytes: int
    processes: Processes = field(default_factory=Processes)
    operations: dict[str, int] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    constant: list[str] = field(default_factory=list)
    _feeds: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = [value.name or "" for value in self.dense.model.graph.inputs]
        self._feeds = [batch.feed(names) for batch in self.processes.share(self.data)]

    def repair(self, graph: Graph, kept: Mapping[str, BoolArray], progress: Progress) -> None:
        """Set the weights and biases of the sites in ``kept`` (masks ``[out, in]``).

        Raises:
            NumericsError: activations are not finite, or a site has no input that differs from 0.
        """
        sites = {s.name: s for s in find_linear_sites(graph) if s.name in kept}
        dense = {s.name: s for s in find_linear_sites(self.dense) if s.name in kept}
        stages = cut_into_stages(graph, list(sites.values()))
        half = self.held_bytes // 2
        runs = [StagedRun(g, stages, self._feeds, half) for g in (self.dense, graph)]
        for stage in progress.track(stages.stages, "layers", len(stages.stages)):
            groups: dict[tuple[str, str], list[LinearSite]] = {}
            for name in stage.sites:
                key = stages.inputs[name], stages.residuals.get(name, "")
                groups.setdefault(key, []).append(dense[name])
            targets = [_Target(group, *key) for key, group in groups.items()]
            self._sum_up(stage, runs, targets)
            for target in targets:
                for name in target.names:
                    self._repair_site(sites[name], target, kept[name])

    def _sum_up(
        self, stage: WalkStage, runs: Sequence[StagedRun], targets: Sequence[_Target]
    ) -> None:
        """Add all batches to the moments of ``targets``."""
        batches = zip(*(run.advance(stage) for run in runs), strict=True)
        for number, values in enumerate(batches):
            mask = self._feeds[number].get("attention_mask")
            dense, pruned = (
                {name: real_rows(array, mask) for name, array in found.items()} for found in values
            )
            for target in targets:
                target.add(pruned, dense)
        for target in targets:
            target.moments.add_up(self.processes.sum)

    def _repair_site(self, site: LinearSite, target: _Target, kept: BoolArray) -> None:
        W, bias = target.weights[site.name], target.biases[site.name]
        self.positions[site.name] = target.moments.rows
        if bias is not None and target.moments.constant:
            self.constant.append(site.name)
            self.operations[site.name] = 0
            repaired = np.where(kept, W, 0.0).astype(np.float64)
        else:
            H, T = target.system(site.name)
            where = f"site '{site.name}'"
            repaired = np.zeros(kept.shape)
            # Every process solves for some of the rows, and all get the same bytes.
            mine = slice(self.processes.rank, None, self.processes.count)
            part = repair_rows(
                H, T[:, mine], kept[mine], W[mine], damping=self.damping, where=where
            )
            for rank, rows in enumerate(self.processes.gather(part)):
                repaired[rank :: self.processes.count] = rows
            self.operations[site.name] = solve_operations(kept)
        site.set_weight(repaired.astype(np.float32))
        if bias is not None:
            mean, mean_output = target.means(site.name)
            site.set_bias((bias + mean_output - repaired @ mean).astype(np.float32))


class _Target:
    """Sites that read the same input and add to the same residual, what they aim at, their moments.

    The dense inputs serve all of them; where their outputs together are narrower, or there is a
    residual, the dense outputs (without bias) are summed instead.
    """

    def __init__(self, sites: Sequence[LinearSite], input_name: str, residual: str) -> None:
        self.names = [site.name for site in sites]
        self.weights = {site.name: site.weight() for site in sites}
        self.biases = {site.name: site.bias() for site in sites}
        self._input, self._residual = input_name, residual
        ends = np.cumsum([0, *(len(W) for W in self.weights.values())])
        self._columns = {
            name: slice(a, b) for name, a, b in zip(self.names, ends[:-1], ends[1:], strict=True)
        }
        width = sites[0].shape[1]
        self._outputs = bool(residual) or int(ends[-1]) < width
        self.moments = ActivationMoments(width, int(ends[-1]) if self._outputs else width)

    def add(self, pruned: Mapping[str, FloatArray], dense: Mapping[str, FloatArray]) -> None:
        """Add rows of both models, by name of the value."""
        x, aim = pruned[self._input], dense[self._input]
        if self._outputs:
            aim = np.concatenate([aim @ W.T for W in self.weights.values()], axis=1)
        if self._residual:
            lost = dense[self._residual] - pruned[self._residual]
            aim += np.tile(lost, (1, len(self.names)))
        if not (np.isfinite(x).all() and np.isfinite(aim).all()):
            raise NumericsError(
                f"site '{self.names[0]}': expected finite activations in the pruned model, found "
                "NaN or infinity; lower the sparsity, or raise repair_damping"
            )
        self.moments.add(x, aim)

    def system(self, name: str) -> tuple[Float64Array, Float64Array]:
        """``H`` and ``T`` of one site, centred where it has a bias."""
        H, C = self.moments.second(centred=self.biases[name] is not None)
        return H, C[:, self._columns[name]] if self._outputs else C @ self.weights[name].T

    def means(self, name: str) -> tuple[Float64Array, Float64Array]:
        """Mean input of the pruned model, and mean dense output of one site without its bias."""
        mean, aim = self.moments.means()
        return mean, aim[self._columns[name]] if self._outputs else self.weights[name] @ aim
