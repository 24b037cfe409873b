"""Embedding tables: constant matrices whose rows are gathered by integer ids.

A table lies in the file as float32, or quantised with DequantizeLinear before the Gather or behind
it. A table that several Gathers share is one site. A masked-LM decoder may multiply by the same
table; such a site says so, because a change of the table changes the decoder too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from obert_compiler.graph.linear import SITE_KEY, Unmatched, find_linear_sites
from obert_compiler.graph.network import Network, ValueKind, static_shape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obert_compiler.graph.graph import Graph

__all__ = ["EmbeddingSite", "EmbeddingSites", "find_embeddings"]


@dataclass(frozen=True)
class EmbeddingSite:
    """One table and every Gather that reads rows of it.

    Attributes:
        name: the module path where the source knows it; recorded on the nodes by later passes.
        table: the value that is gathered from, ``[rows, columns]``; float32, or integers when the
            rows are dequantised after the Gather.
        root: the initializer that holds the rows; ``table`` itself unless it is dequantised first.
        gathers: the Gather nodes, in graph order.
        rows: number of rows (the size of the vocabulary).
        columns: number of columns (the width of a row).
        reads_inputs: whether the ids depend on the contents of a graph input; False for positions
            that follow from shapes.
        linear_sites: names of the Linear sites that multiply by the same table (tied decoders).
    """

    name: str
    table: ir.Value
    root: ir.Value
    gathers: tuple[ir.Node, ...]
    rows: int
    columns: int
    reads_inputs: bool
    linear_sites: tuple[str, ...] = ()

    @property
    def also_linear(self) -> bool:
        """Whether a Linear site multiplies by this table too."""
        return bool(self.linear_sites)


@dataclass(frozen=True)
class EmbeddingSites:
    """The embedding tables of a graph in graph order, and each constant gathered that is none."""

    sites: tuple[EmbeddingSite, ...]
    unmatched: tuple[Unmatched, ...]

    def __iter__(self) -> Iterator[EmbeddingSite]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __getitem__(self, name: str) -> EmbeddingSite:
        for site in self.sites:
            if site.name == name:
                return site
        raise KeyError(name)


def find_embeddings(graph: Graph) -> EmbeddingSites:
    """Find every embedding table of ``graph``, with a reason for each Gather that has none."""
    network = Network(graph)
    gathers: dict[ir.Value, list[ir.Node]] = {}
    unmatched: list[Unmatched] = []
    for node in network.order:
        table, ids = _operands(node)
        if table is None or ids is None or network.kind(table) is not ValueKind.CONSTANT:
            continue
        reason = _why_not(node, table)
        if reason is None:
            gathers.setdefault(table, []).append(node)
        elif network.kind(ids) is not ValueKind.CONSTANT:
            unmatched.append(Unmatched(table.name or node.name or "?", reason))
    multiplied: dict[ir.Value, list[str]] = {}
    for linear in find_linear_sites(graph):
        multiplied.setdefault(_root(linear.weight_value), []).append(linear.name)
    sites = []
    for table, nodes in gathers.items():
        rows, columns = static_shape(table) or (0, 0)
        root = _root(table)
        ids_of = [v for node in nodes if (v := node.inputs[1]) is not None]
        sites.append(
            EmbeddingSite(
                nodes[0].metadata_props.get(SITE_KEY) or (root.name or "?").removesuffix(".weight"),
                table,
                root,
                tuple(nodes),
                rows,
                columns,
                any(network.kind(ids) is ValueKind.DATA for ids in ids_of),
                tuple(multiplied.get(root, ())),
            )
        )
    roots = {site.root for site in sites} | set(multiplied)
    unmatched += _read_whole(graph, roots)
    return EmbeddingSites(tuple(sites), tuple(unmatched))


def _read_whole(graph: Graph, known: set[ir.Value]) -> list[Unmatched]:
    """Float matrices that are neither tables nor weights (DeBERTa's relative positions)."""
    found = []
    for value in graph.model.graph.initializers.values():
        shape = static_shape(value)
        if value in known or value.dtype != ir.DataType.FLOAT or not value.consumers():
            continue
        if shape is not None and len(shape) == 2 and min(shape) > 1:
            readers = sorted({node.op_type for node in value.consumers()})
            reason = f"a matrix read whole by {', '.join(readers)}, no rows are gathered"
            found.append(Unmatched(value.name or "?", reason))
    return found


def _operands(node: ir.Node) -> tuple[ir.Value | None, ir.Value | None]:
    if node.op_type != "Gather" or node.domain not in {"", "ai.onnx"}:
        return None, None
    return node.inputs[0], node.inputs[1]


def _why_not(node: ir.Node, table: ir.Value) -> str | None:
    shape = static_shape(table)
    if shape is None:
        return "the shape of the gathered constant is not known"
    if len(shape) != 2:
        return f"the gathered constant has {len(shape)} dimensions, not 2"
    if node.attributes.get_int("axis", 0) != 0:
        return "columns are gathered, not rows"
    if table.dtype is not None and table.dtype.is_floating_point():
        return None
    if any(reader.op_type == "DequantizeLinear" for reader in node.outputs[0].consumers()):
        return None
    return f"the gathered constant is {table.dtype}, and no DequantizeLinear reads the rows"


def _root(value: ir.Value) -> ir.Value:
    """The value behind Transpose and DequantizeLinear."""
    node = value.producer()
    while node is not None and node.op_type in {"Transpose", "DequantizeLinear"}:
        source = node.inputs[0]
        if source is None:
            break
        value, node = source, source.producer()
    return value
