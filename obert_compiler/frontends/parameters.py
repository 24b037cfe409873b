"""Parameters of the source in the graph: which initializers they are, how they are called."""

from __future__ import annotations

import re
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
    "split_identities",
    "split_merged",
]

PARAMETER_KEY = "obert.parameter"
"""Metadata of an initializer: the name of the source's parameter."""

TRANSPOSED_KEY = "obert.transposed"
"""Metadata of an initializer: "1" where the source's parameter is stored transposed."""

_CALL_NUMBER = re.compile(r"_\d+$")
_MASK_READERS = {"Add", "Expand", "Max", "Min", "Slice", "Unsqueeze", "Where"}


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


def split_identities(model: ir.Model) -> None:
    """Undo ``other.bias = Identity(bias)``, torch's older way to merge parameters of equal content.

    The Identity's output carries the parameter's name. Vectors become initializers of their own;
    matrices stay shared, since a shared matrix is more often meant.
    """
    graph = model.graph
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Identity" else None
        if source is None or PARAMETER_KEY not in source.metadata_props:
            continue
        output, tensor = node.outputs[0], source.const_value
        if tensor is None or output.is_graph_output() or not _is_parameter_name(output.name):
            continue
        if tensor.shape.rank() > 1:
            continue
        name = str(output.name)
        output.name = f"{name}_merged"
        ir.convenience.replace_all_uses_with(output, _add_parameter(graph, name, tensor))
        graph.remove(node, safe=True)


def restore_names(model: ir.Model) -> None:
    """Call the weight of every Linear layer ``<module>.weight`` where the graph tells the module.

    An exporter may call a weight ``val_12`` or ``onnx::MatMul_345``. Its bias, if it has one of its
    own, still carries the name of the module; else the scope of the node does.
    """
    graph = model.graph
    for node in graph:
        if node.op_type not in {"MatMul", "Gemm"}:
            continue
        root = _root(node.inputs[1])
        if root is None or _is_parameter_name(root.name):
            continue
        module = _module_of_bias(node, len(root.uses())) or scope_of(node)
        if module and f"{module}.weight" not in graph.initializers:
            root.name = f"{module}.weight"
            root.metadata_props[PARAMETER_KEY] = root.name


def split_merged(model: ir.Model) -> None:
    """Give every module its own copy of a vector that the exporter stored once for equal content.

    Readers belong together when they follow the same weight (a shared layer) or, for other ops, lie
    in the same module; where nothing tells the module, the vector stays shared.
    """
    graph = model.graph
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or PARAMETER_KEY not in value.metadata_props or tensor.shape.rank() != 1:
            continue
        owners: dict[str, list[tuple[ir.Node, int]]] = {}
        for use in value.uses():
            owner = _owner(use.node, use.idx)
            if owner is not None:
                owners.setdefault(owner, []).append((use.node, use.idx))
        owners = _join_repeated_calls(owners)
        if len(owners) < 2 or sum(map(len, owners.values())) != len(value.uses()):
            continue
        owners.pop(str(value.name), None) or owners.pop(next(iter(owners)))
        for name, uses in owners.items():
            if name not in graph.initializers:
                copy = _add_parameter(graph, name, tensor)
                for node, index in uses:
                    node.replace_input_with(index, copy)


def _join_repeated_calls(
    owners: dict[str, list[tuple[ir.Node, int]]],
) -> dict[str, list[tuple[ir.Node, int]]]:
    """Join ``norm_1.bias`` to ``norm.bias``: torch's older exporter counts calls of one module."""
    joined: dict[str, list[tuple[ir.Node, int]]] = {}
    for name, uses in owners.items():
        module, _, role = name.rpartition(".")
        first = f"{_CALL_NUMBER.sub('', module)}.{role}"
        joined.setdefault(first if first in owners else name, []).extend(uses)
    return joined


def _owner(node: ir.Node, index: int) -> str | None:
    """Name of the parameter that operand ``index`` of ``node`` should be, None if nothing tells."""
    if node.op_type == "Gemm":
        root = _root(node.inputs[1])
        return None if root is None else _sibling(root, "bias")
    if node.op_type == "Add":
        other = node.inputs[1 - index]
        producer = None if other is None else other.producer()
        if producer is not None and producer.op_type == "MatMul":
            root = _root(producer.inputs[1])
            if root is not None:
                return _sibling(root, "bias")
    roles = {"LayerNormalization": {1: "weight", 2: "bias"}, "Mul": {0: "weight", 1: "weight"}}
    role = "bias" if node.op_type == "Add" else roles.get(node.op_type, {}).get(index)
    scope = scope_of(node)
    return f"{scope}.{role}" if role and scope else None


def _sibling(weight: ir.Value, role: str) -> str | None:
    name = str(weight.name)
    return f"{name.removesuffix('.weight')}.{role}" if name.endswith(".weight") else None


def _module_of_bias(node: ir.Node, uses: int) -> str | None:
    """Module path by the name of the bias behind ``node``, if no other layer reads that bias."""
    bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    readers = node.outputs[0].uses()
    if bias is None and len(readers) == 1:
        (reader,) = readers
        if reader.node.op_type == "Add":
            bias = reader.node.inputs[1 - reader.idx]
    if bias is None or PARAMETER_KEY not in bias.metadata_props or len(bias.uses()) > uses:
        return None
    name = str(bias.name)
    return name.removesuffix(".bias") if name.endswith(".bias") else None


def _root(value: ir.Value | None) -> ir.Value | None:
    """The parameter matrix that ``value`` is, or is the transpose of."""
    while value is not None and (producer := value.producer()) is not None:
        value = producer.inputs[0] if producer.op_type in {"Transpose", "Identity"} else None
    if value is None or PARAMETER_KEY not in value.metadata_props or value.const_value is None:
        return None
    return value if value.const_value.shape.rank() == 2 else None


def _is_parameter_name(name: str | None) -> bool:
    return name is not None and name.endswith(("weight", "bias"))


def _add_parameter(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    copy = ir.tensor(np.array(tensor.numpy()), name=name)
    value = ir.Value(name=name, shape=ir.Shape(copy.shape.numpy()), type=ir.TensorType(copy.dtype))
    value.const_value = copy
    value.metadata_props[PARAMETER_KEY] = name
    graph.register_initializer(value)
    return value


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
        readers = {use.node.op_type for use in value.uses()}
        mask = array.ndim > 1 and readers <= _MASK_READERS
        if mask and not np.isnan(array).any():
            continue
        parameter = value.metadata_props.get(PARAMETER_KEY, name)
        raise ModelError(
            f"parameter '{parameter}': expected finite values, found NaN or infinity; mend the "
            "checkpoint"
        )
