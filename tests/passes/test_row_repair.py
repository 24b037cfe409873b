"""Row repair against one dense least squares per row."""

import numpy as np
import pytest

from obert_compiler.errors import NumericsError
from obert_compiler.passes import row_repair
from obert_compiler.passes.row_repair import RowSystem, choose_damping, solve_operations

DAMPING = 1e-2


def problem(seed, rows=5, width=12, examples=40):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(width, width))
    x_dense = rng.normal(size=(examples, width)) @ mix
    x = x_dense + 0.3 * rng.normal(size=(examples, width))
    W = rng.normal(size=(rows, width)).astype(np.float32)
    return x, x_dense, W


def by_lstsq(x, x_dense, W, kept):
    """Row by row, the ridge as rows of data of their own."""
    ridge = np.sqrt(DAMPING * np.mean(np.sum(x**2, axis=0)))
    found = np.zeros(W.shape)
    for row, (w, chosen) in enumerate(zip(W.astype(np.float64), kept, strict=True)):
        if chosen.any():
            A = np.vstack([x[:, chosen], ridge * np.eye(chosen.sum())])
            b = np.concatenate([x_dense @ w, ridge * w[chosen]])
            found[row, chosen] = np.linalg.lstsq(A, b, rcond=None)[0]
    return found


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_rows_are_those_of_a_dense_least_squares(share):
    x, x_dense, W = problem(0)
    kept = np.random.default_rng(1).random(W.shape) >= share
    found = RowSystem(x.T @ x, x.T @ (x_dense @ W.T), W, damping=DAMPING).repaired(kept)
    np.testing.assert_allclose(found, by_lstsq(x, x_dense, W, kept), rtol=1e-8, atol=1e-10)
    assert not found[~kept].any()


def test_both_eliminations_serve_rows_of_one_matrix():
    x, x_dense, W = problem(2)
    kept = np.zeros(W.shape, bool)
    for row, count in enumerate((0, 3, 6, 9, 12)):
        kept[row, :count] = True
    found = RowSystem(x.T @ x, x.T @ (x_dense @ W.T), W, damping=DAMPING).repaired(kept)
    np.testing.assert_allclose(found, by_lstsq(x, x_dense, W, kept), rtol=1e-8, atol=1e-10)


def test_nothing_moves_where_nothing_is_removed_and_inputs_agree():
    x, _, W = problem(3)
    found = RowSystem(x.T @ x, x.T @ (x @ W.T), W, damping=DAMPING).repaired(np.ones(W.shape, bool))
    np.testing.assert_allclose(found, W, rtol=1e-6, atol=1e-6)


def test_dead_inputs_keep_their_dense_weights():
    x, x_dense, W = problem(4)
    x[:, 2] = x_dense[:, 2] = 0
    kept = np.ones(W.shape, bool)
    kept[:, 5:9] = False
    found = RowSystem(x.T @ x, x.T @ (x_dense @ W.T), W, damping=DAMPING).repaired(kept)
    np.testing.assert_allclose(found[:, 2], W[:, 2], rtol=1e-6)


def test_fewer_examples_than_inputs_are_enough_with_the_ridge():
    x, x_dense, W = problem(5, examples=4)
    kept = np.random.default_rng(1).random(W.shape) >= 0.5
    found = RowSystem(x.T @ x, x.T @ (x_dense @ W.T), W, damping=DAMPING).repaired(kept)
    np.testing.assert_allclose(found, by_lstsq(x, x_dense, W, kept), rtol=1e-6, atol=1e-8)


def test_the_loss_is_never_above_that_of_masking():
    x, x_dense, W = problem(6)
    kept = np.random.default_rng(1).random(W.shape) >= 0.6
    found = RowSystem(x.T @ x, x.T @ (x_dense @ W.T), W, damping=1e-9).repaired(kept)
    target = x_dense @ W.T
    assert np.sum((x @ found.T - target) ** 2) < np.sum((x @ np.where(kept, W, 0).T - target) ** 2)


