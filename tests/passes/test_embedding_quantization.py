"""Quantised tables against loops over bytes."""

from __future__ import annotations

import numpy as np
import pytest

from obert_compiler.passes.embedding_quantization import (
    group_size,
    quantize_table_4bit,
    quantize_table_8bit,
)


def _table(rows: int = 7, columns: int = 96, offset: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (0.05 * rng.standard_normal((rows, columns)) + offset).astype(np.float32)


@pytest.mark.parametrize(
    ("columns", "group", "expected"),
    [
        (384, 64, 64),
        (768, 64, 64),
        (312, 64, 52),
        (32, 64, 32),
        (128, 32, 32),
        (34, 64, 34),
        (134, 64, 134),
        (97, 64, 97),
        (8, 64, 8),
    ],
)
def test_groups_divide_the_row(columns: int, group: int, expected: int) -> None:
    assert group_size(columns, group) == expected
    assert columns % expected == 0


def test_dequantised_rows_are_those_of_a_loop_over_nibbles() -> None:
    table = quantize_table_4bit(_table(), 32)
    restored = table.dequantize()
    for v in range(7):
        for column in range(96):
            byte = int(table.packed[v, column % 48])
            q = byte % 16 if column < 48 else byte // 16
            group = column // 32
            expected = float(table.scale[v, group]) * (q - int(table.zero_point[v, group]))
            assert restored[v, column] == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("offset", [0.0, 0.2, -0.15])
def test_searched_ranges_beat_the_plain_range(offset: float) -> None:
    array = _table(50, 64, offset)
    restored = quantize_table_4bit(array, 64).dequantize()
    low, high = array.min(axis=1, keepdims=True), array.max(axis=1, keepdims=True)
    step = (high - low) / 15
    plain = np.clip(np.rint((array - low) / step), 0, 15) * step + low
    searched_error = np.square(array - restored).sum()
    assert searched_error < 1.02 * np.square(array - plain).sum()


def test_bytes_are_four_bits_and_three_for_each_group() -> None:
    table = quantize_table_4bit(_table(100, 384), 64)
    assert table.nbytes == 100 * (384 // 2 + 6 * 3)


def test_constant_rows_and_rows_of_zeros() -> None:
    array = np.zeros((4, 64), np.float32)
    array[1] = 0.125
    array[2] = -3.0
    array[3, 5] = 1.0
    restored = quantize_table_4bit(array, 64).dequantize()
    np.testing.assert_allclose(restored[:3], array[:3], rtol=1e-3)
    assert np.isfinite(restored).all()
    assert restored[3, 5] == pytest.approx(1.0, rel=0.2)


def test_eight_bits_by_row() -> None:
    array = _table()
    table = quantize_table_8bit(array)
    assert table.q.shape == array.shape
    assert np.abs(table.dequantize() - array).max() <= table.scale.max()
