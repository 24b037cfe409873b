"""The text form: stable, without weights, and the same for graphs of one structure."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from obert_compiler.graph import Graph
from obert_compiler.graph.linear import SITE_KEY
from obert_compiler.graph.text import graph_text

Make = Callable[..., Graph]
TEXT = """g (float[b, s, 8] x) => (float[b, s, 4] y) {
    h = MatMul(x, W)
    t = Transpose <perm=[0, 2, 1]> (h)
    m = Softmax <axis=-1> (t)
    c = Clip(m, , high)
    y = Reshape(c, shape)
}"""
SHAPES = {"W": (8, 4), "high": np.array(0.5, np.float32), "shape": np.array([0, -1, 4])}
EXPECTED = """\
dense graph, opset 21
input  x float32[b, s, 8]
%0 = MatMul(x, float32[8, 4]) float32[b, s, 4] @layer
%1 = Transpose(%0) perm=[0, 2, 1] float32[b, 4, s]
%2 = Softmax(%1) float32[b, 4, s]
%3 = Clip(%2, -, 0.5) float32[b, 4, s]
%4 = Reshape(%3, [0, -1, 4]) float32[b, s, 4]
output y = %4 float32[b, s, 4]
"""


def test_golden(graph_from_text: Make) -> None:
    graph = graph_from_text(TEXT, **SHAPES)
    graph.model.graph.node("n0").metadata_props[SITE_KEY] = "layer"
    assert graph_text(graph) == EXPECTED


def test_parameters_keep_their_names(graph_from_text: Make) -> None:
    graph = graph_from_text(TEXT, **SHAPES)
    graph.model.graph.initializers["W"].metadata_props["obert.parameter"] = "W"
    assert "%0 = MatMul(x, W float32[8, 4])" in graph_text(graph)


def test_names_of_values_do_not_matter(tiny_graph: Callable[[str, str], Graph]) -> None:
    graph = tiny_graph("bert", "sequence")
    text = graph_text(graph)
    for number, node in enumerate(graph.model.graph):
        node.name = f"z{number}"
        for output in node.outputs:
            if not output.is_graph_output():
                output.name = f"v{number}"
    assert graph_text(graph) == text
    assert graph_text(graph.copy()) == text
    assert len(text.splitlines()) == 1 + 3 + len(graph.model.graph) + 1


def test_weights_do_not_show_but_structure_does(graph_from_text: Make) -> None:
    graph = graph_from_text(TEXT, **SHAPES)
    other = graph_from_text(TEXT, **{**SHAPES, "W": np.zeros((8, 4), np.float32)})
    assert graph_text(graph) == graph_text(other)
    changed = graph_from_text(TEXT.replace("axis=-1", "axis=1"), **SHAPES)
    assert "Softmax(%1) axis=1" in graph_text(changed)
