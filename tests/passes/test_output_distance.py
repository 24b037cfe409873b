"""Distance of outputs, against numpy on the outputs themselves."""

import numpy as np
import onnx_ir as ir
import pytest

from obert_compiler.data.batches import Batches
from obert_compiler.errors import GraphError, NumericsError
from obert_compiler.graph import Graph, Source
from obert_compiler.passes.output_distance import OutputDistance


def network(scale=1.0, kind="Mul"):
    x = ir.val("x", ir.DataType.FLOAT, ["batch", 4])
    factor = ir.Value(name="factor", const_value=ir.tensor(np.float32([scale]), name="factor"))
    node = ir.node(kind, [x, factor])
    y = node.outputs[0]
    y.name, y.dtype, y.shape = "y", ir.DataType.FLOAT, ir.Shape(["batch", 4])
    if kind == "Greater":
        y.dtype = ir.DataType.BOOL
    graph = ir.Graph(
        [x], [y], nodes=[node], initializers=[factor], opset_imports={"": 21}, name="n"
    )
    return Graph(ir.Model(graph, ir_version=10), Source("onnx"))


X = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
DATA = Batches.from_arrays({"x": X}, batch_size=3)


def test_it_is_the_squared_distance_over_the_variance():
    distance = OutputDistance(network(), DATA)
    assert distance(network()) == 0
    expected = np.square(0.5 * X).sum() / np.square(X - X.mean(axis=0)).sum()
    assert distance(network(1.5)) == pytest.approx(expected, rel=1e-5)


def test_an_output_that_never_varies_is_refused():
    with pytest.raises(NumericsError, match="output 'y'"):
        OutputDistance(network(0.0), DATA)


def test_an_output_that_is_not_finite_is_refused():
    with pytest.raises(NumericsError, match="finite"):
        OutputDistance(network(), DATA)(network(np.inf))


def test_a_graph_without_float_outputs_is_refused():
    with pytest.raises(GraphError, match="floating point"):
        OutputDistance(network(kind="Greater"), DATA)
