"""Conjugate gradients of many rows against one solve for each."""

import numpy as np
import pytest

from obert_compiler.passes.conjugate_gradients import conjugate_gradients


def problem(rows=600, width=24, spread=1e3):
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(width, width)))[0]
    A = basis * np.geomspace(1, spread, width) @ basis.T
    kept = rng.random((rows, width)) < rng.random((rows, 1))
    kept[0], kept[1] = True, False
    return (A + A.T) / 2, rng.normal(size=(rows, width)), kept


def exact(A, B, kept):
    X = np.zeros(B.shape)
    for x, b, K in zip(X, B, kept, strict=True):
        x[K] = np.linalg.solve(A[np.ix_(K, K)], b[K])
    return X


def error(A, X, expected):
    """Of each row, as a share of its norm."""
    lost, norm = (np.einsum("ri,ij,rj->r", Y, A, Y) for Y in (X - expected, expected))
    return np.sqrt(np.maximum(lost, 0) / np.maximum(norm, 1e-30))


@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-3])
def test_rows_come_as_near_as_they_are_asked_to(tolerance):
    A, B, kept = problem()
    inverse = np.linalg.inv(A)
    X, reached, operations = conjugate_gradients(
        A, inverse, B, kept, B @ inverse, tolerance=tolerance, most=60
    )
    expected = exact(A, B, kept)
    assert reached.all()
    assert (error(A, X, expected) <= tolerance).all()
    assert not X[~kept].any()
    np.testing.assert_allclose(X[0], expected[0], rtol=1e-5, atol=1e-6)
    assert operations % A.size == 0


@pytest.mark.parametrize("rows", [30, 300])
def test_a_start_at_the_answer_costs_two_products_and_stays(rows):
    A, B, kept = problem(rows)
    expected = exact(A, B, kept)
    X, reached, operations = conjugate_gradients(
        A, np.linalg.inv(A), B, kept, expected, tolerance=1e-3, most=60
    )
    assert reached.all()
    assert operations == 2 * rows * A.size
    np.testing.assert_array_equal(X, expected)


def test_a_good_start_saves_iterations():
    A, B, kept = problem()
    inverse, near = np.linalg.inv(A), exact(A, B, kept | (np.arange(24) == 5))
    costs = [
        conjugate_gradients(A, inverse, B, kept, start, tolerance=1e-3, most=60)[2]
        for start in (near, 0 * B)
    ]
    assert costs[0] < costs[1]


def test_rows_that_are_not_there_are_named():
    A, B, kept = problem()
    X, reached, operations = conjugate_gradients(
        A, np.linalg.inv(A), B, kept, 0 * B, tolerance=1e-3, most=3
    )
    near = error(A, X, exact(A, B, kept)) <= 1e-3
    assert reached.any()
    assert not near.all()
    assert (near | ~reached).all()
    assert operations <= (2 + 1 + 2 * 3 + 3) * len(B) * A.size


def test_float32_that_does_not_suffice_is_not_believed():
    A, B, kept = problem(spread=1e11)
    X, reached, _ = conjugate_gradients(
        A, np.linalg.inv(A), B, kept, 0 * B, tolerance=1e-3, most=500
    )
    assert not reached.all()
    assert (error(A, X, exact(A, B, kept))[reached] <= 1e-3).all()


@pytest.mark.parametrize("part", [slice(None, None, 2), slice(100, 101)])
def test_no_row_depends_on_another(part):
    A, B, kept = problem()
    inverse = np.linalg.inv(A)
    all_rows, some = (
        conjugate_gradients(A, inverse, B[p], kept[p], 0 * B[p], tolerance=1e-2, most=60)[0]
        for p in (slice(None), part)
    )
    apart = error(A, some, all_rows[part])
    # Rounding may cost a row at the edge of the tolerance one iteration.
    assert np.mean(apart > 1e-4) < 0.05
    assert (apart <= 1e-2).all()
