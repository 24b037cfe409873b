"""The quant pass on small graphs built by hand: layout, promises, skips and refusals."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from obert_compiler.errors import DataError, GraphError, NumericsError, UsageError
from obert_compiler.graph import Graph, Source, Stage, find_linear_sites
from obert_compiler.graph.linear import SITE_KEY
from obert_compiler.graph.verify import verify
from obert_compiler.passes.quant import Quant
from obert_compiler.pipeline.contract import Context, PassResult
from obert_compiler.pipeline.registry import passes_from_text

V, H, F, C = 200, 32, 64, 20
Arrays = dict[str, np.ndarray]


class FakeBatch:
    """One batch of inputs."""

    def __init__(self, inputs: Arrays) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def feed(self, names: list[str]) -> Arrays:
        return {name: self.inputs[name] for name in names}


class FakeBatches:
    """Batches in memory."""

    def __init__(self, batches: list[Arrays]) -> None:
        self._batches = [FakeBatch(batch) for batch in batches]

    def __iter__(self) -> Iterator[FakeBatch]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)

    def describe(self) -> str:
        return "fake"


def text_batches(seed: int = 0, number: int = 4, batch: int = 8, length: int = 12) -> list[Arrays]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(number):
        lengths = rng.integers(3, length + 1, batch)
        mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
        ids = rng.integers(1, V, (batch, length)).astype(np.int64) * mask
        made.append({"input_ids": ids, "attention_mask": mask})
    return made


TEXT_MODEL = """
<ir_version: 10, opset_import: ["" : 21]>
text (int64[batch, sequence] input_ids, int64[batch, sequence] attention_mask)
    => (float[batch, sequence, V] scores, float[batch, C] logits)
{
    rows = Gather <axis = 0> (table, input_ids)
    normal = LayerNormalization <axis = -1> (rows, gamma, beta)
    q0 = MatMul (normal, query)
    q1 = Add (q0, query_bias)
    k0 = MatMul (normal, key)
    k1 = Add (k0, key_bias)
    product = Mul (q1, k1)
    up0 = MatMul (product, up)
    up1 = Add (up0, up_bias)
    wide = Relu (up1)
    down0 = MatMul (wide, down)
    hidden = Add (down0, normal)
    turned = Transpose <perm = [1, 0]> (table)
    scores0 = MatMul (hidden, turned)
    scores = Add (scores0, decoder_bias)
    pooled = ReduceMean <keepdims = 0> (hidden, one)
    logits = Gemm <transB = 1> (pooled, classifier, classifier_bias)
}
"""


def text_graph(seed: int = 0, **replaced: np.ndarray) -> Graph:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32) * np.float32(0.3)

    arrays: Arrays = {
        "table": normal(V, H),
        "gamma": normal(H) + np.float32(1.0),
        "beta": normal(H),
        "query": normal(H, H),
        "query_bias": normal(H),
        "key": normal(H, H),
        "key_bias": normal(H),
        "up": normal(H, F),
        "up_bias": normal(F),
        "down": normal(F, H),
        "decoder_bias": normal(V),
        "one": np.array([1], np.int64),
        "classifier": normal(C, H),
        "classifier_bias": normal(C),
    } | replaced
    text = TEXT_MODEL.replace("V]", f"{V}]").replace("C]", f"{C}]")
    return built(text, arrays)


def built(text: str, arrays: Arrays) -> Graph:
    """The graph of ``text`` with ``arrays`` as initializers, named as a front end does."""
    proto = onnx.parser.parse_model(text)
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    for index, node in enumerate(model.graph):
        node.name = f"node_{index}"
        weight = node.inputs[1] if node.op_type in {"MatMul", "Gemm"} else None
        if weight is not None and weight.name:
            node.metadata_props[SITE_KEY] = "decoder" if weight.name == "turned" else weight.name
    for value in model.graph.initializers.values():
        value.metadata_props["obert.parameter"] = value.name or ""
    return Graph(model, Source("onnx"))


def quantise(graph: Graph, spec: str = "quant", batches: list[Arrays] | None = None) -> PassResult:
    chosen = passes_from_text(spec)[0]
    chosen.requires(graph)
    data: Any = FakeBatches(text_batches() if batches is None else batches)
    result = chosen.run(graph, Context(data=data, seed=3))
    result.graph.advance(Stage.QUANTISED)
    verify(result.graph, Stage.QUANTISED)
    onnx.checker.check_model(ir.to_proto(result.graph.model), full_check=True)
    return result


def run(graph: Graph, feeds: Arrays) -> list[np.ndarray]:
    import onnxruntime

    payload = ir.to_proto(graph.model).SerializeToString()
    session = onnxruntime.InferenceSession(payload, providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    outputs: list[np.ndarray] = session.run(None, {n: a for n, a in feeds.items() if n in names})
    return outputs


def error(exact: np.ndarray, rounded: np.ndarray) -> float:
    return float(np.square(exact - rounded).sum() / np.square(exact).sum())


def nodes(graph: Graph, op_type: str) -> list[ir.Node]:
    return [node for node in graph.model.graph if node.op_type == op_type]


def stored(graph: Graph, name: str) -> np.ndarray:
    tensor = graph.model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def test_outputs_stay_close_and_bytes_shrink() -> None:
    graph = text_graph()
    feeds = text_batches(9, 1)[0]
    exact = run(graph, feeds)
    result = quantise(graph)
    for before, after in zip(exact, run(graph, feeds), strict=True):
        assert 0.0 < error(before, after) < 0.01
    held = sum(v.const_value.nbytes for v in graph.model.graph.initializers.values())
    assert result.changed
    assert result.report["bytes_after"] < held < 0.45 * result.report["bytes_before"]


def test_the_layout_is_the_one_that_runtimes_recognise() -> None:
    graph = text_graph()
    quantise(graph)
    sites = {site.name: site for site in find_linear_sites(graph)}
    assert sorted(sites) == ["classifier", "decoder", "down", "key", "query", "up"]
    for site in sites.values():
        (node,) = site.nodes
        assert node.op_type == "MatMul"
        dequantise, weight = (value.producer() for value in node.inputs)
        assert dequantise.op_type == weight.op_type == "DequantizeLinear"
        assert dequantise.inputs[0].producer().op_type == "QuantizeLinear"
        assert weight.attributes.get_int("axis") == 1
        assert not weight.inputs[2].const_value.numpy().any()
    assert sites["query"].inputs == sites["key"].inputs
    # normal (for query and key), product, wide, hidden, pooled
    assert len(nodes(graph, "QuantizeLinear")) == 5
    assert not nodes(graph, "Gemm")
    assert graph.model.graph.outputs[1].name == "logits"
    biased = {"query", "key", "up", "decoder", "classifier"}
    assert {name for name, site in sites.items() if site.bias_values[0] is not None} == biased


@pytest.mark.parametrize("bits", [7, 8])
def test_weights_stay_within_their_bits(bits: int) -> None:
    graph = text_graph()
    quantise(graph, f"quant:bits={bits}")
    largest = max(
        np.abs(value.const_value.numpy().astype(int)).max()
        for value in graph.model.graph.initializers.values()
        if value.dtype == ir.DataType.INT8
    )
    assert largest == {7: 64, 8: 127}[bits]


def test_onnxruntime_multiplies_integers_at_every_site_of_rank_three(tmp_path: Path) -> None:
    import onnxruntime

    graph = text_graph()
    quantise(graph)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    payload = ir.to_proto(graph.model).SerializeToString()
    onnxruntime.InferenceSession(payload, options, providers=["CPUExecutionProvider"])
    counts = Counter(n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert counts["MatMulIntegerToFloat"] == 5
    assert "MatMul" not in counts


def test_openvino_agrees_with_onnxruntime() -> None:
    openvino = pytest.importorskip("openvino")
    graph = text_graph()
    quantise(graph)
    feeds = text_batches(9, 1)[0]
    core = openvino.Core()
    payload = ir.to_proto(graph.model).SerializeToString()
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(io.BytesIO(payload)), "CPU", options)
    inputs = {i.any_name for i in compiled.inputs}
    found = compiled({name: array for name, array in feeds.items() if name in inputs})
    for ours, theirs in zip(run(graph, feeds), found.values(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.05 * np.abs(ours).max())
        assert error(ours, theirs) < 1e-4


def test_pruned_weights_stay_pruned() -> None:
    query = np.random.default_rng(1).standard_normal((H, H)).astype(np.float32)
    pruned = np.random.default_rng(2).random((H, H)) < 0.8
    query[pruned] = 0.0
    graph = text_graph(query=query)
    graph.advance(Stage.PRUNED)
    quantise(graph)
    assert not stored(graph, "query.weight_quantized")[pruned].any()
    assert not find_linear_sites(graph)["query"].weight().T[pruned].any()


def test_a_tied_table_stays_one_initializer_of_integers() -> None:
    graph = text_graph()
    result = quantise(graph)
    table = graph.model.graph.initializers["table.weight_quantized"]
    assert (table.dtype, tuple(table.shape)) == (ir.DataType.INT8, (V, H))
    assert sorted(node.op_type for node in table.consumers()) == ["Gather", "Transpose"]
    rows = {row["table"]: row for row in result.report["tables"]}
    assert rows["table"]["scheme"] == "int8 by row, shared with a Linear site"
    big = [v.name for v in graph.model.graph.initializers.values() if v.const_value.size == V * H]
    assert big == ["table.weight_quantized"]


@pytest.mark.parametrize(
    ("spec", "scheme", "limit"),
    [("quant", "4 bit in groups of 32", 0.01), ("quant:embeddings=8bit", "int8 by row", 2e-4)],
)
def test_an_untied_table_is_gathered_in_few_bits(spec: str, scheme: str, limit: float) -> None:
    graph = built(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        rows (int64[batch, sequence] input_ids) => (float[batch, sequence, 32] hidden)
        {
            rows = Gather <axis = 0> (table, input_ids)
            hidden = Mul (rows, two)
        }
        """,
        {
            "table": np.random.default_rng(0).standard_normal((V, H)).astype(np.float32),
            "two": np.array(2.0, np.float32),
        },
    )
    feeds = text_batches()[0]
    (exact,) = run(graph, feeds)
    (row,) = quantise(graph, spec).report["tables"]
    assert row["scheme"] == scheme
    (found,) = run(graph, feeds)
    assert found.shape == exact.shape
    assert error(exact, found) < limit
    assert error(exact, found) == pytest.approx(row["relative_error"], rel=0.2)
    floats = [v for v in graph.model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT]
    assert max(v.const_value.size for v in floats) <= V


