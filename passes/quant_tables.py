"""Quantising what is gathered, not multiplied: embedding tables and other large parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from obert_compiler.graph.embeddings import EmbeddingSite, find_embeddings
from obert_compiler.graph.graph import Graph
from obert_compiler.graph.linear import SITE_KEY
from obert_compiler.passes.embedding_graph import EightBitRows, FourBitRows
from obert_compiler.passes.embedding_quantization import (
    group_size,
    quantize_table_4bit,
    quantize_table_8bit,
)
from obert_compiler.passes.quant_graph import QuantizedGraph, keep_parameter
from obert_compiler.passes.quant_plan import SitePlan
from obert_compiler.passes.quantization_error import relative_error
from obert_compiler.passes.weight_quantization import QuantizedWeight
from obert_compiler.pipeline.contract import Skip

__all__ = ["find_tables", "quantize_parameters", "quantize_tables", "redirect_other_readers"]

Kind = Literal["4bit", "8bit", "none"]
FloatArray = npt.NDArray[np.float32]
Row = dict[str, Any]

_SMALL_BYTES = 16 * 1024
_LIMIT_4BIT = 0.05
_LIMIT_8BIT = 0.01
_PARAMETER = "obert.parameter"


def find_tables(graph: Graph) -> dict[ir.Value, EmbeddingSite]:
    """Embedding tables that lie in the file as float32, by their initializer."""
    return {
        site.root: site
        for site in find_embeddings(graph)
        if site.table is site.root and site.root.dtype == ir.DataType.FLOAT
    }


def quantize_tables(
    editor: QuantizedGraph,
    tables: Mapping[ir.Value, EmbeddingSite],
    plans: Sequence[SitePlan],
    *,
    kind: Kind,
    group: int,
) -> tuple[list[Row], list[Skip]]:
    """Quantise embedding tables.

    A table that is also the weight of a site (a tied decoder) shares the site's int8 integers;
    another table that something else than Gather reads gets 8 bits and is expanded at load for that
    reader.

    Returns:
        Report rows, and the tables left float with the reason.
    """
    if kind == "none":
        return [], []
    tied = {plan.root: plan for plan in plans if plan.quantized is not None}
    rows: list[Row] = []
    skips: list[Skip] = []
    for table, site in tables.items():
        reason = _why_not(site, is_tied=table in tied)
        if reason is not None:
            skips.append(Skip(site.name, reason))
        elif table in tied:
            rows.append(_tie(editor, site, tied[table]))
        else:
            row, skip = _quantize_table(editor, site, kind, group)
            rows += row
            skips += skip
    return rows, skips


def _why_not(site: EmbeddingSite, *, is_tied: bool) -> str | None:
    nbytes = 4 * site.rows * site.columns
    if site.also_linear and not is_tied:
        return f"Linear site '{site.linear_sites[0]}' multiplies by it too, and stays float"
    if nbytes < _SMALL_BYTES and not site.also_linear:
        return f"only {nbytes} bytes: unpacking its rows would cost more than it saves"
    if any(g.inputs[1] is None or g.inputs[1].shape is None for g in site.gathers):
        return "the rank of its indices is unknown"
    return None


def _tie(editor: QuantizedGraph, site: EmbeddingSite, plan: SitePlan) -> Row:
    quantized = plan.quantized
    if quantized is None:
        raise ValueError(f"site '{plan.site.name}' is not quantised")
    table = EightBitRows(editor, f"{site.name}.weight", quantized)
    for gather in site.gathers:
        table.gather(gather, site.name)
    plan.weight = editor.quantized_tied_weight(plan.site.name, table.stored, table.scale)
    # The site's own row counts the bytes.
    scheme = "int8 by row, shared with a Linear site"
    row = _row(site.name, scheme, _array(site.root), quantized.dequantize(), 0)
    return row | {"bytes_before": 0, "site": plan.site.name}


def _quantize_table(
    editor: QuantizedGraph, site: EmbeddingSite, kind: Kind, group: int
) -> tuple[list[Row], list[Skip]]:
    table, array = site.root, _array(site.root)
    name, columns = site.name, site.columns
    skips: list[Skip] = []
    only_gathers = len(table.uses()) == len(site.gathers) and not table.is_graph_output()
    if kind == "4bit" and columns % 2 == 0 and only_gathers:
        size = group_size(columns, group)
        four = quantize_table_4bit(array, size)
        row = _row(name, f"4 bit in groups of {size}", array, four.dequantize(), four.nbytes)
        if row["relative_error"] <= _LIMIT_4BIT:
            unpacked = FourBitRows(editor, f"{name}.weight", four)
            for gather in site.gathers:
                unpacked.gather(gather, name)
            return [row], []
        reason = f"relative error {row['relative_error']:.3g} in 4 bits is over {_LIMIT_4BIT}"
        skips.append(Skip(name, f"{reason}; 8 bits instead"))
    elif kind == "4bit":
        reason = f"{columns} columns, an odd number" if columns % 2 else "other nodes read it too"
        skips.append(Skip(name, f"{reason}; 8 bits instead of 4"))
    eight = quantize_table_8bit(array)
    row = _row(name, "int8 by row", array, eight.dequantize(), _nbytes(eight))
    if row["relative_error"] > _LIMIT_8BIT:
        reason = f"relative error {row['relative_error']:.3g} in 8 bits is over {_LIMIT_8BIT}"
        return [], [*skips, Skip(name, f"{reason}; it stays float")]
    stored = EightBitRows(editor, f"{name}.weight", eight)
    for gather in site.gathers:
        stored.gather(gather, name)
    if table.uses():
        scale = editor.initializer(f"{name}.weight_row_scales", eight.scale[:, None])
        _replace(table, editor.folded(f"{name}.weight", stored.stored, scale))
    return [row], skips


def quantize_parameters(
    editor: QuantizedGraph, float_weights: set[ir.Value], *, kind: Kind
) -> tuple[list[Row], list[Skip]]:
    """Quantise the float parameters that neither a Linear site nor a Gather reads.

    They become integers that the runtime expands when it loads the file: matrices multiplied by a
    constant, tables that are sliced. Weights of sites that stay float, ``float_weights``, stay too.

    Returns:
        Report rows, and the large parameters left float with the reason.
    """
    rows: list[Row] = []
    skips: list[Skip] = []
    for value in list(editor.graph.initializers.values()):
        if value in float_weights or not _is_large_parameter(value):
            continue
        row, skip = _fold_parameter(editor, value) if kind != "none" else (None, None)
        rows += [row] if row is not None else []
        skips += [skip] if skip is not None else []
    return rows, skips


def redirect_other_readers(editor: QuantizedGraph, plan: SitePlan) -> None:
    """Let what else reads the float weight of a rewritten site read the rounded one."""
    root, dequantize = plan.root, plan.weight.producer() if plan.weight is not None else None
    if dequantize is None or not root.uses():
        return
    stored, scale = dequantize.inputs[0], dequantize.inputs[1]
    if stored is None or scale is None:
        return
    matrix = editor.folded(f"{plan.site.name}.weight_constant", stored, scale)
    if root.shape is not None and plan.root_is_rows:
        perm = {"perm": [1, 0]}
        name = f"{plan.site.name}.weight_rows"
        turn = editor.node("Transpose", [matrix], name, ir.DataType.FLOAT, root.shape, perm)
        editor.insert_after(matrix, [turn])
        matrix = turn.outputs[0]
    _replace(root, matrix)


def _replace(matrix: ir.Value, folded: ir.Value) -> None:
    keep_parameter(matrix, folded)
    for reader in matrix.consumers():
        # A product of two constants is no Linear site, and its operand is not stored like one.
        reader.metadata_props.pop(SITE_KEY, None)
    ir.convenience.replace_all_uses_with(matrix, folded, replace_graph_outputs=True)


def _is_large_parameter(value: ir.Value) -> bool:
    tensor = value.const_value
    return (
        tensor is not None
        and value.dtype == ir.DataType.FLOAT
        and tensor.nbytes >= _SMALL_BYTES
        and _PARAMETER in value.metadata_props
        and not any(use.node.op_type == "Gather" for use in value.uses())
    )


def _fold_parameter(editor: QuantizedGraph, value: ir.Value) -> tuple[Row | None, Skip | None]:
    array, name = _array(value), value.name or "parameter"
    if array.ndim != 2:
        return None, Skip(name, f"{array.nbytes} bytes in {array.ndim} dimensions, not a matrix")
    eight = quantize_table_8bit(array)
    row = _row(name, "int8 by row, expanded at load", array, eight.dequantize(), _nbytes(eight))
    if not row["relative_error"] <= _LIMIT_8BIT:
        reason = f"relative error {row['relative_error']:.3g} in 8 bits is over {_LIMIT_8BIT}"
        return None, Skip(name, f"{reason}; it stays float")
    stored = editor.initializer(f"{name}_quantized", eight.q)
    scale = editor.initializer(f"{name}_row_scale", eight.scale[:, None])
    _replace(value, editor.folded(name, stored, scale))
    return row, None


def _array(value: ir.Value) -> FloatArray:
    if value.const_value is None:
        raise ValueError(f"'{value.name}' is no initializer")
    return value.const_value.numpy().astype(np.float32, copy=False)


def _nbytes(quantized: QuantizedWeight) -> int:
    return quantized.q.nbytes + quantized.scale.nbytes


def _row(name: str, scheme: str, exact: FloatArray, rounded: FloatArray, nbytes: int) -> Row:
    return {
        "table": name,
        "shape": list(exact.shape),
        "scheme": scheme,
        "relative_error": float(f"{relative_error(exact, rounded):.6g}"),
        "bytes_before": exact.nbytes,
        "bytes_after": nbytes,
    }
