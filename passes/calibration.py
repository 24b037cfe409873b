"""Ranges of activations for static quantisation, from one stream of batches; knows no graph.

Activations become unsigned 8-bit integers with one scale and zero point for the whole tensor:

    q = clip(round(x / s) + z, 0, 255),  x ~ s (q - z)

Three ways to choose the range: the smallest and largest value seen, quantiles that cut the tails,
or the range with the least expected squared error over the histogram. Every range holds zero, and
zero is exactly representable (padding, ReLU).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from obert_compiler.passes.calibration_histogram import GrowingHistogram

__all__ = ["ActivationStatistics", "Calibration", "Quantizer", "choose_range", "quantizer_for"]

FloatArray = npt.NDArray[np.float32]
Calibration = Literal["minmax", "percentile", "mse"]

_LEVELS = 255
_CANDIDATES = 64
_ROUNDS = 3


@dataclass(frozen=True)
class Quantizer:
    """Scale and zero point of one activation tensor.

    Attributes:
        scale: above zero, a float32 value.
        zero_point: 0 to 255, the integer that stands for zero.
    """

    scale: float
    zero_point: int

    @property
    def low(self) -> float:
        """Smallest representable value."""
        return -self.scale * self.zero_point

    @property
    def high(self) -> float:
        """Largest representable value."""
        return self.scale * (_LEVELS - self.zero_point)

    def round_trip(self, x: FloatArray) -> FloatArray:
        """``x`` quantised and dequantised, as QuantizeLinear and DequantizeLinear do it."""
        scale, zero_point = np.float32(self.scale), np.float32(self.zero_point)
        q = np.clip(np.rint(x / scale) + zero_point, 0, _LEVELS)
        restored: FloatArray = (q - zero_point) * scale
        return restored


class ActivationStatistics:
    """What calibration keeps of one activation tensor while batches stream by.

    Memory, whatever the number of batches: 8 bytes for each histogram bin and each feature, and
    ``sample_rows`` float32 rows.

    Args:
        features: length of the last axis.
        rng: draws the sample of rows; `add` takes another for the rows that come next.
        sample_rows: number of rows kept, a uniform sample without replacement of all rows.
        bins: bins of the histogram.
    """

    def __init__(
        self,
        features: int,
        rng: np.random.Generator,
        *,
        sample_rows: int = 256,
        bins: int = 4096,
    ) -> None:
        self.rows = 0
        self.low = np.inf
        self.high = -np.inf
        self.histogram = GrowingHistogram(bins)
        self._sum = np.zeros(features, np.float64)
        self._rng = rng
        self._sample_rows = sample_rows
        self._keys = np.zeros(0, np.float64)
        self._sample = np.zeros((0, features), np.float32)

    @property
    def dead(self) -> bool:
        """Whether nothing but zeros was seen."""
        return self.rows == 0 or (self.low == 0.0 and self.high == 0.0)

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        sample = self._keys.nbytes + self._sample.nbytes
        return self.histogram.counts.nbytes + self._sum.nbytes + sample

    @property
    def mean(self) -> FloatArray:
        """Mean of each feature, float32 ``[features]``."""
        return (self._sum / max(1, self.rows)).astype(np.float32)

    @property
    def sample(self) -> FloatArray:
        """The sampled rows, float32 ``[<= sample_rows, features]``."""
        return self._sample

    def add(self, rows: FloatArray, rng: np.random.Generator | None = None) -> None:
        """Take in ``rows`` ``[n, features]``, all finite.

        Args:
            rows: the rows.
            rng: draws the sample from here on. With one for each part of the data, the sample does
                not depend on who adds which part and when.
        """
        if rng is not None:
            self._rng = rng
        if not len(rows):
            return
        self.rows += len(rows)
        self.low = min(self.low, float(rows.min()))
        self.high = max(self.high, float(rows.max()))
        self.histogram.add(rows)
        self._sum += rows.sum(axis=0, dtype=np.float64)
        self._draw(rows)

    def merge(self, other: ActivationStatistics) -> None:
        """Take in what ``other`` has seen, which may be left changed."""
        self.rows += other.rows
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.histogram.merge(other.histogram)
        self._sum += other._sum
        self._keep(other._keys, other._sample)

    def _draw(self, rows: FloatArray) -> None:
        # The rows with the smallest of independent uniform keys are a uniform sample.
        keys = self._rng.random(len(rows))
        taken = np.argsort(keys)[: self._sample_rows]
        if len(self._keys) == self._sample_rows:
            taken = taken[keys[taken] < self._keys[-1]]
        self._keep(keys[taken], rows[taken])

    def _keep(self, keys: npt.NDArray[np.float64], rows: FloatArray) -> None:
        merged = np.concatenate([self._keys, keys])
        order = np.argsort(merged)[: self._sample_rows]
        self._sample = np.concatenate([self._sample, rows])[order]
        self._keys = merged[order]


def quantizer_for(low: float, high: float) -> Quantizer:
    """Scale and zero point that cover ``low`` to ``high`` and hold zero exactly.

    An empty range (only zeros were seen) gets scale 1 and zero point 0.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / _LEVELS)
    if scale < np.finfo(np.float32).tiny:
        return Quantizer(1.0, 0)
    zero_point = int(np.clip(np.rint(-low / scale), 0, _LEVELS))
    return Quantizer(float(scale), zero_point)


def choose_range(
    statistics: ActivationStatistics, method: Calibration, *, percentile: float = 99.99
) -> Quantizer:
    """Choose the quantiser of one activation.

    Args:
        statistics: of the calibration data.
        method: ``"minmax"``, ``"percentile"`` or ``"mse"``.
        percentile: for ``"percentile"``, the share of values below the upper end of the range; as
            many lie above its lower end. In percent, above 50, at most 100.
    """
    if statistics.dead:
        return Quantizer(1.0, 0)
    low, high = statistics.low, statistics.high
    if method == "percentile":
        upper = percentile / 100.0
        low = max(low, statistics.histogram.quantile(1.0 - upper))
        high = min(high, statistics.histogram.quantile(upper))
    elif method == "mse":
        low, high = _least_error_range(statistics.histogram, low, high)
    return quantizer_for(low, high)


def _least_error_range(histogram: GrowingHistogram, low: float, high: float) -> tuple[float, float]:
    """Shrink both ends, then one after the other as long as the expected squared error falls."""
    values = histogram.centres.astype(np.float32)
    weights = histogram.counts.astype(np.float64)
    low, high = min(low, 0.0), max(high, 0.0)
    shrinks = np.linspace(1.0, 0.02, _CANDIDATES)

    def error(a: float, b: float) -> float:
        residual = values - quantizer_for(a, b).round_trip(values)
        return float(weights @ np.square(residual, dtype=np.float64))

    lowest, highest = low, high
    both = [(error(lowest * shrink, highest * shrink), shrink) for shrink in shrinks]
    least, shrink = min(both)
    low, high = lowest * shrink, highest * shrink
    for _ in range(_ROUNDS):
        before = least
        for shrink in shrinks:
            trial = error(low, highest * shrink)
            if trial < least:
                high, least = highest * shrink, trial
        for shrink in shrinks:
            trial = error(lowest * shrink, high)
            if trial < least:
                low, least = lowest * shrink, trial
        if least == before:
            break
    return low, high
