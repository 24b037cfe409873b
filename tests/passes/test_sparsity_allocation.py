import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from obert_compiler.passes.sparsity_allocation import (
    choose_groups,
    choose_lowest,
    choose_n_of_m,
    choose_uniform,
    groups_left_by_turn,
    groups_to_remove,
)


@given(st.integers(0, 1000), st.integers(0, 10_000))
def test_the_target_is_never_exceeded_and_one_more_would(hundredths_of_tenths, groups):
    sparsity = hundredths_of_tenths / 1000
    count = groups_to_remove(groups, sparsity)
    assert count * 1000 <= hundredths_of_tenths * groups < (count + 1) * 1000


def test_the_decimal_number_counts_not_its_binary_neighbour():
    assert groups_to_remove(100, 0.29) == 29
    assert groups_to_remove(10, 0.8) == 8


@given(
    st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=12), min_size=1, max_size=4),
    st.floats(0, 1),
)
def test_the_choice_is_the_stable_sort_over_all_matrices(lists, fraction):
    saliencies = [np.array(values, np.float32) for values in lists]
    flat = [v for values in lists for v in values]
    count = int(fraction * len(flat))
    expected = np.zeros(len(flat), bool)
    expected[sorted(range(len(flat)), key=lambda i: (flat[i], i))[:count]] = True
    masks = choose_lowest(saliencies, count)
    assert [m.shape for m in masks] == [s.shape for s in saliencies]
    np.testing.assert_array_equal(np.concatenate(masks), expected)


def test_equal_saliencies_are_settled_by_position():
    first, second = choose_lowest([np.ones((2, 2)), np.ones((1, 3))], 5)
    assert first.all()
    np.testing.assert_array_equal(second, [[True, False, False]])


def test_pruned_groups_are_taken_first_and_count():
    saliency = np.array([3.0, -np.inf, 1.0, -np.inf])
    np.testing.assert_array_equal(choose_lowest([saliency], 3)[0], [False, True, True, True])


def test_uniform_reaches_the_sparsity_in_every_matrix():
    rng = np.random.default_rng(0)
    saliencies = [rng.random((4, 5)), 100 + rng.random((3, 7))]
    masks = choose_uniform(saliencies, 0.5)
    assert [int(m.sum()) for m in masks] == [10, 10]
    for mask, saliency in zip(masks, saliencies, strict=True):
        assert saliency[mask].max() < saliency[~mask].min()


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (4, 8), (0, 2), (2, 2)])
def test_n_of_m_keeps_the_best_subset(n, m):
    saliency = np.random.default_rng(1).random((3, 16))
    mask = choose_n_of_m(saliency, n, m)
    for row, start in itertools.product(range(3), range(0, 16, m)):
        part = saliency[row, start : start + m]
        removed = mask[row, start : start + m]
        assert removed.sum() == m - n
        best = min(part[list(s)].sum() for s in itertools.combinations(range(m), m - n))
        assert part[removed].sum() == pytest.approx(best)


def test_n_of_m_settles_ties_by_position():
    np.testing.assert_array_equal(
        choose_n_of_m(np.ones((1, 4)), 2, 4), [[True, True, False, False]]
    )


def test_a_matrix_with_a_sparsity_of_its_own_leaves_the_common_ranking():
    rng = np.random.default_rng(1)
    saliencies = [rng.random((4, 5)), rng.random((4, 5)), 10 + rng.random((4, 5))]
    masks = choose_groups(saliencies, 0.5, {1: 0.25})
    assert [int(m.sum()) for m in masks] == [20, 5, 0]
    assert [int(m.sum()) for m in choose_groups(saliencies, 0.5, {1: 0.25}, uniform=True)] == [
        10,
        5,
        10,
    ]
    assert [int(m.sum()) for m in choose_groups(saliencies, 0.5, dict.fromkeys(range(3), 1.0))] == [
        20
    ] * 3


@given(st.integers(0, 5000), st.floats(0, 1), st.integers(1, 9))
def test_every_turn_removes_about_the_same_share(alive, kept, turns):
    left = int(alive * kept)
    counts = groups_left_by_turn(alive, left, turns)
    assert len(counts) == turns
    assert counts[-1] == left
    assert sorted([alive, *counts], reverse=True) == [alive, *counts]
    if left:
        for before, after in itertools.pairwise([alive, *counts]):
            assert abs(after - before * (left / alive) ** (1 / turns)) <= 1
