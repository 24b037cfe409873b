"""The source's parameters out of a compressed graph, as float arrays under their source names.

A parameter may still be an initializer, may be a Linear weight behind DequantizeLinear or packed,
or may be an embedding table whose rows are gathered as integers and scaled afterwards. What the
front end and the passes wrote on initializers and nodes (``obert.parameter``) tells the name.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from obert_compiler.backends.torch.module import to_module
from obert_compiler.backends.torch.parameters import FLOATS, PARAMETER_KEY
from obert_compiler.errors import GraphError
from obert_compiler.graph.constants import is_constant, read_constant
from obert_compiler.graph.graph import Graph, Source
from obert_compiler.graph.linear import find_linear_sites

__all__ = ["TRANSPOSED_KEY", "source_parameters"]

TRANSPOSED_KEY = "obert.transposed"
"""Metadata beside `PARAMETER_KEY`: "1" where the source's parameter is stored transposed."""

FloatArray = npt.NDArray[np.float32]


def source_parameters(graph: Graph) -> dict[str, FloatArray]:
    """Every parameter of the source that the graph holds, float32, shaped as in the source.

    Raises:
        GraphError: the graph holds one parameter with two values.
    """
    found: dict[str, FloatArray] = {}
    for site in find_linear_sites(graph):
        _add(found, f"{site.name}.weight", site.weight())
    for node in graph.model.graph:
        name = node.metadata_props.get(PARAMETER_KEY)
        if name is not None:
            array = _made_by(node)
            _add(found, name, array.T if TRANSPOSED_KEY in node.metadata_props else array)
    for value in graph.model.graph.initializers.values():
        name = value.metadata_props.get(PARAMETER_KEY)
        if name is None or value.const_value is None or value.dtype not in FLOATS:
            continue
        array = value.const_value.numpy().astype(np.float32, copy=False)
        _add(found, name, array.T if TRANSPOSED_KEY in value.metadata_props else array)
    return found


def _add(found: dict[str, FloatArray], name: str, array: FloatArray) -> None:
    earlier = found.setdefault(name, array)
    if earlier is array:
        return
    if earlier.shape != array.shape or not np.allclose(earlier, array, rtol=1e-5, atol=1e-7):
        raise GraphError(
            f"parameter '{name}': expected one value, found two in the graph, which a checkpoint "
            "cannot hold; a bias that 'quant' corrected for some of its uses is written with "
            "quant:bias_correction=false"
        )


def _made_by(node: ir.Node) -> FloatArray:
    """The parameter that a node yields, whole or by rows."""
    output = node.outputs[0]
    if is_constant(output):
        return read_constant(output).astype(np.float32, copy=False)
    nodes, ids = _chain(node)
    rows = max(_rows(gather) for gather in nodes if gather.op_type == "Gather")
    cut, end = ir.convenience.extract(_holder(node), [ids], [output]), "rows"
    cut.outputs[0].name = end
    module = to_module(Graph(ir.Model(cut, ir_version=10), Source("onnx")))
    rank = 1 if ids.shape is None else ids.shape.rank()
    everything = torch.arange(rows).reshape([1] * (rank - 1) + [rows])
    with torch.no_grad():
        result: FloatArray = module(everything)[end].numpy()
    return result.reshape(rows, -1).astype(np.float32, copy=False)


def _chain(node: ir.Node) -> tuple[list[ir.Node], ir.Value]:
    """The nodes from the Gathers of a table's rows to ``node``, and the ids they all take."""
    nodes: list[ir.Node] = []
    ids: set[ir.Value] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        if current in nodes:
            continue
        nodes.append(current)
        operands = [value for value in current.inputs if value is not None]
        if current.op_type == "Gather" and is_constant(operands[0]):
            ids.add(operands[1])
            continue
        stack += [producer for value in operands if (producer := value.producer()) is not None]
    if len(ids) != 1:
        raise GraphError(
            f"node '{node.name}' ({node.op_type}): expected rows of one table gathered by one set "
            f"of ids, found {len(ids)} sets"
        )
    return nodes, ids.pop()


def _rows(gather: ir.Node) -> int:
    table = gather.inputs[0]
    if table is None:
        raise GraphError(f"node '{gather.name}' (Gather): expected a table, found none")
    return int(read_constant(table).shape[0])


def _holder(node: ir.Node) -> ir.Graph:
    if not isinstance(node.graph, ir.Graph):
        raise GraphError(f"node '{node.name}' ({node.op_type}): expected it in the main graph")
    return node.graph
