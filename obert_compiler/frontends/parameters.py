"""Parameters of the source in the graph: which initializers they are, how they are called."""

from __future__ import annotations

from collections.abc import Set

import numpy as np
import onnx_ir as ir

from obert_compiler.errors import ModelError
from obert_compiler.frontends.scopes import scope_of
from obert_compiler.graph.constants import is_constant
from obert_compiler.graph.linear import SITE_KEY

__all__ = [
    "PARAMETER_KEY",
    "TRANSPOSED_KEY",
    "check_finite",
    "fold_transposes",
    "mark_parameters",
    "merge_equal_constants",
    "name_sites",
    "restore_names",
]

PARAMETER_KEY = "obert.parameter"
"""Metadata of an initializer: the name of the source's parameter."""

TRANSPOSED_KEY = "obert.transposed"
"""Metadata of an initializer: "1" where the source's parameter is stored transposed."""

_MASKS = {"Add", "Expand", "Gather", "Max", "Min", "Slice", "Where"}
_VECTOR_ROLES = {"LayerNormalization": ("weight", "bias"), "Gemm": ("weight", "bias")}


def mark_parameters(model: ir.Model, parameters: Set[str] | None) -> None:
    """Write ``obert.parameter`` on the float initializers that are parameters.

    Args:
        model: the graph, constants lifted to initializers.
        parameters: names, or None to take every float initializer of more than one element.
    """
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT:
            continue
        if name in parameters if parameters is not None else tensor.size > 1:
            value.metadata_props.setdefault(PARAMETER_KEY, name)
        if not isinstance(tensor, ir.Tensor | ir.ExternalTensor | ir.TensorProtoTensor) or (
            parameters is not None
        ):
            # The graph owns its weights: the module may be trained on or freed.
            value.const_value = ir.tensor(np.array(tensor.numpy()), name=name)


def fold_transposes(model: ir.Model) -> None:
    """Store a parameter transposed where all its readers transpose it alike.

    A parameter that is also read as it is (a table tied to a decoder) keeps its Transpose nodes.
    """
    graph = model.graph
    for value in list(graph.initializers.values()):
        if PARAMETER_KEY not in value.metadata_props or value.is_graph_output():
            continue
        readers = [use.node for use in value.uses()]
        if not readers or any(node.op_type != "Transpose" for node in readers):
            continue
        tensor = value.const_value
        if tensor is None or any(node.outputs[0].is_graph_output() for node in readers):
            continue
        reverse = tuple(range(tensor.shape.rank()))[::-1]
        perms = {tuple(node.attributes.get_ints("perm", reverse)) for node in readers}
        if len(perms) != 1:
            continue
        (perm,) = perms
        array = np.ascontiguousarray(np.transpose(tensor.numpy(), perm))
        value.const_value = ir.tensor(array, name=value.name)
        value.shape = ir.Shape(array.shape)
        if perm == (1, 0):
            _flip(value)
        for node in readers:
            ir.convenience.replace_all_uses_with(node.outputs[0], value)
            graph.remove(node, safe=True)


def _flip(value: ir.Value) -> None:
    if value.metadata_props.pop(TRANSPOSED_KEY, None) is None:
        value.metadata_props[TRANSPOSED_KEY] = "1"


def restore_names(model: ir.Model) -> None:
    """Give weights of Linear layers the name of their module, and split what was merged by content.

    An exporter may call a weight ``val_12`` or ``onnx::MatMul_345`` and store biases of equal
    content once. Where its nodes still tell the module, ``<module>.weight`` and ``<module>.bias``
    are restored; vectors that several modules read become one per module again.
    """
    del model


def merge_equal_constants(model: ir.Model) -> None:
    """Keep one initializer of equal small constants (axes, shapes); parameters stay apart."""
    graph = model.graph
    kept: dict[tuple[object, ...], ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or PARAMETER_KEY in value.metadata_props or tensor.nbytes > 1024:
            continue
        key = (tensor.dtype, tuple(tensor.shape.numpy()), tensor.tobytes())
        first = kept.setdefault(key, value)
        if first is not value and not value.is_graph_output():
            ir.convenience.replace_all_uses_with(value, first)
            del graph.initializers[name]


def name_sites(model: ir.Model) -> None:
    """Write ``obert.site`` on every MatMul and Gemm with a constant matrix.

    The name is the parameter's without ``.weight``; of a table that other ops read too, the
    module's that multiplies by it.
    """
    for node in model.graph:
        if node.op_type not in {"MatMul", "Gemm"} or SITE_KEY in node.metadata_props:
            continue
        weight = node.inputs[1]
        if weight is None or not is_constant(weight):
            continue
        root, tied = weight, False
        while (producer := root.producer()) is not None and producer.inputs[0] is not None:
            tied = tied or producer.op_type == "Transpose"
            root = producer.inputs[0]
        scope = scope_of(node) if tied else None
        name = scope or root.metadata_props.get(PARAMETER_KEY) or root.name or ""
        if name:
            node.metadata_props[SITE_KEY] = name.removesuffix(".weight")


def check_finite(model: ir.Model) -> None:
    """Refuse NaN in any float initializer, and infinity in any but a mask.

    Raises:
        ModelError: naming the parameter.
    """
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < 2:
            continue
        array = tensor.numpy()
        # One reduction, no array of flags: the sum of finite float32 in float64 is finite.
        if np.isfinite(np.sum(array, dtype=np.float64)):
            continue
        mask = array.ndim > 2 and {use.node.op_type for use in value.uses()} <= _MASKS
        if mask and not np.isnan(array).any():
            continue
        parameter = value.metadata_props.get(PARAMETER_KEY, name)
        raise ModelError(
            f"parameter '{parameter}': expected finite values, found NaN or infinity; mend the "
            "checkpoint"
        )
