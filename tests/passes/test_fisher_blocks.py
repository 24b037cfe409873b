import numpy as np
import pytest

from obert_compiler.errors import UsageError
from obert_compiler.passes.fisher_blocks import (
    BlockLayout,
    pack_symmetric,
    packed_diagonal,
    packed_size,
    unpack_symmetric,
)


@pytest.mark.parametrize(
    ("rows", "columns", "block"), [(3, 8, 4), (2, 10, 4), (5, 3, 8), (1, 1, 1)]
)
def test_cut_numbers_blocks_row_by_row_and_join_undoes_it(rows, columns, block):
    W = np.arange(1, rows * columns + 1, dtype=np.float32).reshape(rows, columns)
    layout = BlockLayout(rows, columns, block)
    blocks = layout.cut(W)
    assert blocks.shape == (layout.count, block)
    expected = []
    for row in W:
        for start in range(0, columns, block):
            piece = list(row[start : start + block])
            expected.append(piece + [0.0] * (block - len(piece)))
    np.testing.assert_array_equal(blocks, expected)
    np.testing.assert_array_equal(layout.join(blocks), W)
    np.testing.assert_array_equal(layout.valid(), blocks != 0)


@pytest.mark.parametrize("block", [1, 2, 5, 32])
def test_packed_symmetric_blocks_round_trip(block):
    half = np.random.default_rng(0).normal(size=(7, block, block)).astype(np.float32)
    blocks = half + half.transpose(0, 2, 1)
    packed = pack_symmetric(blocks)
    assert packed.shape == (7, packed_size(block))
    np.testing.assert_array_equal(
        packed[3], [blocks[3, i, j] for i in range(block) for j in range(i, block)]
    )
    np.testing.assert_array_equal(unpack_symmetric(packed, block), blocks)
    diagonal = np.einsum("kii->ki", blocks)
    np.testing.assert_array_equal(packed_diagonal(packed, block), diagonal)


def test_sizes_below_one_are_refused():
    with pytest.raises(UsageError, match="at least 1"):
        BlockLayout(4, 4, 0)
