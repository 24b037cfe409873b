"""Graphs written as text, with random weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from obert_compiler.graph import Graph, Source

GraphFromText = Callable[..., Graph]


@pytest.fixture
def graph_from_text() -> GraphFromText:
    """``graph_from_text(text, W=(4, 8), ids=array)``: a graph from ONNX text syntax.

    Names that no node makes are initializers: a shape asks for a random float32 tensor.
    """

    def make(text: str, **initializers: tuple[int, ...] | npt.NDArray[np.generic]) -> Graph:
        rng = np.random.default_rng(0)
        header = '<ir_version: 10, opset_import: ["": 21]>'
        proto = onnx.parser.parse_model(header + text)
        for name, given in initializers.items():
            array = given if isinstance(given, np.ndarray) else rng.standard_normal(given)
            array = array.astype(np.float32) if array.dtype == np.float64 else array
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        proto = onnx.shape_inference.infer_shapes(proto)
        for position, node in enumerate(proto.graph.node):
            node.name = f"n{position}"
        return Graph(ir.from_proto(proto), Source("onnx"))

    return make
