"""The pass ``prune``: removes the weights that cost least, and repairs the others.

A ranking of groups over all matrices by the block-diagonal Fisher, as in oBERT (arXiv 2203.07259),
says how many each matrix loses. What is left moves to the least squares of whole rows, on what the
pruned layers before them give (`obert_compiler.passes.layerwise_repair`), and which groups go is
decided there as well (``choice=rows``), unless the ranking itself is taken (``choice=single``).
oBERT moves weights inside a Fisher block, by a sum over groups (``repair=sum``); ``repair=fisher``
has the joint optimum for all groups of the block. docs/pruning.md has the measurements behind the
defaults.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from obert_compiler.errors import GraphError, NumericsError, UsageError
from obert_compiler.graph.graph import Graph, Stage
from obert_compiler.graph.linear import find_linear_sites
from obert_compiler.passes.fisher import Fisher
from obert_compiler.passes.fisher_matrix import FisherMatrix
from obert_compiler.passes.layerwise_repair import LayerwiseRepair, RowChoice
from obert_compiler.passes.prune_options import PruneOptions, read_nm, read_override
from obert_compiler.passes.saliency import group_is_pruned, magnitude_saliency
from obert_compiler.passes.site_selection import matching, select_sites, sites_behind
from obert_compiler.passes.sparsity_allocation import (
    choose_all_but,
    choose_groups,
    choose_n_of_m,
    groups_left_by_turn,
)
from obert_compiler.pipeline.contract import Context, Pass, PassResult, Skip

if TYPE_CHECKING:
    from obert_compiler.data.batches import Batches
    from obert_compiler.graph.linear import LinearSite
    from obert_compiler.pipeline.processes import Processes

__all__ = ["Prune"]

_FISHER_BLOCK = 32
_GB = 10**9
_SEVERAL = "its weight is used several times, and repair=rows knows one input"
_CONSTANT = (
    "its input is the same at every position of the pruned model: only its bias was repaired"
)

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Prune(PruneOptions):
    """Set the least important weights of the Linear sites to exactly zero.

    `PruneOptions` has the attributes.
    """

    name: ClassVar[str] = "prune"
    summary: ClassVar[str] = "remove the weights that cost least and repair the others"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.DENSE, Stage.PRUNED})
    produces: ClassVar[Stage | None] = Stage.PRUNED

    @property
    def needs_data(self) -> bool:
        """For the least squares of ``repair=rows``."""
        return self.repaired_by == "rows"

    def prerequisites(self, done: Sequence[Pass]) -> tuple[Pass, ...]:
        """A ``fisher`` of the weights as they are now.

        Raises:
            UsageError: a group does not divide the blocks of the ``fisher`` that was asked for.
        """
        if self.method != "fisher":
            return ()
        if done and isinstance(done[-1], Fisher):
            if done[-1].block % self.group:
                raise UsageError(
                    f"prune: expected Fisher blocks of a multiple of {self.group} weights, found "
                    f"block={done[-1].block} of 'fisher'; make it {_fisher_block(self.group)}"
                )
            return ()
        block = _fisher_block(self.span)
        return (Fisher(self.samples, block, include=self.include, exclude=self.exclude),)

    def requires(self, graph: Graph) -> None:
        """Check sites and that groups divide their rows.

        Raises:
            UsageError: a pattern matches no site, or a group does not divide a row.
            GraphError: no site is left.
        """
        sites, _ = select_sites(graph, self.include, self.exclude)
        names = [site.name for site in sites]
        for item in self.override:
            matching(read_override(item)[0], names, "override")
        for site in sites:
            columns = site.shape[1]
            if columns % self.span:
                option = f"block={self.block}" if self.nm is None else f"nm={self.nm}"
                raise UsageError(
                    f"prune: expected {option} to divide the {columns} inputs of site "
                    f"'{site.name}', found a rest of {columns % self.span}; choose a divisor of "
                    f"{columns}, or exclude={site.name}"
                )

    def leaves_alone(self, graph: Graph) -> tuple[Skip, ...]:
        """Sites outside the encoder layers, or not chosen by ``include`` and ``exclude``."""
        return select_sites(graph, self.include, self.exclude)[1]

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Prune in place.

        Raises:
            NumericsError: weights or activations are not finite, or a Fisher block or the moments
                of a site are not positive definite.
            GraphError: there are no statistics for a site.
            UsageError: there are no data for ``repair=rows``.
        """
        *_, result = self.descend(graph, context)
        return result

    def descend(
        self, graph: Graph, context: Context, aim: Graph | None = None
    ) -> Iterator[PassResult]:
        """As `run`, with the result after every step: ``graph`` is then what it says.

        ``repair=rows`` brings the activations to those of ``aim``, by default ``graph`` as it came.
        """
        sites, skips = select_sites(graph, self.include, self.exclude)
        names = [site.name for site in sites]
        kept = {site.name: np.asarray(site.weight() != 0) for site in sites}
        before = {name: _groups_without(mask, self.group) for name, mask in kept.items()}
        dense = graph.copy() if aim is None else aim
        self._check_gradients(sites, context)
        for number, way in enumerate(self.ways):
            if number:
                context.progress.say(f"prune: step {number + 1} of {len(self.ways)}")
                context = self._estimated_again(graph, context)
            ranked = self._ranked(sites, context)
            chosen = self._choose(names, [ranked[name].saliency for name in names], way)
            masks = dict(zip(names, chosen, strict=True))
            choices = self._row_choices(kept, ranked, masks)
            del ranked
            figures, head, left = self._repair(graph, dense, masks, choices, context)
            notes = [_told_of_head(skip, head) for skip in skips] + left
            for site in sites:
                mask, pruned = masks[site.name], before[site.name]
                if int(mask.sum()) < pruned:
                    share = pruned / mask.size
                    reason = f"already at sparsity {share:.4f}, above its target"
                    notes.append(Skip(site.name, reason))
                figures[site.name].update(_zeros(site.weight(), self.group))
            report = self._totals(number + 1, figures) | {"head_repaired": head}
            changed = report["groups_removed"] > sum(before.values())
            yield PassResult(graph, changed, report, tuple(notes))

    def _totals(self, steps: int, sites: dict[str, dict[str, Any]]) -> dict[str, Any]:
        groups = sum(figures["groups"] for figures in sites.values())
        removed = sum(figures["groups_removed"] for figures in sites.values())
        return {
            "sparsity": removed / groups,
            "groups": groups,
            "groups_removed": removed,
            "group": self.group,
            "method": self.method,
            "choice": self.chosen_by if self.method == "fisher" else None,
            "repair": self.repaired_by,
            "steps": steps,
            "predicted_loss_increase": _total(sites, "predicted_loss_increase"),
            "sites": sites,
        }

    def ensures(self, result: PassResult) -> None:
        """Count the zero groups again.

        Raises:
            GraphError: a site has fewer or more than the report says.
        """
        sites = {site.name: site for site in find_linear_sites(result.graph)}
        for name, figures in result.report["sites"].items():
            found = int(group_is_pruned(sites[name].weight(), self.group).sum())
            if found != figures["groups_removed"]:
                raise GraphError(
                    f"site '{name}': expected {figures['groups_removed']} groups of zeros after "
                    f"pruning, found {found}"
                )

    def _check_gradients(self, sites: Sequence[LinearSite], context: Context) -> None:
        """Of the model as it came; what a later step cuts off costs nothing and may go."""
        statistics = context.statistics.get("fisher")
        if self.method != "fisher" or statistics is None:
            return
        for site in sites:
            if statistics.mean_squares.get(site.name) == 0:
                raise NumericsError(
                    f"site '{site.name}': expected gradients, found none that differs from zero; "
                    f"it does not reach the loss: leave it out (exclude={site.name}), or give more "
                    "samples"
                )

    def _fisher_of(self, site: LinearSite, context: Context) -> FisherMatrix:
        statistics = context.statistics.get("fisher")
        if statistics is None:
            raise GraphError(
                "prune: expected the statistics of 'fisher', found none; run it first, or take "
                "method=magnitude"
            )
        blocks = statistics.blocks(site.name)
        layout = statistics.layouts[site.name]
        if (layout.rows, layout.columns) != site.shape:
            raise GraphError(
                f"site '{site.name}': expected the Fisher of a {site.shape} matrix, found that of "
                f"{(layout.rows, layout.columns)}; run 'fisher' again"
            )
        damping = self.absolute_damping or self.damping * statistics.mean_square
        return FisherMatrix(blocks, layout, damping, f"site '{site.name}'")

    def _ranked(self, sites: Sequence[LinearSite], context: Context) -> dict[str, _Ranked]:
        """What the choice goes by, of every site."""
        mine = _mine(sites, context)
        tracked = context.progress.track(sites, "saliency", len(sites))
        found: dict[str, _Ranked] = {}
        for site in tracked:
            if site.name in mine:
                fisher = self._fisher_of(site, context) if self.method == "fisher" else None
                rho = self._saliency(site, fisher)
                importance = None
                if fisher is not None and self.chosen_by == "rows":
                    importance = fisher.output_importance()
                found[site.name] = _Ranked(rho, importance)
        return context.processes.merge(found)

    def _saliency(self, site: LinearSite, fisher: FisherMatrix | None) -> FloatArray:
        """Saliency of the groups of one site; minus infinity where pruned already."""
        W = site.weight()
        if not np.isfinite(W).all():
            raise NumericsError(
                f"site '{site.name}': expected finite weights, found NaN or infinity; repair the "
                "model before compressing it"
            )
        if fisher is None:
            rho = magnitude_saliency(W, self.group)
        else:
            rho = fisher.saliency(W, self.group, self.ranking)
        if not np.isfinite(rho).all():
            raise NumericsError(
                f"site '{site.name}': expected finite saliencies, found an overflow in the weights "
                "or the Fisher; look for values beyond 1e18"
            )
        rho[group_is_pruned(W, self.group)] = -np.inf
        return rho

    def _choose(
        self, names: list[str], saliencies: list[FloatArray], way: float
    ) -> list[BoolArray]:
        """Groups to remove of each site, the share ``way`` of the way to the target."""
        if self.nm is not None:
            return [choose_n_of_m(s, *read_nm(self.nm)) for s in saliencies]
        own: dict[int, float] = {}
        for item in self.override:
            pattern, sparsity = read_override(item)
            for name in matching(pattern, names, "override"):
                own[names.index(name)] = _on_the_way(sparsity, way)
        target = _on_the_way(self.target, way)
        return choose_groups(saliencies, target, own, uniform=self.scope == "uniform")

    def _row_choices(
        self,
        kept: dict[str, BoolArray],
        ranked: dict[str, _Ranked],
        masks: dict[str, BoolArray],
    ) -> dict[str, RowChoice]:
        """How the walk chooses in each matrix as many groups as ``masks`` remove there.

        It chooses from all that was there when the pass began, ``kept``, whatever an earlier step
        has chosen.
        """
        choices: dict[str, RowChoice] = {}
        for name, mask in kept.items():
            importance = ranked[name].importance
            before = masks[name].size - _groups_without(mask, self.group)
            left = int((~masks[name]).sum())
            if importance is None or left >= before:
                continue
            turns: list[Callable[[npt.NDArray[np.float64]], BoolArray]]
            if self.nm is None:
                counts = groups_left_by_turn(before, left, self.turns)
                turns = [partial(choose_all_but, left=count) for count in counts]
            else:
                n, m = read_nm(self.nm)
                turns = [partial(choose_n_of_m, n=m - turn, m=m) for turn in range(1, m - n + 1)]
            choices[name] = RowChoice(mask, self.group, importance, turns)
        return choices

    def _repair(
        self,
        graph: Graph,
        dense: Graph,
        masks: dict[str, BoolArray],
        choices: dict[str, RowChoice],
        context: Context,
    ) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]], list[Skip]]:
        """Remove the groups of ``masks``, or as many others as ``choices`` takes, and repair.

        Returns:
            Figures for the report, those of the head, what was not repaired.
        """
        by_rows: dict[str, BoolArray] = {}
        figures: dict[str, dict[str, Any]] = {name: {} for name in masks}
        skips: list[Skip] = []
        sites = [site for site in find_linear_sites(graph) if site.name in masks]
        mine = _mine(sites, context)
        moved: dict[str, tuple[FloatArray, dict[str, Any]]] = {}
        for site in context.progress.track(sites, "repair", len(sites)):
            W = site.weight()
            removed = np.repeat(masks[site.name], self.group, axis=1)
            repaired_by = self.repaired_by
            if repaired_by == "rows" and len(site.nodes) > 1:
                repaired_by = "fisher" if self.method == "fisher" else "none"
                skips.append(Skip(site.name, f"{_SEVERAL}; repair={repaired_by} instead"))
            if repaired_by == "rows":
                by_rows[site.name] = ~removed & (W != 0)
            if repaired_by == "rows" or self.method == "magnitude":
                _set_weight(site, np.where(removed, np.float32(0), W))
            elif site.name in mine:
                fisher = self._fisher_of(site, context)
                if repaired_by == "sum":
                    pruned, increase = fisher.repair_by_sum(W, removed, self.group)
                else:
                    remove = fisher.remove if repaired_by == "none" else fisher.repair
                    pruned, increase = remove(W, removed)
                found = {"predicted_loss_increase": increase, "damping": fisher.damping}
                moved[site.name] = pruned, found
        by_name = {site.name: site for site in sites}
        for name, (pruned, found) in context.processes.merge(moved).items():
            figures[name].update(found)
            _set_weight(by_name[name], pruned)
        head: dict[str, dict[str, Any]] = {}
        if by_rows:
            head, constant = self._repair_rows(graph, dense, by_rows, choices, context, figures)
            skips += [Skip(name, _CONSTANT) for name in constant]
        return figures, head, skips

    def _repair_rows(
        self,
        graph: Graph,
        dense: Graph,
        kept: dict[str, BoolArray],
        choices: dict[str, RowChoice],
        context: Context,
        figures: dict[str, dict[str, Any]],
    ) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """Walk over the sites ``kept`` and the head, and add to ``figures``.

        Returns:
            Figures of the head, sites whose input is constant.
        """
        data = self._data(context, max(mask.shape[1] for mask in kept.values()))
        behind: dict[str, BoolArray] = {}
        if self.repair_head:
            pruned = [site for site in find_linear_sites(graph) if site.name in kept]
            found = sites_behind(graph, pruned, self.exclude)
            behind = {s.name: np.ones(s.shape, bool) for s in found if s.name not in kept}
        walk = self.row_repair(dense, data, context.processes)
        walk.choices = choices
        walk.repair(graph, behind | kept, context.progress)
        for name in kept:
            figures[name]["repair_operations"] = walk.operations[name]
            figures[name]["repair_positions"] = walk.positions[name]
            if name in walk.choice_operations:
                figures[name]["choice_operations"] = walk.choice_operations[name]
        head = {
            name: {
                "repair_positions": walk.positions[name],
                "damping": walk.dampings.get(name),
            }
            for name in behind
        }
        return head, walk.constant

    def row_repair(self, dense: Graph, data: Batches, processes: Processes) -> LayerwiseRepair:
        """What repairs whole rows; a subclass may take another."""
        return LayerwiseRepair(dense, data, self.repair_damping, int(self.memory * _GB), processes)

    def _data(self, context: Context, widest: int) -> Batches:
        """Examples with enough positions for matrices of ``widest`` inputs."""
        if context.data is None:
            raise UsageError("prune: expected data for repair=rows, found none; give --data FILE")
        length = np.mean([example.length for example in context.data.examples])
        enough = math.ceil(self.repair_positions * widest / max(1.0, float(length)))
        return context.data.take(min(self.repair_samples, enough), context.seed)

    def _estimated_again(self, graph: Graph, context: Context) -> Context:
        """A context with the Fisher of ``graph`` as it is now; the first one stays on disk."""
        if self.method != "fisher":
            return context
        first = context.statistics.get("fisher_pass")
        block = _fisher_block(self.span)
        fisher = first or Fisher(self.samples, block, include=self.include, exclude=self.exclude)
        again = replace(context, work=None, statistics={})
        fisher.run(graph, again)
        return again


