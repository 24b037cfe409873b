"""Quantisation of embedding tables, 4 bits in groups or 8 bits by row; knows no graph.

4 bits, asymmetric: a group of g consecutive columns has a float16 scale s and a zero point z, and

    w ~ s (q - z),  0 <= q <= 15,  -128 <= z <= 127.

The zero point may lie outside 0..15, for groups far from zero.

Byte j of a row holds column j in its low nibble and column j + H/2 in its high nibble, so that the
two halves of a row are unpacked by whole-tensor arithmetic and joined by one concatenation.

8 bits, symmetric: ``w ~ s q`` with one float32 scale for each row.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from obert_compiler.passes.weight_quantization import QuantizedWeight, quantize_weight

__all__ = [
    "FourBitTable",
    "group_size",
    "quantize_table_4bit",
    "quantize_table_8bit",
]

FloatArray = npt.NDArray[np.float32]
_SMALLEST_GROUP = 16
_SHRINKS = (1.0, 0.95, 0.9, 0.85)
_SMALLEST_SCALE, _LARGEST_SCALE = 2.0**-24, 65504.0  # of float16
_CHUNK = 1 << 20


@dataclass(frozen=True)
class FourBitTable:
    """An embedding table in 4 bits.

    Attributes:
        packed: uint8 ``[V, H/2]``, two columns in a byte.
        scale: float16 ``[V, H/g]``.
        zero_point: int8 ``[V, H/g]``.
    """

    packed: npt.NDArray[np.uint8]
    scale: npt.NDArray[np.float16]
    zero_point: npt.NDArray[np.int8]

    @property
    def nbytes(self) -> int:
        """Bytes of the three arrays."""
        return self.packed.nbytes + self.scale.nbytes + self.zero_point.nbytes

    def dequantize(self) -> FloatArray:
        """The table that the nibbles stand for, float32 ``[V, H]``."""
        q = np.concatenate([self.packed & 15, self.packed >> 4], axis=1).astype(np.float32)
        rows, groups = self.scale.shape
        shifted = q.reshape(rows, groups, -1) - self.zero_point[..., None].astype(np.float32)
        return (shifted * self.scale[..., None].astype(np.float32)).reshape(rows, -1)


def group_size(columns: int, group: int = 64) -> int:
    """Largest divisor of ``columns`` from 16 up to ``group``; the whole row where there is none."""
    for size in range(min(group, columns), _SMALLEST_GROUP - 1, -1):
        if columns % size == 0:
            return size
    return columns


def quantize_table_4bit(table: FloatArray, group: int) -> FourBitTable:
    """Quantise ``table`` ``[V, H]`` to 4 bits in groups of ``group`` columns.

    Each group tries sixteen ranges, its own and shorter ones cut at either end, and keeps the one
    with the least squared error.

    Args:
        table: finite float32, H even and a multiple of ``group``.
        group: columns that share a scale and a zero point.
    """
    rows, columns = table.shape
    q = np.empty((rows, columns), np.uint8)
    scale = np.empty((rows, columns // group), np.float16)
    zero_point = np.empty(scale.shape, np.int8)
    step = max(1, _CHUNK // columns)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        grouped = table[part].reshape(-1, columns // group, group)
        q_part, scale[part], zero_point[part] = _quantize_groups(grouped)
        q[part] = q_part.reshape(-1, columns)
    half = columns // 2
    packed = (q[:, :half] | (q[:, half:] << 4)).astype(np.uint8)
    return FourBitTable(packed, scale, zero_point)


def quantize_table_8bit(table: FloatArray, *, bits: int = 8) -> QuantizedWeight:
    """Quantise ``table`` ``[V, H]`` symmetrically with one scale for each row.

    ``bits`` is 7 for a table that is also the weight of a matrix product (a tied decoder).
    """
    return quantize_weight(table, bits=bits, scale="mse")


def _quantize_groups(
    grouped: FloatArray,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16], npt.NDArray[np.int8]]:
    low, high = grouped.min(axis=-1), grouped.max(axis=-1)
    least = np.full(low.shape, np.inf, np.float32)
    best_q = np.zeros(grouped.shape, np.uint8)
    best_scale = np.zeros(low.shape, np.float16)
    best_zero_point = np.zeros(low.shape, np.int8)
    for from_below, from_above in itertools.product(_SHRINKS, _SHRINKS):
        span = high - low
        start = low + np.float32(1.0 - from_below) * span
        stop = high - np.float32(1.0 - from_above) * span
        # A constant group is one step of its own size away from zero.
        wide = np.where(stop > start, (stop - start) / np.float32(15.0), np.abs(start))
        # Rounding happens against the float16 scale that the file will hold.
        scale = np.clip(wide, _SMALLEST_SCALE, _LARGEST_SCALE).astype(np.float16)
        step = scale.astype(np.float32)
        zero_point = np.clip(np.rint(-start / step), -128, 127)
        q = np.clip(np.rint(grouped / step[..., None]) + zero_point[..., None], 0, 15)
        residual = grouped - (q - zero_point[..., None]) * step[..., None]
        error = np.einsum("vgi,vgi->vg", residual, residual)
        better = error < least
        least[better] = error[better]
        best_q[better] = q[better].astype(np.uint8)
        best_scale[better] = scale[better]
        best_zero_point[better] = zero_point[better].astype(np.int8)
    return best_q, best_scale, best_zero_point
