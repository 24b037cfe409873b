"""Saliency in the least squares of a row, against the least squares themselves."""

import numpy as np
import pytest

from obert_compiler.errors import NumericsError
from obert_compiler.passes.row_saliency import row_saliency, saliency_operations

DAMPING = 1e-2


def problem(seed, rows=5, width=16, examples=50):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(width, width))
    x_dense = rng.normal(size=(examples, width)) @ mix
    x = x_dense + 0.3 * rng.normal(size=(examples, width))
    return x, x_dense, rng.normal(size=(rows, width)).astype(np.float32)


def squared_error(x, x_dense, w, kept):
    """Least damped squared error of a row over the inputs ``kept``."""
    ridge = DAMPING * np.mean(np.sum(x**2, axis=0))
    # What the ridge pulls to costs the same whether or not the weight may move.
    A = np.vstack([x[:, kept], np.sqrt(ridge) * np.eye(len(w))[:, kept]])
    b = np.concatenate([x_dense @ w, np.sqrt(ridge) * w])
    found = np.linalg.lstsq(A, b, rcond=None)[0] if kept.any() else np.zeros(0)
    return np.sum((A @ found - b) ** 2)


def saliency(x, x_dense, W, alive):
    return row_saliency(x.T @ x, x.T @ (x_dense @ W.T), W, alive, damping=DAMPING)


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("share", [1.0, 0.9, 0.5, 0.2, 0.0])
def test_a_group_counts_with_the_error_that_its_loss_adds(group, share):
    x, x_dense, W = problem(0)
    alive = np.random.default_rng(1).random((5, 16 // group)) < share
    rho = saliency(x, x_dense, W, alive)
    assert np.isneginf(rho[~alive]).all()
    for row, place in np.argwhere(alive):
        kept = np.repeat(alive[row], group)
        without = kept & (np.arange(16) // group != place)
        errors = [squared_error(x, x_dense, W[row].astype(np.float64), k) for k in (without, kept)]
        np.testing.assert_allclose(rho[row, place], (errors[0] - errors[1]) / 2, rtol=1e-6)


def test_rows_of_one_matrix_go_their_own_ways():
    x, x_dense, W = problem(3)
    alive = np.zeros((5, 8), bool)
    for row, count in enumerate((0, 2, 4, 7, 8)):
        alive[row, 8 - count :] = True
    together = saliency(x, x_dense, W, alive)
    for row in range(5):
        alone = saliency(x, x_dense, W[[row]], alive[[row]])
        np.testing.assert_allclose(together[[row]], alone, rtol=1e-9)


def test_the_way_taken_is_the_cheaper_one():
    alive = np.ones((3, 8), bool)
    alone = 16**3 // 6
    assert saliency_operations(np.zeros((3, 8), bool), 16) == alone
    alive[0, 0] = False  # 2 of 16 inputs are gone
    eliminated = 2**3 / 6 + 2**2 * 14 / 2
    assert saliency_operations(alive, 16) == int(eliminated + 16**3 / 6 + 2 * (16**3 / 6))
    alive[:, 1:] = False  # 2 inputs of two rows are left, none of the other
    assert saliency_operations(alive, 16) == int(2 * 2**3 / 3 + 16**3 / 6)


def test_moments_that_are_not_positive_definite_are_refused():
    H = np.eye(4) + 3 - 3 * np.eye(4)
    with pytest.raises(NumericsError, match=r"site 'q': expected a positive definite H, .* -1.99"):
        row_saliency(
            H,
            np.ones((4, 2)),
            np.ones((2, 4)),
            np.ones((2, 4), bool),
            damping=1e-2,
            where="site 'q'",
        )
