import numpy as np

from obert_compiler.passes.saliency import group_is_pruned, magnitude_saliency


def test_magnitude_is_the_squared_norm_of_each_group():
    W = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    for group in (1, 2, 4):
        expected = [[sum(row[i : i + group] ** 2) for i in range(0, 8, group)] for row in W]
        np.testing.assert_allclose(magnitude_saliency(W, group), expected, rtol=1e-6)


def test_a_group_is_pruned_when_all_of_it_is_zero():
    W = np.array([[0, 0, 0, 1], [1, 1, 0, 0]], np.float32)
    np.testing.assert_array_equal(group_is_pruned(W, 2), [[True, False], [False, True]])
    np.testing.assert_array_equal(group_is_pruned(W, 1), W == 0)
