"""Every rule of every stage: what breaks it is found, and named in one line."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from obert_compiler.errors import GraphError
from obert_compiler.graph import Graph, Stage
from obert_compiler.graph.linear import SITE_KEY
from obert_compiler.graph.verify import verify

Make = Callable[..., Graph]
PLAIN = """g (float[b, 8] x) => (float[b, 4] y) {
    h = MatMul(x, W)  r = Relu(h)  y = Add(r, bias)
}"""
WEIGHTS = {"W": (8, 4), "bias": (4,)}
QDQ = """g (float[b, 8] x) => (float[b, 4] y) {
    q = QuantizeLinear(x, scale, zero)
    d = DequantizeLinear(q, scale, zero)
    w = DequantizeLinear<axis=1>(codes, scales)
    y = MatMul(d, w)
}"""
CODES = {
    "codes": np.ones((8, 4), np.int8),
    "scales": np.full(4, 0.1, np.float32),
    "scale": np.array(0.1, np.float32),
    "zero": np.array(128, np.uint8),
}


def refuses(graph: Graph, stage: Stage, *parts: str) -> None:
    """The error is one line that holds every part."""
    with pytest.raises(GraphError) as error:
        verify(graph, stage)
    message = str(error.value)
    assert "\n" not in message
    for part in (f"{stage} graph: ", *parts):
        assert part in message


@pytest.mark.parametrize("stage", Stage)
def test_float_graph_is_legal_at_every_stage(stage: Stage, graph_from_text: Make) -> None:
    verify(graph_from_text(PLAIN, **WEIGHTS), stage)


def test_quantised_graph(graph_from_text: Make) -> None:
    graph = graph_from_text(QDQ, **CODES)
    verify(graph, Stage.QUANTISED)
    verify(graph, Stage.PACKED)
    refuses(graph, Stage.DENSE, "node 'n0' (QuantizeLinear)", "before the stage quantised")
    refuses(graph, Stage.PRUNED, "expected no quantised tensor")


@pytest.mark.parametrize("arch", ["bert", "deberta-v3", "modernbert"])
def test_lowered_graphs_are_legal(arch: str, tiny_graph: Callable[[str, str], Graph]) -> None:
    verify(tiny_graph(arch, "sequence"), Stage.DENSE)


def test_neighbourhood(graph_from_text: Make) -> None:
    graph = graph_from_text(PLAIN, **WEIGHTS)
    graph.model.graph.node("n1").op_type = "Rely"
    refuses(
        graph,
        Stage.DENSE,
        "node 'n1' (Rely): expected an op of opset 21",
        "around it: MatMul > [Rely] > Add",
    )


def test_value_that_nothing_makes(graph_from_text: Make) -> None:
    graph = graph_from_text(PLAIN, **WEIGHTS)
    graph.model.graph.node("n1").replace_input_with(0, ir.Value(name="lost"))
    refuses(graph, Stage.DENSE, "node 'n1' (Relu)", "input 0 ('lost') is made by no earlier node")


def test_value_read_before_it_is_made(graph_from_text: Make) -> None:
    graph = graph_from_text(PLAIN, **WEIGHTS)
    inner = graph.model.graph
    relu = inner.node("n1")
    inner.remove(relu)
    inner.append(relu)
    refuses(graph, Stage.DENSE, "node 'n2' (Add)", "is made by no earlier node")


def test_output_that_nothing_makes(graph_from_text: Make) -> None:
    graph = graph_from_text(PLAIN, **WEIGHTS)
    graph.model.graph.outputs[0] = ir.Value(name="lost")
    refuses(graph, Stage.DENSE, "graph output 'lost'", "found none")


def test_names_are_unique(graph_from_text: Make) -> None:
    graph = graph_from_text(PLAIN, **WEIGHTS)
    graph.model.graph.node("n0").outputs[0].name = "r"
    refuses(graph, Stage.DENSE, "value 'r'", "found 2 values of it")
    graph = graph_from_text(PLAIN, **WEIGHTS)
    graph.model.graph.node("n0").name = "n1"
    refuses(graph, Stage.DENSE, "found 2 nodes of it")


def test_foreign_domain_and_control_flow(graph_from_text: Make) -> None:
    graph = graph_from_text(PLAIN, **WEIGHTS)
    graph.model.graph.node("n1").domain = "com.microsoft"
    refuses(graph, Stage.PACKED, "expected a standard op", "'com.microsoft'")
    graph = graph_from_text(PLAIN, **WEIGHTS)
    graph.model.graph.node("n1").op_type = "Loop"
    refuses(graph, Stage.DENSE, "expected no control flow")


def test_schema(graph_from_text: Make) -> None:
    graph = graph_from_text(PLAIN, **WEIGHTS)
    graph.model.graph.node("n2").op_type = "Relu"
    refuses(graph, Stage.DENSE, "expected 1 to 1 inputs, found 2")
    graph = graph_from_text(PLAIN, **WEIGHTS)
    graph.model.graph.node("n1").attributes.add(ir.AttrInt64("depth", 2))
    refuses(graph, Stage.DENSE, "opset 21 knows no attribute 'depth'")
    graph = graph_from_text(PLAIN, **WEIGHTS)
    graph.model.graph.node("n1").op_type = "Cast"
    refuses(graph, Stage.DENSE, "expected the attribute 'to', found none")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_finite_weights(bad: float, graph_from_text: Make) -> None:
    weight = np.ones((8, 4), np.float32)
    weight[3, 2] = bad
    graph = graph_from_text(PLAIN, W=weight, bias=(4,))
    refuses(graph, Stage.DENSE, f"initializer 'W': expected finite numbers, found {bad} at [3, 2]")


def test_lone_infinity_is_a_mask(graph_from_text: Make) -> None:
    text = PLAIN.replace("Add(r, bias)", "Max(r, bias)").replace("b, 4] y", "b, 4] y")
    verify(graph_from_text(text, W=(8, 4), bias=np.array(-np.inf, np.float32)), Stage.DENSE)
    graph = graph_from_text(text, W=(8, 4), bias=np.array(np.nan, np.float32))
    refuses(graph, Stage.DENSE, "initializer 'bias'", "found nan")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"codes": np.ones((8, 4), np.int16)}, ("(DequantizeLinear)", "8 or 4 bits, found INT16")),
        (
            {"scales": np.array([0.1, 0, 0.1, 0.1], np.float32)},
            ("positive, finite scales in 'scales', found 0.0",),
        ),
        ({"scale": np.array(np.nan, np.float32)}, ("'scale'", "found nan")),
        ({"zero": np.array(0, np.int8)}, ("(QuantizeLinear)", "type UINT8, found INT8")),
        (
            {"scale": np.full(8, 0.1, np.float32), "zero": np.zeros(8, np.uint8)},
            ("one scale per tensor, found 8",),
        ),
    ],
)
def test_quantisation_rules(
    change: dict[str, np.ndarray], parts: tuple[str, ...], graph_from_text: Make
) -> None:
    refuses(graph_from_text(QDQ, **{**CODES, **change}), Stage.QUANTISED, *parts)


def test_other_quantised_ops(graph_from_text: Make) -> None:
    text = "g (float[b, 8] x) => (uint8[b, 8] y) { y, s, z = DynamicQuantizeLinear(x) }"
    graph = graph_from_text(text)
    refuses(graph, Stage.QUANTISED, "DynamicQuantizeLinear", "around float ops")


def test_quantised_activation_read_as_it_is(graph_from_text: Make) -> None:
    text = QDQ.replace("y = MatMul(d, w)", "m = MatMul(d, w) f = Cast<to=1>(q) y = Concat(m, f)")
    text = text.replace("Concat", "Concat<axis=1>")
    refuses(graph_from_text(text, **CODES), Stage.QUANTISED, "(Cast)", "expected DequantizeLinear")


UNPACKED = """g (float[b, 8] x) => (float[b, 4] y) {
    w = Reshape(flat, shape)  y = MatMul(x, w)
}"""
FLAT = {"flat": (32,), "shape": np.array([8, 4])}


def test_computed_weights_are_for_packed_graphs(graph_from_text: Make) -> None:
    graph = graph_from_text(UNPACKED, **FLAT)
    graph.model.graph.node("n1").metadata_props[SITE_KEY] = "layer"
    verify(graph, Stage.PACKED)
    refuses(graph, Stage.QUANTISED, "(Reshape)", "no computed weight before the stage packed")
    refuses(graph, Stage.DENSE, "no computed weight")


def test_weight_that_depends_on_an_input(graph_from_text: Make) -> None:
    text = UNPACKED.replace("float[b, 8] x", "float[b, 8] x, float[32] flat")
    graph = graph_from_text(text, shape=np.array([8, 4]))
    graph.model.graph.node("n1").metadata_props[SITE_KEY] = "layer"
    refuses(graph, Stage.PACKED, "site 'layer'", "found an activation")
