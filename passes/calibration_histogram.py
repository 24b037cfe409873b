"""A histogram whose range grows with the data and whose memory does not; knows no graph.

Bins have a width that is a power of two and edges at its multiples, so zero is always an edge and
two neighbours merge into one bin of the double width without moving a single count. However the
data is cut into batches, the result is the same.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["GrowingHistogram"]

_SMALLEST_EXPONENT = -120
_PLACE_BITS = 40


class GrowingHistogram:
    """Counts of finite values in at most ``bins`` bins of equal width.

    Memory: ``bins`` int64 counts, whatever the number of values.

    Args:
        bins: an even number, at least 4.
    """

    def __init__(self, bins: int = 4096) -> None:
        self._bins = bins
        self._exponent = _SMALLEST_EXPONENT
        self._first = 0
        self._counts = np.zeros(0, np.int64)

    @property
    def width(self) -> float:
        """Width of a bin, a power of two."""
        return math.ldexp(1.0, self._exponent)

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Counts from the lowest occupied bin to the highest."""
        return self._counts

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """The ``len(counts) + 1`` edges of the bins; bin i holds ``edges[i] <= x < edges[i+1]``."""
        places = np.arange(self._first, self._first + len(self._counts) + 1, dtype=np.float64)
        return places * self.width

    @property
    def centres(self) -> npt.NDArray[np.float64]:
        """Middle of each bin."""
        return self.edges[:-1] + 0.5 * self.width

    @property
    def total(self) -> int:
        """Number of values counted."""
        return int(self._counts.sum())

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Count ``values``, an array of any shape, all finite."""
        if values.size == 0:
            return
        low, high = float(values.min()), float(values.max())
        self._widen(low, high)
        index = np.floor(values.ravel() * np.float64(1.0 / self.width)).astype(np.int64)
        new_first = int(index.min())
        counts = np.bincount(index - new_first).astype(np.int64)
        self._merge(new_first, counts)

    def merge(self, other: GrowingHistogram) -> None:
        """Count what ``other`` has counted; the result is that of all values in one histogram.

        ``other`` has as many bins as this one, and may be left with wider ones.
        """
        if not len(other._counts):
            return
        low, high = other._first, other._first + len(other._counts) - 1
        self._widen(low * other.width, high * other.width)
        while self._exponent < other._exponent and len(self._counts):
            self._halve()
        self._exponent = max(self._exponent, other._exponent)
        while other._exponent < self._exponent:
            other._halve()
        self._merge(other._first, other._counts)

    def quantile(self, fraction: float) -> float:
        """Value below which ``fraction`` of the counted values lie, linear within a bin."""
        if not len(self._counts):
            return 0.0
        cumulative = np.concatenate([[0], np.cumsum(self._counts)])
        return float(np.interp(fraction * cumulative[-1], cumulative, self.edges))

    def _widen(self, low: float, high: float) -> None:
        """Double the width until the values seen and those between ``low`` and ``high`` fit."""
        if len(self._counts):
            low = min(low, self._first * self.width)
            high = max(high, (self._first + len(self._counts) - 1) * self.width)
        # Places stay exact in float64, however large the values are against their spread.
        magnitude = math.frexp(max(abs(low), abs(high)))[1]
        exponent = max(self._exponent, magnitude - _PLACE_BITS)
        # A first guess from the range; then exact.
        if high > low:
            exponent = max(exponent, math.frexp((high - low) / self._bins)[1] - 1)
        while _span(low, high, exponent) > self._bins:
            exponent += 1
        while self._exponent < exponent and len(self._counts):
            self._halve()
        self._exponent = exponent

    def _halve(self) -> None:
        pad = self._first % 2
        counts = np.pad(self._counts, (pad, (len(self._counts) + pad) % 2))
        self._counts = counts.reshape(-1, 2).sum(axis=1)
        self._first = (self._first - pad) // 2
        self._exponent += 1

    def _merge(self, first: int, counts: npt.NDArray[np.int64]) -> None:
        if not len(self._counts):
            self._first, self._counts = first, counts
            return
        start = min(first, self._first)
        stop = max(first + len(counts), self._first + len(self._counts))
        merged = np.zeros(stop - start, np.int64)
        merged[self._first - start : self._first - start + len(self._counts)] = self._counts
        merged[first - start : first - start + len(counts)] += counts
        self._first, self._counts = start, merged


def _span(low: float, high: float, exponent: int) -> int:
    width = math.ldexp(1.0, exponent)
    return math.floor(high / width) - math.floor(low / width) + 1
