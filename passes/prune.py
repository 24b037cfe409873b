"""The pass ``prune``: removes the weights that cost least, and repairs the others.

Saliency of groups from the block-diagonal Fisher and one ranking over all matrices, as in oBERT
(arXiv 2203.07259); then the remaining weights are moved. oBERT moves them inside a Fisher block, by
a sum over groups, where ``repair=fisher`` has the joint optimum for all groups of the block.
``repair=rows`` moves whole rows instead, to the least squares on what the pruned layers before them
give (`obert_compiler.passes.layerwise_repair`). High sparsities are reached in steps, each with the
Fisher of the repaired model. Saliency, choice and repair know nothing of one another.
docs/pruning.md has the measurements behind the defaults.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from obert_compiler.errors import GraphError, NumericsError, UsageError
from obert_compiler.graph.graph import Graph, Stage
from obert_compiler.graph.linear import find_linear_sites
from obert_compiler.passes.fisher import Fisher
from obert_compiler.passes.fisher_matrix import Choice, FisherMatrix
from obert_compiler.passes.layerwise_repair import LayerwiseRepair
from obert_compiler.passes.prune_options import (
    check_at_least,
    check_one_of,
    check_positive,
    check_sparsity,
    read_nm,
    read_override,
    read_steps,
)
from obert_compiler.passes.saliency import group_is_pruned, magnitude_saliency
from obert_compiler.passes.site_selection import matching, select_sites, sites_behind
from obert_compiler.passes.sparsity_allocation import (
    choose_lowest,
    choose_n_of_m,
    choose_uniform,
    groups_to_remove,
)
from obert_compiler.pipeline.contract import Context, Pass, PassResult, Skip

if TYPE_CHECKING:
    from obert_compiler.data.batches import Batches
    from obert_compiler.graph.linear import LinearSite
    from obert_compiler.pipeline.processes import Processes

__all__ = ["Prune"]

_DEFAULT_SPARSITY = 0.5
_FISHER_BLOCK = 32
_LEAST_DENSITY = 1e-3
"""Stands for the density 0 in the logarithms of steps."""
_GB = 10**9
_SEVERAL = "its weight is used several times, and repair=rows knows one input"
_CONSTANT = (
    "its input is the same at every position of the pruned model: only its bias was repaired"
)

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Prune(Pass):
    """Set the least important weights of the Linear sites to exactly zero.

    Attributes:
        sparsity: share of groups to remove over all sites that are pruned, 0 to 1; reached exactly,
            as the largest whole number of groups. 0.5 when neither it nor ``nm`` is given.
        block: weights per group, consecutive inputs of one output; 1 is unstructured.
        method: how groups are ranked: ``fisher`` (second-order information) or ``magnitude``.
        choice: what a group counts with: ``single`` (what it costs alone, as published),
            ``greedy`` (the groups of a Fisher block go one after another, the others repaired in
            between; the largest increase of the loss up to its turn), ``cumulative`` (the sum of
            the increases); with ``steps=1`` they may pay, in steps they do not.
        repair: how the remaining weights make up for the removed ones: ``rows`` (least squares over
            whole rows, layer by layer, needs data), ``fisher`` (inside Fisher blocks), ``sum``
            (there, as published: the updates of the groups added up), ``none``; ``auto`` takes
            ``rows`` for the method ``fisher`` and ``none`` for ``magnitude``.
        steps: sparsities on the way to the target, with ``repair=rows``. At each, the Fisher of the
            model as repaired so far ranks what is left, and the repair starts anew from the dense
            weights. Those that are not below the target are not taken. One whole number is how
            many steps to take, each removing the same share of what is left; 1 goes there at once.
        nm: ``NofM`` keeps at most N weights of every M consecutive inputs, as in ``2of4``.
        scope: one ranking over all sites (``global``) or the same sparsity in each (``uniform``).
        override: ``PATTERN@SPARSITY`` for the sites that match, which leave the global ranking; the
            last one that matches counts.
        include: patterns of sites to prune instead of those in encoder layers.
        exclude: patterns of sites to leave alone.
        damping: what is added to the diagonal of every Fisher block, as a share of the mean
            diagonal over all sites. One number for all of them keeps their saliencies comparable
            where gradients are too small to tell weights apart.
        absolute_damping: the same as a number, in place of ``damping``; the paper has 1e-7.
        samples: examples for the ``fisher`` pass that is inserted when none was asked for, and for
            every later step.
        repair_samples: examples for ``repair=rows``, at most.
        repair_positions: positions (tokens) for each input of the widest matrix that are enough for
            ``repair=rows``; no more examples are taken than have them.
        repair_damping: ridge of ``repair=rows`` towards the dense weights, as a share of the mean
            diagonal of ``X^T X`` of each site.
        repair_head: with ``repair=rows``, bring pooler and head, which keep all their weights, to
            the outputs of the dense ones as well; ``exclude`` leaves them out.
        memory: bound in GB (10^9 bytes) on the activations that ``repair=rows`` keeps between
            layers; the rest goes to temporary files. The moments of a site come on top.
    """

    name: ClassVar[str] = "prune"
    summary: ClassVar[str] = "remove the weights that cost least and repair the others"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.DENSE, Stage.PRUNED})
    produces: ClassVar[Stage | None] = Stage.PRUNED

    sparsity: float | None = None
    block: int = 4
    method: Literal["fisher", "magnitude"] = "fisher"
    nm: str | None = None
    scope: Literal["global", "uniform"] = "global"
    override: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    damping: float = 2e-2
    absolute_damping: float | None = None
    choice: Choice = "single"
    repair: Literal["auto", "rows", "fisher", "sum", "none"] = "auto"
    steps: tuple[str, ...] = ("0.5", "0.7", "0.8", "0.85", "0.9", "0.95")
    samples: int = 1024
    repair_samples: int = 4096
    repair_positions: int = 16
    repair_damping: float = 1e-3
    repair_head: bool = True
    memory: float = 4.0

    def __post_init__(self) -> None:
        check_one_of("method", self.method, "fisher", "magnitude")
        check_one_of("choice", self.choice, "single", "greedy", "cumulative")
        check_one_of("repair", self.repair, "auto", "rows", "fisher", "sum", "none")
        check_one_of("scope", self.scope, "global", "uniform")
        if self.repair in {"fisher", "sum"} and self.method != "fisher":
            raise UsageError(
                f"prune: expected method=fisher for repair={self.repair}, found magnitude"
            )
        if self.choice != "single" and self.method != "fisher":
            raise UsageError(
                f"prune: expected method=fisher for choice={self.choice}, found magnitude"
            )
        for name in ("block", "samples", "repair_samples", "repair_positions"):
            check_at_least(name, getattr(self, name), 1)
        for name in ("damping", "absolute_damping", "repair_damping", "memory"):
            check_positive(name, getattr(self, name))
        if self.sparsity is not None:
            check_sparsity("sparsity", self.sparsity)
        read_steps(self.steps)
        for item in self.override:
            read_override(item)
        if self.nm is not None:
            self._check_nm(*read_nm(self.nm))

    def _check_nm(self, n: int, m: int) -> None:
        if self.choice != "single":
            raise UsageError(
                f"prune: expected choice=single beside nm={self.nm}, which has no order across its "
                f"groups, found {self.choice}"
            )
        if self.override or self.scope != "global":
            raise UsageError("prune: expected nm alone, found it with override or scope; drop one")
        if self.block not in {type(self).block, 1}:
            raise UsageError(f"prune: expected nm or block, found nm={self.nm} and {self.block}")
        if self.sparsity is not None and self.sparsity != 1 - n / m:
            raise UsageError(
                f"prune: expected no sparsity beside nm={self.nm}, which gives {1 - n / m:g}, "
                f"found {self.sparsity}"
            )

    @property
    def group(self) -> int:
        """Weights that are chosen together."""
        return self.block if self.nm is None else 1

    @property
    def span(self) -> int:
        """Consecutive inputs that must divide a row: a group, or the M of N:M."""
        return self.block if self.nm is None else read_nm(self.nm)[1]

    @property
    def target(self) -> float:
        """Share of groups to remove; of N:M what it comes to."""
        if self.nm is not None:
            n, m = read_nm(self.nm)
            return 1 - n / m
        return _DEFAULT_SPARSITY if self.sparsity is None else self.sparsity

    @property
    def repaired_by(self) -> Literal["rows", "fisher", "sum", "none"]:
        """`repair`, with ``auto`` resolved."""
        if self.repair == "auto":
            return "rows" if self.method == "fisher" else "none"
        return self.repair

    @property
    def ways(self) -> tuple[float, ...]:
        """The steps as shares of the way to the target, the last one 1."""
        if self.repaired_by != "rows" or self.nm is not None or self.target == 0:
            return (1.0,)
        steps = read_steps(self.steps)
        if isinstance(steps, int):
            return tuple(number / steps for number in range(1, steps + 1))
        whole = math.log(max(1 - self.target, _LEAST_DENSITY))
        below = sorted({s for s in steps if s < self.target})
        return (*(min(1.0, math.log(1 - s) / whole) for s in below), 1.0)

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
        before: list[int] = []
        dense = graph.copy() if aim is None else aim
        self._check_gradients(sites, context)
        for number, way in enumerate(self.ways):
            if number:
                context.progress.say(f"prune: step {number + 1} of {len(self.ways)}")
                context = self._estimated_again(graph, context)
            saliencies = self._saliencies(sites, context)
            before = before or [int(np.isneginf(s).sum()) for s in saliencies]
            masks = dict(zip(names, self._choose(names, saliencies, way), strict=True))
            del saliencies
            figures, head, left = self._repair(graph, dense, masks, context)
            notes = [_told_of_head(skip, head) for skip in skips] + left
            for site, pruned in zip(sites, before, strict=True):
                mask = masks[site.name]
                if int(mask.sum()) < pruned:
                    share = pruned / mask.size
                    reason = f"already at sparsity {share:.4f}, above its target"
                    notes.append(Skip(site.name, reason))
                figures[site.name].update(_zeros(site.weight(), self.group))
            report = self._totals(number + 1, figures) | {"head_repaired": head}
            changed = report["groups_removed"] > sum(before)
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
            "choice": self.choice if self.method == "fisher" else None,
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

    def _saliencies(self, sites: Sequence[LinearSite], context: Context) -> list[FloatArray]:
        """Saliency of the groups of every site, in order."""
        mine = _mine(sites, context)
        tracked = context.progress.track(sites, "saliency", len(sites))
        found = {s.name: self._saliency(s, context) for s in tracked if s.name in mine}
        merged = context.processes.merge(found)
        return [merged[site.name] for site in sites]

    def _saliency(self, site: LinearSite, context: Context) -> FloatArray:
        """Saliency of the groups of one site; minus infinity where pruned already."""
        W = site.weight()
        if not np.isfinite(W).all():
            raise NumericsError(
                f"site '{site.name}': expected finite weights, found NaN or infinity; repair the "
                "model before compressing it"
            )
        if self.method == "fisher":
            rho = self._fisher_of(site, context).saliency(W, self.group, self.choice)
        else:
            rho = magnitude_saliency(W, self.group)
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
        target = _on_the_way(self.target, way)
        own: dict[int, float] = {}
        for item in self.override:
            pattern, sparsity = read_override(item)
            for name in matching(pattern, names, "override"):
                own[names.index(name)] = _on_the_way(sparsity, way)
        masks = {i: choose_uniform([saliencies[i]], sparsity)[0] for i, sparsity in own.items()}
        shared = [i for i in range(len(names)) if i not in own]
        chosen: list[BoolArray] = []
        if shared:
            rest = [saliencies[i] for i in shared]
            if self.scope == "uniform":
                chosen = choose_uniform(rest, target)
            else:
                chosen = choose_lowest(rest, groups_to_remove(sum(s.size for s in rest), target))
        masks.update(zip(shared, chosen, strict=True))
        return [masks[i] for i in range(len(names))]

    def _repair(
        self, graph: Graph, dense: Graph, masks: dict[str, BoolArray], context: Context
    ) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]], list[Skip]]:
        """Remove the groups of ``masks`` and repair.

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
            data = self._data(context, max(mask.shape[1] for mask in by_rows.values()))
            behind: dict[str, BoolArray] = {}
            if self.repair_head:
                found_behind = sites_behind(graph, [by_name[n] for n in by_rows], self.exclude)
                behind = {
                    s.name: np.ones(s.shape, bool) for s in found_behind if s.name not in by_rows
                }
            walk = self.row_repair(dense, data, context.processes)
            walk.repair(graph, behind | by_rows, context.progress)
            skips += [Skip(name, _CONSTANT) for name in walk.constant]
            for name in by_rows:
                figures[name]["repair_operations"] = walk.operations[name]
                figures[name]["repair_positions"] = walk.positions[name]
            for name in behind:
                figure = {"repair_positions": walk.positions[name]}
                head[name] = figure | {"damping": walk.dampings.get(name)}
        return figures, head, skips

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
