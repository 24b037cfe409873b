"""Tests of the pass ``round-weights``."""

import numpy as np
import onnx_ir as ir
import pytest
from obert_rounding.round_weights import RoundWeights

from obert_compiler import PassManager
from obert_compiler.errors import GraphError, UsageError
from obert_compiler.graph import Graph, Source, find_linear_sites

LINEAR = """
<ir_version: 10, opset_import: ["": 21]>
linear (float[n, 2] x) => (float[n, 2] y)
<float[2, 2] w = {0.123, 0.5, 0.25, 1.0}>
{ [first] y = MatMul(x, w) }
"""


def linear() -> Graph:
    return Graph(ir.from_onnx_text(LINEAR), Source("onnx"))


def test_weights_are_rounded() -> None:
    graph = PassManager([RoundWeights(decimals=1)]).run(linear())
    (site,) = find_linear_sites(graph)
    np.testing.assert_allclose(site.weight().T, [[0.1, 0.5], [0.2, 1.0]], atol=1e-6)


def test_a_large_site_is_left_alone_with_the_reason() -> None:
    manager = PassManager([RoundWeights(largest=3)])
    manager.run(linear())
    (record,) = manager.records
    assert not record["changed"]
    assert record["skips"] == [{"subject": "w", "reason": "4 weights, largest is 3"}]


def test_wrong_decimals_are_refused() -> None:
    with pytest.raises(UsageError, match="decimals from 0 to 9, found 10"):
        RoundWeights(decimals=10)


def test_a_graph_without_linear_sites_is_refused() -> None:
    graph = linear()
    graph.model.graph[0].replace_input_with(1, graph.model.graph.inputs[0])
    with pytest.raises(GraphError, match="expected a Linear site"):
        PassManager([RoundWeights()]).run(graph)
