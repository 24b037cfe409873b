"""Turns of matrices against what they promise and against shares computed in the plain way."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from obert_compiler.passes.unpacking_turns import LEAST_BYTES, MOST_TURNS, turns

MIB = 2**20


@given(sizes=st.lists(st.integers(1, 40 * MIB), min_size=1, max_size=100))
def test_every_turn_is_taken(sizes):
    chosen = turns(sizes)
    assert len(chosen) == len(sizes)
    assert set(chosen) == set(range(max(chosen) + 1))
    assert max(chosen) < MOST_TURNS
    assert max(chosen) == 0 or sum(sizes) >= (max(chosen) + 1) * LEAST_BYTES


@given(sizes=st.lists(st.integers(1, 40 * MIB), min_size=1, max_size=100))
def test_large_matrices_come_first(sizes):
    chosen = turns(sizes)
    by_size = [turn for _, turn in sorted(zip(sizes, chosen, strict=True), key=lambda p: -p[0])]
    least = [max(s for s, t in zip(sizes, chosen, strict=True) if t >= k) for k in set(by_size)]
    most = [min(s for s, t in zip(sizes, chosen, strict=True) if t <= k) for k in set(by_size)]
    assert all(before >= after for before, after in zip(most, least[1:], strict=False))


@given(
    sizes=st.lists(st.integers(1, MIB // 4), min_size=400, max_size=500),
)
def test_each_turn_has_four_fifths_of_the_one_before(sizes):
    chosen = turns(sizes)
    count = max(chosen) + 1
    expected = [0.8**k for k in range(count)]
    whole = sum(expected)
    for turn in range(count):
        found = sum(size for size, of in zip(sizes, chosen, strict=True) if of == turn)
        assert found == pytest.approx(sum(sizes) * expected[turn] / whole, abs=max(sizes))


@pytest.mark.parametrize(
    ("layers", "count"),
    [(1, 1), (2, 3), (3, 5), (6, 8), (12, 8), (24, 8)],
)
def test_turns_of_bert_base(layers, count):
    matrices = [768 * 768] * 4 + [768 * 3072] * 2
    assert max(turns(matrices * layers)) + 1 == count


def test_a_matrix_larger_than_its_share_does_not_skip_a_turn():
    assert turns([100 * MIB, MIB, MIB, MIB]) == [0, 1, 2, 3]


def test_nothing_to_unpack():
    assert turns([]) == []
