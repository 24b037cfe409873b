"""Rounding the queries, keys and values of attention to 8 bits.

Both products of attention then multiply whole numbers of 8 bits. In the graph an operand stays
float: QuantizeLinear and DequantizeLinear stand behind the Linear layer (or the part of a stacked
projection) that it comes from, before it is cut into heads. Probabilities stay as they are: of 384
keys most get less than half a step of 8 bits.

    query site -> QuantizeLinear -> DequantizeLinear -> Reshape -> Transpose -> MatMul

An attention is rounded as a whole or not at all: one float operand keeps its product in floats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

import onnx_ir as ir

from obert_compiler.graph.attention import Attention, find_attention
from obert_compiler.graph.linear import find_linear_sites
from obert_compiler.graph.network import Network
from obert_compiler.passes.calibration import (
    ActivationStatistics,
    Calibration,
    Quantizer,
    choose_range,
)
from obert_compiler.passes.quantization_error import relative_error
from obert_compiler.pipeline.contract import Skip

if TYPE_CHECKING:
    from obert_compiler.graph.graph import Graph
    from obert_compiler.passes.quant_graph import QuantizedGraph

__all__ = ["AttentionPlan", "OperandPlan", "find_operands", "plan_attention"]

_VIEWS = frozenset({"Expand", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_SCALES = frozenset({"Div", "Mul"})
_PARTS = frozenset({"Gather", "Slice", "Split"})


@dataclass
class OperandPlan:
    """One value that is rounded.

    Attributes:
        roles: what it is to its attention: "query", "key", "value".
        value: what the Linear site, or the part of a stacked projection, gives.
        uses: the inputs of nodes that lead from it to the products.
        quantizer: its scale and zero point.
        calibration: the method that chose them.
        error: relative squared error of the rounded value.
        rounded: what stands for the value in the graph, once it is written.
    """

    roles: list[str]
    value: ir.Value
    uses: list[tuple[ir.Node, int]]
    quantizer: Quantizer = field(default_factory=lambda: Quantizer(1.0, 0))
    calibration: str = ""
    error: float = float("inf")
    rounded: ir.Value | None = None

    def write(self, editor: QuantizedGraph) -> None:
        """Put the rounding into the graph, or bring the one that is there up to date."""
        if self.rounded is None:
            self.rounded = editor.round_uses(self.value, self.quantizer, self.uses)
        else:
            editor.change_rounding(self.rounded, self.quantizer)


@dataclass
class AttentionPlan:
    """One attention whose operands are rounded.

    Attributes:
        name: of its Softmax, or of the operator Attention.
        operands: what is rounded: three values, or fewer where several roles share one.
    """

    name: str
    operands: list[OperandPlan]

    def report(self) -> list[dict[str, Any]]:
        """JSON-ready figures, a row for each operand."""
        return [
            {
                "attention": self.name,
                "operand": ", ".join(operand.roles),
                "value": operand.value.name,
                "calibration": operand.calibration,
                "relative_error": float(f"{operand.error:.6g}"),
                "scale": operand.quantizer.scale,
                "zero_point": operand.quantizer.zero_point,
            }
            for operand in self.operands
        ]


def find_operands(graph: Graph) -> tuple[list[AttentionPlan], list[Skip]]:
    """The attentions of ``graph`` whose operands can be rounded, and why others cannot."""
    found = find_attention(graph)
    network = Network(graph)
    sites = {output for site in find_linear_sites(graph) for output in site.outputs}
    skips = [
        Skip(other.name, f"attention stays float: {other.reason}") for other in found.unmatched
    ]
    plans: list[AttentionPlan] = []
    for attention in found:
        name = attention.softmax.name or "?"
        operands: dict[ir.Value, OperandPlan] = {}
        try:
            for role, node, index in _products(attention):
                value, use = _source(network, sites, role, node, index)
                operand = operands.setdefault(value, OperandPlan([], value, []))
                operand.roles.append(role)
                if use not in operand.uses:
                    operand.uses.append(use)
        except _NoSourceError as reason:
            skips.append(Skip(name, f"attention stays float: {reason}"))
            continue
        plans.append(AttentionPlan(name, list(operands.values())))
    return plans, skips


def plan_attention(
    plans: Sequence[AttentionPlan],
    statistics: Mapping[ir.Value, ActivationStatistics],
    *,
    calibration: Calibration,
    percentile: float,
    limit: float,
    keep_sensitive: bool,
) -> tuple[list[AttentionPlan], list[Skip]]:
    """Choose the range of every operand.

    Args:
        plans: as `find_operands` gives them; changed in place.
        statistics: of every operand.
        calibration: method tried first.
        percentile: of the method "percentile".
        limit: relative squared error of an operand above which other methods are tried.
        keep_sensitive: whether an attention with an operand over the limit stays float.

    Returns:
        The attentions to round, and what stays float or is over the limit.
    """
    methods = [calibration, *(m for m in get_args(Calibration) if m != calibration)]
    chosen: list[AttentionPlan] = []
    skips: list[Skip] = []
    for plan in plans:
        for operand in plan.operands:
            found = statistics[operand.value]
            for method in methods if keep_sensitive else methods[:1]:
                quantizer = choose_range(found, method, percentile=percentile)
                error = relative_error(found.sample, quantizer.round_trip(found.sample))
                if error < operand.error:
                    operand.quantizer, operand.error = quantizer, error
                    operand.calibration = method
                if operand.error <= limit:
                    break
        worst = max(plan.operands, key=lambda operand: operand.error)
        if worst.error > limit:
            reason = (
                f"relative error {worst.error:.3g} of its {', '.join(worst.roles)} is over the "
                f"limit of {limit:g}"
            )
            if keep_sensitive:
                skips.append(Skip(plan.name, f"{reason}; the attention stays float"))
                continue
            skips.append(Skip(plan.name, f"{reason}; rounded nevertheless (sensitive=report)"))
        chosen.append(plan)
    return chosen, skips


class _NoSourceError(Exception):
    """Why an operand of attention cannot be rounded."""


def _products(attention: Attention) -> list[tuple[str, ir.Node, int]]:
    return [
        ("query", attention.scores, 0),
        ("key", attention.scores, 1),
        ("value", attention.context, attention.value_index),
    ]


def _source(
    network: Network, sites: set[ir.Value], role: str, node: ir.Node, index: int
) -> tuple[ir.Value, tuple[ir.Node, int]]:
    """The value before it was cut into heads, and the use of it that leads to ``node``."""
    stop: tuple[ir.Value, tuple[ir.Node, int]] | None = None
    while True:
        value = node.inputs[index]
        if value is None:
            raise _NoSourceError(f"its {role} is missing")
        if value in sites:
            return stop or (value, (node, index))
        producer = value.producer()
        operands = [] if producer is None else network.data_operands(producer)
        if producer is None or len(operands) != 1:
            between = "a graph input" if producer is None else f"'{producer.op_type}'"
            raise _NoSourceError(f"{between} stands between a Linear layer and its {role}")
        if producer.op_type in _PARTS:
            stop = stop or (value, (node, index))
        elif producer.op_type not in _VIEWS and (stop or producer.op_type not in _SCALES):
            raise _NoSourceError(
                f"'{producer.op_type}' stands between a Linear layer and its {role}"
            )
        node, index = producer, list(producer.inputs).index(operands[0])
