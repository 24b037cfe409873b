"""The pass ``prune``: removes the weights that cost least, and repairs the others.

oBERT (arXiv 2203.07259): saliency of groups from the block-diagonal Fisher, one ranking over all
matrices, then the update of the remaining weights; here as the joint optimum for all groups removed
from a Fisher block, where the published update is a sum over groups. Three steps follow each other
and know nothing of one another: saliency, choice, repair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from obert_compiler.errors import GraphError, NumericsError, UsageError
from obert_compiler.graph.graph import Graph, Stage
from obert_compiler.graph.linear import find_linear_sites
from obert_compiler.passes.fisher import Fisher
from obert_compiler.passes.fisher_matrix import FisherMatrix
from obert_compiler.passes.prune_options import check_sparsity, read_nm, read_override
from obert_compiler.passes.saliency import group_is_pruned, magnitude_saliency
from obert_compiler.passes.site_selection import matching, select_sites
from obert_compiler.passes.sparsity_allocation import (
    choose_lowest,
    choose_n_of_m,
    choose_uniform,
    groups_to_remove,
)
from obert_compiler.pipeline.contract import Context, Pass, PassResult, Skip

if TYPE_CHECKING:
    from obert_compiler.graph.linear import LinearSite

__all__ = ["Prune"]

_DEFAULT_SPARSITY = 0.5
_FISHER_BLOCK = 32

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Prune(Pass):
    """Set the least important weights of the Linear sites to exactly zero.

    Attributes:
        sparsity: share of groups to remove over all sites that are pruned, 0 to 1; reached exactly,
            as the largest whole number of groups. 0.5 when neither it nor ``nm`` is given.
        block: weights per group, consecutive inputs of one output; 1 is unstructured.
        method: ``fisher`` (saliency and repair from second-order information) or ``magnitude``
            (smallest norms, no repair).
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
        repair: move the remaining weights to make up for the removed ones (method ``fisher``).
        samples: examples for the ``fisher`` pass that is inserted when none was asked for.
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
    repair: bool = True
    samples: int = 1024

    def __post_init__(self) -> None:
        if self.method not in {"fisher", "magnitude"}:
            raise UsageError(f"prune: expected method fisher or magnitude, found '{self.method}'")
        if self.scope not in {"global", "uniform"}:
            raise UsageError(f"prune: expected scope global or uniform, found '{self.scope}'")
        if self.block < 1:
            raise UsageError(f"prune: expected a block of at least 1, found {self.block}")
        if self.samples < 1:
            raise UsageError(f"prune: expected samples of at least 1, found {self.samples}")
        for name, value in (("damping", self.damping), ("absolute_damping", self.absolute_damping)):
            if value is not None and not (0 < value < math.inf):
                raise UsageError(f"prune: expected {name} above 0, found {value}")
        if self.sparsity is not None:
            check_sparsity("sparsity", self.sparsity)
        for item in self.override:
            read_override(item)
        if self.nm is not None:
            self._check_nm(*read_nm(self.nm))

    def _check_nm(self, n: int, m: int) -> None:
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
            NumericsError: weights are not finite, or a Fisher block is not positive definite.
            GraphError: there are no statistics for a site.
        """
        sites, skips = select_sites(graph, self.include, self.exclude)
        track = context.progress.track
        saliencies = [self._saliency(s, context) for s in track(sites, "saliency", len(sites))]
        before = [int(np.isneginf(s).sum()) for s in saliencies]
        masks = self._choose([site.name for site in sites], saliencies)
        del saliencies
        report: dict[str, dict[str, Any]] = {}
        notes = list(skips)
        for site, mask, pruned in zip(
            track(sites, "repair", len(sites)), masks, before, strict=True
        ):
            if int(mask.sum()) < pruned:
                share = pruned / mask.size
                notes.append(Skip(site.name, f"already at sparsity {share:.4f}, above its target"))
            report[site.name] = self._remove(site, mask, context)
        groups = sum(mask.size for mask in masks)
        removed = sum(figures["groups_removed"] for figures in report.values())
        totals = {
            "sparsity": removed / groups,
            "groups": groups,
            "groups_removed": removed,
            "group": self.group,
            "method": self.method,
            "predicted_loss_increase": _total(report, "predicted_loss_increase"),
            "sites": report,
        }
        return PassResult(graph, removed > sum(before), totals, tuple(notes))

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
        if statistics.mean_squares[site.name] == 0:
            raise NumericsError(
                f"site '{site.name}': expected gradients, found none that differs from zero; it "
                f"does not reach the loss: leave it out (exclude={site.name}), or give more samples"
            )
        damping = self.absolute_damping or self.damping * statistics.mean_square
        return FisherMatrix(blocks, layout, damping, f"site '{site.name}'")

    def _saliency(self, site: LinearSite, context: Context) -> FloatArray:
        """Saliency of the groups of one site; minus infinity where pruned already."""
        W = site.weight()
        if not np.isfinite(W).all():
            raise NumericsError(
                f"site '{site.name}': expected finite weights, found NaN or infinity; repair the "
                "model before compressing it"
            )
        if self.method == "fisher":
            rho = self._fisher_of(site, context).saliency(W, self.group)
        else:
            rho = magnitude_saliency(W, self.group)
        if not np.isfinite(rho).all():
            raise NumericsError(
                f"site '{site.name}': expected finite saliencies, found an overflow in the weights "
                "or the Fisher; look for values beyond 1e18"
            )
        rho[group_is_pruned(W, self.group)] = -np.inf
        return rho

    def _choose(self, names: list[str], saliencies: list[FloatArray]) -> list[BoolArray]:
        """Groups to remove of each site."""
        if self.nm is not None:
            return [choose_n_of_m(s, *read_nm(self.nm)) for s in saliencies]
        target = _DEFAULT_SPARSITY if self.sparsity is None else self.sparsity
        own: dict[int, float] = {}
        for item in self.override:
            pattern, sparsity = read_override(item)
            for name in matching(pattern, names, "override"):
                own[names.index(name)] = sparsity
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

    def _remove(self, site: LinearSite, mask: BoolArray, context: Context) -> dict[str, Any]:
        """Remove the groups of ``mask`` and repair; figures for the report."""
        W = site.weight()
        removed = np.repeat(mask, self.group, axis=1)
        figures: dict[str, Any] = {}
        if self.method == "fisher":
            fisher = self._fisher_of(site, context)
            pruned, increase = (fisher.repair if self.repair else fisher.remove)(W, removed)
            figures = {"predicted_loss_increase": increase, "damping": fisher.damping}
        else:
            pruned = np.where(removed, np.float32(0), W)
        if not np.array_equal(pruned, W):
            site.set_weight(pruned)
        zero_groups = group_is_pruned(pruned, self.group)
        return {
            "sparsity": 1 - np.count_nonzero(pruned) / pruned.size,
            "groups": mask.size,
            "groups_removed": int(zero_groups.sum()),
            **figures,
        }


def _fisher_block(span: int) -> int:
    return span * max(1, _FISHER_BLOCK // span)


def _total(report: dict[str, dict[str, Any]], key: str) -> float | None:
    values = [figures[key] for figures in report.values() if key in figures]
    return sum(values) if values else None
