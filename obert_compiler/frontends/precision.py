"""One float type and one type of token ids: float32, whatever the source had, and int64."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

__all__ = ["to_float32", "to_int64_inputs"]

_OTHER_FLOATS = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "stash_type")


def to_float32(model: ir.Model) -> None:
    """Convert every float tensor and value of ``model`` to float32, in place.

    Casts between float types become casts to float32, which later folding removes.
    """
    graph = model.graph
    for value in [*graph.inputs, *graph.initializers.values()]:
        _convert_value(value)
    for node in graph:
        for name in _TYPE_ATTRIBUTES:
            attribute = node.attributes.get(name)
            if attribute is not None and attribute.value in _OTHER_FLOATS:
                node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
        tensor = node.attributes.get("value")
        if tensor is not None and tensor.type == ir.AttributeType.TENSOR:
            node.attributes["value"] = ir.AttrTensor("value", _convert_tensor(tensor.as_tensor()))
        for output in node.outputs:
            _convert_value(output)
    _remove_float_casts(graph)


def to_int64_inputs(model: ir.Model) -> None:
    """Let int32 inputs (TensorFlow's token ids) be int64; a Cast gives the graph what it had."""
    graph = model.graph
    for value in graph.inputs:
        if value.dtype != ir.DataType.INT32:
            continue
        value.dtype = ir.DataType.INT64
        readers = tuple(value.uses())
        output = ir.Value(
            name=f"{value.name}_int32", shape=value.shape, type=ir.TensorType(ir.DataType.INT32)
        )
        to = {"to": int(ir.DataType.INT32)}
        name = f"{value.name}_to_int32"
        node = ir.node("Cast", [value], attributes=to, outputs=[output], name=name)
        for use in readers:
            use.node.replace_input_with(use.idx, output)
        if graph:
            graph.insert_before(graph[0], node)


def _convert_value(value: ir.Value) -> None:
    if value.const_value is not None:
        value.const_value = _convert_tensor(value.const_value)
    if value.dtype in _OTHER_FLOATS:
        value.dtype = ir.DataType.FLOAT


def _convert_tensor(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if tensor.dtype not in _OTHER_FLOATS:
        return tensor
    return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)


def _remove_float_casts(graph: ir.Graph) -> None:
    """Remove casts from float32 to float32, where the type of the operand is known."""
    for node in list(graph):
        if node.op_type != "Cast" or node.inputs[0] is None:
            continue
        source, output = node.inputs[0], node.outputs[0]
        same = source.dtype == ir.DataType.FLOAT == node.attributes.get_int("to", 0)
        if same and not output.is_graph_output():
            ir.convenience.replace_all_uses_with(output, source)
            graph.remove(node, safe=True)
