"""Quantising what is gathered, not multiplied: embedding tables and other large parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from obert_compiler.graph.embeddings import EmbeddingSite, find_embeddings
from obert_compiler.graph.graph import Graph
from obert_compiler.graph.linear import SITE_KEY
from obert_compiler.passes.embedding_graph import EightBitRows, FourBitRows
from obert_compiler.passes.embedding_quantization import (
    FourBitTable,
    group_size,
    quantize_table_4bit,
    quantize_table_8bit,
)
from obert_compiler.passes.quant_graph import QuantizedGraph, keep_parameter
from obert_compiler.passes.quant_plan import SitePlan
from obert_compiler.passes.quantization_error import relative_error
from obert_compiler.passes.weight_quantization import QuantizedWeight
from obert_compiler.pipeline.contract import Skip

__all__ = [
    "TablePlan",
    "find_tables",
    "plan_parameters",
    "plan_tables",
    "redirect_other_readers",
    "write_table",
]

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


@dataclass
class TablePlan:
    """What becomes of one matrix that is no Linear weight of its own.

    Attributes:
        name: of the embedding site, or of the parameter.
        root: the float32 initializer.
        scheme: for the report.
        quantized: what it is rounded to; of a tied table, what the site's weight is rounded to.
        embedding: the Gathers that read it; None for a parameter that is read whole.
        tied: the site that shares its integers, None for a table of its own.
    """

    name: str
    root: ir.Value
    scheme: str
    quantized: FourBitTable | QuantizedWeight
    embedding: EmbeddingSite | None = None
    tied: SitePlan | None = None

    def report(self) -> Row:
        """JSON-ready figures; read before the graph is rewritten."""
        exact, rounded = _array(self.root), self.quantized.dequantize()
        row: Row = {
            "table": self.name,
            "shape": list(exact.shape),
            "scheme": self.scheme,
            "relative_error": float(f"{relative_error(exact, rounded):.6g}"),
            "bytes_before": exact.nbytes,
            "bytes_after": _nbytes(self.quantized),
        }
        if self.tied is not None:
            # The site's own row counts the bytes.
            row |= {"bytes_before": 0, "bytes_after": 0, "site": self.tied.site.name}
        return row


def plan_tables(
    tables: Mapping[ir.Value, EmbeddingSite],
    plans: Sequence[SitePlan],
    *,
    kind: Kind,
    group: int,
) -> tuple[list[TablePlan], list[Skip]]:
    """Decide how each embedding table is quantised.

    A table that is also the weight of a site (a tied decoder) shares the site's int8 integers;
    another table that something else than Gather reads gets 8 bits and is expanded at load for that
    reader.

    Returns:
        The plans, and the tables left float with the reason.
    """
    if kind == "none":
        return [], []
    tied = {plan.root: plan for plan in plans if plan.quantized is not None}
    planned: list[TablePlan] = []
    skips: list[Skip] = []
    for table, site in tables.items():
        reason = _why_not(site, is_tied=table in tied)
        if reason is not None:
            skips.append(Skip(site.name, reason))
        elif table in tied:
            planned.append(_tied(site, tied[table]))
        else:
            plan, notes = _plan_table(site, kind, group)
            planned += [plan] if plan is not None else []
            skips += notes
    return planned, skips


def _why_not(site: EmbeddingSite, *, is_tied: bool) -> str | None:
    nbytes = 4 * site.rows * site.columns
    if site.also_linear and not is_tied:
        return f"Linear site '{site.linear_sites[0]}' multiplies by it too, and stays float"
    if nbytes < _SMALL_BYTES and not site.also_linear:
        return f"only {nbytes} bytes: unpacking its rows would cost more than it saves"
    if any(g.inputs[1] is None or g.inputs[1].shape is None for g in site.gathers):
        return "the rank of its indices is unknown"
    return None


def _tied(site: EmbeddingSite, plan: SitePlan) -> TablePlan:
    if plan.quantized is None:
        raise ValueError(f"site '{plan.site.name}' is not quantised")
    scheme = "int8 by row, shared with a Linear site"
    return TablePlan(site.name, site.root, scheme, plan.quantized, site, plan)


def _plan_table(site: EmbeddingSite, kind: Kind, group: int) -> tuple[TablePlan | None, list[Skip]]:
    table, array = site.root, _array(site.root)
    name, columns = site.name, site.columns
    skips: list[Skip] = []
    only_gathers = len(table.uses()) == len(site.gathers) and not table.is_graph_output()
    if kind == "4bit" and columns % 2 == 0 and only_gathers:
        size = group_size(columns, group)
        four = quantize_table_4bit(array, size)
        error = relative_error(array, four.dequantize())
        if error <= _LIMIT_4BIT:
            return TablePlan(name, table, f"4 bit in groups of {size}", four, site), []
        reason = f"relative error {error:.3g} in 4 bits is over {_LIMIT_4BIT}"
        skips.append(Skip(name, f"{reason}; 8 bits instead"))
    elif kind == "4bit":
        reason = f"{columns} columns, an odd number" if columns % 2 else "other nodes read it too"
        skips.append(Skip(name, f"{reason}; 8 bits instead of 4"))
    eight = quantize_table_8bit(array)
    error = relative_error(array, eight.dequantize())
    if error > _LIMIT_8BIT:
        reason = f"relative error {error:.3g} in 8 bits is over {_LIMIT_8BIT}"
        return None, [*skips, Skip(name, f"{reason}; it stays float")]
    return TablePlan(name, table, "int8 by row", eight, site), skips


def plan_parameters(
    graph: Graph, float_weights: set[ir.Value], plans: Sequence[SitePlan], *, kind: Kind
) -> tuple[list[TablePlan], list[Skip]]:
    """Decide how the float parameters are quantised that neither a Linear site nor a Gather reads.

    They become integers that the runtime expands when it loads the file: matrices multiplied by a
    constant, tables that are sliced. Weights of sites that stay float, ``float_weights``, stay too.

    Returns:
        The plans, and the large parameters left float with the reason.
    """
    if kind == "none":
        return [], []
    apart = float_weights | {plan.root for plan in plans if plan.quantized is not None}
    planned: list[TablePlan] = []
    skips: list[Skip] = []
    for value in graph.model.graph.initializers.values():
        if value in apart or not _is_large_parameter(value):
            continue
        plan, skip = _plan_parameter(value)
        planned += [plan] if plan is not None else []
        skips += [skip] if skip is not None else []
    return planned, skips


def write_table(editor: QuantizedGraph, plan: TablePlan) -> None:
    """Write one plan; a tied table before its site is rewritten, a parameter after all sites."""
    quantized, name = plan.quantized, f"{plan.name}.weight"
    if isinstance(quantized, FourBitTable):
        _redirect_gathers(plan, FourBitRows(editor, name, quantized))
    elif plan.embedding is None:
        stored = editor.initializer(f"{plan.name}_quantized", quantized.q)
        scale = editor.initializer(f"{plan.name}_row_scale", quantized.scale[:, None])
        _replace(plan.root, editor.folded(plan.name, stored, scale))
    else:
        rows = EightBitRows(editor, name, quantized)
        _redirect_gathers(plan, rows)
        if plan.tied is not None:
            site = plan.tied.site.name
            plan.tied.weight = editor.quantized_tied_weight(site, rows.stored, rows.scale)
        elif plan.root.uses():
            scale = editor.initializer(f"{name}_row_scales", quantized.scale[:, None])
            _replace(plan.root, editor.folded(name, rows.stored, scale))


def _redirect_gathers(plan: TablePlan, rows: FourBitRows | EightBitRows) -> None:
    for gather in plan.embedding.gathers if plan.embedding is not None else ():
        rows.gather(gather, plan.name)


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
        and bool(value.uses())
        and not any(use.node.op_type == "Gather" for use in value.uses())
    )


def _plan_parameter(value: ir.Value) -> tuple[TablePlan | None, Skip | None]:
    array, name = _array(value), value.name or "parameter"
    if array.ndim != 2:
        return None, Skip(name, f"{array.nbytes} bytes in {array.ndim} dimensions, not a matrix")
    eight = quantize_table_8bit(array)
    error = relative_error(array, eight.dequantize())
    if not error <= _LIMIT_8BIT:
        reason = f"relative error {error:.3g} in 8 bits is over {_LIMIT_8BIT}"
        return None, Skip(name, f"{reason}; it stays float")
    return TablePlan(name, value, "int8 by row, expanded at load", eight), None


def _array(value: ir.Value) -> FloatArray:
    if value.const_value is None:
        raise ValueError(f"'{value.name}' is no initializer")
    return value.const_value.numpy().astype(np.float32, copy=False)


def _nbytes(quantized: FourBitTable | QuantizedWeight) -> int:
    if isinstance(quantized, FourBitTable):
        return quantized.nbytes
    return quantized.q.nbytes + quantized.scale.nbytes
