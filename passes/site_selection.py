"""Which Linear sites a pass works on: the default set of the graph, narrowed by patterns."""

from __future__ import annotations

from collections.abc import Sequence

from obert_compiler.errors import GraphError, UsageError
from obert_compiler.graph.graph import Graph
from obert_compiler.graph.layers import find_encoder_layers, prunable_sites
from obert_compiler.graph.linear import LinearSite, find_linear_sites
from obert_compiler.graph.patterns import matches
from obert_compiler.pipeline.contract import Skip

__all__ = ["matching", "select_sites", "sites_behind"]


def select_sites(
    graph: Graph, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> tuple[tuple[LinearSite, ...], tuple[Skip, ...]]:
    """The sites to prune, in graph order, and why each other site is left alone.

    Args:
        graph: where to look.
        include: patterns of sites to take instead of the default set (those in encoder layers).
        exclude: patterns of sites to leave out.

    Raises:
        UsageError: a pattern matches no site.
        GraphError: there is no Linear site, or none is left.
    """
    sites = tuple(find_linear_sites(graph))
    names = [site.name for site in sites]
    if not sites:
        raise GraphError(
            "graph: expected a Linear layer (MatMul or Gemm by a constant), found none"
        )
    skips: list[Skip] = []
    if include:
        included = {name for pattern in include for name in matching(pattern, names, "include")}
        skips += [Skip(name, "not in include") for name in names if name not in included]
        chosen = [site for site in sites if site.name in included]
    else:
        default, left = prunable_sites(graph)
        chosen = list(default)
        skips += [Skip(site.name, site.reason) for site in left]
    excluded = {name for pattern in exclude for name in matching(pattern, names, "exclude")}
    skips += [Skip(site.name, "excluded") for site in chosen if site.name in excluded]
    chosen = [site for site in chosen if site.name not in excluded]
    if not chosen:
        raise GraphError(
            f"graph: expected a site to prune, found {len(sites)} Linear sites, all left out "
            f"({skips[0].subject}: {skips[0].reason}); name sites with include=PATTERN"
        )
    return tuple(chosen), tuple(skips)


def sites_behind(
    graph: Graph, chosen: Sequence[LinearSite], exclude: Sequence[str] = ()
) -> tuple[LinearSite, ...]:
    """The sites of pooler and head: outside the encoder layers, behind one of ``chosen``.

    Left out are those that ``exclude`` matches, and those whose weight has other uses too (a
    decoder that is tied to the embeddings).

    Args:
        graph: where to look; one without encoder layers has none.
        chosen: sites of this graph.
        exclude: patterns of sites.
    """
    layers = find_encoder_layers(graph)
    if not layers.layers:
        return ()
    reached = {output for site in chosen for output in site.outputs}
    for node in graph.model.graph:
        if not reached.isdisjoint(value for value in node.inputs if value is not None):
            reached.update(node.outputs)
    return tuple(
        site
        for site in find_linear_sites(graph)
        if layers.layer_of(site.name) is None
        and site.inputs[0] in reached
        and len(site.nodes) == 1
        and not site.tied
        and not any(matches(site.name, pattern) for pattern in exclude)
    )


def matching(pattern: str, names: Sequence[str], option: str) -> list[str]:
    """The ``names`` that ``pattern`` matches.

    Raises:
        UsageError: none.
    """
    found = [name for name in names if matches(name, pattern)]
    if not found:
        raise UsageError(
            f"pattern '{pattern}' of {option}: expected to match a Linear site, found none among "
            f"{len(names)} such as '{names[0]}'; see 'obertc inspect'"
        )
    return found
