"""Turns of matrices against what they promise and against shares computed in the plain way."""

from __future__ import annotations

from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given

from obert_compiler.passes.unpacking_turns import LEAST_BYTES, MOST_TURNS, turns

MIB = 2**20


@given(sizes=st.lists(st.integers(1, 40 * MIB), min_size=1, max_size=100))
def test_turns_ascend_without_a_gap(sizes):
    chosen = turns(sizes)
    assert len(chosen) == len(sizes)
    assert chosen[0] == 0
    assert all(b - a in {0, 1} for a, b in pairwise(chosen))
    assert chosen[-1] < MOST_TURNS
    assert chosen[-1] == 0 or sum(sizes) >= (chosen[-1] + 1) * LEAST_BYTES


@given(
    sizes=st.lists(st.integers(1, MIB // 4), min_size=400, max_size=500),
)
def test_each_turn_has_four_fifths_of_the_one_before(sizes):
    chosen = turns(sizes)
    count = chosen[-1] + 1
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
    assert turns(matrices * layers)[-1] + 1 == count


def test_a_matrix_larger_than_its_share_does_not_skip_a_turn():
    assert turns([100 * MIB, MIB, MIB, MIB]) == [0, 1, 2, 3]


def test_nothing_to_unpack():
    assert turns([]) == []
