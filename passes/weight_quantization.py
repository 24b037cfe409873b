"""Symmetric quantisation of weights, one scale per output row; knows no graph.

    q = clip(round(w / s), -limit, limit),  w ~ s q

With 7 bits |q| <= 64. The kernels of CPUs without VNNI add two products of an unsigned 8-bit
activation and a signed weight in 16 bits, saturating: 2 * 255 * 64 = 32640 still fits,
2 * 255 * 127 does not. There is no zero point, so a zero stays exactly zero and pruned weights stay
pruned.

The correction of the bias follows Nagel et al., Data-Free Quantization Through Weight Equalization
and Bias Correction (2019), section 4.2, with the mean input measured instead of derived.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = [
    "QuantizedWeight",
    "WeightScale",
    "bias_correction",
    "quantization_limit",
    "quantize_weight",
]

FloatArray = npt.NDArray[np.float32]
WeightScale = Literal["max", "mse"]

_SHRINKS = np.linspace(1.0, 0.6, 21, dtype=np.float32)
_CHUNK = 1 << 16  # of elements, so that a piece stays in the cache


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight as integers and scales.

    Attributes:
        q: int8 ``[out, in]``.
        scale: float32 ``[out]``, above zero.
    """

    q: npt.NDArray[np.int8]
    scale: FloatArray

    def dequantize(self) -> FloatArray:
        """The weight that the integers stand for, float32 ``[out, in]``."""
        restored: FloatArray = self.q.astype(np.float32) * self.scale[:, None]
        return restored


def quantization_limit(bits: int) -> int:
    """Largest |q|: 64 for 7 bits (the safe product of the module's text), else 2^(bits-1) - 1."""
    return 64 if bits == 7 else 2 ** (bits - 1) - 1


def quantize_weight(
    W: FloatArray,
    *,
    bits: int = 7,
    scale: WeightScale = "mse",
    importance: FloatArray | None = None,
) -> QuantizedWeight:
    """Quantise ``W`` ``[out, in]`` to int8 with one scale for each output row.

    Args:
        W: finite float32 weight.
        bits: 7 or 8.
        scale: ``"max"`` maps the largest |w| of a row to the limit; ``"mse"`` tries 21 scales down
            to 0.6 of that and keeps the one with the least squared error of the row.

    Returns:
        The integers and scales. A row of zeros gets scale 1. Zeros of ``W`` are zeros of ``q``.
    """
    limit = quantization_limit(bits)
    largest = np.abs(W).max(axis=1, initial=0.0).astype(np.float32)
    # The smallest normal float keeps 1/scale finite for rows of denormal weights.
    tiny = np.finfo(np.float32).tiny * limit
    alive = largest > tiny
    chosen = np.where(alive, largest / np.float32(limit), np.float32(1.0)).astype(np.float32)
    if scale == "mse":
        rows = max(1, _CHUNK // max(1, W.shape[1]))
        for start in range(0, W.shape[0], rows):
            part = slice(start, start + rows)
            chosen[part] = _least_error_scale(W[part], chosen[part], limit, importance)
    return QuantizedWeight(_round(W, chosen, limit).astype(np.int8), chosen)


def _round(W: FloatArray, scale: FloatArray, limit: int) -> FloatArray:
    rounded: FloatArray = np.clip(np.rint(W / scale[:, None]), -limit, limit)
    return rounded


def _least_error_scale(
    W: FloatArray, largest: FloatArray, limit: int, importance: FloatArray | None
) -> FloatArray:
    weights = np.ones(W.shape[1], np.float32) if importance is None else importance
    best = largest.copy()
    least = np.full(W.shape[0], np.inf, np.float32)
    for shrink in _SHRINKS:
        scale = largest * shrink
        residual = W - _round(W, scale, limit) * scale[:, None]
        error = np.square(residual) @ weights
        better = error < least
        least[better], best[better] = error[better], scale[better]
    return best


def bias_correction(
    W: FloatArray, quantized: QuantizedWeight, mean_input: FloatArray
) -> FloatArray:
    """What to add to the bias so that rounding ``W`` leaves the mean output unchanged.

    Args:
        W: float32 ``[out, in]``.
        quantized: what ``W`` was rounded to.
        mean_input: mean activation ``[in]`` over the calibration data.

    Returns:
        float32 ``[out]``: ``(W - Wq) mean(x)``.
    """
    difference = W.astype(np.float64) - quantized.dequantize()
    return (difference @ mean_input.astype(np.float64)).astype(np.float32)
