"""Packing in the graph: the same numbers in every runtime, fewer bytes, nothing silent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from obert_compiler.errors import GraphError
from obert_compiler.graph import Graph, Source, Stage, constants
from obert_compiler.graph.linear import find_linear_sites
from obert_compiler.graph.verify import verify
from obert_compiler.passes import unpacking_turns
from obert_compiler.passes.pack import Pack
from obert_compiler.pipeline.contract import Context, PassResult
from obert_compiler.report.sites import site_rows

OUT, IN = 96, 64
RNG = np.random.default_rng(3)


def sparse(rows: int, columns: int, block: int = 4, density: float = 0.2) -> np.ndarray:
    """int8 ``[rows, columns]`` with blocks of zeros."""
    kept = RNG.random((rows, columns // block, 1)) < density
    values = RNG.integers(1, 64, (rows, columns // block, block)) * kept
    return values.astype(np.int8).reshape(rows, columns)


def graph_of(body: str, weights: dict[str, np.ndarray], outputs: str = "float[n, o] y") -> Graph:
    """A graph of ``x`` float32 ``[n, IN]`` with ``weights`` as its initializers."""
    text = (
        f'<ir_version: 10, opset_import: ["" : 21]> g (float[n, {IN}] x) => ({outputs}) {{{body}}}'
    )
    model = ir.from_proto(onnx.parser.parse_model(text))
    for name, array in weights.items():
        value = next(v for node in model.graph for v in node.inputs if v and v.name == name)
        tensor = ir.tensor(array, name=name)
        value.const_value, value.shape, value.dtype = tensor, tensor.shape, tensor.dtype
        model.graph.register_initializer(value)
    for index, node in enumerate(model.graph):
        node.name = f"node{index}"
    return Graph(model, Source("onnx"))


QDQ = """
    q = QuantizeLinear(x, xs, xz)
    d = DequantizeLinear(q, xs, xz)
    w = DequantizeLinear<axis=1>(wq, ws, wz)
    p = MatMul(d, w)
    y = Add(p, b)
"""
QDQ_GEMM = """
    q = QuantizeLinear(x, xs, xz)
    d = DequantizeLinear(q, xs, xz)
    w = DequantizeLinear<axis=0>(wq, ws, wz)
    y = Gemm<transB=1>(d, w, b)
"""


def quantised(matrix: np.ndarray, body: str = QDQ) -> Graph:
    """A graph in the layout of the ``quant`` pass around int8 ``[out, in]``."""
    out = matrix.shape[0]
    weights = {
        "xs": np.array(0.02, np.float32),
        "xz": np.array(128, np.uint8),
        "wq": np.ascontiguousarray(matrix.T) if body is QDQ else matrix,
        "ws": np.full(out, 0.01, np.float32),
        "wz": np.zeros(out, np.int8),
        "b": RNG.standard_normal(out).astype(np.float32),
    }
    return graph_of(body, weights)


def floating(matrix: np.ndarray, body: str = "y = MatMul(x, w)") -> Graph:
    stored = matrix if "transB" in body else matrix.T
    return graph_of(body, {"w": np.ascontiguousarray(stored, np.float32)})


def packed(graph: Graph, **options: tuple[str, ...]) -> PassResult:
    """``graph`` after the pass, checked by the runner's rules and by onnx.checker."""
    step = Pack(**options)
    step.requires(graph)
    result = step.run(graph, Context())
    graph.advance(Stage.PACKED)
    verify(graph, Stage.PACKED)
    onnx.checker.check_model(ir.to_proto(graph.model), full_check=True)
    return result


