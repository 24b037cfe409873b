"""Packing against a loop that walks the matrix block by block."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given

from obert_compiler.passes.sparse_packing import (
    BLOCKS,
    GAP_BITS,
    PackedMatrix,
    choose,
    pack,
    packed_size,
    unpack,
)

DTYPES = (np.int8, np.float32)


def naive_pack(matrix: np.ndarray, block: int, bits: int) -> tuple[list[list[float]], list[int]]:
    """Values and gaps, one block after the other."""
    largest = 2**bits - 1
    values: list[list[float]] = []
    gaps: list[int] = []
    gap = 0
    for row in matrix.tolist():
        for start in range(0, len(row), block):
            found = row[start : start + block]
            if any(x != 0 for x in found):
                while gap > largest:
                    values.append([0] * block)
                    gaps.append(largest)
                    gap -= largest
                values.append(found)
                gaps.append(gap)
                gap = 0
            gap += 1
    return (values, gaps) if values else ([[0] * block], [0])


def naive_unpack(packed: PackedMatrix) -> np.ndarray:
    flat = np.zeros(packed.shape[0] * packed.shape[1], packed.values.dtype)
    place = 0
    for gap, values in zip(packed.gaps.tolist(), packed.values, strict=True):
        place += gap
        flat[place * packed.block : (place + 1) * packed.block] = values
    return flat.reshape(packed.shape)


def sparse(
    seed: int, rows: int, blocks: int, block: int, density: float, dtype: type
) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.integers(-127, 128, (rows, blocks, block)).astype(dtype)
    kept = rng.random((rows, blocks, 1)) < density
    return (values * kept).astype(dtype).reshape(rows, blocks * block)


matrices = st.builds(
    sparse,
    st.integers(0, 2**32 - 1),
    st.integers(1, 12),
    st.integers(1, 40),
    st.sampled_from(BLOCKS),
    st.sampled_from((0.0, 0.005, 0.05, 0.2, 0.5, 1.0)),
    st.sampled_from(DTYPES),
)


@given(matrix=matrices, bits=st.sampled_from(GAP_BITS), data=st.data())
def test_packing_is_what_the_loop_does(matrix, bits, data):
    block = data.draw(st.sampled_from([b for b in BLOCKS if matrix.shape[1] % b == 0]))
    packed = pack(matrix, block, bits)
    values, gaps = naive_pack(matrix, block, bits)
    assert packed.gaps.tolist() == gaps
    assert packed.values.tolist() == values
    assert packed.values.dtype == matrix.dtype
    np.testing.assert_array_equal(unpack(packed), matrix)
    np.testing.assert_array_equal(naive_unpack(packed), matrix)
    assert packed.nbytes == packed_size(matrix, block, bits)


@given(matrix=matrices)
@example(matrix=np.zeros((3, 4), np.int8))
@example(matrix=np.ones((3, 4), np.float32))
@example(matrix=np.ones((3, 7), np.int8))
def test_the_choice_takes_the_fewest_bytes(matrix):
    block, bits, size = choose(matrix)
    sizes = {
        (b, w): pack(matrix, b, w).nbytes
        for b in BLOCKS
        if matrix.shape[1] % b == 0
        for w in GAP_BITS
    }
    assert size == sizes[block, bits] == min(sizes.values())


@pytest.mark.parametrize("bits", GAP_BITS)
@pytest.mark.parametrize("place", [0, 1, 14, 15, 16, 17, 30, 31, 255, 256, 257, 510, 511, 1999])
def test_a_block_far_from_the_last_one_is_reached_over_stepping_stones(bits, place):
    matrix = np.zeros((2, 1000), np.int8)
    matrix.reshape(-1)[place] = 5
    packed = pack(matrix, 1, bits)
    assert len(packed.gaps) == 1 + max(0, place - 1) // (2**bits - 1)
    np.testing.assert_array_equal(unpack(packed), matrix)


def test_a_matrix_of_zeros_stores_one_block():
    packed = pack(np.zeros((8, 64), np.int8), 4, 4)
    assert packed.values.shape == (1, 4)
    assert packed.gaps.tolist() == [0]
    assert packed.nbytes == 5


def test_blocks_of_four_at_eighty_percent_take_a_quarter_of_the_bytes():
    """The figure of the documentation: 4-bit gaps, 0.933 bytes a block of four INT8 weights."""
    matrix = sparse(0, 768, 192, 4, 0.2, np.int8)
    block, bits, size = choose(matrix)
    assert (block, bits) == (4, 4)
    assert size / (768 * 192) == pytest.approx(0.933, abs=0.01)


def test_two_of_four_is_found_as_single_weights():
    rng = np.random.default_rng(1)
    matrix = rng.integers(1, 64, (64, 16, 4)).astype(np.int8)
    for group in matrix.reshape(-1, 4):
        group[rng.permutation(4)[:2]] = 0
    block, bits, size = choose(matrix.reshape(64, 64))
    assert (block, bits) == (1, 4)
    assert size == 64 * 32 + 64 * 32 // 2


@pytest.mark.parametrize(
    ("matrix", "block"),
    [
        (np.zeros((0, 4), np.int8), 4),
        (np.zeros((4, 0), np.int8), 1),
        (np.zeros((4, 6), np.int8), 4),
        (np.zeros(8, np.int8), 4),
        (np.zeros((4, 4), np.int8), 0),
    ],
)
def test_what_cannot_be_packed(matrix, block):
    with pytest.raises(ValueError, match="expected"):
        pack(matrix, block, 4)
