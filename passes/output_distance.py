"""How far the outputs of a changed graph lie from those of the graph it came from."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from obert_compiler.errors import GraphError, NumericsError
from obert_compiler.graph.graph import Graph
from obert_compiler.passes.calibration_run import real_rows

if TYPE_CHECKING:
    from obert_compiler.data.batches import Batches

__all__ = ["OutputDistance"]

Outputs = list[dict[str, npt.NDArray[np.float32]]]


class OutputDistance:
    """Squared distance to the outputs of one graph, as a share of their variance.

    All floating-point outputs count alike, whatever their scale. Padding does not count.

    Args:
        graph: gives the outputs to compare with.
        data: the examples.

    Raises:
        GraphError: the graph has no floating-point output.
        NumericsError: an output is not finite, or is the same at every position of all examples.
    """

    def __init__(self, graph: Graph, data: Batches) -> None:
        names = [value.name or "" for value in graph.model.graph.inputs]
        self._feeds = [batch.feed(names) for batch in data]
        self._expected = self._run(graph)
        if not self._expected[0]:
            raise GraphError("outputs: expected one in floating point to compare, found none")
        self._variance = {}
        for name in self._expected[0]:
            rows = np.concatenate([found[name] for found in self._expected]).astype(np.float64)
            self._variance[name] = float(np.square(rows - rows.mean(axis=0)).sum())
            if not self._variance[name] > 0:
                raise NumericsError(
                    f"output '{name}': expected finite values that differ between examples, found "
                    "others; look for NaN in the weights, and give more data"
                )

    def __call__(self, graph: Graph) -> float:
        """Mean over the outputs; 0 for the same graph, about 1 for one that tells nothing.

        Raises:
            NumericsError: an output is not finite.
        """
        squares = dict.fromkeys(self._variance, 0.0)
        for found, expected in zip(self._run(graph), self._expected, strict=True):
            for name in squares:
                difference = found[name].astype(np.float64) - expected[name]
                squares[name] += float(np.square(difference).sum())
        value = float(np.mean([squares[name] / self._variance[name] for name in squares]))
        if not np.isfinite(value):
            raise NumericsError("outputs: expected finite values, found NaN or infinity")
        return value

    def _run(self, graph: Graph) -> Outputs:
        import onnxruntime

        names = [value.name or "" for value in graph.model.graph.outputs]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        with tempfile.TemporaryDirectory(prefix="obert-outputs-") as folder:
            path = Path(folder) / "graph.onnx"
            # Through a file, because a message in memory is limited to 2 GB.
            ir.save(graph.model, path, external_data="graph.onnx.data")
            session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
            return [_rows(names, session.run(names, feed), feed) for feed in self._feeds]


def _rows(
    names: list[str], arrays: list[npt.NDArray[Any]], feed: dict[str, npt.NDArray[Any]]
) -> dict[str, npt.NDArray[np.float32]]:
    mask = feed.get("attention_mask")
    return {
        name: real_rows(array, mask)
        for name, array in zip(names, arrays, strict=True)
        if array.dtype.kind == "f"
    }