def run(graph: Graph, **feed: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(ir.to_proto(graph.model).SerializeToString(), options)
    array: np.ndarray = session.run(None, feed)[0]
    return array


def folded(graph: Graph, path: str) -> list[str]:
    """Ops left after ONNX Runtime has optimised ``graph``."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = path
    options.log_severity_level = 3
    onnxruntime.InferenceSession(ir.to_proto(graph.model).SerializeToString(), options)
    return [node.op_type for node in onnx.load(path).graph.node]


def openvino_model(graph: Graph, folder: Path) -> Any:
    """``graph`` compiled by OpenVINO, float where it may choose."""
    openvino = pytest.importorskip("openvino")
    path = folder / "model.onnx"
    ir.save(graph.model, path)
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(str(path), "CPU", hint)


GRAPHS = {
    "int8 MatMul": lambda: quantised(sparse(OUT, IN)),
    "int8 Gemm of another exporter": lambda: quantised(sparse(OUT, IN), QDQ_GEMM),
    "float MatMul": lambda: floating(sparse(OUT, IN)),
    "float Gemm": lambda: floating(sparse(OUT, IN), "y = Gemm<transB=1>(x, w)"),
    "float Gemm, stored transposed": lambda: floating(sparse(OUT, IN), "y = Gemm(x, w)"),
    "behind Transpose": lambda: graph_of(
        "t = Transpose<perm=[1,0]>(w) y = MatMul(x, t)",
        {"w": sparse(OUT, IN).astype(np.float32)},
    ),
    "single weights": lambda: quantised(sparse(OUT, IN, block=1, density=0.1)),
    "long blocks": lambda: quantised(sparse(OUT, IN, block=16)),
    "far apart": lambda: quantised(sparse(OUT, IN, density=0.002)),
    "nothing but zeros": lambda: quantised(np.zeros((OUT, IN), np.int8)),
    "odd sizes": lambda: graph_of(
        "s = Slice(x, a, e, i) y = MatMul(s, w)",
        {
            "a": np.array([0]),
            "e": np.array([63]),
            "i": np.array([1]),
            "w": sparse(53, 63, block=3).T.astype(np.float32),
        },
    ),
}


@pytest.mark.parametrize("kind", GRAPHS)
def test_outputs_and_weights_are_bit_equal(kind, tmp_path):
    graph = GRAPHS[kind]()
    x = RNG.standard_normal((5, IN)).astype(np.float32)
    before = run(graph, x=x)
    weights = {site.name: site.weight() for site in find_linear_sites(graph)}
    result = packed(graph)
    assert result.changed
    assert [row["name"] for row in result.report["sites"]] == list(weights)
    np.testing.assert_array_equal(run(graph, x=x), before)
    after = {site.name: site.weight() for site in find_linear_sites(graph)}
    assert list(after) == list(weights)
    for name, weight in weights.items():
        np.testing.assert_array_equal(after[name], weight)
    assert "ScatterND" not in folded(graph, str(tmp_path / "optimised.onnx"))


@pytest.mark.parametrize("kind", ["int8 MatMul", "float Gemm", "single weights", "far apart"])
def test_openvino_unpacks_the_same_weights(kind, tmp_path):
    graph = GRAPHS[kind]()
    (site,) = find_linear_sites(graph)
    expected = constants.read_constant(site.weight_value)
    packed(graph)
    (site,) = find_linear_sites(graph)
    weight = site.weight_value
    weight.shape = ir.Shape(expected.shape)
    weight.dtype = ir.DataType.FLOAT
    graph.model.graph.outputs.append(weight)
    compiled = openvino_model(graph, tmp_path)
    found = compiled({"x": np.zeros((1, IN), np.float32)})[1]
    np.testing.assert_array_equal(found, expected)


def test_openvino_predicts_the_same(tmp_path):
    graph = quantised(sparse(OUT, IN))
    x = RNG.standard_normal((5, IN)).astype(np.float32)
    before = openvino_model(graph, tmp_path)([x])[0]
    packed(graph)
    after = openvino_model(graph, tmp_path)([x])[0]
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", [1, 2, 4, 8, 16, 32])
def test_the_block_is_read_off_the_zeros(block):
    result = packed(quantised(sparse(OUT, IN, block=block)))
    (row,) = result.report["sites"]
    assert row["block"] == block


def test_the_report_counts_bytes():
    matrix = sparse(OUT, IN)
    graph = quantised(matrix)
    result = packed(graph)
    (row,) = result.report["sites"]
    initializers = graph.model.graph.initializers
    stored = sum(initializers[n].const_value.nbytes for n in ("wq.values", "wq.gaps"))
    assert row["bytes_before"] == OUT * IN
    assert row["bytes_after"] == stored == result.report["bytes_after"]
    assert row["density"] == np.count_nonzero(matrix) / matrix.size
    assert row["shape"] == [OUT, IN]
    assert row["scheme"] == "gaps4"


def test_weights_are_read_without_a_runtime(monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("a chain of ours went to onnxruntime")

    monkeypatch.setattr(constants, "_evaluate_with_onnxruntime", refuse)
    matrix = sparse(OUT, IN)
    graph = quantised(matrix)
    packed(graph)
    (site,) = find_linear_sites(graph)
    np.testing.assert_allclose(site.weight(), matrix.astype(np.float32) * np.float32(0.01))


@pytest.mark.parametrize(
    ("matrix", "reason"),
    [
        (np.ones((OUT, IN), np.int8), "dense: 0.0% of its weights are zeros"),
        (sparse(OUT, IN, block=1, density=0.72), "smaller unpacked"),
        (sparse(8, IN), "dense: "),
    ],
)
def test_what_is_no_smaller_packed_stays(matrix, reason):
    graph = quantised(matrix)
    before = ir.to_proto(graph.model).SerializeToString()
    result = packed(graph)
    assert not result.changed
    (skip,) = result.skips
    assert skip.subject == "wq"
    assert skip.reason.startswith(reason)
    del graph.model.metadata_props["obert.stage"]
    assert ir.to_proto(graph.model).SerializeToString() == before


def test_a_weight_of_several_products_is_packed_once():
    matrix = sparse(IN, IN)
    graph = floating(matrix, "h = MatMul(x, w) y = MatMul(h, w)")
    x = RNG.standard_normal((3, IN)).astype(np.float32)
    before = run(graph, x=x)
    result = packed(graph)
    assert len(result.report["sites"]) == 1
    assert [n.op_type for n in graph.model.graph].count("ScatterND") == 1
    np.testing.assert_array_equal(run(graph, x=x), before)


def test_a_weight_read_in_two_layouts_is_packed_once():
    graph = graph_of(
        "h = MatMul(x, w) y = Gemm<transB=1>(h, w)", {"w": sparse(IN, IN).astype(np.float32)}
    )
    result = packed(graph)
    assert len(result.report["sites"]) == 1
    assert "shared with" in result.skips[0].reason


def test_a_table_that_gather_reads_stays():
    graph = graph_of(
        "t = Transpose(w) p = MatMul(x, t) r = Gather(w, i) s = ReduceSum<keepdims=0>(r) "
        "y = Add(p, s)",
        {"w": sparse(OUT, IN).astype(np.float32), "i": np.array([1, 2])},
    )
    result = packed(graph)
    assert not result.changed
    assert "(Gather)" in result.skips[0].reason


def test_patterns_choose_sites():
    body = "h = MatMul(x, first) y = MatMul(h, second)"
    weights = {"first": sparse(IN, IN).T, "second": sparse(IN, IN).T}
    floats = {name: array.astype(np.float32) for name, array in weights.items()}
    result = packed(graph_of(body, floats), exclude=("sec*",))
    assert [row["name"] for row in result.report["sites"]] == ["first"]
    assert result.skips[0].reason == "a pattern of exclude= names it"
    result = packed(graph_of(body, floats), include=("sec",))
    assert [row["name"] for row in result.report["sites"]] == ["second"]
    assert result.skips[0].reason == "no pattern of include= names it"


def test_packing_twice_is_refused():
    graph = quantised(sparse(OUT, IN))
    packed(graph)
    with pytest.raises(GraphError, match="packed already"):
        Pack().requires(graph)
    del graph.model.metadata_props["obert.stage"]
    with pytest.raises(GraphError, match="packed already"):
        Pack().requires(graph)


def test_matrices_of_one_size_share_their_zeros():
    graph = graph_of(
        "h = MatMul(x, first) y = MatMul(h, second)",
        {name: sparse(IN, IN).T.astype(np.float32) for name in ("first", "second")},
    )
    packed(graph)
    assert [n.op_type for n in graph.model.graph].count("ConstantOfShape") == 1


def test_a_pruned_encoder_is_the_same_packed(tiny_graph):
    graph = tiny_graph("bert", "sequence")
    sites = find_linear_sites(graph)
    for site in sites:
        out, columns = site.shape
        if columns % 4 == 0:
            site.set_weight(site.weight() * (sparse(out, columns) != 0))
    ids = RNG.integers(0, 60, (2, 9))
    feed = {"input_ids": ids, "token_type_ids": ids * 0, "attention_mask": ids * 0 + 1}
    before = run(graph, **feed)
    result = packed(graph)
    assert len(result.report["sites"]) == 19
    assert [s.name for s in find_linear_sites(graph)] == [s.name for s in sites]
    np.testing.assert_array_equal(run(graph, **feed), before)


@pytest.fixture
def every_matrix_its_turn(monkeypatch):
    monkeypatch.setattr(unpacking_turns, "LEAST_BYTES", 1)
    monkeypatch.setattr(unpacking_turns, "_SHRINK", 1.0)


TURNS = 4
INT64 = ir.DataType.INT64


def in_a_row(dtype: type = np.float32) -> Graph:
    """As many products of one size as there are turns."""
    names = [f"w{k}" for k in range(TURNS)]
    steps = [("x", "h0"), *((f"h{k}", f"h{k + 1}") for k in range(TURNS - 2))]
    steps.append((f"h{TURNS - 2}", "y"))
    if dtype is np.float32:
        body = [f"{b} = MatMul({a}, {w})" for (a, b), w in zip(steps, names, strict=True)]
    else:
        body = [
            f"q{w} = QuantizeLinear({a}, xs, xz) d{w} = DequantizeLinear(q{w}, xs, xz) "
            f"f{w} = DequantizeLinear<axis=1>({w}, ws, wz) {b} = MatMul(d{w}, f{w})"
            for (a, b), w in zip(steps, names, strict=True)
        ]
    weights = {w: np.ascontiguousarray(sparse(IN, IN).T).astype(dtype) for w in names}
    if dtype is np.int8:
        weights["xs"], weights["xz"] = np.array(0.02, np.float32), np.array(128, np.uint8)
        weights["ws"], weights["wz"] = np.full(IN, 0.01, np.float32), np.zeros(IN, np.int8)
    return graph_of(" ".join(body), weights)


@pytest.mark.parametrize("dtype", [np.int8, np.float32])
@pytest.mark.usefixtures("every_matrix_its_turn")
def test_matrices_that_take_turns_are_bit_equal(dtype, tmp_path, monkeypatch):
    graph = in_a_row(dtype)
    x = RNG.standard_normal((5, IN)).astype(np.float32)
    before = run(graph, x=x)
    expected = [site.weight() for site in find_linear_sites(graph)]
    packed(graph)
    late = [node for node in graph.model.graph if node.name.endswith(".late")]
    assert len({node.inputs[1] for node in late}) == TURNS - 1
    np.testing.assert_array_equal(run(graph, x=x), before)
    ops = folded(graph, str(tmp_path / "optimised.onnx"))
    assert not {"Abs", "Cast", "CumSum", "ScatterND"} & set(ops)
    kinds = {row.scheme for row in site_rows(graph)}
    assert kinds == {"packed int8" if dtype is np.int8 else "packed fp32"}

    def refuse(*_: object) -> None:
        raise AssertionError("a chain of ours went to onnxruntime")

    monkeypatch.setattr(constants, "_evaluate_with_onnxruntime", refuse)
    ir.save(graph.model, tmp_path / "model.onnx")  # types between nodes are lost there
    read = Graph(ir.load(tmp_path / "model.onnx"), Source("onnx"))
    for site, weight in zip(find_linear_sites(read), expected, strict=True):
        np.testing.assert_array_equal(site.weight(), weight)


@pytest.mark.usefixtures("every_matrix_its_turn")
def test_onnxruntime_goes_over_the_graph_once_for_each_turn(capfd):
    graph = in_a_row()
    packed(graph)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 1
    onnxruntime.InferenceSession(ir.to_proto(graph.model).SerializeToString(), options)
    assert capfd.readouterr().err.count("ConstantFolding modified: 1") == TURNS


@pytest.mark.usefixtures("every_matrix_its_turn")
def test_what_is_computed_of_a_matrix_waits_for_its_turn():
    graph = in_a_row()
    packed(graph)
    wide = [n for n in graph.model.graph if n.op_type == "Cast" and n.outputs[0].dtype == INT64]
    early = [n for n in wide if n.inputs[0].is_initializer() and n.name.endswith(".steps")]
    assert len(early) == 1


@pytest.mark.usefixtures("every_matrix_its_turn")
def test_openvino_predicts_the_same_in_turns(tmp_path):
    graph = in_a_row()
    x = RNG.standard_normal((5, IN)).astype(np.float32)
    before = openvino_model(graph, tmp_path)([x])[0]
    packed(graph)
    after = openvino_model(graph, tmp_path)([x])[0]
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-6 * float(np.abs(before).max()))
