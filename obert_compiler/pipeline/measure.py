"""Time and peak memory of a stretch of work in this process."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

import psutil

__all__ = ["Meter"]

_SAMPLE_SECONDS = 0.02


class Meter:
    """Measures what runs inside ``with Meter() as meter``.

    The peak is sampled every 20 ms from the resident set of the process, so that each stretch has
    a peak of its own (the operating system only keeps one for the whole life of a process).

    Attributes:
        seconds: wall-clock time, set on exit.
        peak_memory_bytes: largest resident set seen, set on exit.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.peak_memory_bytes = 0
        self._stop = threading.Event()
        self._process = psutil.Process()
        self._thread = threading.Thread(target=self._sample, name="memory meter", daemon=True)

    def __enter__(self) -> Self:
        self._start = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.seconds = time.perf_counter() - self._start
        self._stop.set()
        self._thread.join()
        self._read()

    def figures(self) -> dict[str, float]:
        """Both figures, ready for a report."""
        return {"seconds": round(self.seconds, 3), "peak_memory_bytes": self.peak_memory_bytes}

    def _sample(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self._read()

    def _read(self) -> None:
        self.peak_memory_bytes = max(self.peak_memory_bytes, self._process.memory_info().rss)
