"""Layer normalisations: the operator LayerNormalization, or the ops that exporters write for it.

    y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * scale + bias      over the last axis

Ba, Kiros, Hinton 2016 (arXiv 1607.06450), equations 3 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from obert_compiler.graph.constants import is_constant, read_constant
from obert_compiler.graph.linear import Unmatched

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obert_compiler.graph.graph import Graph

__all__ = ["LayerNorm", "LayerNorms", "find_layer_norms"]


@dataclass(frozen=True)
class LayerNorm:
    """One layer normalisation over the last axis.

    Attributes:
        input: what is normalised.
        output: the result.
        scale: the factor of each feature, None for none.
        bias: the summand of each feature, None for none.
        epsilon: added to the variance.
        nodes: the one operator, or the ops it was written as.
    """

    input: ir.Value
    output: ir.Value
    scale: ir.Value | None
    bias: ir.Value | None
    epsilon: float
    nodes: tuple[ir.Node, ...]


@dataclass(frozen=True)
class LayerNorms:
    """The layer normalisations of a graph in graph order, and what was no such thing, with why."""

    norms: tuple[LayerNorm, ...]
    unmatched: tuple[Unmatched, ...]

    def __iter__(self) -> Iterator[LayerNorm]:
        return iter(self.norms)

    def __len__(self) -> int:
        return len(self.norms)


class _NoMatchError(Exception):
    """Why a variance is not that of a layer normalisation."""


def find_layer_norms(graph: Graph) -> LayerNorms:
    """Find every layer normalisation, with a reason for each square root of a mean that is none."""
    norms: list[LayerNorm] = []
    unmatched: list[Unmatched] = []
    for node in graph.model.graph:
        try:
            if node.op_type == "LayerNormalization":
                norms.append(_operator(node))
            elif node.op_type == "Sqrt" and _mean_behind(node) is not None:
                norms.append(_written_out(node))
        except _NoMatchError as reason:
            unmatched.append(Unmatched(node.name or "?", str(reason)))
    return LayerNorms(tuple(norms), tuple(unmatched))


def _operator(node: ir.Node) -> LayerNorm:
    x, scale, bias = ([*node.inputs, None])[:3]
    if x is None or len(node.outputs) > 1:
        raise _NoMatchError("mean or deviation is read too")
    axis = node.attributes.get_int("axis", -1)
    if axis != -1 and (x.shape is None or axis != x.shape.rank() - 1):
        raise _NoMatchError(f"normalised from axis {axis} on, not over the last axis alone")
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    return LayerNorm(x, node.outputs[0], scale, bias, epsilon, (node,))


def _mean_behind(root: ir.Node) -> ir.Node | None:
    """The ReduceMean of ``sqrt(mean(.) + epsilon)``."""
    add = _maker(root.inputs[0], "Add")
    if add is None:
        return None
    return next((n for v in add.inputs if (n := _maker(v, "ReduceMean")) is not None), None)


def _written_out(root: ir.Node) -> LayerNorm:
    add, variance = _maker(root.inputs[0], "Add"), _mean_behind(root)
    if add is None or variance is None:
        raise _NoMatchError("no variance")
    square = _maker(variance.inputs[0], "Pow") or _maker(variance.inputs[0], "Mul")
    centred = None if square is None else _maker(square.inputs[0], "Sub")
    if square is None or centred is None:
        raise _NoMatchError("the mean is not that of the square of a difference")
    x, mean_value = centred.inputs
    mean = _maker(mean_value, "ReduceMean")
    if x is None or mean is None or mean.inputs[0] is not x:
        raise _NoMatchError("the difference is not that from the mean of the same value")
    exponent = square.inputs[1]
    if square.op_type == "Mul" and exponent is not square.inputs[0]:
        raise _NoMatchError("the product is no square")
    if square.op_type == "Pow" and _scalar(exponent) != 2.0:
        raise _NoMatchError("the power is no square")
    if not (_over_last_axis(mean) and _over_last_axis(variance)):
        raise _NoMatchError("the mean is not taken over the last axis alone")
    epsilon = next((e for v in add.inputs if (e := _scalar(v)) is not None), None)
    if epsilon is None:
        raise _NoMatchError("epsilon is no constant")
    divide = _only_reader(root.outputs[0], "Div")
    if divide is None or divide.inputs[0] is not centred.outputs[0]:
        raise _NoMatchError("the deviation does not divide the difference")
    nodes = [mean, centred, square, variance, add, root, divide]
    output, scale = _affine(divide.outputs[0], "Mul", nodes)
    output, bias = _affine(output, "Add", nodes)
    return LayerNorm(x, output, scale, bias, epsilon, tuple(dict.fromkeys(nodes)))


def _affine(
    value: ir.Value, op_type: str, nodes: list[ir.Node]
) -> tuple[ir.Value, ir.Value | None]:
    """The result and the constant vector of the ``op_type`` that alone reads ``value``."""
    node = _only_reader(value, op_type)
    if node is None:
        return value, None
    other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
    if other is None or other is value or not is_constant(other):
        return value, None
    if other.shape is None or other.shape.rank() > 1:
        return value, None
    nodes.append(node)
    return node.outputs[0], other


def _maker(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def _only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    readers: Sequence[ir.Node] = value.consumers()
    if len(readers) != 1 or value.is_graph_output() or readers[0].op_type != op_type:
        return None
    return readers[0]


def _scalar(value: ir.Value | None) -> float | None:
    if value is None or not is_constant(value):
        return None
    array = read_constant(value)
    return float(array.reshape(-1)[0]) if array.size == 1 else None


def _over_last_axis(node: ir.Node) -> bool:
    value = node.inputs[0]
    axes = node.attributes.get_ints("axes", None)
    if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        axes = [int(a) for a in read_constant(node.inputs[1]).reshape(-1)]
    if not node.attributes.get_int("keepdims", 1) or axes is None or len(axes) != 1:
        return False
    shape = None if value is None else value.shape
    return axes[0] == -1 or (shape is not None and axes[0] == shape.rank() - 1)
