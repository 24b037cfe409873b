"""Values that depend on initializers alone: reading them, whatever chain of nodes makes them.

A weight may lie in the file as it is, transposed, behind DequantizeLinear, or packed into values
and a mask that standard ops unpack. Readers ask here and get an array.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from obert_compiler.errors import GraphError

__all__ = ["constant_nodes", "is_constant", "read_constant"]

Array = npt.NDArray[np.generic]


def is_constant(value: ir.Value) -> bool:
    """Whether ``value`` is an initializer or computed from initializers alone."""
    return constant_nodes(value) is not None


def constant_nodes(value: ir.Value) -> list[ir.Node] | None:
    """Nodes that make ``value`` from initializers, in topological order.

    Returns:
        An empty list for an initializer, None when ``value`` depends on a graph input.
    """
    order: list[ir.Node] = []
    seen: set[ir.Node] = set()
    stack: list[tuple[ir.Value, bool]] = [(value, False)]
    while stack:
        current, inputs_done = stack.pop()
        node = current.producer()
        if node is None:
            if current.const_value is None:
                return None
            continue
        if inputs_done:
            if node not in seen:
                seen.add(node)
                order.append(node)
            continue
        if node in seen:
            continue
        stack.append((current, True))
        stack.extend((i, False) for i in node.inputs if i is not None)
    return order


def read_constant(value: ir.Value) -> Array:
    """The array that ``value`` stands for.

    Raises:
        GraphError: ``value`` depends on a graph input.
    """
    nodes = constant_nodes(value)
    if nodes is None:
        raise GraphError(f"value '{value.name}': expected a constant, found one that inputs change")
    if value.const_value is not None and not nodes:
        return value.const_value.numpy()
    if all(node.op_type in _SIMPLE for node in nodes):
        return _evaluate_simple(value, nodes)
    return _evaluate_with_onnxruntime(value, nodes)


def _evaluate_simple(value: ir.Value, nodes: list[ir.Node]) -> Array:
    arrays: dict[ir.Value, Array] = {}

    def read(operand: ir.Value | None) -> Array | None:
        if operand is None:
            return None
        if operand in arrays:
            return arrays[operand]
        return None if operand.const_value is None else operand.const_value.numpy()

    for node in nodes:
        arrays[node.outputs[0]] = _SIMPLE[node.op_type](node, [read(i) for i in node.inputs])
    return arrays[value]


def _transpose(node: ir.Node, operands: list[Array | None]) -> Array:
    (x,) = operands
    perm = node.attributes.get_ints("perm", None)
    return np.transpose(np.asarray(x), perm)


def _dequantize_linear(node: ir.Node, operands: list[Array | None]) -> Array:
    x, scale = np.asarray(operands[0]), np.asarray(operands[1])
    zero_point = operands[2] if len(operands) > 2 else None
    axis = node.attributes.get_int("axis", 1)
    block_size = node.attributes.get_int("block_size", 0)

    def spread(parameter: Array) -> Array:
        if parameter.ndim == 0 or parameter.size == 1:
            return parameter.reshape(())
        if block_size:
            repeated = np.repeat(parameter, block_size, axis=axis)
            return np.take(repeated, np.arange(x.shape[axis]), axis=axis)
        shape = [1] * x.ndim
        shape[axis] = -1
        return parameter.reshape(shape)

    shifted = x.astype(np.float32)
    if zero_point is not None:
        shifted = shifted - spread(zero_point).astype(np.float32)
    result: Array = shifted * spread(scale).astype(np.float32)
    return result


def _identity(node: ir.Node, operands: list[Array | None]) -> Array:
    del node
    return np.asarray(operands[0])


_SIMPLE: dict[str, Callable[[ir.Node, list[Array | None]], Array]] = {
    "Identity": _identity,
    "Transpose": _transpose,
    "DequantizeLinear": _dequantize_linear,
}


def _evaluate_with_onnxruntime(value: ir.Value, nodes: list[ir.Node]) -> Array:
    import onnxruntime

    sources: dict[str, ir.Value] = {}
    for node in nodes:
        for operand in node.inputs:
            if operand is not None and operand.producer() is None and operand.name:
                sources[operand.name] = operand
    copies = {name: ir.Value(name=name, const_value=v.const_value) for name, v in sources.items()}
    made: dict[ir.Value, ir.Value] = {v: copies[name] for name, v in sources.items()}
    cloned: list[ir.Node] = []
    for node in nodes:
        outputs = [ir.Value(name=o.name) for o in node.outputs]
        inputs = [None if i is None else made[i] for i in node.inputs]
        attributes = list(node.attributes.values())
        cloned.append(ir.Node(node.domain, node.op_type, inputs, attributes, outputs=outputs))
        made.update(zip(node.outputs, outputs, strict=True))
    result = made[value]
    result.type = value.type
    graph = ir.Graph(
        [],
        [result],
        nodes=cloned,
        initializers=list(copies.values()),
        opset_imports={"": _opset(nodes[0])},
        name="constant",
    )
    payload = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(payload, options, providers=["CPUExecutionProvider"])
    array: Array = session.run(None, {})[0]
    return array


def _opset(node: ir.Node) -> int:
    graph = node.graph
    while isinstance(graph, ir.Graph):
        if "" in graph.opset_imports:
            return graph.opset_imports[""]
        break
    return 21
