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
    if all(_is_simple(node) for node in nodes):
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


def _quantize_linear(node: ir.Node, operands: list[Array | None]) -> Array:
    del node
    x, scale = np.asarray(operands[0]), np.asarray(operands[1])
    levels: Array = np.clip(np.rint(x / scale), 0, 255).astype(np.uint8)
    return levels


def _abs(node: ir.Node, operands: list[Array | None]) -> Array:
    del node
    size: Array = np.abs(np.asarray(operands[0]))
    return size


def _add(node: ir.Node, operands: list[Array | None]) -> Array:
    del node
    total: Array = np.asarray(operands[0]) + np.asarray(operands[1])
    return total


def _identity(node: ir.Node, operands: list[Array | None]) -> Array:
    del node
    return np.asarray(operands[0])


def _cast(node: ir.Node, operands: list[Array | None]) -> Array:
    return np.asarray(operands[0]).astype(ir.DataType(node.attributes.get_int("to", 0)).numpy())


def _cum_sum(node: ir.Node, operands: list[Array | None]) -> Array:
    del node
    x, axis = np.asarray(operands[0]), np.asarray(operands[1])
    return np.cumsum(x, axis=int(axis.item()), dtype=x.dtype)


def _constant_of_shape(node: ir.Node, operands: list[Array | None]) -> Array:
    value = node.attributes.get_tensor("value", None)
    fill = np.zeros(1, np.float32) if value is None else value.numpy()
    return np.full(np.asarray(operands[0]).tolist(), fill.item(), fill.dtype)


def _scatter_nd(node: ir.Node, operands: list[Array | None]) -> Array:
    del node
    data, indices, updates = (np.array(x) for x in operands)
    data[tuple(np.moveaxis(indices, -1, 0))] = updates
    return data


def _reshape(node: ir.Node, operands: list[Array | None]) -> Array:
    del node
    x, target = np.asarray(operands[0]), np.asarray(operands[1]).tolist()
    return x.reshape([x.shape[k] if d == 0 and k < x.ndim else d for k, d in enumerate(target)])


def _expand(node: ir.Node, operands: list[Array | None]) -> Array:
    del node
    x, target = np.asarray(operands[0]), np.asarray(operands[1]).tolist()
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, target))


_SIMPLE: dict[str, Callable[[ir.Node, list[Array | None]], Array]] = {
    "Abs": _abs,
    "Add": _add,
    "Cast": _cast,
    "ConstantOfShape": _constant_of_shape,
    "CumSum": _cum_sum,
    "DequantizeLinear": _dequantize_linear,
    "Expand": _expand,
    "Identity": _identity,
    "QuantizeLinear": _quantize_linear,
    "Reshape": _reshape,
    "ScatterND": _scatter_nd,
    "Transpose": _transpose,
}
"""Ops that NumPy evaluates: those that dequantise, transpose or unpack a weight."""


def _is_simple(node: ir.Node) -> bool:
    """Whether `_SIMPLE` does all that ``node`` asks for; anything rarer goes to onnxruntime."""
    if node.op_type not in _SIMPLE:
        return False
    if node.op_type == "Cast":
        to = ir.DataType(node.attributes.get_int("to", 0))
        return _holds_integers(node.inputs[0]) and (to.is_integer() or to is ir.DataType.FLOAT)
    if node.op_type == "QuantizeLinear":
        return _is_quantised_by_one_scale(node)
    if node.op_type == "CumSum":
        return not any(node.attributes.get_int(a, 0) for a in ("exclusive", "reverse"))
    if node.op_type == "ScatterND":
        return node.attributes.get_string("reduction", "none") == "none"
    if node.op_type == "Reshape":
        return node.attributes.get_int("allowzero", 0) == 0
    return True


def _holds_integers(value: ir.Value | None) -> bool:
    """Whether ``value`` is known to; types between nodes are not written to files."""
    if value is None or value.dtype is not None:
        return value is not None and value.dtype is not None and value.dtype.is_integer()
    maker = value.producer()
    if maker is not None and maker.op_type == "Reshape":
        return _holds_integers(maker.inputs[0])
    if maker is not None and maker.op_type == "Cast":
        return ir.DataType(maker.attributes.get_int("to", 0)).is_integer()
    return maker is not None and maker.op_type == "QuantizeLinear"


def _is_quantised_by_one_scale(node: ir.Node) -> bool:
    """Whether a QuantizeLinear has a scale, no zero point and no attribute: the result is uint8."""
    scale = node.inputs[1]
    lone = scale is not None and scale.const_value is not None and scale.const_value.size == 1
    return lone and len(node.inputs) == 2 and not node.attributes


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
