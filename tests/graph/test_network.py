"""The network of values: kinds, cut points, what is looked through."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import networkx as nx
import numpy as np
import onnx_ir as ir
from hypothesis import given
from hypothesis import strategies as st

from obert_compiler.graph import Graph, Source
from obert_compiler.graph.network import Network, ValueKind, static_shape

Make = Callable[..., Graph]


def values(graph: Graph) -> dict[str, ir.Value]:
    """Every value by name."""
    inner = graph.model.graph
    made = [v for node in inner for v in node.outputs]
    return {str(v.name): v for v in [*inner.inputs, *inner.initializers.values(), *made]}


def test_kinds(graph_from_text: Make) -> None:
    graph = graph_from_text(
        """g (float[b, 8] x) => (float[b, 8] y) {
            w2 = Mul(W, W)  size = Shape(x)  ones = Expand(one, size)
            h = Add(x, ones)  y = Mul(h, w2)
        }""",
        W=(8,),
        one=np.array(1, np.float32),
    )
    network, named = Network(graph), values(graph)
    assert {name: network.kind(v).value for name, v in named.items()} == {
        "x": "data",
        "W": "constant",
        "one": "constant",
        "w2": "constant",
        "size": "shape",
        "ones": "shape",
        "h": "data",
        "y": "data",
    }
    # Shape(x) is no path around the Add.
    assert network.cut_points(named["x"], named["y"]) == [named["x"], named["h"], named["y"]]


def test_quantisers_are_looked_through(graph_from_text: Make) -> None:
    graph = graph_from_text(
        """g (float[b, 8] x) => (float[b, 8] y) {
            h = Relu(x)  q = QuantizeLinear(h, s, z)  d = DequantizeLinear(q, s, z)
            a = Relu(d)  y = Add(a, h)
        }""",
        s=np.array(0.1, np.float32),
        z=np.array(0, np.uint8),
    )
    network, named = Network(graph), values(graph)
    assert network.root(named["d"]) is named["h"]
    assert {node.op_type for node in network.readers(named["h"])} == {"Relu", "Add"}
    cuts = network.cut_points(named["x"], named["y"])
    assert [v.name for v in cuts] == ["x", "h", "y"]


def test_exclusive_sources(graph_from_text: Make) -> None:
    graph = graph_from_text(
        """g (float[b, 8] x) => (float[b, 8] y) {
            own = Neg(W)  shared = Neg(V)
            a = Add(x, own)  b2 = Mul(a, shared)  y = Mul(b2, shared)
        }""",
        W=(8,),
        V=(8,),
    )
    network, named = Network(graph), values(graph)
    producer = {name: v.producer() for name, v in named.items()}
    first = [n for n in (producer["a"], producer["b2"]) if n is not None]
    assert network.exclusive_sources(first) == [producer["own"]]


def test_deepest_output(graph_from_text: Make) -> None:
    graph = graph_from_text(
        "g (float[b, 8] x) => (float[b, 8] y, float[b, 8] z) { y = Relu(x)  z = Relu(y) }"
    )
    network, named = Network(graph), values(graph)
    assert network.deepest_output(named["x"]) is named["z"]


def test_static_shape_through_dequantisation(graph_from_text: Make) -> None:
    graph = graph_from_text(
        """g (float[b, 8] x) => (float[b, 4] y) {
            d = DequantizeLinear(codes, s)  t = Transpose(d)  y = MatMul(x, t)
        }""",
        codes=np.ones((4, 8), np.int8),
        s=np.array(0.1, np.float32),
    )
    for node in graph.model.graph:
        node.outputs[0].shape = None
    named = values(graph)
    assert static_shape(named["t"]) == (8, 4)
    assert static_shape(named["y"]) is None


@given(st.sets(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=14))
def test_cut_points_against_all_paths(pairs: set[tuple[int, int]]) -> None:
    """The values on every path, by listing every path."""
    edges = sorted((a, b) for a, b in pairs if a < b)
    made: dict[int, ir.Value] = {
        0: ir.Value(name="v0", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2]))
    }
    nodes = []
    for number in range(1, 7):
        operands = [made[a] for a, b in edges if b == number and a in made]
        if operands:
            node = ir.node("Sum", operands, name=f"n{number}")
            node.outputs[0].name = f"v{number}"
            made[number] = node.outputs[0]
            nodes.append(node)
    last = max(made)
    graph = Graph(
        ir.Model(
            ir.Graph([made[0]], [made[last]], nodes=nodes, opset_imports={"": 21}), ir_version=10
        ),
        Source("onnx"),
    )
    network = Network(graph)
    found = network.cut_points(made[0], made[last])
    if last == 0:
        assert found in ([], [made[0]])
        return
    assert network.kind(made[last]) is ValueKind.DATA
    oracle = nx.DiGraph((made[a], made[b]) for a, b in edges if a in made and b in made)
    paths = list(nx.all_simple_paths(oracle, made[0], made[last]))
    common = set.intersection(*(set(path) for path in paths))
    assert found == [v for v in paths[0] if v in common]
    assert all(a in nx.ancestors(oracle, b) for a, b in itertools.pairwise(found))
