"""Running, measuring and evaluating emitted models; needs neither torch nor transformers."""

from __future__ import annotations

from obert_compiler.runtime.bench import BenchResult, bench
from obert_compiler.runtime.cpu import cpu_name, default_threads
from obert_compiler.runtime.evaluate import Evaluation, evaluate
from obert_compiler.runtime.provider import Claims, engine_absence, engine_library
from obert_compiler.runtime.session import EngineUse, engine_use, session

__all__ = [
    "BenchResult",
    "Claims",
    "EngineUse",
    "Evaluation",
    "bench",
    "cpu_name",
    "default_threads",
    "engine_absence",
    "engine_library",
    "engine_use",
    "evaluate",
    "session",
]
