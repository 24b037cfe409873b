"""Streamed moments against those of all rows at once."""

import numpy as np
import pytest

from obert_compiler.passes.activation_moments import ActivationMoments


def rows(seed, count=50, width=6):
    rng = np.random.default_rng(seed)
    dense = (rng.normal(size=(count, width)) * 10.0 ** np.arange(width) + 3).astype(np.float32)
    pruned = (dense + rng.normal(size=dense.shape)).astype(np.float32)
    return pruned, dense, rng.random(count).astype(np.float32)


@pytest.mark.parametrize("weighted", [False, True])
def test_moments_are_those_of_all_rows_at_once(weighted):
    pruned, dense, weights = rows(0)
    moments = ActivationMoments(6, 6)
    for start in range(0, 50, 7):
        part = slice(start, start + 7)
        moments.add(pruned[part], dense[part], weights[part] if weighted else None)
        moments.means()
    c = (weights if weighted else np.ones(50)).astype(np.float64)
    p, d = pruned.astype(np.float64), dense.astype(np.float64)
    mean, mean_dense = c @ p / c.sum(), c @ d / c.sum()
    H, C = moments.second(centred=True)
    plain, cross = moments.second(centred=False)
    np.testing.assert_allclose(plain, (p * c[:, None]).T @ p, rtol=1e-9)
    np.testing.assert_allclose(cross, (p * c[:, None]).T @ d, rtol=1e-9)
    np.testing.assert_allclose(moments.means()[0], mean, rtol=1e-9)
    np.testing.assert_allclose(moments.means()[1], mean_dense, rtol=1e-9)
    scale = np.sqrt(np.outer(np.diag(H), np.diag(H)))
    centred = p - mean
    np.testing.assert_allclose(H / scale, (centred * c[:, None]).T @ centred / scale, atol=1e-8)
    expected = (centred * c[:, None]).T @ (d - mean_dense)
    np.testing.assert_allclose(C / scale, expected / scale, atol=1e-8)


def test_the_target_may_have_another_width():
    x, dense, _ = rows(2)
    moments = ActivationMoments(6, 2)
    moments.add(x, dense[:, :2])
    _, C = moments.second(centred=False)
    np.testing.assert_allclose(C, x.T.astype(np.float64) @ dense[:, :2], rtol=1e-6)


def test_rows_count_once_they_are_added_and_not_only_when_they_are_summed():
    pruned, dense, _ = rows(1)
    moments = ActivationMoments(6, 6)
    moments.add(pruned, dense)
    assert moments.rows == 50
    np.testing.assert_allclose(moments.means()[0], pruned.mean(axis=0), rtol=1e-4)
