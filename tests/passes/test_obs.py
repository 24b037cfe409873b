"""Every solver against a naive oracle: dense inverses, a KKT system, one block at a time."""

import numpy as np
import pytest

from obert_compiler.errors import NumericsError
from obert_compiler.passes import obs


def random_blocks(count, size, gradients=24, seed=0):
    """Correlated positive semi-definite blocks and weights."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(count, size, size)) / np.sqrt(size)
    g = rng.normal(size=(count, gradients, size)) @ mixing
    F = (g.transpose(0, 2, 1) @ g / gradients).astype(np.float32)
    return F, rng.normal(size=(count, size)).astype(np.float32)


def damped(F, damping):
    return F.astype(np.float64) + damping * np.eye(F.shape[-1])


def oracle_saliency(F, w, alive, group, damping):
    rho = np.zeros((F.shape[0], F.shape[1] // group))
    for k in range(F.shape[0]):
        live = np.flatnonzero(alive[k])
        H = damped(F[k], damping)[np.ix_(live, live)]
        inverse = np.linalg.inv(H)
        for g in range(rho.shape[1]):
            Q = [i for i, j in enumerate(live) if j // group == g]
            if Q:
                w_Q = w[k, live[Q]].astype(np.float64)
                rho[k, g] = 0.5 * w_Q @ np.linalg.inv(inverse[np.ix_(Q, Q)]) @ w_Q
    return rho


def oracle_kkt(F, w, removed, damping):
    """min 1/2 d^T F d subject to d_S = -w_S, by its KKT system; d and the minimum."""
    size = F.shape[-1]
    S = np.flatnonzero(removed)
    A = np.zeros((len(S), size))
    A[np.arange(len(S)), S] = 1.0
    H = damped(F, damping)
    kkt = np.block([[H, A.T], [A, np.zeros((len(S), len(S)))]])
    solution = np.linalg.solve(kkt, np.concatenate([np.zeros(size), -w[S].astype(np.float64)]))
    delta = solution[:size]
    return delta, 0.5 * delta @ H @ delta


@pytest.mark.parametrize("group", [1, 2, 4, 8])
def test_saliency_matches_dense_inverses(group):
    F, w = random_blocks(9, 8)
    alive = np.ones(w.shape, bool)
    rho = obs.group_saliency(F, w, alive, group=group, damping=1e-3)
    np.testing.assert_allclose(rho, oracle_saliency(F, w, alive, group, 1e-3), rtol=1e-8)


def test_saliency_of_single_weights_is_the_published_formula():
    F, w = random_blocks(5, 6)
    inverse = np.linalg.inv(damped(F, 1e-2))
    expected = w.astype(np.float64) ** 2 / (2 * np.einsum("kii->ki", inverse))
    rho = obs.group_saliency(F, w, np.ones(w.shape, bool), group=1, damping=1e-2)
    np.testing.assert_allclose(rho, expected, rtol=1e-8)


def test_saliency_leaves_pruned_weights_out_of_the_block():
    F, w = random_blocks(6, 8, seed=1)
    alive = np.random.default_rng(2).random(w.shape) < 0.6
    alive[0] = False
    w[~alive] = 0
    for group in (1, 2, 4):
        rho = obs.group_saliency(F, w, alive, group=group, damping=1e-3)
        np.testing.assert_allclose(
            rho, oracle_saliency(F, w, alive, group, 1e-3), rtol=1e-8, atol=0
        )


def test_saliency_of_one_group_is_the_loss_of_removing_it():
    F, w = random_blocks(3, 8)
    alive = np.ones(w.shape, bool)
    rho = obs.group_saliency(F, w, alive, group=4, damping=1e-3)
    removed = np.zeros(w.shape, bool)
    removed[:, 4:] = True
    _, loss = obs.joint_repair(F, w, alive, removed, damping=1e-3)
    np.testing.assert_allclose(loss, rho[:, 1], rtol=1e-8)


def oracle_greedy(F, w, group, damping):
    """Order and losses, with a KKT system for every candidate of every turn."""
    order, losses = [], []
    waiting = list(range(len(w) // group))
    while waiting:
        found = {}
        for candidate in waiting:
            removed = np.isin(np.arange(len(w)) // group, [*order, candidate])
            found[candidate] = oracle_kkt(F, w, removed, damping)[1]
        best = min(waiting, key=found.__getitem__)
        waiting.remove(best)
        order.append(best)
        losses.append(found[best])
    return order, losses


@pytest.mark.parametrize("group", [1, 2, 4])
def test_greedy_saliency_is_the_loss_at_every_turn(group):
    F, w = random_blocks(7, 8, seed=11)
    alive = np.ones(w.shape, bool)
    sums = obs.greedy_saliency(F, w, alive, group=group, damping=1e-2, cumulative=True)
    largest = obs.greedy_saliency(F, w, alive, group=group, damping=1e-2)
    for k in range(len(w)):
        order, losses = oracle_greedy(F[k], w[k], group, 1e-2)
        np.testing.assert_allclose(sums[k, order], losses, rtol=1e-7)
        increases = np.diff([0.0, *losses])
        np.testing.assert_allclose(
            largest[k, order], np.maximum.accumulate(increases), rtol=1e-7, atol=1e-12
        )


@pytest.mark.parametrize("group", [1, 2])
def test_greedy_saliency_leaves_pruned_weights_out_of_the_block(group):
    F, w = random_blocks(5, 8, seed=12)
    alive = np.repeat(np.random.default_rng(13).random((5, 4)) < 0.6, 2, axis=1)
    alive[0], alive[1] = False, True
    w[~alive] = 0
    rho = obs.greedy_saliency(F, w, alive, group=group, damping=1e-2)
    for k in range(len(w)):
        live = np.flatnonzero(alive[k])
        if not live.size:
            assert not rho[k].any()
            continue
        alone = obs.greedy_saliency(
            F[k][np.ix_(live, live)][None],
            w[k, live][None],
            np.ones((1, live.size), bool),
            group=group,
            damping=1e-2,
        )
        np.testing.assert_allclose(rho[k][live[::group] // group], alone[0], rtol=1e-9)
        assert not rho[k][~alive[k].reshape(-1, group).any(axis=1)].any()


def test_greedy_saliency_sees_that_two_weights_stand_in_for_each_other():
    F = np.array([[[1.0, 0.999, 0.0], [0.999, 1.0, 0.0], [0.0, 0.0, 0.1]]], np.float32)
    w = np.ones((1, 3), np.float32)
    alive = np.ones(w.shape, bool)
    single = obs.group_saliency(F, w, alive, group=1, damping=1e-6)[0]
    greedy = obs.greedy_saliency(F, w, alive, group=1, damping=1e-6)[0]
    # Alone, either twin is cheaper than the third weight; the second of them is not.
    assert single[:2].max() < single[2]
    assert greedy[:2].min() < greedy[2] < greedy[:2].max()


def test_repair_solves_the_constrained_problem():
    F, w = random_blocks(20, 8, seed=3)
    removed = np.random.default_rng(4).random(w.shape) < 0.5
    removed[0], removed[1] = False, True
    alive = np.ones(w.shape, bool)
    repaired, loss = obs.joint_repair(F, w, alive, removed, damping=1e-4)
    for k in range(len(w)):
        delta, minimum = oracle_kkt(F[k], w[k], removed[k], 1e-4)
        np.testing.assert_allclose(repaired[k] - w[k], delta, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(loss[k], minimum, rtol=1e-7, atol=1e-12)
    assert not repaired[removed].any()
    np.testing.assert_array_equal(repaired[0], w[0])


def test_repair_is_the_published_joint_formula():
    F, w = random_blocks(4, 8, seed=5)
    removed = np.zeros(w.shape, bool)
    removed[:, [0, 1, 5]] = True
    repaired, _ = obs.joint_repair(F, w, np.ones(w.shape, bool), removed, damping=1e-3)
    for k in range(len(w)):
        inverse = np.linalg.inv(damped(F[k], 1e-3))
        S = np.flatnonzero(removed[k])
        update = -inverse[:, S] @ np.linalg.inv(inverse[np.ix_(S, S)]) @ w[k, S]
        expected = w[k] + update
        expected[S] = 0
        np.testing.assert_allclose(repaired[k], expected, rtol=1e-6, atol=1e-8)


def test_repair_beats_zeroing_and_the_sum_of_single_updates():
    F, w = random_blocks(50, 8, seed=6)
    removed = np.tile(np.arange(8) % 2 == 0, (50, 1))
    _, loss = obs.joint_repair(F, w, np.ones(w.shape, bool), removed, damping=1e-4)
    H = damped(F, 1e-4)
    inverse = np.linalg.inv(H)
    zeroed = -w * removed
    summed = np.zeros_like(H[:, 0])
    for j in range(0, 8, 2):
        summed -= inverse[:, :, j] * (w[:, j] / inverse[:, j, j])[:, None]
    summed[removed] = -w[removed]

    def quadratic(delta):
        return 0.5 * np.einsum("ki,kij,kj->k", delta, H, delta)

    assert np.all(loss <= quadratic(zeroed) * (1 + 1e-9))
    assert np.all(loss <= quadratic(summed) * (1 + 1e-9))


def test_repair_never_revives_pruned_weights():
    F, w = random_blocks(12, 8, seed=7)
    rng = np.random.default_rng(8)
    alive = rng.random(w.shape) < 0.7
    w[~alive] = 0
    removed = rng.random(w.shape) < 0.3
    repaired, loss = obs.joint_repair(F, w, alive, removed, damping=1e-3)
    assert not repaired[~alive].any()
    for k in range(len(w)):
        live = np.flatnonzero(alive[k])
        block = F[k][np.ix_(live, live)]
        delta, minimum = oracle_kkt(block, w[k, live], removed[k, live], 1e-3)
        np.testing.assert_allclose(repaired[k, live], w[k, live] + delta, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(loss[k], minimum, rtol=1e-7, atol=1e-12)


def test_results_do_not_depend_on_the_chunks(monkeypatch):
    F, w = random_blocks(33, 8, seed=9)
    alive, removed = np.ones(w.shape, bool), np.random.default_rng(1).random(w.shape) < 0.5
    rho = obs.group_saliency(F, w, alive, group=2, damping=1e-3)
    repaired, loss = obs.joint_repair(F, w, alive, removed, damping=1e-3)
    monkeypatch.setattr(obs, "_CHUNK_VALUES", 5 * 64)
    np.testing.assert_array_equal(obs.group_saliency(F, w, alive, group=2, damping=1e-3), rho)
    again, loss_again = obs.joint_repair(F, w, alive, removed, damping=1e-3)
    np.testing.assert_array_equal(again, repaired)
    np.testing.assert_array_equal(loss_again, loss)


def test_the_mean_diagonal_is_that_of_weights_alone():
    F = np.zeros((2, 3, 3), np.float32)
    F[0, range(3), range(3)] = [1.0, 2.0, 3.0]
    F[1, 0, 0] = 6.0
    valid = np.array([[True, True, True], [True, False, False]])
    assert obs.mean_diagonal(F, valid, "matrix") == pytest.approx(12 / 4)


def test_a_dead_input_is_the_cheapest_and_leaves_the_rest_alone():
    F, w = random_blocks(1, 4, seed=2)
    F[0, 2, :] = F[0, :, 2] = 0
    alive = np.ones(w.shape, bool)
    rho = obs.group_saliency(F, w, alive, group=1, damping=1e-6)
    assert rho[0].argmin() == 2
    removed = np.zeros(w.shape, bool)
    removed[0, 2] = True
    repaired, _ = obs.joint_repair(F, w, alive, removed, damping=1e-6)
    np.testing.assert_allclose(repaired[0, [0, 1, 3]], w[0, [0, 1, 3]], rtol=1e-12)


def test_an_indefinite_block_is_named():
    F, w = random_blocks(40, 4)
    F[17] = np.diag([1, 1, -2, 1])
    alive = np.ones(w.shape, bool)
    message = r"site 'a', Fisher block 17: expected a positive definite matrix.*raise damping"
    with pytest.raises(NumericsError, match=message):
        obs.group_saliency(F, w, alive, group=1, damping=1e-3, where="site 'a'")
    removed = np.zeros(w.shape, bool)
    removed[10:, 0] = True
    with pytest.raises(NumericsError, match=message):
        obs.joint_repair(F, w, alive, removed, damping=1e-3, where="site 'a'")


def test_a_block_with_nan_is_named(monkeypatch):
    monkeypatch.setattr(obs, "_CHUNK_VALUES", 4 * 16)
    F, w = random_blocks(40, 4)
    F[21, 1, 2] = np.nan
    with pytest.raises(NumericsError, match="Fisher block 21: expected finite"):
        obs.group_saliency(F, w, np.ones(w.shape, bool), group=1, damping=1e-3)
    F[3, 0, 0] = np.inf
    with pytest.raises(NumericsError, match="found inf on its diagonal at weight 12"):
        obs.mean_diagonal(F, np.ones(w.shape, bool), "matrix")


@pytest.mark.parametrize("group", [1, 2, 4])
def test_sum_of_updates_is_the_published_formula_group_by_group(group):
    F, w = random_blocks(5, 8, seed=3)
    rng = np.random.default_rng(4)
    alive = np.repeat(rng.random((5, 8 // group)) < 0.8, group, axis=1)
    removed = np.repeat(rng.random((5, 8 // group)) < 0.5, group, axis=1)
    w[~alive] = 0
    moved, increase = obs.sum_of_updates(F, w, alive, removed, group=group, damping=1e-3)
    for k in range(5):
        live = np.flatnonzero(alive[k])
        H = damped(F[k], 1e-3)[np.ix_(live, live)]
        delta = np.zeros(len(live))
        for g in range(8 // group):
            Q = [i for i, j in enumerate(live) if j // group == g and removed[k, j]]
            if Q:
                inverse = np.linalg.inv(H)
                delta -= inverse[:, Q] @ np.linalg.inv(inverse[np.ix_(Q, Q)]) @ w[k, live[Q]]
        expected = np.where(removed[k, live], 0, w[k, live] + delta)
        np.testing.assert_allclose(moved[k, live], expected, rtol=1e-7, atol=1e-10)
        assert not moved[k, ~alive[k] | removed[k]].any()
        step = expected - w[k, live]
        np.testing.assert_allclose(increase[k], 0.5 * step @ H @ step, rtol=1e-7, atol=1e-12)


def test_sum_of_updates_is_the_joint_repair_for_one_group_of_a_block():
    F, w = random_blocks(4, 8, seed=5)
    alive = np.ones(w.shape, bool)
    removed = np.zeros(w.shape, bool)
    removed[:, 4:] = True
    summed = obs.sum_of_updates(F, w, alive, removed, group=4, damping=1e-2)
    joint = obs.joint_repair(F, w, alive, removed, damping=1e-2)
    for found, expected in zip(summed, joint, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-10)


def test_sum_of_updates_of_several_groups_is_worse_than_the_joint_repair():
    F, w = random_blocks(4, 8, seed=6)
    alive = np.ones(w.shape, bool)
    removed = np.zeros(w.shape, bool)
    removed[:, :6] = True
    summed = obs.sum_of_updates(F, w, alive, removed, group=2, damping=1e-2)[1]
    joint = obs.joint_repair(F, w, alive, removed, damping=1e-2)[1]
    assert (summed > joint).all()
    assert summed.sum() > 1.01 * joint.sum()
