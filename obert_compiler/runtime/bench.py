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
from obert_compiler.runtime.engine import Engine, OnnxRuntimeEngine, open_engine
from obert_compiler.runtime.fast_path import Products, count_products
from obert_compiler.runtime.feeds import index_limits, random_feed
from obert_compiler.runtime.provider import Claims
from obert_compiler.runtime.session import EngineUse, model_file

if TYPE_CHECKING:
    from obert_compiler.pipeline.contract import Progress

__all__ = ["BenchResult", "Latency", "bench", "interleave"]

_CALLS_A_TURN = 5
_PAUSE_SECONDS = 0.25


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
            ONNX Runtime alone ran it.
        claims: what our engine took of the model; None where another engine ran it.
        reason: why our engine did not run the model although it was wanted; empty otherwise.
        batch: sequences in a call.
        sequence: tokens in a sequence.
        runs: timed calls of each model.
        threads: threads inside an op.
        engine: what ran the model.
        against_engine: what ran the other one.
        cpu: the processor.
    """

    model: Latency
    against: Latency | None
    products: Products | None
    claims: Claims | None
    reason: str
    batch: int
    sequence: int
    runs: int
    threads: int
    engine: str
    against_engine: str
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
            "against_engine": self.against_engine,
            "cpu": self.cpu,
            "model_ms": self.model.to_dict(),
            "against_ms": None if self.against is None else self.against.to_dict(),
            "ratio": self.ratio,
            "products": None if self.products is None else self.products.to_dict(),
            "claims": None if self.claims is None else self.claims.to_dict(),
            "reason": self.reason,
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
    engine: str | None = None,
    against_engine: str | None = None,
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
        engine: what runs the model: ``obert``, ``cpu`` (ONNX Runtime alone) or ``openvino``;
            ``obert`` by default, or ``cpu`` where that cannot be used.
        against_engine: what runs the other one; the same by default.
        progress: where to report.

    Raises:
        UsageError: a number below 1, a missing file, an unknown engine.
        FailureError: ``obert`` was asked for and cannot be used.
        ModelError: a model does not load, or does not run at this size.
    """
    for what, number in (("batch", batch), ("sequence length", sequence), ("runs", runs)):
        if number < 1:
            raise UsageError(f"{what}: expected at least 1, found {number}")
    path = model_file(model)
    opened = [(open_engine(engine, path, threads), path)]
    if against is not None:
        path = model_file(against)
        opened.append((open_engine(against_engine or engine, path, threads), path))
    calls = [_call(found, path, batch, sequence) for found, path in opened]
    times = interleave(calls, runs, warm_up, progress)
    latencies = [_latency(seconds, batch * sequence) for seconds in times]
    main, path = opened[0]
    use = main.use if isinstance(main, OnnxRuntimeEngine) else EngineUse(main.name)
    return BenchResult(
        latencies[0],
        latencies[1] if against is not None else None,
        count_products(path) if main.name == "cpu" else None,
        use.claims,
        use.reason,
        batch,
        sequence,
        runs,
        threads or default_threads(),
        main.name,
        opened[-1][0].name,
        cpu_name(),
    )


def interleave(
    calls: list[Callable[[], object]],
    runs: int,
    warm_up: int,
    progress: Progress | None = None,
) -> list[list[float]]:
    """Seconds of ``runs`` calls of each, a few of A, a few of B, after ``warm_up`` rounds of all.

    Before another one's turn comes a pause and a call that is not timed: threads of ONNX Runtime
    look for work for a while after a call, and take cores from whoever is called next.
    """
    for _ in range(warm_up):
        for call in calls:
            call()
    times: list[list[float]] = [[] for _ in calls]
    turns = range(0, runs, _CALLS_A_TURN)
    for first in turns if progress is None else progress.track(turns, "timing", len(turns)):
        for call, seconds in zip(calls, times, strict=True):
            if len(calls) > 1:
                time.sleep(_PAUSE_SECONDS)
                call()
            for _ in range(min(_CALLS_A_TURN, runs - first)):
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
