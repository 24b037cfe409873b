"""Figures of Linear sites against counts made by hand."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from obert_compiler.graph.graph import Graph, Source
from obert_compiler.report.sites import block_sparsity, part_bytes, site_rows


def _graph(text: str, **arrays: np.ndarray) -> Graph:
    """A graph from ONNX text with its initializers."""
    model = ir.from_onnx_text(text)
    for name, array in arrays.items():
        value = next(v for node in model.graph for v in node.inputs if v and v.name == name)
        value.const_value = ir.tensor(array, name=name)
        value.shape = ir.Shape(array.shape)
        value.type = ir.TensorType(value.const_value.dtype)
        model.graph.initializers.add(value)
    return Graph(model, Source("onnx"))


_DENSE = """
<ir_version: 10, opset_import: ["": 21]>
agraph (int64[batch, sequence] ids) => (float[batch, sequence, 3] y)
{
    x = Gather(table, ids)
    y = MatMul(x, w)
}
"""

_QUANTISED = """
<ir_version: 10, opset_import: ["": 21]>
agraph (float[batch, 8] x) => (float[batch, 3] y)
{
    w = DequantizeLinear<axis = 1>(q, scale, zero)
    y = MatMul(x, w)
}
"""


def test_dense_site_and_parts() -> None:
    weight = np.ones((8, 3), np.float32)  # stored [in, out]
    weight[:4, 0] = 0  # one 4-block of output 0
    weight[1, 2] = 0
    table = np.ones((10, 8), np.float32)
    graph = _graph(_DENSE, w=weight, table=table)
    (row,) = site_rows(graph)
    assert row.shape == (3, 8)
    assert row.sparsity == pytest.approx(5 / 24)
    assert row.block_sparsity == pytest.approx(1 / 6)
    assert (row.bits, row.bytes, row.scheme) == (32, 96, "dense fp32")
    assert row.layer is None
    assert part_bytes(graph) == {"linear": 96, "embeddings": 320, "other": 0}


def test_quantised_site_counts_its_scales() -> None:
    graph = _graph(
        _QUANTISED,
        q=np.ones((8, 3), np.int8),
        scale=np.ones(3, np.float32),
        zero=np.zeros(3, np.int8),
    )
    (row,) = site_rows(graph)
    assert (row.bits, row.scheme, row.bytes) == (8, "dense int8", 24 + 12 + 3)
    assert part_bytes(graph)["other"] == 0
    for node in graph.model.graph:
        node.metadata_props["obert.quantisation"] = "trained"
    assert site_rows(graph)[0].scheme == "dense int8, trained"


def test_table_shared_with_a_tied_decoder_is_counted_once() -> None:
    text = _DENSE.replace("float[batch, sequence, 3]", "float[batch, sequence, 100]").replace(
        "y = MatMul(x, w)", "w = Transpose<perm = [1, 0]>(table)\n    y = MatMul(x, w)"
    )
    graph = _graph(text, table=np.ones((100, 8), np.float32))
    assert part_bytes(graph) == {"linear": 0, "embeddings": 3200, "other": 0}


def test_block_sparsity_needs_a_width_that_divides() -> None:
    assert block_sparsity(np.zeros((2, 6), np.float32), 4) is None
    assert block_sparsity(np.zeros((2, 8), np.float32), 4) == 1.0
