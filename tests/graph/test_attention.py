"""Attention: sites, heads and sizes for every architecture, and why a Softmax is none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from obert_compiler.graph import Graph
from obert_compiler.graph.attention import find_attention
from obert_compiler.graph.layers import find_encoder_layers

# What the source calls query, key, value and output in its first layer.
SITES = {
    "bert": ("self.query", "self.key", "self.value", "attention.output.dense"),
    "roberta": ("self.query", "self.key", "self.value", "attention.output.dense"),
    "xlm-roberta": ("self.query", "self.key", "self.value", "attention.output.dense"),
    "distilbert": ("q_lin", "k_lin", "v_lin", "out_lin"),
    "electra": ("self.query", "self.key", "self.value", "attention.output.dense"),
    "mpnet": ("attn.q", "attn.k", "attn.v", "attn.o"),
    "albert": ("attention.query", "attention.key", "attention.value", "attention.dense"),
    "deberta-v2": ("query_proj", "key_proj", "value_proj", "attention.output.dense"),
    "deberta-v3": ("query_proj", "key_proj", "value_proj", "attention.output.dense"),
    "modernbert": ("attn.Wqkv", "attn.Wqkv", "attn.Wqkv", "attn.Wo"),
}


@pytest.mark.parametrize("arch", SITES)
def test_attention_of_every_architecture(
    arch: str, tiny_graph: Callable[[str, str], Graph]
) -> None:
    graph = tiny_graph(arch, "sequence")
    found = find_attention(graph)
    assert found.unmatched == ()
    assert len(found) == 3
    layers = find_encoder_layers(graph)
    for layer, attention in zip(layers, found, strict=True):
        assert (attention.heads, attention.head_size) == (4, 8)
        sites = (attention.query, attention.key, attention.value, attention.output)
        for name, ending in zip(sites, SITES[arch], strict=True):
            assert name.endswith(ending)
            assert name in layer.sites
        assert {attention.scores, attention.softmax, attention.context} <= set(layer.nodes)


TWO_HEADS = """g (float[b, s, 8] x) => (float[b, s, 8] y) {
    q0 = MatMul(x, Wq)  k0 = MatMul(x, Wk)  v0 = MatMul(x, Wv)
    q1 = Reshape(q0, split)  k1 = Reshape(k0, split)  v1 = Reshape(v0, split)
    q = Transpose <perm=[0, 2, 1, 3]> (q1)
    k = Transpose <perm=[0, 2, 3, 1]> (k1)
    v = Transpose <perm=[0, 2, 1, 3]> (v1)
    scores = MatMul(q, k)  probabilities = Softmax(scores)
    context = MatMul(probabilities, v)
    c1 = Transpose <perm=[0, 2, 1, 3]> (context)
    c2 = Reshape(c1, join)
    y = MatMul(c2, Wo)
}"""
WEIGHTS = {"Wq": (8, 8), "Wk": (8, 8), "Wv": (8, 8), "Wo": (8, 8)}
JOIN = np.array([0, 0, 8])


@pytest.mark.parametrize("split", [[0, 0, 2, 4], [0, 0, 2, -1]])
def test_heads_without_recorded_shapes(
    split: list[int], graph_from_text: Callable[..., Graph]
) -> None:
    graph = graph_from_text(TWO_HEADS, **WEIGHTS, split=np.array(split), join=JOIN)
    for node in graph.model.graph:
        node.outputs[0].shape = None
    (attention,) = find_attention(graph)
    assert (attention.query, attention.key, attention.value) == ("Wq", "Wk", "Wv")
    assert attention.output == "Wo"
    assert (attention.heads, attention.head_size) == (2, 4)


def test_fused_operator(graph_from_text: Callable[..., Graph]) -> None:
    graph = graph_from_text(
        """g (float[b, s, 8] x) => (float[b, s, 8] y) {
            q = MatMul(x, Wq)  k = MatMul(x, Wk)  v = MatMul(x, Wv)
            c = Identity(v)
            y = MatMul(c, Wo)
        }""",
        **WEIGHTS,
    )
    # Opset 23 in a graph of opset 21: only the search is tested, shape inference knows no such op.
    node = graph.model.graph.node("n3")
    node.op_type = "Attention"
    values = {v.name: v for n in graph.model.graph for v in n.outputs}
    node.resize_inputs(3)
    for position, name in enumerate("qkv"):
        node.replace_input_with(position, values[name])
    node.attributes.add(ir.AttrInt64("q_num_heads", 2))
    (attention,) = find_attention(graph)
    assert (attention.query, attention.key, attention.value) == ("Wq", "Wk", "Wv")
    assert (attention.output, attention.heads, attention.head_size) == ("Wo", 2, 4)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("a = MatMul(x, Wq) y = Softmax(a)", "product of two activations before the Softmax"),
        (
            "a = MatMul(x, Wq) t = Transpose<perm=[0,2,1]>(a) s = MatMul(a, t) p = Softmax(s) "
            "y = MatMul(p, a)",
            "no Linear site reads the context",
        ),
        (
            "a = MatMul(x, Wq) t = Transpose<perm=[0,2,1]>(a) s = MatMul(a, t) p = Softmax(s) "
            "c = MatMul(p, x) y = MatMul(c, Wo)",
            "expected the value to come from one Linear site, found 0",
        ),
        (
            "a = MatMul(x, Wq) t = Transpose<perm=[0,2,1]>(a) s = MatMul(a, t) y = Softmax(s)",
            "expected one product after the Softmax, found 0",
        ),
    ],
)
def test_why_not(body: str, reason: str, graph_from_text: Callable[..., Graph]) -> None:
    text = f"g (float[b, s, 8] x) => (float[b, s, t] y) {{ {body} }}"
    found = find_attention(graph_from_text(text, Wq=(8, 8), Wo=(8, 8)))
    assert found.regions == ()
    (unmatched,) = found.unmatched
    assert reason in unmatched.reason