class _Ranked(NamedTuple):
    """Saliency of the groups of a matrix, minus infinity where pruned already; for a choice by
    rows also what an error of each output costs."""

    saliency: FloatArray
    importance: npt.NDArray[np.float64] | None


def _groups_without(kept: BoolArray, group: int) -> int:
    """How many groups of ``group`` consecutive inputs keep nothing."""
    return int((~kept.reshape(len(kept), -1, group).any(axis=2)).sum())


def _told_of_head(skip: Skip, head: dict[str, dict[str, Any]]) -> Skip:
    if skip.subject not in head:
        return skip
    return Skip(skip.subject, f"{skip.reason}; repaired, and keeps all its weights")


def _mine(sites: Sequence[LinearSite], context: Context) -> set[str]:
    """Sites whose Fisher this process has and works on; without a Fisher all, which is cheap."""
    statistics = context.statistics.get("fisher")
    if statistics is None:
        return {site.name for site in sites}
    owners = context.processes.deal(statistics.costs)
    return {s.name for s in sites if owners.get(s.name, 0) == context.processes.rank}


def _set_weight(site: LinearSite, weight: FloatArray) -> None:
    if not np.array_equal(weight, site.weight()):
        site.set_weight(weight)


def _fisher_block(span: int) -> int:
    return span * max(1, _FISHER_BLOCK // span)


def _on_the_way(target: float, way: float) -> float:
    """Sparsity after the share ``way`` of a way on which equal shares remove equal parts."""
    return target if way == 1 else 1 - (1 - target) ** way


def _zeros(W: FloatArray, group: int) -> dict[str, Any]:
    pruned = group_is_pruned(W, group)
    return {
        "sparsity": 1 - np.count_nonzero(W) / W.size,
        "groups": pruned.size,
        "groups_removed": int(pruned.sum()),
    }


def _total(report: dict[str, dict[str, Any]], key: str) -> float | None:
    values = [figures[key] for figures in report.values() if key in figures]
    return sum(values) if values else None
