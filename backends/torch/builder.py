"""From the graph to a torch.fx graph, node by node.

Nodes are walked in graph order. Each looks up its row in the operator table and emits torch calls;
a call whose arguments are all constants runs at once (constant folding), except that parameters are
never folded, so that everything computed from them trains. Two patterns are wider than a node: a
Linear site (product and bias) is one nn.Linear, and a QuantizeLinear -> DequantizeLinear pair one
fake quantisation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from obert_compiler.backends.torch.dtypes import tensor_from_array
from obert_compiler.backends.torch.operators import OPERATORS, Call, Host, Operand
from obert_compiler.backends.torch.operators.products import add_bias
from obert_compiler.backends.torch.operators.quantisation import fake_quantise_row
from obert_compiler.backends.torch.operators.table import tensor_from_host
from obert_compiler.backends.torch.parameters import ModuleTree, trainable_initializers
from obert_compiler.errors import GraphError
from obert_compiler.graph.graph import Graph
from obert_compiler.graph.linear import LinearSite, find_linear_sites

__all__ = ["LINEAR_USE", "ROUNDED_VALUE", "Builder", "check_supported", "identifier"]

LINEAR_USE = "linear_use"
"""Metadata of the fx node that calls an nn.Linear: name of the Linear site, number of the use."""

ROUNDED_VALUE = "rounded_value"
"""Metadata of the fx node of a fake quantisation: name of the value that DequantizeLinear gives."""

_DOMAINS = frozenset({"", "ai.onnx"})


def check_supported(graph: Graph) -> None:
    """Check that every op has a row in the operator table.

    Raises:
        GraphError: the first op that has none.
    """
    for node in graph.model.graph:
        if node.domain not in _DOMAINS or node.op_type not in OPERATORS:
            op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            raise GraphError(
                f"node '{node.name}': op '{op}' has no row in the torch operator table; add a "
                "function with @operator in obert_compiler/backends/torch/operators"
            )


class Builder:
    """Builds the fx graph and the module tree of one graph.

    Attributes:
        tree: the modules, parameters and buffers.
        fx_graph: the graph under construction.
        linear_paths: path of the nn.Linear of each site.
    """

    def __init__(self, graph: Graph, *, fake_quantisation: bool = True) -> None:
        check_supported(graph)
        self._fake_quantisation = fake_quantisation
        self.graph = graph
        self.tree = ModuleTree()
        self.fx_graph = fx.Graph()
        self.linear_paths: dict[str, str] = {}
        self._values: dict[ir.Value, Operand] = {}
        self._remaining: dict[ir.Value, int] = {}
        self._buffers: dict[int, tuple[torch.Tensor, fx.Node]] = {}
        sites = find_linear_sites(graph)
        self._trainable = trainable_initializers(graph, sites)
        self._sites: dict[ir.Node, tuple[LinearSite, ir.Value]] = {}
        self._done: set[ir.Node] = set()
        for site in sites:
            self._add_site(site)
        self._needed = self._find_needed()
        self._device: Any = torch.device("cpu")

    # -- the Emitter that rows see ----------------------------------------------------------------

    @property
    def device(self) -> Any:
        """Device of the first input at run time."""
        return self._device

    def emit(self, kind: str, target: Any, args: Any, kwargs: Any, name: str) -> Any:
        """Add a node, or run the call when no argument is known only at run time."""
        nodes: list[fx.Node] = []
        fx.node.map_arg((args, kwargs), nodes.append)
        if not nodes:
            function = getattr(torch.Tensor, target) if kind == "call_method" else target
            with torch.no_grad():
                return function(*args, **kwargs)
        args, kwargs = self._constants_as_buffers((args, kwargs), name)
        return self.fx_graph.create_node(kind, target, args, kwargs, name=identifier(name))

    # -- building ---------------------------------------------------------------------------------

    def build(self) -> None:
        """Emit every node and the outputs."""
        self._inputs()
        for node in self.graph.model.graph:
            if node not in self._done and node in self._needed:
                self._node(node)
            self._release(node)
        outputs: dict[str, Any] = {}
        for value in self.graph.model.graph.outputs:
            result = self._read(value)
            outputs[str(value.name)] = self._as_node(result, str(value.name))
        self.fx_graph.output(outputs)
        for fx_node in reversed(self.fx_graph.nodes):
            if not fx_node.users and fx_node.op not in {"placeholder", "output"}:
                self.fx_graph.erase_node(fx_node)
        self.fx_graph.lint()

    def _inputs(self) -> None:
        for value in self.graph.model.graph.inputs:
            if value.const_value is None:
                self._values[value] = self.fx_graph.placeholder(identifier(value.name or "input"))
        first = next(iter(self._values.values()), None)
        if isinstance(first, fx.Node):
            self._device = self.fx_graph.call_function(getattr, (first, "device"))

    def _add_site(self, site: LinearSite) -> None:
        bias = _shared_bias(site)
        if bias is not None and bias not in self._trainable:
            bias = None
        path = self.tree.add_linear(site, bias)
        if path is None:
            return
        self.linear_paths[site.name] = path
        for node, output in zip(site.nodes, site.outputs, strict=True):
            self._sites[node] = (site, output if bias is not None else node.outputs[0])

    def _find_needed(self) -> set[ir.Node]:
        """Nodes that an output depends on, less those that only make the weight of an nn.Linear."""
        needed: set[ir.Node] = set()
        stack = [value for value in self.graph.model.graph.outputs if value is not None]
        while stack:
            node = stack.pop().producer()
            if node is None or node in needed:
                continue
            needed.add(node)
            site = self._sites.get(node)
            read = list(node.inputs if site is None else (node.inputs[0], *node.inputs[2:]))
            stack.extend(value for value in read if value is not None)
            for value in read:
                if value is not None:
                    self._remaining[value] = self._remaining.get(value, 0) + 1
        return needed

    def _node(self, node: ir.Node) -> None:
        site = self._sites.get(node)
        if site is not None:
            self._linear(node, *site)
            return
        partner = _quantised_from(node)
        if partner is not None:
            operands = [None if i is None else self._read(i) for i in partner.inputs]
            if not isinstance(operands[0], torch.Tensor):
                call = Call(partner, operands, self)
                rounded = fake_quantise_row(call) if self._fake_quantisation else call.operand(0)
                if self._fake_quantisation and isinstance(rounded, fx.Node):
                    rounded.meta[ROUNDED_VALUE] = node.outputs[0].name
                self._values[node.outputs[0]] = rounded
                return
        call = Call(node, [None if i is None else self._read(i) for i in node.inputs], self)
        result = OPERATORS[node.op_type](call)
        results: Sequence[Operand] = result if isinstance(result, (tuple, list)) else (result,)
        self._values.update(zip(node.outputs, results, strict=False))

    def _linear(self, node: ir.Node, site: LinearSite, output: ir.Value) -> None:
        x = self._as_node(self._read(_given(node, 0)), "x")
        name = identifier(output.name or site.name)
        result: Any = self.fx_graph.create_node(
            "call_module", self.linear_paths[site.name], (x,), name=name
        )
        result.meta[LINEAR_USE] = (site.name, site.nodes.index(node))
        has_bias = self.tree.root.get_submodule(self.linear_paths[site.name]).bias is not None
        if node.op_type == "Gemm" and not has_bias:
            operands = [
                None,
                None,
                *(None if i is None else self._read(i) for i in node.inputs[2:]),
            ]
            result = add_bias(Call(node, operands, self), result)
        self._values[output] = result
        behind = output.producer()
        if behind is not None and behind is not node:
            self._done.add(behind)

    def _read(self, value: ir.Value) -> Operand:
        """What ``value`` stands for; initializers are made on first use."""
        if value in self._values:
            return self._values[value]
        if value.const_value is None or value.producer() is not None:
            raise GraphError(f"value '{value.name}': expected it to be computed before it is used")
        if value in self._trainable:
            path, transposed = self.tree.add_parameter(value)
            operand: Operand = self._get_attr(path)
            if transposed:
                operand = self.emit(
                    "call_function", torch.t, (operand,), {}, value.name or "weight"
                )
        else:
            operand = tensor_from_array(value.const_value.numpy())
        self._values[value] = operand
        return operand

    def _release(self, node: ir.Node) -> None:
        """Forget constants that nobody reads any more: unpacking a table makes large ones."""
        if node not in self._needed:
            return
        for value in node.inputs:
            if value is None or value not in self._remaining:
                continue
            self._remaining[value] -= 1
            unused = self._remaining[value] <= 0 and not value.is_graph_output()
            if unused and isinstance(self._values.get(value), torch.Tensor):
                del self._values[value]

    # -- constants --------------------------------------------------------------------------------

    def _constants_as_buffers(self, tree: Any, name: str) -> Any:
        if isinstance(tree, torch.Tensor):
            return self._buffer(tree, name)
        if isinstance(tree, (tuple, list)):
            return type(tree)(self._constants_as_buffers(item, name) for item in tree)
        if isinstance(tree, dict):
            return {key: self._constants_as_buffers(item, name) for key, item in tree.items()}
        return tree

    def _buffer(self, tensor: torch.Tensor, name: str) -> fx.Node:
        if id(tensor) not in self._buffers:
            # The tensor is kept beside its node: an id stays unique only while its object lives.
            node = self._get_attr(self.tree.add_buffer(name, tensor))
            self._buffers[id(tensor)] = (tensor, node)
        return self._buffers[id(tensor)][1]

    def _as_node(self, operand: Operand, name: str) -> fx.Node:
        if isinstance(operand, Host):
            if not isinstance(operand.value, fx.Node):
                return self._buffer(torch.tensor(operand.value, dtype=operand.dtype), name)
            arguments = (operand.value, operand.dtype, self._device)
            return self.fx_graph.call_function(tensor_from_host, arguments)
        return self._buffer(operand, name) if isinstance(operand, torch.Tensor) else operand

    def _get_attr(self, path: str) -> fx.Node:
        name = identifier(path.removeprefix("constants."))
        return self.fx_graph.create_node("get_attr", path, name=name)


def _shared_bias(site: LinearSite) -> ir.Value | None:
    """The bias that every use of a site adds, if nn.Linear can hold it."""
    first = site.bias_values[0]
    if first is None or any(bias is not first for bias in site.bias_values):
        return None
    if any(node.attributes.get_float("beta", 1.0) != 1.0 for node in site.nodes):
        return None
    if first.const_value is None or tuple(first.const_value.shape.numpy()) != (site.shape[0],):
        return None
    return first


def _quantised_from(node: ir.Node) -> ir.Node | None:
    """The QuantizeLinear that a DequantizeLinear undoes, if their parameters are the same."""
    if node.op_type != "DequantizeLinear":
        return None
    partner = _given(node, 0).producer()
    if partner is None or partner.op_type != "QuantizeLinear":
        return None
    same = list(partner.inputs[1:]) == list(node.inputs[1:]) and all(
        partner.attributes.get_int(key, default) == node.attributes.get_int(key, default)
        for key, default in (("axis", 1), ("block_size", 0))
    )
    return partner if same else None


def _given(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    if value is None:
        raise GraphError(f"node '{node.name}' ({node.op_type}): expected input {index}, found none")
    return value


def identifier(name: str) -> str:
    """``name`` as a Python identifier."""
    cleaned = re.sub(r"\W+", "_", name).strip("_") or "value"
    return f"_{cleaned}" if cleaned[0].isdigit() else cleaned
