"""The graph as a network of values (networkx), for questions about paths.

Which values does everything flow through? That is a question of dominators, and networkx answers
it. The network holds the values that depend on the data of a graph input; constants and what is
computed from shapes alone stay outside, so that ``Shape(x)`` read by a later layer is no path
around the layers between. QuantizeLinear and DequantizeLinear are looked through: a value and its
quantised form are one vertex.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

import networkx as nx
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Iterable

    from obert_compiler.graph.graph import Graph

__all__ = ["Network", "ValueKind", "is_quantiser", "static_shape"]

_QUANTISERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_SHAPE_READERS = frozenset({"Shape", "Size"})


class ValueKind(Enum):
    """What a value depends on."""

    CONSTANT = "constant"
    """Initializers alone."""
    SHAPE = "shape"
    """Shapes of inputs (positions, ranges, target shapes), not their contents."""
    DATA = "data"
    """The contents of a graph input."""


class Network:
    """A `Graph` seen as a directed graph of values.

    Attributes:
        values: ``nx.DiGraph`` whose vertices are data values (after `root`) and whose edges run
            from an input of a node to its outputs.
        order: every node of the main graph in topological order, with its position.
    """

    def __init__(self, graph: Graph) -> None:
        self._kinds: dict[ir.Value, ValueKind] = {}
        self._roots: dict[ir.Value, ir.Value] = {}
        self._graph = graph
        self.order: dict[ir.Node, int] = {}
        self.values = nx.DiGraph()
        for value in graph.model.graph.inputs:
            initialised = value.const_value is not None
            self._kinds[value] = ValueKind.CONSTANT if initialised else ValueKind.DATA
        for position, node in enumerate(graph.model.graph):
            self.order[node] = position
            self._add(node)

    @property
    def inputs(self) -> list[ir.Value]:
        """The graph inputs that no initializer stands for."""
        inputs = self._graph.model.graph.inputs
        return [v for v in inputs if self.kind(v) is ValueKind.DATA]

    @property
    def outputs(self) -> list[ir.Value]:
        """The graph outputs that depend on data, as vertices."""
        roots = (self.root(v) for v in self._graph.model.graph.outputs)
        return [v for v in roots if v in self.values]

    def kind(self, value: ir.Value) -> ValueKind:
        """What ``value`` depends on."""
        return self._kinds.get(value, ValueKind.CONSTANT)

    def root(self, value: ir.Value) -> ir.Value:
        """``value`` before any quantisation of activations."""
        return self._roots.get(value, value)

    def operands(self, node: ir.Node) -> list[ir.Value]:
        """Inputs of ``node`` that are present, quantisation looked through."""
        return [self.root(v) for v in node.inputs if v is not None]

    def data_operands(self, node: ir.Node) -> list[ir.Value]:
        """Inputs of ``node`` that depend on data, quantisation looked through."""
        return [v for v in self.operands(node) if self.kind(v) is ValueKind.DATA]

    def readers(self, value: ir.Value) -> list[ir.Node]:
        """Nodes that read ``value`` or its quantised form; quantisers themselves are left out."""
        found: list[ir.Node] = []
        pending = [value]
        while pending:
            for node in pending.pop().consumers():
                if is_quantiser(node):
                    pending.extend(node.outputs)
                else:
                    found.append(node)
        return found

    def between(self, start: ir.Value, end: ir.Value) -> nx.DiGraph:
        """The part of `values` that lies on paths from ``start`` to ``end``; empty without one."""
        if start not in self.values or end not in self.values:
            return nx.DiGraph()
        after = nx.descendants(self.values, start) | {start}
        before = nx.ancestors(self.values, end) | {end}
        return self.values.subgraph(after & before)

    def cut_points(self, start: ir.Value, end: ir.Value) -> list[ir.Value]:
        """The values that every path from ``start`` to ``end`` visits, in order, with both ends.

        They are the dominators of ``end`` in the network rooted at ``start``; empty when no path
        leads there.
        """
        part = self.between(start, end)
        if end not in part:
            return []
        dominators = nx.immediate_dominators(part, start)
        chain = [end]
        while chain[-1] is not start:
            chain.append(dominators[chain[-1]])
        return chain[::-1]

    def deepest_output(self, start: ir.Value) -> ir.Value | None:
        """The output with the longest path from ``start``, None when none depends on it."""
        depth = {start: 0}
        for value in nx.topological_sort(self.values):
            for successor in self.values.successors(value) if value in depth else ():
                depth[successor] = max(depth.get(successor, 0), depth[value] + 1)
        reached = [v for v in self.outputs if v in depth]
        return max(reached, key=lambda v: depth[v], default=None)

    def exclusive_sources(self, nodes: Iterable[ir.Node]) -> list[ir.Node]:
        """Nodes outside ``nodes`` that compute no data and serve ``nodes`` alone.

        They unpack weights, or turn shapes into operands.
        """
        inside = set(nodes)
        pending = [v for n in inside for v in n.inputs if v is not None]
        found: list[ir.Node] = []
        while pending:
            node = pending.pop().producer()
            if node is None or node in inside or self.kind(node.outputs[0]) is ValueKind.DATA:
                continue
            readers = [r for o in node.outputs for r in o.consumers()]
            if all(r in inside for r in readers) and not any(
                o.is_graph_output() for o in node.outputs
            ):
                inside.add(node)
                found.append(node)
                pending.extend(v for v in node.inputs if v is not None)
        return found

    def _add(self, node: ir.Node) -> None:
        kind = self._kind_of(node)
        for output in node.outputs:
            self._kinds[output] = kind
        if kind is not ValueKind.DATA:
            return
        if is_quantiser(node) and node.inputs[0] is not None:
            self._roots[node.outputs[0]] = self.root(node.inputs[0])
            return
        for operand in self.data_operands(node):
            for output in node.outputs:
                self.values.add_edge(operand, output)

    def _kind_of(self, node: ir.Node) -> ValueKind:
        if node.op_type in _SHAPE_READERS:
            return ValueKind.SHAPE
        if any(
            a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for a in node.attributes.values()
        ):
            return ValueKind.DATA
        kinds = {self.kind(v) for v in node.inputs if v is not None}
        for kind in (ValueKind.DATA, ValueKind.SHAPE):
            if kind in kinds:
                return kind
        return ValueKind.CONSTANT


def is_quantiser(node: ir.Node) -> bool:
    """Whether ``node`` is QuantizeLinear or DequantizeLinear."""
    return node.op_type in _QUANTISERS and node.domain in {"", "ai.onnx"}


def static_shape(value: ir.Value) -> tuple[int, ...] | None:
    """The shape of ``value`` when every dimension is known, looked up through DequantizeLinear and
    Transpose where it is not recorded; None otherwise.
    """
    if value.shape is not None and value.shape.is_static():
        return tuple(value.shape.numpy())
    if value.const_value is not None:
        return tuple(value.const_value.shape.numpy())
    node = value.producer()
    if node is None or node.op_type not in {"DequantizeLinear", "Transpose"}:
        return None
    source = node.inputs[0]
    shape = None if source is None else static_shape(source)
    if shape is None or node.op_type == "DequantizeLinear":
        return shape
    perm = node.attributes.get_ints("perm", None) or range(len(shape))[::-1]
    return tuple(shape[axis] for axis in perm)
