"""Latency of one or two models, interleaved so that both see the same machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from obert_compiler.errors import UsageError
from obert_compiler.runtime.cpu import cpu_name, default_threads
from obert_compiler.runtime.engine import Engine, open_engine
from obert_compiler.runtime.fast_path import Products, count_products
from obert_compiler.runtime.feeds import index_limits, random_feed
from obert_compiler.runtime.session import model_file

if TYPE_CHECKING:
    from obert_compiler.pipeline.contract import Progress

__all__ = ["BenchResult", "Latency", "bench", "interleave"]


@dataclass(frozen=True)
class Latency:
    """Times of one model.

    Attributes:
        median_ms: median of the runs, in milliseconds.
        min_ms: the fastest run.
        tokens_per_second: batch times sequence length by the median.
    """

    median_ms: float
    min_ms: float
    tokens_per_second: float

    def to_dict(self) -> dict[str, float]:
        """The figures, ready for JSON."""
        return {
            "median": self.median_ms,
            "min": self.min_ms,
            "tokens_per_second": self.tokens_per_second,
        }


@dataclass(frozen=True)
class BenchResult:
    """What a benchmark found.

    Attributes:
        model: times of the model.
        against: times of the model it is compared with, None without one.
        products: products of the model in integers and in float; None where an engine other than
            ONNX Runtime ran it.
        batch: sequences in a call.
        sequence: tokens in a sequence.
        runs: timed calls of each model.
        threads: threads inside an op.
        engine: what ran them.
        cpu: the processor.
    """

    model: Latency
    against: Latency | None
    products: Products | None
    batch: int
    sequence: int
    runs: int
    threads: int
    engine: str
    cpu: str

    @property
    def ratio(self) -> float | None:
        """How many times faster the model is than the other one, by medians."""
        return None if self.against is None else self.against.median_ms / self.model.median_ms

    def to_dict(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        return {
            "batch": self.batch,
            "sequence": self.sequence,
            "threads": self.threads,
            "runs": self.runs,
            "engine": self.engine,
            "cpu": self.cpu,
            "model_ms": self.model.to_dict(),
            "against_ms": None if self.against is None else self.against.to_dict(),
            "ratio": self.ratio,
            "products": None if self.products is None else self.products.to_dict(),
        }


def bench(
    model: str | Path,
    against: str | Path | None = None,
    *,
    batch: int = 1,
    sequence: int = 128,
    threads: int | None = None,
    runs: int = 30,
    warm_up: int = 5,
    engine: str = "cpu",
    progress: Progress | None = None,
) -> BenchResult:
    """Time ``model``, and ``against`` in turn with it, on random, valid inputs.

    Args:
        model: an artefact folder or an .onnx file.
        against: another one to compare with.
        batch: sequences in a call.
        sequence: tokens in a sequence, none of them padding.
        threads: threads inside an op; the physical cores by default.
        runs: timed calls of each model.
        warm_up: calls of each model before the clock starts.
        engine: what runs them, ``cpu`` (ONNX Runtime) or ``openvino``.
        progress: where to report.

    Raises:
        UsageError: a number below 1, a missing file, an unknown engine.
        ModelError: a model does not load, or does not run at this size.
    """
    for what, number in (("batch", batch), ("sequence length", sequence), ("runs", runs)):
        if number < 1:
            raise UsageError(f"{what}: expected at least 1, found {number}")
    paths = [model_file(path) for path in (model, against) if path is not None]
    calls = [_call(open_engine(engine, path, threads), path, batch, sequence) for path in paths]
    times = interleave(calls, runs, warm_up, progress)
    latencies = [_latency(seconds, batch * sequence) for seconds in times]
    return BenchResult(
        latencies[0],
        latencies[1] if against is not None else None,
        count_products(paths[0]) if engine == "cpu" else None,
        batch,
        sequence,
        runs,
        threads or default_threads(),
        engine,
        cpu_name(),
    )


def interleave(
    calls: list[Callable[[], object]],
    runs: int,
    warm_up: int,
    progress: Progress | None = None,
) -> list[list[float]]:
    """Seconds of ``runs`` calls of each, in the order A B A B, after ``warm_up`` rounds."""
    for _ in range(warm_up):
        for call in calls:
            call()
    times: list[list[float]] = [[] for _ in calls]
    rounds = range(runs) if progress is None else progress.track(range(runs), "timing", runs)
    for _ in rounds:
        for call, seconds in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    return times


def _call(engine: Engine, path: Path, batch: int, sequence: int) -> Callable[[], object]:
    feed = random_feed(engine.inputs, batch, sequence, index_limits(path))
    return lambda: engine.run(feed)


def _latency(seconds: list[float], tokens: int) -> Latency:
    median = statistics.median(seconds)
    return Latency(median * 1e3, min(seconds) * 1e3, tokens / median)
