"""Linear sites: whichever way they are written, one view; and what is none, with the reason."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from obert_compiler.errors import GraphError
from obert_compiler.graph import Graph, Source, find_linear_sites
from obert_compiler.graph.linear import SITE_KEY

RNG = np.random.default_rng(0)


def make_graph(body: str, *, inputs: str = "float[n, s, 4] x", **weights: np.ndarray) -> Graph:
    """A graph with input ``x`` and output ``y``, from ONNX text and initializers."""
    text = f'<ir_version: 10, opset_import: ["" : 21]> g ({inputs}) => (float[?] y) {{ {body} }}'
    model = ir.from_proto(onnx.parser.parse_model(text))
    model.graph.outputs[0].shape = None
    for name, array in weights.items():
        value = next(v for node in model.graph for v in node.inputs if v and v.name == name)
        value.const_value = ir.tensor(array, name=name)
        value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
        model.graph.register_initializer(value)
    return Graph(model, Source("onnx"))


def run(graph: Graph, x: np.ndarray) -> np.ndarray:
    """Output of ``graph`` for ``x``."""
    session = onnxruntime.InferenceSession(ir.to_proto(graph.model).SerializeToString())
    (y,) = session.run(None, {"x": x})
    return np.asarray(y)


def matrix(*shape: int) -> np.ndarray:
    """Random float32."""
    return RNG.standard_normal(shape).astype(np.float32)


W = matrix(3, 4)  # [out, in]
B = matrix(3)

FORMS = {
    "matmul": ("z = MatMul(x, W) y = Add(z, b)", {"W": W.T.copy(), "b": B}, 3),
    "bias first": ("z = MatMul(x, W) y = Add(b, z)", {"W": W.T.copy(), "b": B}, 3),
    "bias 3-D": ("z = MatMul(x, W) y = Add(z, b)", {"W": W.T.copy(), "b": B.reshape(1, 1, 3)}, 3),
    "transposed": (
        "t = Transpose<perm=[1,0]>(W) z = MatMul(x, t) y = Add(z, b)",
        {"W": W, "b": B},
        3,
    ),
    "gemm transB": ("y = Gemm<transB=1>(x, W, b)", {"W": W, "b": B}, 2),
    "gemm": ("y = Gemm(x, W, b)", {"W": W.T.copy(), "b": B}, 2),
    "gemm 2-D bias": ("y = Gemm(x, W, b)", {"W": W.T.copy(), "b": B.reshape(1, 3)}, 2),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_reads_and_writes_the_same(form: str) -> None:
    body, weights, rank = FORMS[form]
    inputs = "float[n, s, 4] x" if rank == 3 else "float[n, 4] x"
    graph = make_graph(body, inputs=inputs, **weights)
    (site,) = find_linear_sites(graph)
    assert (site.name, site.shape) == ("W", (3, 4))
    np.testing.assert_array_equal(site.weight(), W)
    bias = site.bias()
    assert bias is not None
    np.testing.assert_array_equal(bias, B)
    assert site.outputs[0].name == "y"
    assert site.inputs[0].name == "x"
    x = matrix(2, 5, 4) if rank == 3 else matrix(2, 4)
    np.testing.assert_allclose(run(graph, x), x @ W.T + B, atol=1e-5)
    new = matrix(3, 4)
    site.set_weight(new)
    np.testing.assert_array_equal(find_linear_sites(graph)["W"].weight(), new)
    np.testing.assert_allclose(run(graph, x), x @ new.T + B, atol=1e-5)


@pytest.mark.parametrize("form", ["matmul", "gemm transB"])
def test_weight_is_a_copy_both_ways(form: str) -> None:
    body, weights, rank = FORMS[form]
    inputs = "float[n, s, 4] x" if rank == 3 else "float[n, 4] x"
    graph = make_graph(body, inputs=inputs, **{name: w.copy() for name, w in weights.items()})
    (site,) = find_linear_sites(graph)
    site.weight()[:] = 0
    np.testing.assert_array_equal(site.weight(), W)
    mine = W + 1
    site.set_weight(mine)
    mine[:] = 0
    np.testing.assert_array_equal(site.weight(), W + 1)


def test_copies_of_a_graph_are_independent() -> None:
    graph = make_graph("y = MatMul(x, W)", W=W.T.copy())
    other = graph.copy()
    next(iter(find_linear_sites(other))).set_weight(W * 2)
    np.testing.assert_array_equal(next(iter(find_linear_sites(graph))).weight(), W)


def test_shared_weight_is_one_site_with_two_uses() -> None:
    square = matrix(4, 4)
    graph = make_graph("h = MatMul(x, W) a = Add(h, b) y = MatMul(a, W)", W=square, b=matrix(4))
    (site,) = find_linear_sites(graph)
    assert len(site.nodes) == 2
    assert [v.name if v else None for v in site.bias_values] == ["b", None]
    assert [v.name for v in site.outputs] == ["a", "y"]


def test_recorded_name_wins_and_equal_names_are_numbered() -> None:
    graph = make_graph("h = MatMul(x, W) y = MatMul(h, V)", W=matrix(4, 4), V=matrix(4, 4))
    for node in graph.model.graph:
        node.metadata_props[SITE_KEY] = "encoder.query"
    assert [site.name for site in find_linear_sites(graph)] == ["encoder.query", "encoder.query#2"]


def test_dequantised_weight_reads_as_float_and_refuses_writing() -> None:
    quantised = RNG.integers(-64, 65, (4, 3)).astype(np.int8)
    scale = np.array([0.1, 0.2, 0.3], np.float32)
    graph = make_graph(
        "w = DequantizeLinear<axis=1>(Wq, scale) y = MatMul(x, w)", Wq=quantised, scale=scale
    )
    (site,) = find_linear_sites(graph)
    np.testing.assert_allclose(site.weight(), (quantised * scale).T, rtol=1e-6)
    with pytest.raises(GraphError, match="quantised or packed"):
        site.set_weight(site.weight())


def test_wrong_shape_is_refused() -> None:
    graph = make_graph("y = MatMul(x, W)", W=W.T.copy())
    with pytest.raises(GraphError, match=r"'W'.*\(3, 4\).*\(4, 3\)"):
        next(iter(find_linear_sites(graph))).set_weight(W.T)


NO_BIAS = {
    "scalar": ("z = MatMul(x, W) y = Add(z, c)", np.array(2, np.float32)),
    "one element": ("z = MatMul(x, W) y = Add(z, c)", matrix(1)),
    "matrix": ("z = MatMul(x, W) y = Add(z, c)", matrix(2, 3)),
}


@pytest.mark.parametrize("what", NO_BIAS)
def test_constants_that_are_no_bias(what: str) -> None:
    body, constant = NO_BIAS[what]
    (site,) = find_linear_sites(make_graph(body, W=W.T.copy(), c=constant))
    assert site.bias() is None
    assert site.outputs[0].name == "z"


REASONS = {
    "the left operand": ("y = MatMul(V, x)", {"V": matrix(4, 4)}, "float[4, n] x"),
    "3 dimensions": ("y = MatMul(x, V)", {"V": matrix(2, 4, 4)}, "float[n, s, 4] x"),
    "alpha": ("y = Gemm<alpha=2.0>(x, V)", {"V": matrix(4, 4)}, "float[n, 4] x"),
    "beta": ("y = Gemm<beta=2.0>(x, V, c)", {"V": matrix(4, 4), "c": matrix(4)}, "float[n, 4] x"),
    "not a bias": ("y = Gemm(x, V, x)", {"V": matrix(4, 4)}, "float[n, 4] x"),
    "Conv": ("y = Conv(x, V)", {"V": matrix(4, 4, 1)}, "float[n, 4, s] x"),
}


@pytest.mark.parametrize("reason", REASONS)
def test_what_is_no_site_says_why(reason: str) -> None:
    body, weights, inputs = REASONS[reason]
    sites = find_linear_sites(make_graph(body, inputs=inputs, **weights))
    assert len(sites) == 0
    assert [reason in unmatched.reason for unmatched in sites.unmatched] == [True]


def test_product_of_activations_is_neither_site_nor_candidate() -> None:
    sites = find_linear_sites(make_graph("y = MatMul(x, x)", inputs="float[4, 4] x"))
    assert (len(sites), sites.unmatched) == (0, ())
