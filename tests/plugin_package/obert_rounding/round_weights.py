"""The pass ``round-weights``: keeps a few decimals of every weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from obert_compiler.errors import GraphError, UsageError
from obert_compiler.graph import Graph, Stage, find_linear_sites
from obert_compiler.pipeline.contract import Context, Pass, PassResult, Skip

__all__ = ["RoundWeights"]


@dataclass(frozen=True)
class RoundWeights(Pass):
    """Round the weight of every Linear site.

    Attributes:
        decimals: how many decimals to keep.
        largest: leave sites with more weights than this alone.
    """

    name: ClassVar[str] = "round-weights"
    summary: ClassVar[str] = "keep a few decimals of every weight"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.DENSE, Stage.PRUNED})

    decimals: int = 2
    largest: int = 10_000_000

    def __post_init__(self) -> None:
        if not 0 <= self.decimals <= 9:
            raise UsageError(f"round-weights: expected decimals from 0 to 9, found {self.decimals}")

    def requires(self, graph: Graph) -> None:
        if not len(find_linear_sites(graph)):
            raise GraphError("round-weights: expected a Linear site, found none in the graph")

    def run(self, graph: Graph, context: Context) -> PassResult:
        rounded, skips = 0, []
        sites = find_linear_sites(graph)
        for site in context.progress.track(sites, "rounding", len(sites)):
            weight = site.weight()  # float32 [out, in], however the file stores it
            if weight.size > self.largest:
                skips.append(Skip(site.name, f"{weight.size} weights, largest is {self.largest}"))
                continue
            site.set_weight(np.round(weight, self.decimals))
            rounded += 1
        return PassResult(graph, rounded > 0, {"sites_rounded": rounded}, tuple(skips))

    def ensures(self, result: PassResult) -> None:
        for site in find_linear_sites(result.graph):
            weight = site.weight()
            if weight.size <= self.largest and not np.allclose(
                weight, np.round(weight, self.decimals), rtol=0, atol=1e-6
            ):
                raise GraphError(f"round-weights: site '{site.name}' is not rounded")