def test_a_table_of_odd_width_gets_eight_bits_with_the_reason() -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 21]>
        rows (int64[batch, sequence] input_ids) => (float[batch, sequence, 33] hidden)
        { hidden = Gather <axis = 0> (table, input_ids) }
        """
    graph = built(text, {"table": np.random.default_rng(0).random((V, 33)).astype(np.float32)})
    result = quantise(graph)
    assert result.report["tables"][0]["scheme"] == "int8 by row"
    assert any("odd" in skip.reason for skip in result.skips)
    assert graph.model.graph.outputs[0].name == "hidden"


SHARED_MODEL = """
<ir_version: 10, opset_import: ["" : 21]>
shared (float[batch, sequence, 32] x) => (float[batch, sequence, 32] y, float[4, 32] z)
{
    a0 = MatMul (x, weight)
    a1 = Add (a0, bias)
    a2 = Tanh (a1)
    b0 = MatMul (a2, weight)
    y = Add (b0, bias)
    z = MatMul (constant, weight)
}
"""


def _shared() -> tuple[Graph, list[Arrays]]:
    rng = np.random.default_rng(0)
    arrays = {
        "weight": rng.standard_normal((32, 32)).astype(np.float32),
        "bias": rng.standard_normal(32).astype(np.float32),
        "constant": rng.standard_normal((4, 32)).astype(np.float32),
    }
    data = [{"x": rng.standard_normal((4, 5, 32)).astype(np.float32)} for _ in range(3)]
    return built(SHARED_MODEL, arrays), data


def test_a_shared_weight_stays_one_initializer_with_a_range_for_each_use() -> None:
    graph, data = _shared()
    exact = run(graph, data[0])
    result = quantise(graph, batches=data)
    (site,) = find_linear_sites(graph)
    assert len(site.nodes) == 2
    (row,) = result.report["sites"]
    assert len({use["scale"] for use in row["uses"]}) == 2
    int8 = [v for v in graph.model.graph.initializers.values() if v.dtype == ir.DataType.INT8]
    assert sum(v.const_value.size == 32 * 32 for v in int8) == 1
    for before, after in zip(exact, run(graph, data[0]), strict=True):
        assert error(before, after) < 0.01


def test_another_reader_of_a_quantised_weight_reads_the_same_integers() -> None:
    graph, data = _shared()
    quantise(graph, batches=data)
    _, z = run(graph, data[0])
    (site,) = find_linear_sites(graph)
    expected = stored(graph, "constant") @ site.weight().T
    np.testing.assert_allclose(z, expected, rtol=1e-5, atol=1e-5)
    assert "weight" not in graph.model.graph.initializers


def test_padding_does_not_count() -> None:
    table = np.random.default_rng(0).standard_normal((V, H)).astype(np.float32)
    table[0, 0] = 1e4  # behind LayerNorm the padding row reaches sqrt(H - 1) = 5.6, as no other
    graphs = [text_graph(table=table, gamma=np.full(H, 1.0, np.float32)) for _ in range(2)]
    all_real = [{**b, "attention_mask": np.ones_like(b["input_ids"])} for b in text_batches()]
    highs = []
    for graph, data in zip(graphs, (text_batches(), all_real), strict=True):
        rows = quantise(graph, "quant:calibration=minmax", data).report["sites"]
        highs.append(next(row for row in rows if row["site"] == "query")["uses"][0]["high"])
    assert highs[0] < 0.9 * highs[1]


def test_a_sensitive_site_keeps_a_float_input() -> None:
    graph = text_graph()
    result = quantise(graph, "quant:limit=0.0001")
    reasons = {skip.subject: skip.reason for skip in result.skips}
    assert "over the limit of 0.0001" in reasons["up"]
    rows = {row["site"]: row for row in result.report["sites"]}
    for name, reason in reasons.items():
        if "stays float (" in reason:
            assert rows[name]["scheme"] == "int8 weights"
            assert find_linear_sites(graph)[name].inputs[0].producer().op_type != "DequantizeLinear"
        elif "the site stays float" in reason:
            assert name not in rows
    feeds = text_batches(9, 1)[0]
    exact, kept = run(text_graph(), feeds), run(graph, feeds)
    plain = text_graph()
    quantise(plain)
    assert error(exact[0], kept[0]) < error(exact[0], run(plain, feeds)[0])


def test_sensitive_sites_can_be_only_reported() -> None:
    result = quantise(text_graph(), "quant:limit=0.0001:sensitive=report")
    assert {row["scheme"] for row in result.report["sites"]} == {"int8"}
    assert any("sensitive=report" in skip.reason for skip in result.skips)


def test_patterns_and_small_heads() -> None:
    result = quantise(text_graph(), "quant:exclude=key+q*:min_outputs=32")
    reasons = {skip.subject: skip.reason for skip in result.skips}
    assert "exclude" in reasons["key"]
    assert "exclude" in reasons["query"]
    assert "20 outputs" in reasons["classifier"]
    assert {row["site"] for row in result.report["sites"]} == {"up", "down", "decoder"}


def test_a_table_stays_float_with_the_site_that_multiplies_by_it() -> None:
    graph = text_graph()
    result = quantise(graph, "quant:include=up")
    assert {row["site"] for row in result.report["sites"]} == {"up"}
    reasons = {skip.subject: skip.reason for skip in result.skips}
    assert "'decoder' multiplies by it" in reasons["table"]
    assert graph.model.graph.initializers["table"].dtype == ir.DataType.FLOAT


def test_embeddings_none_leaves_the_table_and_its_decoder_float() -> None:
    graph = text_graph()
    result = quantise(graph, "quant:embeddings=none")
    assert {s.subject for s in result.skips} == {"decoder"}
    assert graph.model.graph.initializers["table"].dtype == ir.DataType.FLOAT


def test_bias_correction_brings_the_mean_output_closer() -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "weight": rng.standard_normal((32, 32)).astype(np.float32),
        "bias": rng.standard_normal(32).astype(np.float32),
    }
    feeds = {"x": (rng.standard_normal((16, 20, 32)) + 2.0).astype(np.float32)}
    text = """
        <ir_version: 10, opset_import: ["" : 21]>
        linear (float[batch, sequence, 32] x) => (float[batch, sequence, 32] y)
        {
            product = MatMul (x, weight)
            y = Add (product, bias)
        }
        """

    def gap(spec: str) -> float:
        graph = built(text, arrays)
        (exact,) = run(graph, feeds)
        quantise(graph, spec, [feeds])
        (found,) = run(graph, feeds)
        return float(np.abs((exact - found).mean(axis=(0, 1))).mean())

    assert gap("quant") < 0.3 * gap("quant:bias_correction=false")


def test_an_activation_that_is_always_zero_is_reported() -> None:
    graph = text_graph(up_bias=np.full(F, -1e3, np.float32))
    result = quantise(graph)
    assert any("'wide'" in skip.subject and "zeros" in skip.reason for skip in result.skips)
    assert all(np.isfinite(output).all() for output in run(graph, text_batches()[0]))


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_every_calibration_runs(method: str) -> None:
    graph = text_graph()
    feeds = text_batches(9, 1)[0]
    exact = run(graph, feeds)
    report = quantise(graph, f"quant:calibration={method}").report
    assert report["calibration"]["method"] == method
    assert error(exact[0], run(graph, feeds)[0]) < 0.02


def test_the_same_seed_gives_the_same_file() -> None:
    made = []
    for _ in range(2):
        graph = text_graph()
        quantise(graph)
        made.append(ir.to_proto(graph.model).SerializeToString(deterministic=True))
    assert made[0] == made[1]


def test_about_as_many_examples_as_asked_are_read() -> None:
    report = quantise(text_graph(), "quant:examples=16", text_batches(0, 10)).report
    whole = quantise(text_graph(), "quant", text_batches(0, 10)).report
    assert report["calibration"]["rows"] < 0.4 * whole["calibration"]["rows"]


def test_nan_in_an_activation_names_the_site() -> None:
    graph = text_graph(up_bias=np.full(F, np.nan, np.float32))
    with pytest.raises(NumericsError, match="site 'down': expected finite activations"):
        quantise(graph)


def test_quantising_twice_is_refused() -> None:
    graph = text_graph()
    quantise(graph)
    with pytest.raises(GraphError, match=r"expected a dense or pruned graph.*found a quantised"):
        Quant().requires(graph)


def test_a_model_without_anything_to_quantise_is_refused() -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 21]>
        nothing (float[batch] x) => (float[batch] y)
        { y = Tanh (x) }
        """
    with pytest.raises(GraphError, match="nothing that the pass can quantise"):
        Quant().requires(built(text, {}))


def test_missing_data_is_refused() -> None:
    with pytest.raises(UsageError, match="calibration data"):
        Quant().run(text_graph(), Context())
    with pytest.raises(DataError, match="at least one batch"):
        quantise(text_graph(), batches=[])


@pytest.mark.parametrize(
    "option", ["percentile=50", "percentile=101", "examples=0", "limit=0", "bits=6", "group=1"]
)
def test_options_out_of_range_are_refused(option: str) -> None:
    with pytest.raises(UsageError, match=option.split("=")[0]):
        passes_from_text(f"quant:{option}")


def test_the_text_of_a_pass_parses_back() -> None:
    chosen = Quant(calibration="percentile", percentile=99.9, bits=8, exclude=("head", "pooler"))
    assert passes_from_text(str(chosen)) == [chosen]
    assert str(Quant()) == "quant"
