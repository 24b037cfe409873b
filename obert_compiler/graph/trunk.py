"""The trunk: the way of the hidden state through a graph, cut where every path meets.

The cut points are the dominators of the output in the network of values; two neighbours enclose a
*segment*. A *token* says what a segment is for (shapes of its matrices, attention, residual or
not). A *signature*, a Merkle hash over op types, attributes, constant shapes and wiring, says
whether two segments are isomorphic; masks, position biases and rotary tables enter it only as "from
outside".
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import networkx as nx
import onnx_ir as ir

from obert_compiler.graph.network import Network, ValueKind, static_shape

if TYPE_CHECKING:
    from obert_compiler.graph.linear import LinearSite

__all__ = ["Segment", "read_trunk", "trunk_starts"]

_COMMUTATIVE = frozenset({"Add", "Mul", "And", "Or", "Max", "Min", "Sum"})


@dataclass
class Segment:
    """What lies between two neighbouring cut points.

    Attributes:
        input: the cut point that enters.
        output: the cut point that leaves.
        nodes: the nodes on paths between them, in graph order.
        matrices: the stored shapes of the Linear weights used, in graph order.
        attention: whether a Softmax lies between products of activations.
        residual: whether the output is the input plus something.
        signature: equal for isomorphic segments, within one process.
    """

    input: ir.Value
    output: ir.Value
    nodes: list[ir.Node] = field(default_factory=list)
    matrices: list[tuple[int, ...]] = field(default_factory=list)
    attention: bool = False
    residual: bool = False
    signature: int = 0

    @property
    def token(self) -> Hashable:
        """Equal for segments that do the same work, however they are normalised or masked."""
        alone = self.nodes[0].op_type if len(self.nodes) == 1 else None
        return (*sorted(self.matrices), self.attention, self.residual, alone)


def trunk_starts(network: Network) -> list[ir.Value]:
    """Where a hidden state can begin: rows gathered from a constant table, float graph inputs.

    Without either, every graph input.
    """
    gathered = [
        node.outputs[0]
        for node in network.order
        if node.op_type == "Gather"
        and network.data_operands(node)
        and node.inputs[0] is not None
        and network.kind(node.inputs[0]) is ValueKind.CONSTANT
    ]
    floats = [v for v in network.inputs if v.dtype is not None and v.dtype.is_floating_point()]
    candidates = gathered + floats or network.inputs
    return [v for v in candidates if network.deepest_output(v) is not None]


def read_trunk(
    network: Network, start: ir.Value, site_by_node: Mapping[ir.Node, LinearSite]
) -> list[Segment]:
    """The segments from ``start`` to the deepest output; empty when no output depends on it."""
    end = network.deepest_output(start)
    if end is None:
        return []
    cuts = network.cut_points(start, end)
    segments = [Segment(a, b) for a, b in pairwise(cuts)]
    position = {cut: index for index, cut in enumerate(cuts)}
    part = network.between(start, end)
    hashes: dict[ir.Value, int] = {}
    inside: dict[ir.Value, int] = {start: 0}
    seen: set[ir.Node] = set()
    for value in nx.topological_sort(part):
        if value is start:
            continue
        index = max(inside[p] for p in part.predecessors(value))
        inside[value] = position.get(value, index)
        segment, node = segments[index], value.producer()
        if node is None:
            continue
        hashes[value] = _hash(network, node, value, segment.input, hashes)
        if value is segment.output:
            segment.signature = hashes[value]
            segment.residual = node.op_type == "Add" and segment.input in network.operands(node)
        if node not in seen:
            seen.add(node)
            segment.nodes.append(node)
    for segment in segments:
        segment.nodes.sort(key=network.order.__getitem__)
        segment.matrices = [
            static_shape(site_by_node[n].weight_value) or site_by_node[n].shape
            for n in segment.nodes
            if n in site_by_node
        ]
        segment.attention = _holds_attention(network, segment.nodes)
    return segments


def _hash(
    network: Network,
    node: ir.Node,
    value: ir.Value,
    entry: ir.Value,
    hashes: dict[ir.Value, int],
) -> int:
    operands: list[Hashable] = []
    for operand in node.inputs:
        if operand is None:
            operands.append("absent")
            continue
        root = network.root(operand)
        kind = network.kind(root)
        if root is entry:
            operands.append("hidden state")
        elif kind is ValueKind.CONSTANT:
            operands.append(("constant", static_shape(root)))
        elif kind is ValueKind.SHAPE:
            operands.append("shape")
        else:
            operands.append(hashes.get(root, "from outside"))
    if node.op_type in _COMMUTATIVE:
        operands.sort(key=repr)
    attributes = sorted(
        (name, repr(a.value))
        for name, a in node.attributes.items()
        if a.type not in (ir.AttributeType.GRAPH, ir.AttributeType.TENSOR)
    )
    return hash((node.domain, node.op_type, tuple(attributes), value.index(), tuple(operands)))


def _holds_attention(network: Network, nodes: Sequence[ir.Node]) -> bool:
    operations = {node.op_type for node in nodes}
    products = any(
        node.op_type in {"MatMul", "Einsum"} and len(network.data_operands(node)) == 2
        for node in nodes
    )
    return "Attention" in operations or ("Softmax" in operations and products)
