"""Greedy choice of layers, against all subsets where costs add up, and against its own trace."""

import itertools

import numpy as np
import pytest

from obert_compiler.passes.layer_choice import choose_layers


@pytest.mark.parametrize("keep", [1, 3, 6])
def test_with_costs_that_add_up_it_finds_the_best_subset(keep):
    costs = np.random.default_rng(0).random(6)

    def loss(kept):
        return float(sum(costs[i] for i in range(6) if i not in kept))

    kept, rounds = choose_layers(6, keep, loss)
    assert kept == min(itertools.combinations(range(6), keep), key=loss)
    assert [len(found) for found in rounds] == list(range(6, keep, -1))


def test_each_round_measures_the_layers_that_are_left():
    asked = []

    def loss(kept):
        asked.append(kept)
        return 0.0

    kept, rounds = choose_layers(3, 1, loss)
    assert asked == [(1, 2), (0, 2), (0, 1), (1,), (0,)]
    assert kept == (0,)  # of equal losses the later layer goes
    assert [set(found) for found in rounds] == [{0, 1, 2}, {0, 1}]
