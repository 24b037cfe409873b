"""Which initializers train, and the module tree that holds them under their source names."""

from __future__ import annotations

import re
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import fx, nn

from obert_compiler.backends.torch.dtypes import tensor_from_array
from obert_compiler.errors import GraphError
from obert_compiler.graph.constants import constant_nodes
from obert_compiler.graph.graph import Graph
from obert_compiler.graph.linear import LinearSite, LinearSites

__all__ = [
    "FLOATS",
    "PARAMETER_KEY",
    "ModuleTree",
    "Stored",
    "stored_initializer",
    "trainable_initializers",
]

PARAMETER_KEY = "obert.parameter"
"""Initializer metadata: the name of the source parameter it was taken from."""

FLOATS = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
)

# Float inputs that steer an op, by op type: not weights even in a file that names no parameters.
_SETTINGS: dict[str, frozenset[int]] = {
    "BatchNormalization": frozenset({3, 4}),
    "Clip": frozenset({1, 2}),
    "DequantizeLinear": frozenset({1, 2}),
    "OneHot": frozenset({1, 2}),
    "Pad": frozenset({1, 2}),
    "Pow": frozenset({1}),
    "QuantizeLinear": frozenset({1, 2}),
    "Range": frozenset({0, 1, 2}),
    "RotaryEmbedding": frozenset({1, 2}),
    "Where": frozenset({1, 2}),
}


@dataclass(frozen=True)
class Stored:
    """Where a parameter of the module came from in the graph.

    Attributes:
        initializer: name of the graph's initializer; None for a weight that was dequantised or
            unpacked, which cannot be written back.
        transposed: whether the initializer is the transpose of the parameter.
        site: name of the Linear site that owns it, None for other parameters.
    """

    initializer: str | None
    transposed: bool = False
    site: str | None = None


def stored_initializer(site: LinearSite) -> tuple[ir.Value, bool] | None:
    """The float initializer behind a site's weight and whether it is ``[in, out]``.

    Returns:
        None when the weight is quantised, packed or computed otherwise than by Transpose.
    """
    value, transposed = site.weight_value, site.stored_transposed
    node = value.producer()
    while node is not None:
        if node.op_type != "Transpose" or node.inputs[0] is None:
            return None
        value, transposed = node.inputs[0], not transposed
        node = value.producer()
    if value.const_value is None or value.dtype not in FLOATS:
        return None
    return value, transposed


def trainable_initializers(graph: Graph, sites: LinearSites) -> frozenset[ir.Value]:
    """Initializers that become parameters.

    In a graph whose front end knew the source's parameters (`PARAMETER_KEY`), those; in any other,
    every float initializer with more than one element. What only steers its ops (scales of
    quantisation, running means) stays a constant; weights and biases of Linear sites always train,
    unless they are quantised or packed.
    """
    initializers = graph.model.graph.initializers.values()
    named = any(PARAMETER_KEY in value.metadata_props for value in initializers)
    unpacking: set[ir.Node] = set()
    always: set[ir.Value] = set()
    for site in sites:
        stored = stored_initializer(site)
        if stored is None:
            unpacking.update(constant_nodes(site.weight_value) or ())
        else:
            always.add(stored[0])
        always.update(b for b in site.bias_values if b is not None and b.producer() is None)
    chosen = set()
    for value in initializers:
        if value.dtype not in FLOATS or value.const_value is None:
            continue
        uses = value.uses()
        if uses and all(use.node in unpacking for use in uses):
            continue
        known = PARAMETER_KEY in value.metadata_props if named else value.const_value.size > 1
        if value in always or (known and _is_weight(value)):
            chosen.add(value)
    return frozenset(chosen)


def _is_weight(value: ir.Value) -> bool:
    """Whether a node reads ``value`` otherwise than as a setting."""
    return any(use.idx not in _SETTINGS.get(use.node.op_type, frozenset()) for use in value.uses())


