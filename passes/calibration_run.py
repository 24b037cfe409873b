"""Running a float graph on calibration batches and keeping statistics of chosen activations.

The graph runs in onnxruntime with the activations as extra outputs. A batch is cut into pieces so
that the activations held at one time stay below a bound; what stays between pieces is described at
`obert_compiler.passes.calibration.ActivationStatistics`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from obert_compiler.errors import DataError, NumericsError
from obert_compiler.graph.graph import Graph
from obert_compiler.passes.calibration import ActivationStatistics
from obert_compiler.passes.threads import threads_asked_for
from obert_compiler.pipeline.processes import Processes

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["collect_statistics", "real_rows"]

FloatArray = npt.NDArray[np.float32]
Inputs = Mapping[str, npt.NDArray[Any]]

_HELD_BYTES = 256 * 2**20


def collect_statistics(
    graph: Graph,
    activations: Mapping[ir.Value, str],
    batches: Iterable[Inputs],
    *,
    seed: int,
    sample_rows: int = 256,
    held_bytes: int = _HELD_BYTES,
    processes: Processes | None = None,
) -> dict[ir.Value, ActivationStatistics]:
    """Stream ``batches`` through ``graph``.

    Args:
        graph: float graph; unchanged afterwards.
        activations: values to watch, with the name of a site that reads each (for messages).
        batches: inputs by name, batch first. Where ``attention_mask`` is among them, positions it
            masks do not count.
        seed: of the sample of rows.
        sample_rows: rows kept of each activation.
        held_bytes: a bound on the activations held at one time; a batch is cut into pieces of
            whole examples to stay below, one example at least.
        processes: those that share the batches; all get the statistics of all batches.

    Returns:
        Statistics of each activation.

    Raises:
        DataError: no batch came, or one lacks an input of the graph.
        NumericsError: an activation holds NaN or infinity.
    """
    processes = processes or Processes()
    statistics: dict[ir.Value, ActivationStatistics] = {}
    widths = sum(_width(x) for x in activations)
    inputs = [value.name or "" for value in graph.model.graph.inputs]
    cut = _may_cut(graph)
    fetched = [x for x in activations if not x.is_graph_input()]
    runs = 0
    with _session(graph, fetched) as session:
        for number, batch in processes.share(enumerate(batches)):
            feeds = _feeds(batch, inputs)
            # A draw for each batch: the sample is the same whichever process has which batches.
            rngs = {x: np.random.default_rng([seed, number, i]) for i, x in enumerate(activations)}
            for piece in _pieces(feeds, widths, held_bytes) if cut else [feeds]:
                runs += 1
                arrays = session.run([x.name for x in fetched], piece) if fetched else []
                found = dict(zip(fetched, arrays, strict=True))
                for x, site in activations.items():
                    array = found[x] if x in found else piece[x.name or ""]
                    rows = real_rows(array, piece.get("attention_mask"))
                    _check_finite(rows, site)
                    if x not in statistics:
                        statistics[x] = ActivationStatistics(
                            rows.shape[-1], rngs[x], sample_rows=sample_rows
                        )
                    statistics[x].add(rows, rngs[x])
    if not sum(processes.gather(runs)):
        raise DataError("calibration data: expected at least one batch, found none; give more data")
    return {x: _merged(processes.gather(statistics.get(x))) for x in activations}


def _merged(parts: list[ActivationStatistics | None]) -> ActivationStatistics:
    """The statistics of all batches, from those that each process has seen."""
    first, *others = (part for part in parts if part is not None)
    for other in others:
        first.merge(other)
    return first


def real_rows(array: FloatArray, mask: npt.NDArray[Any] | None) -> FloatArray:
    """Rows ``[n, features]`` of an activation, without the positions that ``mask`` pads.

    ``mask`` is ``[batch, sequence]``; it applies to activations that begin with these axes or have
    one row for each position, and to no others.
    """
    rows: FloatArray = array.reshape(-1, array.shape[-1])
    if mask is not None and mask.ndim == 2:
        keep = mask.astype(bool)
        if array.ndim >= 3 and array.shape[:2] == keep.shape:
            rows = array[keep].reshape(-1, array.shape[-1])
        elif array.ndim == 2 and array.shape[0] == keep.size and keep.shape[1] > 1:
            rows = array[keep.reshape(-1)]
    return rows


def _check_finite(rows: FloatArray, site: str) -> None:
    if not np.isfinite(rows).all():
        raise NumericsError(
            f"site '{site}': expected finite activations, found NaN or infinity in the float model "
            "on the calibration data; check the source model and the data"
        )


def _width(x: ir.Value) -> int:
    size = x.shape[-1] if x.shape is not None and x.shape.rank() else None
    return size if isinstance(size, int) else 1024


def _may_cut(graph: Graph) -> bool:
    """Whether the first axis of every input is a free batch axis."""
    firsts = []
    for value in graph.model.graph.inputs:
        if value.shape is None or not value.shape.rank() or isinstance(value.shape[0], int):
            return False
        firsts.append(str(value.shape[0]))
    return len(set(firsts)) == 1


def _pieces(feeds: dict[str, Any], widths: int, held_bytes: int) -> Iterator[dict[str, Any]]:
    examples = max(len(array) for array in feeds.values())
    positions = max(array.shape[1] if array.ndim > 1 else 1 for array in feeds.values())
    step = max(1, held_bytes // max(1, 4 * positions * widths))
    for start in range(0, examples, step):
        yield {name: array[start : start + step] for name, array in feeds.items()}


def _feeds(batch: Inputs, names: list[str]) -> dict[str, Any]:
    missing = [name for name in names if name not in batch]
    if missing:
        raise DataError(
            f"calibration data: expected the inputs {', '.join(names)}, found no '{missing[0]}'; "
            "give data with every input of the model"
        )
    return {name: batch[name] for name in names}


@contextmanager
def _session(graph: Graph, fetched: list[ir.Value]) -> Iterator[onnxruntime.InferenceSession]:
    """A session of ``graph`` that gives ``fetched`` too."""
    import onnxruntime

    outputs = graph.model.graph.outputs
    before = list(outputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads_asked_for() or 0
    with tempfile.TemporaryDirectory(prefix="obert-calibration-") as folder:
        path = Path(folder) / "float.onnx"
        try:
            outputs.extend(x for x in fetched if not x.is_graph_output())
            # Through a file, because a message in memory is limited to 2 GB.
            ir.save(graph.model, path, external_data="float.onnx.data")
        finally:
            outputs.clear()
            outputs.extend(before)
        yield onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
