"""A float graph's module with the roundings of a quantisation plan put in, and back into the plan.

The module computes what the graph will compute once the plan is written: every quantised activation
passes an `ActivationQuantiser`, every quantised weight or table is rounded wherever it is read. The
parameters stay the float masters under their own names, so that whatever trains, masks or
checkpoints the module of a float graph does the same with this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import onnx_ir as ir
import torch
from torch import fx, nn

from obert_compiler.backends.torch.builder import LINEAR_USE, ROUNDED_VALUE, identifier
from obert_compiler.backends.torch.module import OnnxModule
from obert_compiler.backends.torch.operators.indexing import gather
from obert_compiler.backends.torch.parameters import trainable_initializers
from obert_compiler.errors import GraphError
from obert_compiler.graph.graph import Graph
from obert_compiler.graph.linear import find_linear_sites
from obert_compiler.passes.attention_quantization import OperandPlan
from obert_compiler.passes.calibration import Quantizer
from obert_compiler.passes.fake_quantization import (
    ActivationQuantiser,
    FourBitQuantiser,
    QuantisedLinear,
    RowQuantiser,
)
from obert_compiler.passes.quant import QuantizationPlan
from obert_compiler.passes.quant_graph import QuantizedGraph
from obert_compiler.passes.quant_plan import SitePlan
from obert_compiler.passes.quant_tables import TablePlan
from obert_compiler.passes.weight_quantization import QuantizedWeight, quantization_limit

__all__ = ["FakeQuantisation", "prepare"]

WeightQuantiser = RowQuantiser | FourBitQuantiser
_FOLDER = "fake_quantisation"


class FakeQuantisation:
    """The roundings in one module.

    Args:
        module: of the float graph that ``plan`` was made for; changed in place.
        plan: what is quantised, and how training starts.
        bits: of the weights of sites.
        learnt: whether scales of sites and activations are learnt.
    """

    def __init__(
        self, module: OnnxModule, plan: QuantizationPlan, *, bits: int, learnt: bool = False
    ) -> None:
        self._module = module
        self._learnt = learnt
        self._limit = quantization_limit(bits)
        self._weights: dict[torch.Tensor, tuple[WeightQuantiser, str]] = {}
        self._activations: dict[ir.Value, ActivationQuantiser] = {}
        self._operands: dict[ir.Value, ActivationQuantiser] = {}
        self._tables: dict[ir.Value, nn.Parameter] = {}
        inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
        self._last_input = inputs[-1] if inputs else None
        self._mask = next((node for node in inputs if node.name == "attention_mask"), None)
        for site in plan.sites:
            self._add_site(site)
        self._add_tables([*plan.tables, *plan.parameters])
        self._round_linears()
        self._round_reads()
        self._round_activations(plan.sites)
        self._round_attention(_operands(plan))
        module.graph.lint()
        module.recompile()

    @property
    def activations(self) -> dict[str, ActivationQuantiser]:
        """The module that rounds each activation, by the name of the value in the graph."""
        found = [*self._operands.items(), *self._activations.items()]
        return {x.name or "": module for x, module in found}

    @property
    def scales(self) -> list[nn.Parameter]:
        """The parameters that learn scales."""
        modules = [
            *self._activations.values(),
            *self._operands.values(),
            *(q for q, _ in self._weights.values()),
        ]
        found = (getattr(module, "log_factor", None) for module in modules)
        return [parameter for parameter in found if parameter is not None]

    def observe(self, observing: bool) -> None:
        """Let the scales of sites and their inputs follow the training, or freeze them."""
        for activation in [*self._activations.values(), *self._operands.values()]:
            activation.observing = observing
        of_tables = frozenset(self._tables.values())
        for weight, (quantiser, _) in self._weights.items():
            if isinstance(quantiser, RowQuantiser) and weight not in of_tables:
                quantiser.observing = observing

    def read_back(self, plan: QuantizationPlan) -> None:
        """Replace integers, scales and zero points of ``plan`` by the trained ones."""
        linears = self._module.linear_sites
        for site in plan.sites:
            site.quantizers = [
                self._activations[x].quantizer() if x in self._activations and q else q
                for x, q in zip(site.site.inputs, site.quantizers, strict=True)
            ]
            linear = linears.get(site.site.name)
            if isinstance(linear, QuantisedLinear):
                site.quantized = linear.quantiser.quantized(linear.weight)
        for operand in _operands(plan):
            if operand.value in self._operands:
                operand.quantizer = self._operands[operand.value].quantizer()
        for table in [*plan.tables, *plan.parameters]:
            if table.tied is not None and table.tied.quantized is not None:
                table.quantized = table.tied.quantized
            elif table.root in self._tables:
                parameter = self._tables[table.root]
                table.quantized = self._weights[parameter][0].quantized(parameter)

    # -- which parameters are rounded --------------------------------------------------------------

    def _add_site(self, plan: SitePlan) -> None:
        linear = self._module.linear_sites.get(plan.site.name)
        if linear is None or plan.quantized is None:
            return  # no output depends on it
        scale = torch.from_numpy(plan.quantized.scale.copy())
        quantiser = RowQuantiser(linear.weight, scale, self._limit, learnt=self._learnt)
        self._weights[linear.weight] = (quantiser, "")

    def _add_tables(self, plans: Sequence[TablePlan]) -> None:
        stored = self._module.stored.items()
        paths = {place.initializer: (path, place.transposed) for path, place in stored}
        for plan in plans:
            path, transposed = paths.get(plan.root.name, ("", False))
            if plan.tied is not None or not path:
                continue  # shared with a site, or rounded for good
            if transposed:
                raise GraphError(
                    f"parameter '{path}': expected its rows as the graph stores them, found them "
                    "transposed; leave it float with embeddings=none"
                )
            parameter = self._module.get_parameter(path)
            self._tables[plan.root] = parameter
            self._weights[parameter] = (self._table_quantiser(plan, parameter), "")

    def _table_quantiser(self, plan: TablePlan, parameter: nn.Parameter) -> WeightQuantiser:
        if not isinstance(plan.quantized, QuantizedWeight):
            return FourBitQuantiser(plan.quantized)
        scale = torch.from_numpy(plan.quantized.scale.copy())
        return RowQuantiser(parameter, scale, quantization_limit(8))

    # -- putting the roundings in -----------------------------------------------------------------

    def _round_linears(self) -> None:
        paths: dict[str, str] = self._module.meta["linear_paths"]
        for path in paths.values():
            linear = cast("nn.Linear", self._module.get_submodule(path))
            quantiser, place = self._weights.get(linear.weight, (None, ""))
            if isinstance(quantiser, RowQuantiser):
                self._module.set_submodule(path, QuantisedLinear(linear, quantiser))
                if not place:
                    self._weights[linear.weight] = (quantiser, f"{path}.quantiser")

    def _round_reads(self) -> None:
        """Round what reads a weight otherwise than as an nn.Linear."""
        for node in list(self._module.graph.nodes):
            if node.op != "get_attr":
                continue
            try:
                parameter = self._module.get_parameter(node.target)
            except AttributeError:
                continue
            if parameter in self._weights:
                self._round_readers(node, parameter)

    def _round_readers(self, node: fx.Node, parameter: nn.Parameter) -> None:
        path = self._path_of(parameter, node.name)
        graph = self._module.graph
        whole: fx.Node | None = None
        for reader in list(node.users):
            if reader.target is gather and reader.args[0] is node and reader.args[2] == 0:
                # Rows are rounded once they are gathered: a batch reads few of a vocabulary.
                readers_of_rows = list(reader.users)
                with graph.inserting_after(reader):
                    rounded = graph.call_module(path, (reader, reader.args[1]))
                for user in readers_of_rows:
                    user.replace_input_with(reader, rounded)
                continue
            if whole is None:
                with graph.inserting_after(node):
                    whole = graph.call_module(path, (node,))
            reader.replace_input_with(node, whole)

    def _path_of(self, parameter: nn.Parameter, name: str) -> str:
        quantiser, path = self._weights[parameter]
        if not path:
            path = f"{_FOLDER}.{identifier(name)}"
            self._module.add_submodule(path, quantiser)
            self._weights[parameter] = (quantiser, path)
        return path

    def _round_activations(self, plans: Sequence[SitePlan]) -> None:
        uses = {(p.site.name, n): (x, q) for p in plans for n, (x, q) in enumerate(_uses(p))}
        rounded: dict[ir.Value, fx.Node] = {}
        for call in list(self._module.graph.nodes):
            x, quantizer = uses.get(call.meta.get(LINEAR_USE), (None, None))
            if x is None or quantizer is None:
                continue
            if x not in rounded:
                name = f"{_FOLDER}.{identifier(x.name or 'activation')}_{len(rounded)}"
                self._activations[x] = ActivationQuantiser(quantizer, learnt=self._learnt)
                self._module.add_submodule(name, self._activations[x])
                rounded[x] = self._insert(name, call.args[0])
            call.args = (rounded[x],)

    def _round_attention(self, plans: Sequence[OperandPlan]) -> None:
        """Put modules in the place of the fixed roundings that `prepare` wrote."""
        written = {p.rounded.name: p for p in plans if p.rounded is not None}
        for call in list(self._module.graph.nodes):
            plan = written.get(call.meta.get(ROUNDED_VALUE))
            if plan is None:
                continue
            name = f"{_FOLDER}.{identifier(plan.value.name or 'operand')}_of_attention"
            self._operands[plan.value] = ActivationQuantiser(plan.quantizer, learnt=self._learnt)
            self._module.add_submodule(name, self._operands[plan.value])
            call.replace_all_uses_with(self._insert(name, call.args[0]))
            self._module.graph.erase_node(call)

    def _insert(self, path: str, x: fx.Node) -> fx.Node:
        behind = self._last_input if x.op == "placeholder" and self._last_input else x
        arguments = (x,) if self._mask is None else (x, self._mask)
        with self._module.graph.inserting_after(behind):
            return self._module.graph.call_module(path, arguments)


def prepare(graph: Graph, plan: QuantizationPlan) -> None:
    """Bring the float graph to where training starts; its module is built afterwards.

    The corrections of ``plan`` are added to the biases, so that training starts from the outputs
    that `quant` alone would give. Operands of attention get their roundings. Tables that do not
    train (computed positions, which are no parameters of the source) are rounded for good.
    """
    editor = QuantizedGraph(graph)
    for operand in _operands(plan):
        operand.write(editor)
    for site in plan.sites:
        if site.correction is not None:
            site.site = editor.correct_bias(site.site, site.correction)
            site.correction = None
    editor.remove_unused()
    trainable = trainable_initializers(graph, find_linear_sites(graph))
    for table in [*plan.tables, *plan.parameters]:
        if table.tied is None and table.root not in trainable:
            rounded = ir.tensor(table.quantized.dequantize(), name=table.root.name)
            table.root.const_value = rounded


def _operands(plan: QuantizationPlan) -> list[OperandPlan]:
    return [operand for attention in plan.attention for operand in attention.operands]


def _uses(plan: SitePlan) -> list[tuple[ir.Value, Quantizer | None]]:
    return list(zip(plan.site.inputs, plan.quantizers, strict=True))
