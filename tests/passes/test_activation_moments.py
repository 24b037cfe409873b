"""Streamed moments against those of all rows at once."""

import numpy as np

from obert_compiler.passes.activation_moments import ActivationMoments


def rows(seed, count=50, width=6):
    rng = np.random.default_rng(seed)
    dense = (rng.normal(size=(count, width)) * 10.0 ** np.arange(width) + 3).astype(np.float32)
    pruned = (dense + rng.normal(size=dense.shape)).astype(np.float32)
    return pruned, dense


def test_moments_are_those_of_all_rows_at_once():
    pruned, dense = rows(0)
    moments = ActivationMoments(6, 6)
    for start in range(0, 50, 7):
        moments.add(pruned[start : start + 7], dense[start : start + 7])
        moments.means()
    p, d = pruned.astype(np.float64), dense.astype(np.float64)
    H, C = moments.second(centred=True)
    plain, cross = moments.second(centred=False)
    np.testing.assert_allclose(plain, p.T @ p, rtol=1e-9)
    np.testing.assert_allclose(cross, p.T @ d, rtol=1e-9)
    np.testing.assert_allclose(moments.means()[0], p.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(moments.means()[1], d.mean(axis=0), rtol=1e-9)
    scale = np.sqrt(np.outer(np.diag(H), np.diag(H)))
    p, d = p - p.mean(axis=0), d - d.mean(axis=0)
    np.testing.assert_allclose(H / scale, p.T @ p / scale, atol=1e-8)
    np.testing.assert_allclose(C / scale, p.T @ d / scale, atol=1e-8)


def test_the_target_may_have_another_width():
    x, dense = rows(2)
    moments = ActivationMoments(6, 2)
    moments.add(x, dense[:, :2])
    _, C = moments.second(centred=False)
    np.testing.assert_allclose(C, x.T.astype(np.float64) @ dense[:, :2], rtol=1e-6)


def test_rows_count_once_they_are_added_and_not_only_when_they_are_summed():
    pruned, dense = rows(1)
    moments = ActivationMoments(6, 6)
    moments.add(pruned, dense)
    assert moments.rows == 50
    np.testing.assert_allclose(moments.means()[0], pruned.mean(axis=0), rtol=1e-4)
