"""Fisher blocks: how a weight matrix is cut into blocks, and how symmetric blocks are stored.

Each row of ``W [out, in]`` is cut into blocks of ``B`` consecutive inputs (oBERT, arXiv 2203.07259,
section 3.2: a block-diagonal Fisher over row-major weights; here a block never straddles two
rows). Where ``B`` does not divide ``in`` the last block of each row is filled up with zeros, and
`BlockLayout.valid` tells the filling from weights. Blocks are numbered row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from obert_compiler.errors import UsageError

__all__ = [
    "BlockLayout",
    "pack_symmetric",
    "packed_diagonal",
    "packed_size",
    "unpack_symmetric",
]

BoolArray = npt.NDArray[np.bool_]
ScalarT = TypeVar("ScalarT", bound=np.generic)


@dataclass(frozen=True)
class BlockLayout:
    """Blocks of one matrix.

    Attributes:
        rows: output features of the matrix.
        columns: input features of the matrix.
        block: weights per Fisher block, ``B``.

    Raises:
        UsageError: a size below 1.
    """

    rows: int
    columns: int
    block: int

    def __post_init__(self) -> None:
        if min(self.rows, self.columns, self.block) < 1:
            raise UsageError(
                f"Fisher blocks of {self.block} in a {self.rows} x {self.columns} matrix: expected "
                "sizes of at least 1"
            )

    @property
    def per_row(self) -> int:
        """Blocks in a row, the partial one included."""
        return -(-self.columns // self.block)

    @property
    def count(self) -> int:
        """Blocks of the matrix."""
        return self.rows * self.per_row

    def cut(self, matrix: npt.NDArray[ScalarT]) -> npt.NDArray[ScalarT]:
        """Cut ``[out, in]`` into ``[count, B]``; a view where ``B`` divides ``in``."""
        filling = self.per_row * self.block - self.columns
        if filling:
            matrix = np.pad(matrix, ((0, 0), (0, filling)))
        return matrix.reshape(self.count, self.block)

    def join(self, blocks: npt.NDArray[ScalarT]) -> npt.NDArray[ScalarT]:
        """The inverse of `cut`: ``[count, B]`` back to ``[out, in]``, the filling dropped."""
        return blocks.reshape(self.rows, self.per_row * self.block)[:, : self.columns]

    def valid(self) -> BoolArray:
        """``[count, B]``, False where a block is filled up."""
        return self.cut(np.ones((self.rows, self.columns), np.bool_))


def packed_size(block: int) -> int:
    """Values of the upper triangle of a symmetric ``block x block`` matrix."""
    return block * (block + 1) // 2


def pack_symmetric(blocks: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Upper triangles of ``[k, B, B]``, row by row, as ``[k, B (B + 1) / 2]``."""
    size = blocks.shape[-1]
    rows, columns = np.triu_indices(size)
    flat = blocks.reshape(-1, size * size)
    return np.asarray(np.take(flat, rows * size + columns, axis=1))


def packed_diagonal(packed: npt.NDArray[np.float32], block: int) -> npt.NDArray[np.float32]:
    """Diagonals ``[k, B]`` of what `pack_symmetric` wrote."""
    lengths = np.arange(block, 0, -1)
    return packed[:, np.cumsum(lengths) - lengths]


def unpack_symmetric(packed: npt.NDArray[np.float32], block: int) -> npt.NDArray[np.float32]:
    """Full ``[k, B, B]`` blocks of what `pack_symmetric` wrote."""
    rows, columns = np.triu_indices(block)
    position = np.empty((block, block), np.intp)
    position[rows, columns] = position[columns, rows] = np.arange(packed_size(block))
    full = np.take(packed, position.reshape(-1), axis=1)
    return np.asarray(full.reshape(-1, block, block))
