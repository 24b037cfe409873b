"""The metric of a model on labelled data, in any engine."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from obert_compiler.data.batches import Batch, Batches
from obert_compiler.errors import NumericsError, UsageError
from obert_compiler.graph.graph import Graph
from obert_compiler.runtime.cpu import cpu_name, default_threads
from obert_compiler.runtime.engine import Engine, open_engine
from obert_compiler.runtime.feeds import feed_batch

if TYPE_CHECKING:
    from obert_compiler.pipeline.contract import Progress

__all__ = ["Evaluation", "evaluate", "label_agreement"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        metric_name: the primary figure of ``metrics``.
        metrics: figures by name; fractions lie in 0..1.
        seconds: time inside the model, without reading data and scoring.
        examples: sequences that were run.
        engine: what ran them.
        cpu: the processor.
        threads: threads inside an op.
        outputs: what the task kept of each example, in the order of the data.
    """

    metric_name: str
    metrics: dict[str, float]
    seconds: float
    examples: int
    engine: str
    cpu: str
    threads: int
    outputs: tuple[Array, ...] = field(repr=False, compare=False, default=())

    @property
    def value(self) -> float:
        """The primary figure."""
        return self.metrics[self.metric_name]

    def to_dict(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        return {
            "metric": self.metric_name,
            **self.metrics,
            "examples": self.examples,
            "seconds": self.seconds,
            "engine": self.engine,
            "cpu": self.cpu,
            "threads": self.threads,
        }


def evaluate(
    model: str | Path | Graph | Engine,
    data: Batches,
    *,
    engine: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Run ``model`` over ``data`` and score it by the task that encoded the data.

    Args:
        model: an artefact folder, an .onnx file, a graph in memory, or a loaded engine.
        data: labelled examples.
        engine: what runs the model: ``obert``, ``cpu`` (ONNX Runtime alone) or ``openvino``;
            ``obert`` by default, or ``cpu`` where that cannot be used.
        threads: threads inside an op; the physical cores by default.
        progress: where to report.

    Raises:
        UsageError: the data was read without a task, or an unknown engine.
        DataError: the data has no labels, or does not fit the inputs of the model.
        ModelError: the model does not load or run.
        NumericsError: an output is NaN or infinite.
    """
    task = data.task
    if task is None:
        raise UsageError(
            f"data '{data.origin}': expected data of a task, found plain arrays; name a --task"
        )
    task.targets(data.examples)
    if isinstance(model, str | Path | Graph):
        model = open_engine(engine, model, threads)
    fixed = [s.shape[0] for s in model.inputs if s.shape and s.shape[0] is not None]
    if fixed:
        data = data.with_batch_size(min(fixed))
    outputs: list[Array | None] = [None] * len(data.examples)
    seconds = 0.0
    batches: Iterable[Any] = data
    if progress is not None:
        batches = progress.track(data, "evaluating", len(data))
    for batch in batches:
        feed = feed_batch(batch, model.inputs)
        start = time.perf_counter()
        found = model.run(feed)
        seconds += time.perf_counter() - start
        found = {name: value[: len(batch)] for name, value in found.items()}
        _check_finite(found, batch, data)
        for row, value in zip(batch.rows, task.reduce(found, batch), strict=True):
            outputs[row] = value
    complete = tuple(value for value in outputs if value is not None)
    metrics = task.metric(complete, data.examples)
    name = task.metric_name if task.metric_name in metrics else next(iter(metrics))
    return Evaluation(
        name,
        metrics,
        seconds,
        len(complete),
        model.name,
        cpu_name(),
        threads or default_threads(),
        complete,
    )


def _check_finite(outputs: Mapping[str, Array], batch: Batch, data: Batches) -> None:
    for name, value in outputs.items():
        # In float64 no sum of float32 overflows: it is finite exactly when every term is.
        with np.errstate(invalid="ignore"):
            if value.dtype.kind != "f" or np.isfinite(value.sum(dtype=np.float64)):
                continue
        bad = next(i for i in range(len(batch)) if not np.all(np.isfinite(value[i])))
        raise NumericsError(
            f"output '{name}' of example {batch.rows[bad] + 1} of data '{data.origin}': expected "
            "finite numbers, found NaN or infinity; look for NaN in the weights of the model"
        )


def label_agreement(first: Evaluation, second: Evaluation) -> float:
    """Share of examples that two evaluations of the same data give the same class."""
    same = [
        bool(np.all(a.argmax(-1) == b.argmax(-1)))
        for a, b in zip(first.outputs, second.outputs, strict=True)
    ]
    return float(np.mean(same))
