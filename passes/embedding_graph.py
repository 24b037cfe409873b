"""Writing quantised embedding tables into the graph: rows are gathered first, then unpacked.

Only the rows that a request asks for are ever expanded, so the table keeps its small size in memory
too. The arithmetic is done in float32 with standard ops: division of bytes rounds differently from
runtime to runtime, while byte / 16 and its floor are exact in float32.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from obert_compiler.errors import GraphError
from obert_compiler.graph.linear import SITE_KEY
from obert_compiler.passes.embedding_quantization import FourBitTable
from obert_compiler.passes.quant_graph import QuantizedGraph, keep_parameter
from obert_compiler.passes.weight_quantization import QuantizedWeight

__all__ = ["EightBitRows", "FourBitRows", "redirect_gather"]

_F32 = ir.DataType.FLOAT


def redirect_gather(editor: QuantizedGraph, gather: ir.Node, rows: ir.Value) -> None:
    """Let every reader of ``gather`` read ``rows``, and drop ``gather``."""
    old = gather.outputs[0]
    name = old.name
    ir.convenience.replace_all_uses_with(old, rows, replace_graph_outputs=True)
    rows.metadata_props.update(old.metadata_props)
    keep_parameter(gather.inputs[0], rows)
    editor.graph.remove(gather, safe=True)
    rows.name = name


class FourBitRows:
    """A 4-bit table as initializers, and the chain that gathers and unpacks rows of it.

    Args:
        editor: of the graph.
        name: stem of the new names.
        table: nibbles, scales and zero points.
    """

    def __init__(self, editor: QuantizedGraph, name: str, table: FourBitTable) -> None:
        self._editor = editor
        self._name = name
        self._rows, self._groups = table.scale.shape
        self._columns = 2 * table.packed.shape[1]
        self._packed = editor.initializer(f"{name}_packed", table.packed)
        self._scale = editor.initializer(f"{name}_scale", table.scale[..., None])
        self._zero_point = editor.initializer(f"{name}_zero_point", table.zero_point[..., None])

    def gather(self, node: ir.Node, site: str) -> None:
        """Replace ``node``, a Gather of rows (axis 0) of the table called ``site``."""
        editor, stem = self._editor, node.outputs[0].name
        indices, lead = _indices(node)
        rank = len(lead)
        half, groups, columns = self._columns // 2, self._groups, self._columns
        packed_shape, shape = ir.Shape([*lead, half]), ir.Shape([*lead, columns])
        grouped_shape = ir.Shape([*lead, groups, columns // groups])
        one_each = ir.Shape([*lead, groups, 1])
        chain: list[ir.Node] = []

        def add(
            op: str,
            inputs: list[ir.Value],
            what: str,
            shape: ir.Shape,
            dtype: ir.DataType = _F32,
            **attributes: int,
        ) -> ir.Value:
            chain.append(editor.node(op, inputs, f"{stem}_{what}", dtype, shape, attributes))
            return chain[-1].outputs[0]

        def gathered(table: ir.Value, what: str, shape: ir.Shape) -> ir.Value:
            dtype = table.dtype or _F32
            rows = add("Gather", [table, indices], f"{what}_rows", shape, dtype, axis=0)
            return add("Cast", [rows], what, shape, to=_F32.value)

        sixteen = editor.shared_constant("nibble_base", np.array(16, np.float32))
        sixteenth = editor.shared_constant("nibble_base_inverse", np.array(1 / 16, np.float32))
        split = editor.shared_constant(
            f"nibble_groups_{rank}_{groups}_{columns}",
            np.array([*[0] * rank, groups, columns // groups], np.int64),
        )
        joined = editor.shared_constant(
            f"nibble_row_{rank}_{columns}", np.array([*[0] * rank, columns], np.int64)
        )
        byte = gathered(self._packed, "bytes", packed_shape)
        quotient = add("Mul", [byte, sixteenth], "quotient", packed_shape)
        high = add("Floor", [quotient], "high", packed_shape)
        high_part = add("Mul", [high, sixteen], "high_part", packed_shape)
        low = add("Sub", [byte, high_part], "low", packed_shape)
        q = add("Concat", [low, high], "nibbles", shape, axis=-1)
        grouped = add("Reshape", [q, split], "grouped", grouped_shape)
        zero_point = gathered(self._zero_point, "zero_point", one_each)
        scale = gathered(self._scale, "scale", one_each)
        shifted = add("Sub", [grouped, zero_point], "shifted", grouped_shape)
        scaled = add("Mul", [shifted, scale], "scaled", grouped_shape)
        add("Reshape", [scaled, joined], "rows", shape)
        _mark(chain[0], node, site)
        editor.graph.insert_after(node, chain)
        redirect_gather(editor, node, chain[-1].outputs[0])


class EightBitRows:
    """An 8-bit table as initializers, and the chain that gathers and scales rows of it.

    Args:
        editor: of the graph.
        name: stem of the new names.
        table: integers ``[V, H]`` and a scale for each row.

    Attributes:
        stored: the int8 initializer ``[V, H]``, which a tied decoder reads too.
        scale: the float32 initializer ``[V]``, likewise.
    """

    def __init__(self, editor: QuantizedGraph, name: str, table: QuantizedWeight) -> None:
        self._editor = editor
        self._columns = table.q.shape[1]
        self.stored = editor.initializer(f"{name}_quantized", table.q)
        self.scale = editor.initializer(f"{name}_row_scale", table.scale)

    def gather(self, node: ir.Node, site: str) -> None:
        """Replace ``node``, a Gather of rows (axis 0) of the table called ``site``."""
        editor, stem = self._editor, node.outputs[0].name
        indices, lead = _indices(node)
        shape, one_each = ir.Shape([*lead, self._columns]), ir.Shape([*lead, 1])
        axis, to_float = {"axis": 0}, {"to": _F32.value}
        i8 = ir.DataType.INT8
        rows = editor.node("Gather", [self.stored, indices], f"{stem}_int8", i8, shape, axis)
        cast = editor.node("Cast", [rows.outputs[0]], f"{stem}_float", _F32, shape, to_float)
        scale = editor.node(
            "Gather", [self.scale, indices], f"{stem}_scale", _F32, ir.Shape(lead), axis
        )
        last = editor.shared_constant("last_axis", np.array([-1], np.int64))
        inputs = [scale.outputs[0], last]
        spread = editor.node("Unsqueeze", inputs, f"{stem}_scale_column", _F32, one_each)
        inputs = [cast.outputs[0], spread.outputs[0]]
        scaled = editor.node("Mul", inputs, f"{stem}_rows", _F32, shape)
        _mark(rows, node, site)
        editor.graph.insert_after(node, [rows, cast, scale, spread, scaled])
        redirect_gather(editor, node, scaled.outputs[0])


def _indices(gather: ir.Node) -> tuple[ir.Value, list[int | ir.SymbolicDim]]:
    indices = gather.inputs[1]
    if indices is None or indices.shape is None:
        raise GraphError(
            f"node '{gather.name}' (Gather): expected indices of known rank, found none; run shape "
            "inference on the source file"
        )
    return indices, list(indices.shape)


def _mark(new: ir.Node, old: ir.Node, site: str) -> None:
    new.metadata_props.update(old.metadata_props)
    new.metadata_props[SITE_KEY] = site
