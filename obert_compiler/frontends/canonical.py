"""The canonical form that every pass relies on, whatever exporter wrote the model.

- opset 21 or later, one main graph, functions inlined, standard ops alone, no control flow;
- no Constant or Identity nodes; weights are initializers, not hidden behind Cast, Transpose or
  Identity, float32; a table that is read both ways (a tied decoder) keeps its Transpose;
- every float initializer that is a parameter of the source carries ``obert.parameter``, and
  ``obert.transposed`` where it is stored ``[in, out]``;
- every MatMul or Gemm of a Linear site carries ``obert.site``;
- names of values and nodes are unique; the exporter's own metadata is gone.
"""

from __future__ import annotations

from collections.abc import Set

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from obert_compiler.errors import ModelError
from obert_compiler.frontends import parameters as parameter_names
from obert_compiler.frontends.precision import to_float32, to_int64_inputs
from obert_compiler.graph.graph import STAGE_KEY

__all__ = ["OPSET", "canonicalise", "refuse_foreign_ops"]

OPSET = 21
"""The opset that front ends export to and upgrade older files to."""

_CONTROL_FLOW = {"If", "Loop", "Scan", "SequenceMap"}
_STANDARD_DOMAINS = {"", "ai.onnx"}
_FOLD_LIMIT = 8192
_RULES = (
    "cast_cast",
    "cast_constant_of_shape",
    "cast_constant_of_shape_without_value",
    "collapse_slice",
    "collapse_slice2",
    "div_by_1",
    "dropout_inference",
    "dropout_zero",
    "materialize_reshape_shape",
    "no_op_cast",
    "no_op_dynamic_scatter_nd",
    "no_op_expand",
    "no_op_static_scatter_nd",
    "no_op_transpose",
    "reshape_reshape",
    "slice_split",
    "squeeze_reshape_1d",
    "sub_0",
    "transpose_transpose",
    "unsqueeze_unsqueeze",
)
_KEPT_METADATA = "obert."


def canonicalise(model: ir.Model, *, parameters: Set[str] | None = None) -> None:
    """Bring ``model`` into canonical form, in place.

    Args:
        model: opset 21 or later.
        parameters: names of initializers that are parameters of the source; None where the source
            does not say, then every float initializer of more than one element is one.

    Raises:
        ModelError: control flow, an op of another domain, or a parameter that is not finite.
    """
    common_passes.InlinePass()(model)
    common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common_passes.RemoveInitializersFromInputsPass()(model)
    if STAGE_KEY not in model.metadata_props:  # what this package wrote is canonical already
        to_float32(model)
        to_int64_inputs(model)
        _lower_foreign(model, parameters)
    _refuse_control_flow(model)
    refuse_foreign_ops(model)
    parameter_names.check_finite(model)
    common_passes.NameFixPass()(model)
    parameter_names.name_sites(model)
    _strip(model)


def _lower_foreign(model: ir.Model, parameters: Set[str] | None) -> None:
    common_passes.RemoveUnusedNodesPass()(model)
    parameter_names.mark_parameters(model, parameters)
    parameter_names.split_identities(model)
    if any(node.op_type in _CONTROL_FLOW for node in model.graph):
        _simplify(model)  # a branch whose condition is constant goes; Identity is looked at later
        _refuse_control_flow(model)
    common_passes.IdentityEliminationPass()(model)
    parameter_names.restore_names(model)
    parameter_names.split_merged(model)
    parameter_names.fold_transposes(model)
    _simplify(model)
    common_passes.IdentityEliminationPass()(model)
    parameter_names.fold_transposes(model)
    parameter_names.merge_equal_constants(model)
    common_passes.CommonSubexpressionEliminationPass()(model)
    common_passes.RemoveUnusedNodesPass()(model)
    common_passes.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    common_passes.RemoveUnusedOpsetsPass()(model)
    common_passes.OutputFixPass()(model)


def _simplify(model: ir.Model) -> None:
    """Fold what depends on small constants, and rewrite what does nothing or could be one op.

    Rules that touch parameters (folding BatchNormalization, dropping biases of zeros) stay out:
    a parameter of the source stays one here.
    """
    from onnxscript import rewriter
    from onnxscript.optimizer import fold_constants
    from onnxscript.rewriter.rules import common as rules

    rule_set = [
        *rules.add_0_rule.commute(),
        *rules.mul_by_1_rule.commute(),
        *(getattr(rules, f"{name}_rule") for name in _RULES),
    ]
    for _ in range(2):
        fold_constants(
            model,
            onnx_shape_inference=True,
            input_size_limit=_FOLD_LIMIT,
            should_fold=_may_fold,
        )
        rewriter.rewrite(model, rule_set)
        common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        common_passes.RemoveUnusedNodesPass()(model)


def _may_fold(node: ir.Node) -> bool | None:
    """False for a node that reads a parameter: passes change those, so nothing may freeze one."""
    if node.op_type in {"DequantizeLinear", "QuantizeLinear"}:
        return False
    for value in node.inputs:
        if value is not None and parameter_names.PARAMETER_KEY in value.metadata_props:
            return False
    return None


def refuse_foreign_ops(model: ir.Model) -> None:
    """Refuse ops that are not in the ONNX standard.

    Raises:
        ModelError: naming the first one.
    """
    for node in model.graph:
        if node.domain not in _STANDARD_DOMAINS:
            raise ModelError(
                f"node '{node.name}': expected a standard ONNX op, found {node.domain}."
                f"{node.op_type}; export the model without fused or custom ops"
            )


def _refuse_control_flow(model: ir.Model) -> None:
    for node in model.graph:
        if node.op_type in _CONTROL_FLOW:
            raise ModelError(
                f"node '{node.name}': expected a graph without control flow, found {node.op_type}; "
                "export the model without branches and loops that depend on its input"
            )


def _strip(model: ir.Model) -> None:
    """Drop stack traces and the like, which can outweigh the weights of a compressed model."""
    graph = model.graph
    outputs = [output for node in graph for output in node.outputs]
    values = [*graph.inputs, *graph.initializers.values(), *outputs]
    for holder in (model, graph, *graph, *values):
        for key in list(holder.metadata_props):
            if not key.startswith(_KEPT_METADATA):
                del holder.metadata_props[key]
    for node in model.graph:
        node.doc_string = None
