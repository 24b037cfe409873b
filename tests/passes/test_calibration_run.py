"""Streaming a graph: which rows count, and that pieces of a batch add up to the batch."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from obert_compiler.errors import DataError, NumericsError
from obert_compiler.graph import Graph, Source
from obert_compiler.passes.calibration_run import collect_statistics, real_rows

TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[BATCH, sequence, 3] x, int64[BATCH, sequence] attention_mask)
    => (float[BATCH, sequence, 3] z)
{
    y = Tanh (x)
    z = Exp (y)
}
"""


def _graph(batch: str = "batch") -> Graph:
    proto = onnx.parser.parse_model(TEXT.replace("BATCH", batch))
    return Graph(ir.from_proto(onnx.shape_inference.infer_shapes(proto)), Source("onnx"))


def _value(graph: Graph, name: str) -> ir.Value:
    made = [value for node in graph.model.graph for value in node.outputs]
    return next(v for v in [*graph.model.graph.inputs, *made] if v.name == name)


def _batches() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        {
            "x": rng.standard_normal((7, 5, 3)).astype(np.float32),
            "attention_mask": (np.arange(5) < rng.integers(1, 6, 7)[:, None]).astype(np.int64),
        }
        for _ in range(2)
    ]


def _real(batches: list[dict[str, np.ndarray]]) -> np.ndarray:
    return np.concatenate([b["x"][b["attention_mask"].astype(bool)] for b in batches])


@pytest.mark.parametrize("held_bytes", [1, 500, 2**28])
@pytest.mark.parametrize("name", ["x", "y", "z"])
def test_statistics_are_those_of_all_real_rows(name: str, held_bytes: int) -> None:
    graph = _graph()
    value = _value(graph, name)
    batches = _batches()
    found = collect_statistics(graph, {value: "s"}, batches, seed=0, held_bytes=held_bytes)[value]
    rows = _real(batches)
    rows = {"x": rows, "y": np.tanh(rows), "z": np.exp(np.tanh(rows))}[name]
    assert found.rows == len(rows)
    assert found.low == pytest.approx(rows.min(), rel=1e-5)
    assert found.high == pytest.approx(rows.max(), rel=1e-5)
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), rtol=1e-4)
    assert found.histogram.total == rows.size


def test_the_graph_is_left_as_it_was() -> None:
    graph = _graph()
    before = [value.name for value in graph.model.graph.outputs]
    collect_statistics(graph, {_value(graph, "y"): "s"}, _batches(), seed=0)
    assert [value.name for value in graph.model.graph.outputs] == before


def test_a_fixed_batch_is_not_cut() -> None:
    graph = _graph("7")
    value = _value(graph, "y")
    found = collect_statistics(graph, {value: "s"}, _batches(), seed=0, held_bytes=1)[value]
    assert found.rows == len(_real(_batches()))


@pytest.mark.parametrize(
    ("shape", "mask_shape", "rows"),
    [
        ((2, 3, 4), (2, 3), 4),  # positions of a sequence
        ((2, 3, 5, 4), (2, 3), 20),  # heads of each position
        ((6, 4), (2, 3), 4),  # positions in one axis
        ((2, 4), (2, 3), 2),  # one row for each example
        ((2, 7, 4), (2, 3), 14),  # another sequence
        ((2, 3, 4), None, 6),
    ],
)
def test_which_rows_count(
    shape: tuple[int, ...], mask_shape: tuple[int, ...] | None, rows: int
) -> None:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    mask = None if mask_shape is None else np.array([[1, 1, 0], [1, 1, 0]])
    assert real_rows(array, mask).shape == (rows, 4)


def test_the_rows_that_count_are_the_unmasked_ones() -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    mask = np.array([[1, 0, 1], [0, 1, 0]])
    expected = np.stack([array[0, 0], array[0, 2], array[1, 1]])
    np.testing.assert_array_equal(real_rows(array, mask), expected)
    np.testing.assert_array_equal(real_rows(array.reshape(6, 4), mask), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_activations_name_the_site(bad: float) -> None:
    graph = _graph()
    batches = _batches()
    batches[1]["x"][0, 0, 0] = bad
    with pytest.raises(NumericsError, match=r"site 'layer\.0'"):
        collect_statistics(graph, {_value(graph, "x"): "layer.0"}, batches, seed=0)


def test_bad_values_on_padding_are_no_error() -> None:
    graph = _graph()
    batches = _batches()
    padded = np.argwhere(batches[0]["attention_mask"] == 0)[0]
    batches[0]["x"][tuple(padded)] = np.nan
    found = collect_statistics(graph, {_value(graph, "y"): "s"}, batches, seed=0)
    assert next(iter(found.values())).rows == len(_real(batches))


def test_missing_inputs_and_no_batches_are_refused() -> None:
    graph = _graph()
    watched = {_value(graph, "y"): "s"}
    with pytest.raises(DataError, match="no 'attention_mask'"):
        collect_statistics(graph, watched, [{"x": _batches()[0]["x"]}], seed=0)
    with pytest.raises(DataError, match="at least one batch"):
        collect_statistics(graph, watched, [], seed=0)
