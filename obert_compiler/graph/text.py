"""A graph as text: one line per node, shapes and no weights.

    dense graph, opset 21
    input  input_ids int64[batch, sequence]
    %0 = Gather(bert.embeddings.word_embeddings.weight float32[200, 32], input_ids) float32[...]
    %9 = MatMul(%8, val_3 float32[32, 32]) float32[batch, sequence, 32] @bert.encoder.layer.0...
    output logits = %40 float32[batch, 2]

Values are numbered in graph order, so that the text does not depend on the names that an exporter
makes up; parameters keep their names, ``@`` marks the name of a Linear site. Attributes at their
default are left out, constants of at most eight elements are written out. Graphs of equal structure
have equal texts.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from obert_compiler.graph.linear import SITE_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obert_compiler.graph.graph import Graph

__all__ = ["graph_text"]

_PARAMETER_KEY = "obert.parameter"
_WRITTEN_OUT = 8
_DOMAINS = frozenset({"", "ai.onnx"})


def graph_text(graph: Graph) -> str:
    """The text of ``graph``, ending in a newline."""
    return "\n".join(_lines(graph)) + "\n"


def _lines(graph: Graph) -> Iterator[str]:
    inner = graph.model.graph
    opset = inner.opset_imports.get("", inner.opset_imports.get("ai.onnx", 0))
    yield f"{graph.stage} graph, opset {opset}"
    names: dict[ir.Value, str] = {v: v.name or "?" for v in inner.inputs}
    for value in inner.inputs:
        yield f"input  {names[value]} {_type(value)}"
    for node in inner:
        for output in node.outputs:
            names[output] = f"%{len(names) - len(inner.inputs)}"
        operands = ", ".join(_operand(v, names) for v in node.inputs)
        results = ", ".join(names[v] for v in node.outputs)
        types = ", ".join(_type(v) for v in node.outputs)
        domain = "" if node.domain in _DOMAINS else f"{node.domain}."
        site = node.metadata_props.get(SITE_KEY)
        parts = [
            f"{results} = {domain}{node.op_type}({operands})",
            *_attributes(node, opset),
            types,
        ]
        yield " ".join(parts) + (f" @{site}" if site else "")
    for value in inner.outputs:
        yield f"output {value.name} = {_operand(value, names)} {_type(value)}"


def _operand(value: ir.Value | None, names: dict[ir.Value, str]) -> str:
    if value is None:
        return "-"
    if value in names:
        return names[value]
    tensor = value.const_value
    if _PARAMETER_KEY in value.metadata_props or tensor is None:
        return f"{value.name} {_type(value)}"
    if tensor.size <= _WRITTEN_OUT:
        array = tensor.numpy()
        elements = [f"{n:.6g}" if array.dtype.kind == "f" else str(n) for n in array.reshape(-1)]
        text = ", ".join(elements)
        return text if array.ndim == 0 else f"[{text}]"
    return _type(value)


def _type(value: ir.Value) -> str:
    tensor = value.const_value
    dtype = value.dtype if tensor is None else tensor.dtype
    shape = value.shape if tensor is None else tensor.shape
    name = "?" if dtype is None else _dtype_name(dtype)
    if shape is None:
        return f"{name}[?]"
    return f"{name}[{', '.join('?' if d is None else str(d) for d in _dimensions(shape))}]"


def _dimensions(shape: ir.ShapeProtocol) -> list[int | str | None]:
    return [d if isinstance(d, int) else d.value for d in shape]


def _dtype_name(dtype: ir.DataType) -> str:
    return "float32" if dtype is ir.DataType.FLOAT else dtype.name.lower()


def _attributes(node: ir.Node, opset: int) -> list[str]:
    defaults = _defaults(node.op_type, opset) if node.domain in _DOMAINS else {}
    texts = []
    for name, attribute in sorted(node.attributes.items()):
        text = _attribute_text(attribute.value)
        if defaults.get(name) != text:
            texts.append(f"{name}={text}")
    return texts


@cache
def _defaults(op_type: str, opset: int) -> dict[str, str]:
    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return {}
    return {
        name: _attribute_text(onnx.helper.get_attribute_value(attribute.default_value))
        for name, attribute in schema.attributes.items()
        if attribute.default_value.name
    }


def _attribute_text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, ir.TensorProtocol):
        array = value.numpy()
        return str(array.tolist()) if array.size <= _WRITTEN_OUT else f"tensor{list(array.shape)}"
    if isinstance(value, np.ndarray | list | tuple):
        return "[" + ", ".join(_attribute_text(item) for item in value) + "]"
    return str(value)
