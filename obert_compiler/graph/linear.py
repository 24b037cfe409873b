"""Linear sites: every product of an activation with a constant matrix, and its bias.

An exporter writes ``y = x W^T + b`` as Gemm (transposed or not), as MatMul and Add, with W as an
initializer, behind DequantizeLinear or packed. A `LinearSite` hides that: its weight is read and
replaced as ``[out, in]`` float32. A weight used by several nodes (ALBERT) is one site with several
uses, so that it is pruned and stored once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from obert_compiler.errors import GraphError
from obert_compiler.graph.constants import constant_nodes, is_constant, read_constant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obert_compiler.graph.graph import Graph

__all__ = [
    "QUANTISATION_KEY",
    "SITE_KEY",
    "LinearSite",
    "LinearSites",
    "Unmatched",
    "find_linear_sites",
]

SITE_KEY = "obert.site"
"""Node metadata that keeps a site's name through every pass."""

QUANTISATION_KEY = "obert.quantisation"
"""Node metadata of a site: "trained" where it was trained with its rounding in place."""

_PRODUCTS = {"Conv", "Einsum", "Gemm", "LayerNormalization", "MatMul"}

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LinearSite:
    """One weight matrix and every node that multiplies by it.

    Attributes:
        name: stable through all passes, the module path where the source knows it.
        nodes: the MatMul or Gemm nodes that use the weight, in graph order.
        weight_value: the right operand of the nodes; an initializer, or the output of the nodes
            that dequantise or unpack one.
        stored_transposed: True when the operand is laid out ``[in, out]``.
        bias_values: the bias of each use (Gemm's third input or the constant of the Add behind), or
            None for a use without bias.
        outputs: the value of each use after its bias.
    """

    name: str
    nodes: tuple[ir.Node, ...]
    weight_value: ir.Value
    stored_transposed: bool
    bias_values: tuple[ir.Value | None, ...]
    outputs: tuple[ir.Value, ...]

    @property
    def inputs(self) -> tuple[ir.Value, ...]:
        """The activation of each use, features last."""
        return tuple(_operand(node, 0) for node in self.nodes)

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)``."""
        rows, columns = _constant_shape(self.weight_value)
        return (columns, rows) if self.stored_transposed else (rows, columns)

    @property
    def tied(self) -> bool:
        """Whether anything but these nodes reads the weight, as the table of an embedding may."""
        value: ir.Value | None = self.weight_value
        if len(tuple(self.weight_value.uses())) > len(self.nodes):
            return True
        while value is not None:
            node = value.producer()
            value = None if node is None else node.inputs[0]
            if value is not None and len(tuple(value.uses())) > 1:
                return True
        return False

    def weight(self) -> FloatArray:
        """The weight as float32 ``[out, in]``; dequantised and unpacked where it is stored so.

        The array is a copy: changing it changes nothing until `set_weight`.
        """
        stored = read_constant(self.weight_value)
        return np.array(stored.T if self.stored_transposed else stored, np.float32, order="C")

    def set_weight(self, weight: FloatArray) -> None:
        """Replace the weight; ``weight`` is ``[out, in]``.

        Raises:
            GraphError: the shape differs, or the weight is no longer a plain float initializer.
        """
        if weight.shape != self.shape:
            raise GraphError(
                f"site '{self.name}': expected a weight of shape {self.shape}, found {weight.shape}"
            )
        root, transposed = self._initializer()
        stored = weight.T if transposed else weight
        root.const_value = ir.tensor(np.array(stored, np.float32, order="C"), name=root.name)

    def bias(self) -> FloatArray | None:
        """The bias ``[out]`` of the first use, None without one."""
        value = self.bias_values[0]
        return None if value is None else read_constant(value).astype(np.float32).reshape(-1)

    def set_bias(self, bias: FloatArray) -> None:
        """Replace the bias ``[out]`` of a site with one use; other readers of it keep the old one.

        Raises:
            GraphError: the site has no bias or several uses, or the length differs.
        """
        value, uses = self.bias_values[0], len(self.nodes)
        if value is None or uses > 1 or bias.shape != self.shape[:1]:
            found = "no bias" if value is None else f"{uses} uses and {bias.shape} values"
            raise GraphError(
                f"site '{self.name}': expected one use with a bias of {self.shape[0]} values, "
                f"found {found}"
            )
        shape = read_constant(value).shape
        tensor = ir.tensor(np.array(bias, np.float32).reshape(shape), name=value.name)
        if value.producer() is None and len(tuple(value.uses())) == 1:
            value.const_value = tensor
            return
        node = self.nodes[0]
        reader = node if node.op_type == "Gemm" else node.outputs[0].consumers()[0]
        graph = node.graph
        if graph is None:
            raise GraphError(f"site '{self.name}': expected a node of a graph, found a loose one")
        name = f"{self.name}.bias"
        while name in graph.initializers:
            name += "_own"
        own = ir.Value(
            name=name,
            shape=ir.Shape(shape),
            type=ir.TensorType(ir.DataType.FLOAT),
            const_value=ir.tensor(tensor.numpy(), name=name),
        )
        own.metadata_props.update(value.metadata_props)
        graph.register_initializer(own)
        reader.replace_input_with(list(reader.inputs).index(value), own)

    def _initializer(self) -> tuple[ir.Value, bool]:
        value, transposed = self.weight_value, self.stored_transposed
        node = value.producer()
        while node is not None and node.op_type == "Transpose":
            value, transposed = _operand(node, 0), not transposed
            node = value.producer()
        if node is not None or value.const_value is None or value.dtype != ir.DataType.FLOAT:
            raise GraphError(
                f"site '{self.name}': expected a float32 weight to replace, found one that is "
                "quantised or packed; run passes that change weights before 'quant' and 'pack'"
            )
        return value, transposed


@dataclass(frozen=True)
class Unmatched:
    """A node that looks like a Linear site and is none, with the reason."""

    name: str
    reason: str


@dataclass(frozen=True)
class LinearSites:
    """The Linear sites of a graph in topological order, and what did not match."""

    sites: tuple[LinearSite, ...]
    unmatched: tuple[Unmatched, ...]

    def __iter__(self) -> Iterator[LinearSite]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __getitem__(self, name: str) -> LinearSite:
        for site in self.sites:
            if site.name == name:
                return site
        raise KeyError(name)


def find_linear_sites(graph: Graph) -> LinearSites:
    """Find every Linear site of ``graph``, with a reason for each candidate that is none."""
    uses: dict[tuple[ir.Value, bool], list[ir.Node]] = {}
    unmatched: list[Unmatched] = []
    for node in graph.model.graph:
        if node.op_type in {"Conv", "ConvTranspose", "LSTM", "GRU", "RNN", "Einsum"}:
            unmatched.append(Unmatched(node.name or "?", f"{node.op_type} is not a Linear layer"))
        if node.op_type not in {"MatMul", "Gemm"} or node.domain not in {"", "ai.onnx"}:
            continue
        reason = _why_not(node)
        if reason is not None:
            if reason:
                unmatched.append(Unmatched(node.name or "?", reason))
            continue
        transposed = node.op_type == "MatMul" or not node.attributes.get_int("transB", 0)
        uses.setdefault((_operand(node, 1), transposed), []).append(node)
    names: dict[str, int] = {}
    sites = []
    for (weight, transposed), nodes in uses.items():
        name = _site_name(nodes[0], weight)
        names[name] = names.get(name, 0) + 1
        unique = name if names[name] == 1 else f"{name}#{names[name]}"
        ends = [_bias_and_output(node) for node in nodes]
        sites.append(
            LinearSite(
                unique,
                tuple(nodes),
                weight,
                transposed,
                tuple(bias for bias, _ in ends),
                tuple(output for _, output in ends),
            )
        )
    return LinearSites(tuple(sites), tuple(unmatched))


def _operand(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    if value is None:
        raise GraphError(f"node '{node.name}' ({node.op_type}): expected input {index}, found none")
    return value


def _why_not(node: ir.Node) -> str | None:
    """None when ``node`` is a Linear site, "" for a product of two activations, else a reason."""
    weight = _operand(node, 1)
    if not is_constant(weight):
        return "the left operand is the constant one" if is_constant(_operand(node, 0)) else ""
    if is_constant(_operand(node, 0)):
        return "both operands are constants"
    if any(maker.op_type in _PRODUCTS for maker in constant_nodes(weight) or ()):
        return "the matrix is computed from several parameters"
    rank = weight.shape.rank() if weight.shape is not None else read_constant(weight).ndim
    if rank != 2:
        return f"the constant has {rank} dimensions, not 2"
    return _why_not_gemm(node) if node.op_type == "Gemm" else None


def _why_not_gemm(node: ir.Node) -> str | None:
    """None when a Gemm is ``x W + b`` or ``x W^T + b``, else the reason."""
    attributes = node.attributes
    if attributes.get_int("transA", 0) or attributes.get_float("alpha", 1.0) != 1.0:
        return "Gemm with transA or alpha"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return None
    if attributes.get_float("beta", 1.0) != 1.0:
        return "Gemm with beta"
    axis = 0 if attributes.get_int("transB", 0) else 1
    if not _is_bias(bias, _operand(node, 1), axis):
        return "Gemm whose third operand is not a bias vector"
    return None


def _is_bias(value: ir.Value, weight: ir.Value, out_axis: int) -> bool:
    """Whether ``value`` is a constant that adds one number to each output of ``weight``."""
    if not is_constant(value):
        return False
    shape = _constant_shape(value)
    return shape[-1:] == (_constant_shape(weight)[out_axis],) and set(shape[:-1]) <= {1}


def _constant_shape(value: ir.Value) -> tuple[int, ...]:
    if value.shape is not None and value.shape.is_static():
        return tuple(value.shape.numpy())
    return read_constant(value).shape


def _site_name(node: ir.Node, weight: ir.Value) -> str:
    recorded = node.metadata_props.get(SITE_KEY)
    if recorded:
        return recorded
    value = weight
    producer = value.producer()
    while producer is not None:
        value = _operand(producer, 0)
        producer = value.producer()
    name = value.name or node.name or "linear"
    for suffix in ("_quantized", ".weight"):
        name = name.removesuffix(suffix)
    return name


def _bias_and_output(node: ir.Node) -> tuple[ir.Value | None, ir.Value]:
    output = node.outputs[0]
    if node.op_type == "Gemm":
        return (node.inputs[2] if len(node.inputs) > 2 else None), output
    uses = tuple(output.uses())
    if len(uses) == 1 and not output.is_graph_output():
        add = uses[0].node
        if add.op_type == "Add":
            other = _operand(add, 1 - uses[0].idx)
            if _is_bias(other, _operand(node, 1), 1):
                return other, add.outputs[0]
    return None, output
