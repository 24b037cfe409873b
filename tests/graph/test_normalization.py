"""Layer normalisation as an operator and written out, and why not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from obert_compiler.graph import Graph
from obert_compiler.graph.normalization import find_layer_norms

Make = Callable[..., Graph]
WRITTEN_OUT = """g (float[b, s, 8] x) => (float[b, s, 8] y) {
    mean = ReduceMean(x, last)
    d = Sub(x, mean)
    square = Pow(d, two)
    variance = ReduceMean(square, last)
    v = Add(variance, epsilon)
    deviation = Sqrt(v)
    n = Div(d, deviation)
    g1 = Mul(n, gamma)
    y = Add(g1, beta)
}"""
CONSTANTS = {
    "last": np.array([-1]),
    "two": np.array(2, np.float32),
    "epsilon": np.array(1e-5, np.float32),
    "gamma": (8,),
    "beta": (8,),
}


def test_written_out(graph_from_text: Make) -> None:
    (norm,) = find_layer_norms(graph_from_text(WRITTEN_OUT, **CONSTANTS))
    assert (norm.input.name, norm.output.name) == ("x", "y")
    assert norm.scale is not None
    assert norm.bias is not None
    assert (norm.scale.name, norm.bias.name) == ("gamma", "beta")
    assert norm.epsilon == pytest.approx(1e-5)
    assert len(norm.nodes) == 9


def test_square_as_product(graph_from_text: Make) -> None:
    text = WRITTEN_OUT.replace("Pow(d, two)", "Mul(d, d)")
    (norm,) = find_layer_norms(graph_from_text(text, **CONSTANTS))
    assert norm.output.name == "y"


@pytest.mark.parametrize(("arch", "norms", "bias"), [("bert", 7, True), ("modernbert", 8, False)])
def test_operator(
    arch: str, norms: int, bias: bool, tiny_graph: Callable[[str, str], Graph]
) -> None:
    found = find_layer_norms(tiny_graph(arch, "sequence"))
    assert found.unmatched == ()
    assert all(norm.scale is not None for norm in found)
    if arch == "bert":
        assert len(found) == norms
        assert all((norm.bias is not None) == bias for norm in found)


@pytest.mark.parametrize(
    ("old", "new", "constants", "reason"),
    [
        ("Pow(d, two)", "Pow(d, two)", {"two": np.array(3, np.float32)}, "the power is no square"),
        ("Pow(d, two)", "Mul(d, x)", {}, "the product is no square"),
        ("Pow(d, two)", "Relu(d)", {}, "not that of the square of a difference"),
        ("Sub(x, mean)", "Sub(mean, x)", {}, "not that from the mean of the same value"),
        ("Div(d, deviation)", "Div(x, deviation)", {}, "the deviation does not divide"),
        ("last)", "last)", {"last": np.array([1])}, "not taken over the last axis alone"),
    ],
)
def test_why_not(
    old: str,
    new: str,
    constants: dict[str, np.ndarray],
    reason: str,
    graph_from_text: Make,
) -> None:
    graph = graph_from_text(WRITTEN_OUT.replace(old, new), **{**CONSTANTS, **constants})
    found = find_layer_norms(graph)
    assert found.norms == ()
    (unmatched,) = found.unmatched
    assert reason in unmatched.reason
