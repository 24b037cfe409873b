"""Gathered rows as onnxruntime and OpenVINO unpack them, against the tables' own arithmetic."""

from __future__ import annotations

import io

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from obert_compiler.errors import GraphError
from obert_compiler.graph import Graph, Source
from obert_compiler.passes.embedding_graph import EightBitRows, FourBitRows
from obert_compiler.passes.embedding_quantization import quantize_table_4bit, quantize_table_8bit
from obert_compiler.passes.quant_graph import QuantizedGraph

V = 50
IDS = {
    "": np.array(7),
    "n": np.array([0, 49, 7]),
    "b, s": np.array([[0, 1, 49], [7, 7, 2]]),
    "b, s, k": np.arange(24).reshape(2, 3, 4),
}


def _quantised(axes: str, columns: int, kind: str) -> tuple[Graph, np.ndarray, np.ndarray]:
    table = np.random.default_rng(0).standard_normal((V, columns)).astype(np.float32)
    lead = f"{axes}, " if axes else ""
    proto = onnx.parser.parse_model(
        f"""
        <ir_version: 10, opset_import: ["" : 21]>
        g (int64[{axes}] ids) => (float[{lead}{columns}] y)
        {{ y = Gather <axis = 0> (table, ids) }}
        """
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(table, "table"))
    if not axes:
        proto.graph.input[0].type.tensor_type.shape.CopyFrom(onnx.TensorShapeProto())
    graph = Graph(ir.from_proto(onnx.shape_inference.infer_shapes(proto)), Source("onnx"))
    (gather,) = graph.model.graph
    editor = QuantizedGraph(graph)
    if kind == "4bit":
        four = quantize_table_4bit(table, columns // 3 if columns % 3 == 0 else columns)
        FourBitRows(editor, "table", four).gather(gather, "words")
        expected = four.dequantize()
    else:
        eight = quantize_table_8bit(table)
        EightBitRows(editor, "table", eight).gather(gather, "words")
        expected = eight.dequantize()
    editor.remove_unused()
    onnx.checker.check_model(ir.to_proto(graph.model), full_check=True)
    return graph, table, expected


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
@pytest.mark.parametrize("columns", [6, 96])
@pytest.mark.parametrize("axes", IDS)
def test_rows_are_those_of_the_table(axes: str, columns: int, kind: str) -> None:
    import onnxruntime

    graph, _, expected = _quantised(axes, columns, kind)
    payload = ir.to_proto(graph.model).SerializeToString()
    session = onnxruntime.InferenceSession(payload, providers=["CPUExecutionProvider"])
    (found,) = session.run(["y"], {"ids": IDS[axes]})
    np.testing.assert_allclose(found, expected[IDS[axes]], rtol=1e-6)


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_openvino_reads_the_same_rows(kind: str) -> None:
    openvino = pytest.importorskip("openvino")
    graph, _, expected = _quantised("b, s", 96, kind)
    core = openvino.Core()
    payload = io.BytesIO(ir.to_proto(graph.model).SerializeToString())
    compiled = core.compile_model(core.read_model(payload), "CPU", {})
    found = compiled([IDS["b, s"]])[0]
    np.testing.assert_allclose(found, expected[IDS["b, s"]], rtol=0.01, atol=0.01)


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_the_table_is_gathered_before_it_is_widened(kind: str) -> None:
    graph, table, _ = _quantised("b, s", 96, kind)
    for value in graph.model.graph.initializers.values():
        if value.const_value.size >= table.size // 2:
            assert value.dtype in {ir.DataType.UINT8, ir.DataType.INT8}
            assert [node.op_type for node in value.consumers()] == ["Gather"]
    assert graph.model.graph[0].metadata_props["obert.site"] == "words"


def test_indices_of_unknown_rank_are_refused() -> None:
    graph = _quantised("n", 6, "8bit")[0]
    gather = next(node for node in graph.model.graph if node.op_type == "Gather")
    gather.inputs[1].shape = None
    editor = QuantizedGraph(graph)
    rows = EightBitRows(editor, "t", quantize_table_8bit(np.ones((2, 6), np.float32)))
    with pytest.raises(GraphError, match="known rank"):
        rows.gather(gather, "words")
