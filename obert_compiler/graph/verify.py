"""What a graph may contain at each stage, checked after every pass.

`RULES` is the table: a rule, the stages it holds for, the check. A broken rule is a `GraphError` of
one line that names the node, what was expected, what was found, and the nodes around it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import onnx
import onnx_ir as ir

from obert_compiler.errors import GraphError
from obert_compiler.graph.constants import is_constant
from obert_compiler.graph.graph import Graph, Stage
from obert_compiler.graph.linear import SITE_KEY
from obert_compiler.graph.network import Network, ValueKind

__all__ = ["RULES", "Problem", "Rule", "problems", "verify"]

_FLOAT_STAGES = frozenset({Stage.DENSE, Stage.PRUNED})
_INTEGER_STAGES = frozenset({Stage.QUANTISED, Stage.PACKED})
_ALL = frozenset(Stage)
_STANDARD_DOMAINS = frozenset({"", "ai.onnx"})
_CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})
_OTHER_QUANTISED = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
    }
)
_WEIGHT_TYPES = frozenset(
    {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4}
)
_NEIGHBOURS = 3


@dataclass(frozen=True)
class Problem:
    """One broken rule.

    Attributes:
        subject: the node or value in words, with its name in quotes.
        text: what was expected and what was found.
        node: where in the graph, None for a problem of no node.
    """

    subject: str
    text: str
    node: ir.Node | None = None


class _Subject:
    """A graph under check, with what several rules need."""

    def __init__(self, graph: Graph, stage: Stage) -> None:
        self.graph = graph
        self.stage = stage
        self.nodes = list(graph.model.graph)

    @cached_property
    def network(self) -> Network:
        return Network(self.graph)

    @property
    def initializers(self) -> list[ir.Value]:
        return list(self.graph.model.graph.initializers.values())


Check = Callable[[_Subject], Iterator[Problem]]


@dataclass(frozen=True)
class Rule:
    """One rule: its text, the stages it holds for, and the check that yields what breaks it."""

    text: str
    stages: frozenset[Stage]
    check: Check


def problems(graph: Graph, stage: Stage) -> Iterator[Problem]:
    """Everything in ``graph`` that breaks a rule of ``stage``, in the order of `RULES`."""
    subject = _Subject(graph, stage)
    for rule in RULES:
        if stage in rule.stages:
            yield from rule.check(subject)


def verify(graph: Graph, stage: Stage) -> None:
    """Check ``graph`` against the rules of ``stage``.

    Raises:
        GraphError: for the first broken rule; one line with the nodes around the place.
    """
    problem = next(problems(graph, stage), None)
    if problem is None:
        return
    around = "" if problem.node is None else f"; around it: {_neighbourhood(graph, problem.node)}"
    raise GraphError(f"{stage} graph: {problem.subject}: {problem.text}{around}")


def _neighbourhood(graph: Graph, node: ir.Node) -> str:
    nodes = list(graph.model.graph)
    if node not in nodes:
        return node.op_type
    place = nodes.index(node)
    first = max(0, place - _NEIGHBOURS)
    near = nodes[first : place + _NEIGHBOURS + 1]
    return " > ".join(f"[{n.op_type}]" if n is node else n.op_type for n in near)


def _at(node: ir.Node, text: str) -> Problem:
    return Problem(f"node '{node.name}' ({node.op_type})", text, node)


def _unique_names(subject: _Subject) -> Iterator[Problem]:
    graph = subject.graph.model.graph
    made = [v for node in subject.nodes for v in node.outputs]
    inputs = [v for v in graph.inputs if v.name not in graph.initializers]
    names = Counter(v.name for v in [*inputs, *subject.initializers, *made])
    for value in [*inputs, *subject.initializers, *made]:
        if value.name is None:
            yield Problem("a value", "expected a name, found none", value.producer())
        elif value.name and names[value.name] > 1:
            text = f"expected a unique name, found {names[value.name]} values of it"
            yield Problem(f"value '{value.name}'", text, value.producer())
    node_names = Counter(node.name for node in subject.nodes)
    for node in subject.nodes:
        if not node.name or node_names[node.name] > 1:
            yield _at(node, f"expected a unique name, found {node_names[node.name]} nodes of it")


def _no_dangling_values(subject: _Subject) -> Iterator[Problem]:
    graph = subject.graph.model.graph
    known = {*graph.inputs, *subject.initializers}
    for value in subject.initializers:
        if value.const_value is None:
            yield Problem(f"initializer '{value.name}'", "expected a tensor, found none")
    for node in subject.nodes:
        for position, operand in enumerate(node.inputs):
            if operand is not None and operand not in known:
                text = (
                    f"input {position} ('{operand.name}') is made by no earlier node, graph input"
                )
                yield _at(node, f"{text} or initializer")
        known.update(node.outputs)
    for value in graph.outputs:
        if value not in known:
            yield Problem(f"graph output '{value.name}'", "expected a node to make it, found none")


def _standard_ops(subject: _Subject) -> Iterator[Problem]:
    model = subject.graph.model
    opset = model.graph.opset_imports.get("", model.graph.opset_imports.get("ai.onnx"))
    if opset is None:
        yield Problem("graph", "expected an opset of the domain ai.onnx, found none")
        return
    for function in model.functions.values():
        yield Problem(f"function '{function.name}'", "expected none; inline it")
    for node in subject.nodes:
        if node.domain not in _STANDARD_DOMAINS:
            yield _at(node, f"expected a standard op, found one of the domain '{node.domain}'")
        elif node.op_type in _CONTROL_FLOW:
            yield _at(node, "expected no control flow")
        else:
            yield from _fits_schema(node, opset)


def _fits_schema(node: ir.Node, opset: int) -> Iterator[Problem]:
    schema = _schema(node.op_type, opset)
    if schema is None:
        yield _at(node, f"expected an op of opset {opset}, found none of that name")
        return
    if not schema.min_input <= len(node.inputs) <= schema.max_input:
        expected = f"{schema.min_input} to {schema.max_input}"
        yield _at(node, f"expected {expected} inputs, found {len(node.inputs)}")
    for name, attribute in schema.attributes.items():
        if attribute.required and name not in node.attributes:
            yield _at(node, f"expected the attribute '{name}', found none")
    for name in node.attributes:
        if name not in schema.attributes:
            yield _at(node, f"opset {opset} knows no attribute '{name}'")


@cache
def _schema(op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        schema: onnx.defs.OpSchema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    return None if schema.deprecated else schema


def _finite_weights(subject: _Subject) -> Iterator[Problem]:
    for value in subject.initializers:
        tensor = value.const_value
        if tensor is None or not tensor.dtype.is_floating_point():
            continue
        array = tensor.numpy()
        if array.dtype.kind != "f":
            array = array.astype(np.float32)
        # A lone infinity is what exporters mask attention with.
        bad = np.isnan(array) if array.size == 1 else ~np.isfinite(array)
        if bad.any():
            place = tuple(int(i) for i in np.argwhere(bad)[0])
            text = f"expected finite numbers, found {array[place]} at {list(place)}"
            reader = next(iter(value.consumers()), None)
            yield Problem(
                f"initializer '{value.name}'", f"{text} ({int(bad.sum())} in all)", reader
            )


def _no_quantisation(subject: _Subject) -> Iterator[Problem]:
    for node in subject.nodes:
        if node.op_type in _QDQ | _OTHER_QUANTISED:
            yield _at(node, f"expected no quantised tensor before the stage {Stage.QUANTISED}")


def _only_qdq(subject: _Subject) -> Iterator[Problem]:
    for node in subject.nodes:
        if node.op_type in _OTHER_QUANTISED:
            yield _at(node, "expected QuantizeLinear and DequantizeLinear around float ops")


def _quantised_weights(subject: _Subject) -> Iterator[Problem]:
    for node in subject.nodes:
        stored = node.inputs[0] if node.inputs else None
        if node.op_type != "DequantizeLinear" or stored is None:
            continue
        if subject.network.kind(stored) is not ValueKind.CONSTANT or stored.dtype is None:
            continue
        bias = stored.dtype is ir.DataType.INT32
        if stored.dtype not in _WEIGHT_TYPES and not bias:
            yield _at(node, f"expected weights of 8 or 4 bits, found {stored.dtype}")


def _scales(subject: _Subject) -> Iterator[Problem]:
    for node in subject.nodes:
        scale = node.inputs[1] if node.op_type in _QDQ and len(node.inputs) > 1 else None
        if scale is None or scale.const_value is None:
            continue
        array = scale.const_value.numpy().astype(np.float32)
        if not (np.isfinite(array) & (array > 0)).all():
            worst = float(array[~(np.isfinite(array) & (array > 0))].reshape(-1)[0])
            yield _at(node, f"expected positive, finite scales in '{scale.name}', found {worst}")


def _activations(subject: _Subject) -> Iterator[Problem]:
    for node in subject.nodes:
        if node.op_type != "QuantizeLinear" or is_constant(node.outputs[0]):
            continue
        scale = node.inputs[1] if len(node.inputs) > 1 else None
        if scale is None or not is_constant(scale):
            yield _at(node, "expected a constant scale")
        elif scale.shape is not None and scale.shape.is_static() and _size(scale) != 1:
            yield _at(node, f"expected one scale per tensor, found {_size(scale)}")
        zero_point = node.inputs[2] if len(node.inputs) > 2 else None
        dtype = ir.DataType.UINT8 if zero_point is None else zero_point.dtype
        if dtype is not ir.DataType.UINT8:
            yield _at(node, f"expected activations of type UINT8, found {dtype}")
        for reader in node.outputs[0].consumers():
            if reader.op_type != "DequantizeLinear":
                yield _at(reader, "expected DequantizeLinear to read a quantised activation")


def _size(value: ir.Value) -> int:
    return 1 if value.shape is None else int(np.prod(value.shape.numpy(), dtype=np.int64))


def _site_weights(subject: _Subject) -> Iterator[Problem]:
    """A site's weight is an initializer; quantised, behind DequantizeLinear; packed, behind ops."""
    allowed = {"Transpose"}
    if subject.stage in _INTEGER_STAGES:
        allowed.add("DequantizeLinear")
    for node in subject.nodes:
        if SITE_KEY not in node.metadata_props or node.op_type not in {"MatMul", "Gemm"}:
            continue
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        if weight is None or subject.network.kind(weight) is not ValueKind.CONSTANT:
            site = node.metadata_props[SITE_KEY]
            yield _at(
                node, f"expected site '{site}' to multiply by a constant, found an activation"
            )
            continue
        maker = weight.producer()
        while subject.stage is not Stage.PACKED and maker is not None:
            if maker.op_type not in allowed:
                yield _at(maker, f"expected no computed weight before the stage {Stage.PACKED}")
                break
            weight = maker.inputs[0]
            maker = None if weight is None else weight.producer()


RULES: tuple[Rule, ...] = (
    Rule("every value and node has a name of its own", _ALL, _unique_names),
    Rule("every value is made before it is read", _ALL, _no_dangling_values),
    Rule("ops are those of ONNX, used as their schema says", _ALL, _standard_ops),
    Rule("weights are finite", _ALL, _finite_weights),
    Rule("nothing is quantised yet", _FLOAT_STAGES, _no_quantisation),
    Rule("quantisation is QuantizeLinear and DequantizeLinear", _INTEGER_STAGES, _only_qdq),
    Rule("quantised weights have 8 or 4 bits", _INTEGER_STAGES, _quantised_weights),
    Rule("scales are positive and finite", _INTEGER_STAGES, _scales),
    Rule("activations are uint8 with one scale", _INTEGER_STAGES, _activations),
    Rule("weights are stored as the stage says", _ALL, _site_weights),
)
"""The rules in the order they are checked."""