def squared_error(x, x_dense, w, kept):
    """Least damped squared error of a row over the inputs ``kept``."""
    ridge = np.sqrt(DAMPING * np.mean(np.sum(x**2, axis=0)))
    A = np.vstack([x[:, kept], ridge * np.eye(len(w))[:, kept]])
    b = np.concatenate([x_dense @ w, ridge * w])
    return np.sum((A @ np.linalg.lstsq(A, b, rcond=None)[0] - b) ** 2)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_a_group_counts_with_the_error_that_its_loss_adds(group):
    x, x_dense, W = problem(0)
    groups = 12 // group
    system = RowSystem(x.T @ x, x.T @ (x_dense @ W.T), W, damping=DAMPING)
    kept = np.ones(W.shape, bool)
    rho = system.saliency(system.repaired(kept), kept, group)
    for row, w in enumerate(W.astype(np.float64)):
        least = squared_error(x, x_dense, w, np.ones(12, bool))
        for place in range(groups):
            without = squared_error(x, x_dense, w, np.arange(12) // group != place)
            np.testing.assert_allclose(rho[row, place], (without - least) / 2, rtol=1e-6)


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("share", [0.8, 0.3, 0.0])
def test_where_groups_are_gone_the_others_count_as_they_are_repaired(group, share):
    x, x_dense, W = problem(3)
    kept = np.random.default_rng(1).random(W.shape) < share
    alive = kept.reshape(len(W), -1, group).any(axis=2)
    system = RowSystem(x.T @ x, x.T @ (x_dense @ W.T), W, damping=DAMPING)
    rho = system.saliency(system.repaired(kept), kept, group)
    ridge = DAMPING * np.mean(np.sum(x**2, axis=0))
    inverse = np.linalg.inv(x.T @ x + ridge * np.eye(12))
    v = by_lstsq(x, x_dense, W, kept)
    assert np.isneginf(rho[~alive]).all()
    for row, place in np.argwhere(alive):
        Q = slice(place * group, (place + 1) * group)
        expected = v[row, Q] @ np.linalg.inv(inverse[Q, Q]) @ v[row, Q] / 2
        np.testing.assert_allclose(rho[row, place], expected, rtol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("damping", [1e-2, 1e-9])
@pytest.mark.parametrize("iterated", [True, False])
def test_an_estimate_is_as_near_as_it_says(share, damping, iterated, monkeypatch):
    """With hardly a ridge iterations get stuck, or float32 does not come near enough."""
    x, x_dense, W = problem(8, rows=300, width=24)
    monkeypatch.setattr(row_repair, "_PRODUCTS", 0 if iterated else 10**9)
    x[:, ::2] = x[:, 1::2] + 1e-3 * x[:, ::2]
    system = RowSystem(x.T @ x, x.T @ (x_dense @ W.T), W, damping=damping)
    kept = np.random.default_rng(1).random(W.shape) < share
    before = kept | (np.random.default_rng(2).random(W.shape) < 0.3)
    exact = system.repaired(kept)
    H = x.T @ x + damping * np.mean(np.sum(x**2, axis=0)) * np.eye(24)
    norm = np.sqrt(np.einsum("ri,ij,rj->r", exact, H, exact))
    for start in (None, system.repaired(before)):
        found, operations = system.estimated(kept, start)
        assert operations > 0
        assert not found[~kept].any()
        error = found - exact
        bound = 2e-2 if damping > 1e-3 else 0.2
        assert (np.sqrt(np.einsum("ri,ij,rj->r", error, H, error)) <= bound * norm + 1e-12).all()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda H: np.full_like(H, np.nan), "head: expected finite moments"),
        (np.zeros_like, "head: expected inputs that differ from zero"),
        (lambda H: H + 3 - 3 * np.eye(4), "head: expected a positive definite H, .* -1.99"),
    ],
)
def test_unusable_moments_are_refused(spoil, message):
    H, W = np.eye(4), np.ones((2, 4), np.float32)
    with pytest.raises(NumericsError, match=message):
        RowSystem(spoil(H), np.ones((4, 2)), W, damping=DAMPING, where="head")


def test_operations_count_the_smaller_side_of_each_row():
    kept = np.array([[1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 0]], bool)
    assert solve_operations(kept[:1]) == 3**3 // 3 + 8**3 // 3
    assert solve_operations(kept) == (3**3 + 1) // 3 + 8**3 // 3 + 8**3 * 2 // 3


def moments(x, z):
    return x.T @ x, x.T @ z


@pytest.mark.parametrize("count", [2, 3])
def test_the_damping_is_that_of_the_least_error_on_rows_left_out(count):
    dampings = [1e-4, 1e-2, 1.0, 100.0]
    chosen = set()
    for seed, examples in ((5, 400), (6, 16), (7, 20)):
        x, _, W = problem(seed, examples=examples)
        rng = np.random.default_rng(seed)
        z = x @ (W + 0.3 * rng.normal(size=W.shape)).T + 10 * rng.normal(size=(examples, len(W)))
        parts = [(x[i::count], z[i::count]) for i in range(count)]
        errors = np.zeros(len(dampings))
        for left_out, (x_out, z_out) in enumerate(parts):
            rest = [part for number, part in enumerate(parts) if number != left_out]
            H, T = moments(*(np.concatenate(arrays) for arrays in zip(*rest, strict=True)))
            for place, damping in enumerate(dampings):
                found = RowSystem(H, T, W, damping=damping).repaired(np.ones(W.shape, bool))
                errors[place] += np.sum((x_out @ found.T - z_out) ** 2)
        found = choose_damping([moments(*part) for part in parts], W, dampings)
        assert found == dampings[errors.argmin()]
        chosen.add(found)
    assert len(chosen) > 1


def test_without_rows_the_damping_is_the_largest():
    empty = np.zeros((12, 12)), np.zeros((12, 5))
    assert choose_damping([empty, empty], np.ones((5, 12)), [1e-3, 1e-1]) == 1e-1


def test_moments_that_are_not_finite_choose_no_damping():
    H, T = np.eye(12), np.zeros((12, 5))
    with pytest.raises(NumericsError, match="site 'q': expected finite moments"):
        choose_damping([(H, T), (H + np.inf, T)], np.ones((5, 12)), [1e-3], "site 'q'")
