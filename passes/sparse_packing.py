"""Sparse matrices as kept blocks and the gaps between them; knows no graph.

A matrix ``[out, in]`` is cut into blocks of ``n`` neighbours along the input, counted row by row.
A packed matrix stores the blocks that hold anything but zeros (``values``) and, for each, its
distance to the block stored before it (``gaps``, the first one's to the start). A gap takes 4 or 8
bits. Where the next kept block is farther away than a gap can say, blocks of zeros are stored as
stepping stones: no escape code is needed, the running sum of the gaps is every position there is.

Why gaps and no bit mask: at 80% of zeros in blocks of four INT8 weights, 4-bit gaps with their
stepping stones take 0.933 bytes a block, a mask 0.925. But a mask must be widened to one integer a
block of the dense matrix before it says where anything goes, while gaps stay as short as the list
of kept blocks; standard ONNX ops can do either, and runtimes do the work at load.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["BLOCKS", "GAP_BITS", "PackedMatrix", "choose", "pack", "packed_size", "unpack"]

Array = npt.NDArray[np.generic]
GapBits = Literal[4, 8]

GAP_BITS: tuple[GapBits, ...] = (4, 8)
"""Widths of a gap, in bits."""

BLOCKS = (1, 2, 4, 8, 16, 32)
"""Lengths of blocks that `choose` tries, ascending."""


@dataclass(frozen=True)
class PackedMatrix:
    """A sparse matrix.

    Attributes:
        shape: ``(out, in)``.
        bits: width of a gap as it is stored, 4 or 8.
        values: ``[stored, n]`` blocks in row-major order of the matrix, stepping stones among them;
            at least one.
        gaps: uint8 ``[stored]``, below ``2 ** bits``; their running sum counts blocks of the matrix
            from its start.
    """

    shape: tuple[int, int]
    bits: GapBits
    values: Array
    gaps: npt.NDArray[np.uint8]

    @property
    def block(self) -> int:
        """Length of a block."""
        return int(self.values.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of values and gaps as they are stored; two 4-bit gaps share a byte."""
        return self.values.nbytes + _gap_bytes(len(self.gaps), self.bits)


def pack(matrix: Array, block: int, bits: GapBits) -> PackedMatrix:
    """Pack ``matrix``.

    Args:
        matrix: ``[out, in]``, any dtype with a zero.
        block: length of a block along the input; divides ``in``.
        bits: width of a gap.

    Raises:
        ValueError: ``matrix`` is not 2-D, is empty, or ``block`` does not divide ``in``.
    """
    blocks = _blocks(matrix, block)
    kept = np.flatnonzero(blocks.any(axis=1))
    distances = np.diff(kept, prepend=0)
    largest = (1 << bits) - 1
    stones = _stones(distances, largest)
    ends = np.cumsum(stones + 1) - 1  # where each kept block lies among all that are stored
    stored = max(1, int(stones.sum()) + len(kept))
    gaps = np.full(stored, largest if len(kept) else 0, np.uint8)
    gaps[ends] = distances - stones * largest
    values = np.zeros((stored, block), matrix.dtype)
    values[ends] = blocks[kept]
    return PackedMatrix((matrix.shape[0], matrix.shape[1]), bits, values, gaps)


def unpack(packed: PackedMatrix) -> Array:
    """The matrix ``[out, in]`` that `pack` was given."""
    rows, columns = packed.shape
    blocks = np.zeros((rows * columns // packed.block, packed.block), packed.values.dtype)
    blocks[np.cumsum(packed.gaps, dtype=np.int64)] = packed.values
    return blocks.reshape(rows, columns)


def packed_size(matrix: Array, block: int, bits: GapBits) -> int:
    """``pack(matrix, block, bits).nbytes`` without packing."""
    return _size(np.flatnonzero(_blocks(matrix, block).any(axis=1)), block, bits, matrix.itemsize)


def choose(matrix: Array) -> tuple[int, GapBits, int]:
    """The length of a block and the width of a gap that take the fewest bytes.

    Ties go to the longer block: it unpacks faster.

    Args:
        matrix: ``[out, in]``, not empty.

    Returns:
        ``(block, bits, bytes)``.
    """
    kept = matrix.reshape(-1) != 0
    weights = int(np.count_nonzero(kept))
    best: tuple[int, int, GapBits] | None = None
    for block in reversed(BLOCKS):
        # Kept blocks hold every weight, and each has a gap: nothing of this length is smaller.
        bound = weights * matrix.itemsize + _gap_bytes(weights // block, GAP_BITS[0])
        if matrix.shape[1] % block or (best is not None and bound >= best[0]):
            continue
        positions = np.flatnonzero(kept.reshape(-1, block).any(axis=1) if block > 1 else kept)
        for bits in GAP_BITS:
            size = _size(positions, block, bits, matrix.itemsize)
            if best is None or size < best[0]:
                best = (size, block, bits)
    if best is None:
        raise ValueError(f"expected a matrix of at least one column, found shape {matrix.shape}")
    size, block, bits = best
    return block, bits, size


def _blocks(matrix: Array, block: int) -> Array:
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError(f"expected a 2-D matrix that is not empty, found shape {matrix.shape}")
    if block < 1 or matrix.shape[1] % block:
        raise ValueError(f"expected a block that divides {matrix.shape[1]}, found {block}")
    return np.ascontiguousarray(matrix).reshape(-1, block)


def _stones(distances: npt.NDArray[np.int64], largest: int) -> npt.NDArray[np.int64]:
    """Stepping stones in front of each kept block."""
    stones: npt.NDArray[np.int64] = np.maximum(distances - 1, 0) // largest
    return stones


def _size(positions: npt.NDArray[np.int64], block: int, bits: GapBits, itemsize: int) -> int:
    distances = np.diff(positions, prepend=0)
    stored = max(1, len(positions) + int(_stones(distances, (1 << bits) - 1).sum()))
    return stored * block * itemsize + _gap_bytes(stored, bits)


def _gap_bytes(count: int, bits: GapBits) -> int:
    return (count * bits + 7) // 8
