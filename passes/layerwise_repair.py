"""The walk of row repair over a graph: layer by layer, on the activations of the pruned part.

A site whose output is added to a residual stream aims at the sum: what earlier layers have already
lost there is added to its target, and it makes up for what of it its inputs can tell.

Two runs over the same examples go side by side, one of the dense graph and one of the pruned graph
(`obert_compiler.passes.graph_stages`). At every stage the second moments of what its sites read are
summed, the kept weights of the sites are solved for (`obert_compiler.passes.row_repair`), and the
pruned run goes on with the new weights: the error of earlier layers is an input of later ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from obert_compiler.passes.row_repair import RowSystem, choose_damping, solve_operations
from obert_compiler.pipeline.processes import Processes

if TYPE_CHECKING:
    from obert_compiler.data.batches import Batches
    from obert_compiler.pipeline.contract import Progress

__all__ = ["LayerwiseRepair", "RowChoice"]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]


_DAMPINGS = 4
"""Choices of the ridge for a site that keeps all its weights, each ten times the one before."""


@dataclass(frozen=True)
class RowChoice:
    """How the groups of one matrix are chosen that its least squares can do without.

    Attributes:
        kept: ``[out, in]``, False for weights that are gone already and stay so.
        group: consecutive inputs that go together.
        importance: ``[out]``, what an error of each output costs, by any measure.
        turns: from the saliencies that are left (minus infinity where a group is gone), the mask of
            all groups that are gone after each turn. Saliencies are computed anew for each.
    """

    kept: BoolArray
    group: int
    importance: npt.NDArray[np.floating]
    turns: Sequence[Callable[[Float64Array], BoolArray]]


@dataclass
class LayerwiseRepair:
    """Repairs a pruned graph towards a dense one.

    Attributes:
        dense: the graph with the weights and activations to aim at. It may have layers that the
            other one lacks.
        data: examples.
        damping: ridge, as a share of the mean diagonal of ``H`` of each site. For sites that keep
            all their weights it is the least one: one half of the rows tells for the other whether
            10, 100 or 1,000 times as much is better.
        held_bytes: bound on activations kept in memory between stages.
        processes: those that share the batches, and the rows of every site.
        choices: of sites whose groups are chosen anew where their repair begins, from the moments
            that it has; in place of their masks.
        operations: multiply-adds of the factorisations of each site.
        choice_operations: those of its choice, an estimate for each turn.
        positions: rows of its least squares.
        dampings: of sites that keep all their weights, what was chosen.
        plain: each matrix aims at its own dense output and not at the sum it is added to, moments
            are not centred, the ridge pulls to zero and the bias follows by the means: the
            least squares that docs/pruning.md compares with.
        constant: sites whose input does not vary; their kept weights are the dense ones.
    """

    dense: Graph
    data: Batches
    damping: float
    held_bytes: int
    processes: Processes = field(default_factory=Processes)
    choices: Mapping[str, RowChoice] = field(default_factory=dict)
    operations: dict[str, int] = field(default_factory=dict)
    choice_operations: dict[str, int] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    dampings: dict[str, float] = field(default_factory=dict)
    constant: list[str] = field(default_factory=list)
    plain: bool = False
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
        # The dense graph may have more layers, and then other names between the sites.
        cuts = [
            cut_into_stages(g, list(found.values()))
            for g, found in ((self.dense, dense), (graph, sites))
        ]
        half = self.held_bytes // 2
        runs = [
            StagedRun(g, cut, self._feeds, half)
            for g, cut in zip((self.dense, graph), cuts, strict=True)
        ]
        pairs = list(zip(*(cut.stages for cut in cuts), strict=True))
        for pair in progress.track(pairs, "layers", len(pairs)):
            groups: dict[_Reads, list[LinearSite]] = {}
            for name in pair[0].sites:
                reads = _Reads.of(name, cuts[0], cuts[1], residual=not self.plain)
                groups.setdefault(reads, []).append(dense[name])
            targets = [
                _Target(
                    group,
                    reads,
                    self.plain,
                    judged=not self.plain and any(self._whole(s, kept[s.name]) for s in group),
                )
                for reads, group in groups.items()
            ]
            self._sum_up(pair, runs, targets)
            for target in targets:
                for name in target.names:
                    self._repair_site(sites[name], target, kept[name])

    def _sum_up(
        self, pair: Sequence[WalkStage], runs: Sequence[StagedRun], targets: Sequence[_Target]
    ) -> None:
        """Add all batches to the moments of ``targets``."""
        stages = zip(runs, pair, strict=True)
        batches = zip(*(run.advance(stage) for run, stage in stages), strict=True)
        for number, values in enumerate(batches):
            mask = self._feeds[number].get("attention_mask")
            dense, pruned = (
                {name: real_rows(array, mask) for name, array in found.items()} for found in values
            )
            for target in targets:
                target.add(pruned, dense)
        for target in targets:
            target.add_up(self.processes)

    def _repair_site(self, site: LinearSite, target: _Target, kept: BoolArray) -> None:
        W, bias = target.starts[site.name], target.biases[site.name]
        self.positions[site.name] = target.moments.rows
        if bias is not None and target.moments.constant:
            self.constant.append(site.name)
            self.operations[site.name] = 0
            repaired = np.where(kept, W, 0.0).astype(np.float64)
        else:
            H, T = target.system(site.name)
            where = f"site '{site.name}'"
            damping = self.damping
            if target.halves and self._whole(site, kept):
                folds = [target.system(site.name, half) for half in target.halves]
                choices = [damping * 10**i for i in range(_DAMPINGS)]
                damping = choose_damping(folds, W, choices, where)
                self.dampings[site.name] = damping
            mine = self._mine
            system = RowSystem(H, T[:, mine], W[mine], damping=damping, where=where)
            if site.name in self.choices:
                kept = self._chosen(site.name, system)
            repaired = self._rows_of_all(system.repaired(kept[mine]), len(W))
            self.operations[site.name] = solve_operations(kept)
        site.set_weight(repaired.astype(np.float32))
        if bias is not None:
            mean, mean_output = target.means(site.name)
            site.set_bias((bias + mean_output - repaired @ mean).astype(np.float32))

    def _whole(self, site: LinearSite, kept: BoolArray) -> bool:
        """Whether a site keeps all its weights."""
        return bool(kept.all()) and site.name not in self.choices

    def _chosen(self, name: str, system: RowSystem) -> BoolArray:
        """Mask ``[out, in]`` of what one site keeps; ``system`` has the rows of this process."""
        choice = self.choices[name]
        kept = choice.kept
        self.choice_operations[name] = 0
        v: Float64Array | None = None
        for turn in choice.turns:
            mine = kept[self._mine]
            v, operations = system.estimated(mine, v)
            self.choice_operations[name] += sum(self.processes.gather(operations))
            rho = self._rows_of_all(system.saliency(v, mine, choice.group), len(kept))
            gone = turn(rho * choice.importance[:, None])
            kept = kept & ~np.repeat(gone, choice.group, axis=1)
        return kept

    @property
    def _mine(self) -> slice:
        """Every process solves for some of the rows."""
        return slice(self.processes.rank, None, self.processes.count)

    def _rows_of_all(self, mine: Float64Array, rows: int) -> Float64Array:
        """The rows of all processes, the same bytes on each."""
        found = np.zeros((rows, mine.shape[1]))
        for rank, part in enumerate(self.processes.gather(mine)):
            found[rank :: self.processes.count] = part
        return found


@dataclass(frozen=True)
class _Reads:
    """Names of the values that sites read in the dense and in the pruned graph.

    The residuals are "" where the target is the output of the site alone.
    """

    dense: str
    pruned: str
    dense_residual: str
    pruned_residual: str

    @classmethod
    def of(cls, name: str, dense: GraphStages, pruned: GraphStages, residual: bool) -> _Reads:
        """Those of one site."""
        found = [cut.residuals.get(name, "") if residual else "" for cut in (dense, pruned)]
        beside = found if all(found) else ["", ""]
        return cls(dense.inputs[name], pruned.inputs[name], *beside)


class _Target:
    """Sites that read the same input and add to the same residual, what they aim at, their moments.

    The dense inputs serve all of them; where their outputs together are narrower, or there is a
    residual, the dense outputs (without bias) are summed instead.
    """

    def __init__(
        self, sites: Sequence[LinearSite], reads: _Reads, plain: bool, judged: bool
    ) -> None:
        self.names = [site.name for site in sites]
        self.weights = {site.name: site.weight() for site in sites}
        # What the ridge pulls to.
        self.starts = {n: np.zeros_like(W) if plain else W for n, W in self.weights.items()}
        self.biases = {site.name: site.bias() for site in sites}
        self._reads, self._plain = reads, plain
        ends = np.cumsum([0, *(len(W) for W in self.weights.values())])
        self._columns = {
            name: slice(a, b) for name, a, b in zip(self.names, ends[:-1], ends[1:], strict=True)
        }
        width = sites[0].shape[1]
        self._outputs = bool(reads.dense_residual) or int(ends[-1]) < width
        target_width = int(ends[-1]) if self._outputs else width
        self.moments = ActivationMoments(width, target_width)
        # Every other row, so that the halves are the same with any number of processes.
        self.halves = [ActivationMoments(width, target_width) for _ in range(2 if judged else 0)]

    def add(self, pruned: Mapping[str, FloatArray], dense: Mapping[str, FloatArray]) -> None:
        """Add rows of both models, by name of the value."""
        reads = self._reads
        x, aim = pruned[reads.pruned], dense[reads.dense]
        if self._outputs:
            aim = np.concatenate([aim @ W.T for W in self.weights.values()], axis=1)
        if reads.dense_residual:
            lost = dense[reads.dense_residual] - pruned[reads.pruned_residual]
            aim += np.tile(lost, (1, len(self.names)))
        if not (np.isfinite(x).all() and np.isfinite(aim).all()):
            raise NumericsError(
                f"site '{self.names[0]}': expected finite activations in the pruned model, found "
                "NaN or infinity; lower the sparsity, or raise repair_damping"
            )
        if not self.halves:
            self.moments.add(x, aim)
        for number, half in enumerate(self.halves):
            half.add(x[number::2], aim[number::2])

    def add_up(self, processes: Processes) -> None:
        """Bring together what all batches of all processes have added."""
        for moments in self.halves or [self.moments]:
            moments.add_up(processes.sum)
        for half in self.halves:
            self.moments.add_moments(half)

    def system(
        self, name: str, moments: ActivationMoments | None = None
    ) -> tuple[Float64Array, Float64Array]:
        """``H`` and ``T`` of one site, centred where its bias is solved for along with it.

        ``moments`` are those of all rows unless given.
        """
        centred = self.biases[name] is not None and not self._plain
        H, C = (moments or self.moments).second(centred)
        return H, C[:, self._columns[name]] if self._outputs else C @ self.weights[name].T

    def means(self, name: str) -> tuple[Float64Array, Float64Array]:
        """Mean input of the pruned model, and mean dense output of one site without its bias."""
        mean, aim = self.moments.means()
        return mean, aim[self._columns[name]] if self._outputs else self.weights[name] @ aim
