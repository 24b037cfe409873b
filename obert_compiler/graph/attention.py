"""Attention: ``softmax(scale * Q K^T + mask) V``, from the wiring around each Softmax.

Upstream of a Softmax, one product of two activations gives the scores; whatever stands between
(scaling, masks, relative position biases, reshapes) is passed over. Downstream, one product with an
activation gives the context. From the operands of these products the way leads back to the Linear
sites of query, key and value, and from the context forward to the output site. A Softmax without
all this is listed with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from obert_compiler.graph.constants import read_constant
from obert_compiler.graph.linear import LinearSite, LinearSites, Unmatched, find_linear_sites
from obert_compiler.graph.network import Network, ValueKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obert_compiler.graph.graph import Graph

__all__ = ["Attention", "Attentions", "find_attention"]

_PRODUCTS = frozenset({"MatMul", "Einsum", "Gemm", "Attention"})


@dataclass(frozen=True)
class Attention:
    """One multi-head attention.

    Attributes:
        query, key, value, output: names of the Linear sites. A fused projection is one site under
            several of these names.
        heads: number of heads.
        head_size: features of one head's query.
        scores: the product ``Q K^T``.
        softmax: the Softmax over the keys.
        context: the product of the probabilities with V.
        value_index: which input of ``context`` is V; those of ``scores`` are Q and K.
    """

    query: str
    key: str
    value: str
    output: str
    heads: int
    head_size: int
    scores: ir.Node
    softmax: ir.Node
    context: ir.Node
    value_index: int


@dataclass(frozen=True)
class Attentions:
    """The attentions of a graph in topological order, and each Softmax that is none, with why."""

    regions: tuple[Attention, ...]
    unmatched: tuple[Unmatched, ...]

    def __iter__(self) -> Iterator[Attention]:
        return iter(self.regions)

    def __len__(self) -> int:
        return len(self.regions)


class _NoMatchError(Exception):
    """Why a Softmax is not attention."""


def find_attention(graph: Graph) -> Attentions:
    """Find every attention of ``graph``, with a reason for each Softmax that is none."""
    search = _Search(Network(graph), find_linear_sites(graph))
    regions: list[Attention] = []
    unmatched: list[Unmatched] = []
    for node in search.network.order:
        if node.op_type not in {"Softmax", "Attention"} or node.domain not in {"", "ai.onnx"}:
            continue
        try:
            regions.append(search.fused(node) if node.op_type == "Attention" else search.at(node))
        except _NoMatchError as reason:
            unmatched.append(Unmatched(node.name or "?", str(reason)))
    return Attentions(tuple(regions), tuple(unmatched))


class _Search:
    def __init__(self, network: Network, sites: LinearSites) -> None:
        self.network = network
        self.sites = sites
        self._site_by_output = {v: site for site in sites for v in site.outputs}
        self._site_by_node = {node: site for site in sites for node in site.nodes}

    def at(self, softmax: ir.Node) -> Attention:
        """The attention around ``softmax``."""
        scores = self._scores(softmax)
        context, side = self._context(softmax)
        return self._attention(scores, softmax, context, 1 - side)

    def fused(self, node: ir.Node) -> Attention:
        """The attention that the operator Attention (opset 23) computes by itself."""
        if len(self.network.operands(node)) < 3:
            raise _NoMatchError("the operator Attention lacks an operand")
        return self._attention(node, node, node, 2)

    def _attention(
        self, scores: ir.Node, softmax: ir.Node, context: ir.Node, value_index: int
    ) -> Attention:
        query, key = self.network.operands(scores)[:2]
        value = self.network.operands(context)[value_index]
        query_site = self._origin(query, "query")
        key_site = self._origin(key, "key")
        value_site = self._origin(value, "value")
        output_site = self._destination(context.outputs[0])
        heads, head_size = self._heads(query, value, softmax, output_site)
        return Attention(
            query_site.name,
            key_site.name,
            value_site.name,
            output_site.name,
            heads,
            head_size,
            scores,
            softmax,
            context,
            value_index,
        )

    def _scores(self, softmax: ir.Node) -> ir.Node:
        """The one product of two activations upstream of ``softmax``."""
        found: dict[ir.Node, None] = {}
        for value in self._upstream(self.network.operands(softmax)[0], _PRODUCTS):
            node = value.producer()
            if node is not None and self._is_product_of_activations(node):
                found[node] = None
        if len(found) != 1:
            raise _NoMatchError(
                f"expected one product of two activations before the Softmax, found {len(found)}"
            )
        return next(iter(found))

    def _context(self, softmax: ir.Node) -> tuple[ir.Node, int]:
        """The product that reads the probabilities, and which of its operands they are."""
        pending = [softmax.outputs[0]]
        seen: set[ir.Value] = set()
        found: dict[ir.Node, int] = {}
        while pending:
            value = pending.pop()
            if value in seen:
                continue
            seen.add(value)
            for node in self.network.readers(value):
                if node.op_type in _PRODUCTS:
                    found[node] = self.network.operands(node).index(self.network.root(value))
                elif node.op_type != "Shape":
                    pending.extend(node.outputs)
        if len(found) != 1:
            raise _NoMatchError(f"expected one product after the Softmax, found {len(found)}")
        ((node, side),) = found.items()
        if not self._is_product_of_activations(node):
            raise _NoMatchError("the Softmax feeds a product with a constant")
        return node, side

    def _origin(self, value: ir.Value, what: str) -> LinearSite:
        """The Linear site that ``value`` is made from."""
        found: dict[str, LinearSite] = {}
        for v in self._upstream(value, frozenset({"Softmax"})):
            if v in self._site_by_output:
                site = self._site_by_output[v]
                found[site.name] = site
        if len(found) != 1:
            names = f" ({', '.join(found)})" if found else ""
            raise _NoMatchError(
                f"expected the {what} to come from one Linear site, found {len(found)}{names}"
            )
        return next(iter(found.values()))

    def _destination(self, context: ir.Value) -> LinearSite:
        """The Linear site that the heads' results, laid side by side, feed."""
        pending = [context]
        while pending:
            for node in self.network.readers(pending.pop()):
                if node in self._site_by_node:
                    return self._site_by_node[node]
                if len(set(self.network.data_operands(node))) == 1 and node.op_type != "Shape":
                    pending.extend(node.outputs)
        raise _NoMatchError("no Linear site reads the context")

    def _upstream(self, value: ir.Value, stops: frozenset[str]) -> Iterator[ir.Value]:
        """Data values that ``value`` is made from, back to and including Linear sites and stops."""
        pending = [self.network.root(value)]
        seen: set[ir.Value] = set()
        while pending:
            current = pending.pop()
            if current in seen:
                continue
            seen.add(current)
            yield current
            node = current.producer()
            if node is None or current in self._site_by_output or node.op_type in stops:
                continue
            pending.extend(self.network.data_operands(node))

    def _is_product_of_activations(self, node: ir.Node) -> bool:
        return node.op_type in _PRODUCTS and len(self.network.data_operands(node)) >= 2

    def _heads(
        self, query: ir.Value, value: ir.Value, softmax: ir.Node, output: LinearSite
    ) -> tuple[int, int]:
        width = output.shape[1]
        heads = softmax.attributes.get_int("q_num_heads", 0)
        if heads:
            return heads, width // heads
        size = self._head_size(value)
        if width % size:
            raise _NoMatchError(f"{width} features of the context are no multiple of {size}")
        return width // size, self._head_size(query)

    def _head_size(self, value: ir.Value) -> int:
        """Features of one head: the last dimension, from the shape or from a Reshape's target."""
        for v in self._upstream(value, frozenset({"Softmax"})):
            last = v.shape[-1] if v.shape is not None and v.shape.rank() else None
            if v not in self._site_by_output and isinstance(last, int):
                return last
            node = v.producer()
            if node is None or node.op_type != "Reshape" or node.inputs[1] is None:
                continue
            heads, size = [None, None, *self._elements(node.inputs[1])][-2:]
            if size is not None and size > 0:
                return size
            site = self._site_by_output.get(self.network.operands(node)[0])
            if size == -1 and heads is not None and heads > 0 and site is not None:
                return site.shape[0] // heads
        raise _NoMatchError("the size of a head is not known")

    def _elements(self, shape: ir.Value) -> list[int | None]:
        """The elements of a target shape; None for each that is computed."""
        node = shape.producer()
        if self.network.kind(shape) is ValueKind.CONSTANT:
            return [int(n) for n in read_constant(shape).reshape(-1)]
        if node is not None and node.op_type == "Concat":
            return [n for v in node.inputs if v is not None for n in self._elements(v)]
        return [None]