class ModuleTree:
    """Nested modules that hold parameters, buffers and Linear layers under dotted names."""

    def __init__(self) -> None:
        self.root = nn.Module()
        self.stored: dict[str, Stored] = {}
        self._parameters: dict[ir.Value, nn.Parameter] = {}
        self._places: dict[ir.Value, tuple[str, bool]] = {}
        self._aliased: set[ir.Value] = set()

    def add_linear(self, site: LinearSite, bias: ir.Value | None) -> str | None:
        """Add the nn.Linear of a site.

        Returns:
            The path of the module; None when the weight already is a parameter in the other
            orientation (an autoencoder that uses W and its transpose), so that it cannot be shared.
        """
        stored = stored_initializer(site)
        if stored is not None and self._places.get(stored[0], ("", stored[1]))[1] != stored[1]:
            return None
        out_features, in_features = site.shape
        linear = nn.Linear(in_features, out_features, bias=bias is not None, device="meta")
        path = self._free(site.name)
        if stored is None:
            linear.weight = nn.Parameter(tensor_from_array(site.weight()))
            self.stored[f"{path}.weight"] = Stored(None, site=site.name)
        else:
            linear.weight = self._parameter(*stored, f"{path}.weight", site.name)
        if bias is not None:
            linear.bias = self._parameter(bias, False, f"{path}.bias", None)
        self._set(path, linear)
        return path

    def add_parameter(self, value: ir.Value) -> tuple[str, bool]:
        """The path of the parameter that an initializer became, and whether it is transposed.

        A table that is a Linear site's weight too is found under both names.
        """
        name = value.metadata_props.get(PARAMETER_KEY) or value.name or "parameter"
        path, transposed = self._places.get(value, ("", False))
        if not path or (not transposed and path != name and value not in self._aliased):
            self._aliased.add(value)
            alias = self._free(name)
            self._set(alias, self._parameter(value, False, alias, None))
            path = alias
            self._places[value] = (path, transposed)
        return path, transposed

    def add_buffer(self, name: str, tensor: torch.Tensor) -> str:
        """The path of a new buffer; constants lie together under ``constants``."""
        path = self._free("constants." + name.replace(".", "_"))
        parent, leaf = self._parent(path)
        parent.register_buffer(leaf, tensor)
        return path

    def _parameter(
        self, value: ir.Value, transposed: bool, path: str, site: str | None
    ) -> nn.Parameter:
        """The parameter of an initializer; the first caller decides its path and orientation."""
        if value not in self._parameters:
            if value.const_value is None:
                raise GraphError(f"initializer '{value.name}': expected an array, found none")
            array = value.const_value.numpy()
            self._parameters[value] = nn.Parameter(
                tensor_from_array(array.T if transposed else array)
            )
            self._places[value] = (path, transposed)
            self.stored[path] = Stored(value.name, transposed, site)
        return self._parameters[value]

    def _free(self, name: str) -> str:
        """``name`` as a path that nothing lies at and no attribute of a module hides."""
        path: list[str] = []
        parent: nn.Module = self.root
        *parents, leaf = re.sub(r"[^\w.]+", "_", name).split(".")
        for part in parents:
            step = part or "_"
            while step not in parent._modules and _taken(parent, step):  # noqa: SLF001
                step += "_"
            path.append(step)
            parent = parent._modules.get(step) or nn.Module()  # noqa: SLF001
        leaf = leaf or "_"
        while _taken(parent, leaf):
            leaf += "_"
        return ".".join([*path, leaf])

    def _set(self, path: str, content: nn.Module | nn.Parameter) -> None:
        parent, leaf = self._parent(path)
        setattr(parent, leaf, content)

    def _parent(self, path: str) -> tuple[nn.Module, str]:
        *parents, leaf = path.split(".")
        module = self.root
        for part in parents:
            if part not in module._modules:  # noqa: SLF001
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        return module, leaf


def _taken(parent: nn.Module, name: str) -> bool:
    return hasattr(parent, name) or hasattr(fx.GraphModule, name)
