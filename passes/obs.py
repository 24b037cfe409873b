"""Optimal Brain Surgeon on Fisher blocks: the saliency of groups and the joint repair.

The loss around the trained weights is ``L(w + delta) - L(w) = 1/2 delta^T F delta`` with ``F`` a
block of the damped empirical Fisher (oBERT, arXiv 2203.07259, equations 2 to 5; OBS, Hassibi and
Stork 1993). Every function takes blocks ``F [k, B, B]`` without damping, adds ``damping`` to the
diagonal, and computes in float64, in chunks of blocks over threads. The result depends neither on
the chunks nor on the number of threads.

A weight that is not ``alive`` (already pruned, or the filling of a partial block) is zero and stays
zero: its row and column are replaced by those of the identity, which takes it out of the system
without changing the shape of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from obert_compiler.errors import NumericsError
from obert_compiler.passes.threads import threads

__all__ = [
    "greedy_saliency",
    "group_saliency",
    "joint_repair",
    "mean_diagonal",
    "mean_square",
    "quadratic_loss",
    "removal_cost",
    "sum_of_updates",
]

FloatArray = npt.NDArray[np.floating]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_CHUNK_VALUES = 1 << 18
"""Values of F in a chunk: 2 MiB in float64, the second-level cache of a core."""


def mean_diagonal(F: FloatArray, valid: BoolArray, where: str) -> float:
    """Mean diagonal of ``F`` over ``valid`` weights: the mean squared gradient of a weight.

    Args:
        F: blocks ``[k, B, B]``.
        valid: ``[k, B]``, False for the filling of partial blocks.
        where: the matrix, for messages.

    Raises:
        NumericsError: a value is not finite.
    """
    return mean_square(np.einsum("kii->ki", F), valid, where)


def mean_square(diagonal: FloatArray, valid: BoolArray, where: str) -> float:
    """`mean_diagonal`, given the diagonals ``[k, B]``.

    Raises:
        NumericsError: a value is not finite.
    """
    diagonal = diagonal[valid].astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(diagonal))
    if bad.size:
        raise NumericsError(
            f"{where}: expected a finite Fisher, found {diagonal[bad[0]]} on its diagonal at "
            f"weight {int(bad[0])}; look for huge values in the weights and the data"
        )
    return float(diagonal.mean())


def group_saliency(
    F: FloatArray,
    w: FloatArray,
    alive: BoolArray,
    *,
    group: int,
    damping: float,
    where: str = "matrix",
) -> Float64Array:
    """Loss increase when one group of weights is removed and the rest of its block repaired.

    ``rho_Q = 1/2 w_Q^T ([F^-1]_QQ)^-1 w_Q`` for each group ``Q`` of ``group`` consecutive weights;
    ``w_j^2 / (2 [F^-1]_jj)`` for ``group=1``.

    Args:
        F: undamped blocks ``[k, B, B]``.
        w: weights ``[k, B]``.
        alive: ``[k, B]``.
        group: weights per group; divides ``B``.
        damping: added to the diagonal.
        where: the matrix, for messages.

    Returns:
        ``[k, B / group]``, not negative.

    Raises:
        NumericsError: a damped block is not positive definite or not finite.
    """
    size = F.shape[-1]
    groups = np.arange(size).reshape(-1, group)

    def solve(part: slice) -> Float64Array:
        inverse, left = _alive_part(F[part], w[part], alive[part], damping, part.start, where)
        return _group_costs(inverse, left, groups)

    return np.maximum(_over_chunks(solve, F.shape[0], size), 0.0)


def greedy_saliency(
    F: FloatArray,
    w: FloatArray,
    alive: BoolArray,
    *,
    group: int,
    damping: float,
    cumulative: bool = False,
    where: str = "matrix",
) -> Float64Array:
    """Loss increase of every group at its turn, when a block loses its groups one after another.

    The group of lowest saliency goes, the other weights move to the optimum for all that is gone,
    and so on (the order of Optimal Brain Compression, Frantar and Alistarh 2022, arXiv 2208.11580,
    algorithm 1, in a Fisher block). Two groups that can each make up for the other are both cheap
    in `group_saliency`; here the second one bears the price. With ``Q`` the group that goes,

        rho_Q = 1/2 w_Q^T ([F^-1]_QQ)^-1 w_Q
        w    -= F^-1[:, Q] ([F^-1]_QQ)^-1 w_Q
        F^-1 -= F^-1[:, Q] ([F^-1]_QQ)^-1 F^-1[Q, :]

    and the increases up to a turn add up to the loss of `joint_repair` for the groups gone by then.

    Args:
        F: undamped blocks ``[k, B, B]``.
        w: weights ``[k, B]``.
        alive: ``[k, B]``.
        group: weights per group; divides ``B``.
        damping: added to the diagonal.
        cumulative: the sum of the increases up to the group's turn, in place of the largest of
            them. Either never falls along the order, so that a threshold over all blocks takes the
            groups of a block in their order.
        where: the matrix, for messages.

    Returns:
        ``[k, B / group]``, not negative; 0 for groups that are not alive.

    Raises:
        NumericsError: a damped block is not positive definite or not finite.
    """
    size = F.shape[-1]
    count = size // group
    groups = np.arange(size).reshape(-1, group)

    def solve(part: slice) -> Float64Array:
        kept = alive[part]
        inverse, left = _alive_part(F[part], w[part], kept, damping, part.start, where)
        waiting: BoolArray = np.asarray(kept.reshape(-1, count, group).any(axis=2))
        blocks = np.arange(len(kept))
        score, total = np.zeros(waiting.shape), np.zeros(len(kept))
        turns = int(waiting.sum(axis=1).max(initial=0))
        for turn in range(turns):
            rho = _group_costs(inverse, left, groups)
            rho = np.where(waiting, np.maximum(rho, 0.0), np.inf)
            first = rho.argmin(axis=1)
            on = np.flatnonzero(waiting[blocks, first])
            chosen = first[on]
            increase = rho[on, chosen]
            total[on] = total[on] + increase if cumulative else np.maximum(total[on], increase)
            score[on, chosen] = total[on]
            waiting[on, chosen] = False
            if turn + 1 < turns:
                _take_out(inverse, left, on, groups[chosen])
        return score

    return _over_chunks(solve, F.shape[0], size)


def joint_repair(
    F: FloatArray,
    w: FloatArray,
    alive: BoolArray,
    removed: BoolArray,
    *,
    damping: float,
    where: str = "matrix",
) -> tuple[Float64Array, Float64Array]:
    """Remove all of ``removed`` at once and move the other alive weights to the joint optimum.

    ``delta = -F^-1[:, S] ([F^-1]_SS)^-1 w_S`` for the set ``S`` of a block minimises
    ``1/2 delta^T F delta`` subject to ``delta_S = -w_S``. It is solved in its primal form, one
    system over the kept weights ``K``: ``F_KK delta_K = F_KS w_S``. (The published update is the
    sum over groups, `sum_of_updates`.)

    Args:
        F: undamped blocks ``[k, B, B]``.
        w: weights ``[k, B]``.
        alive: ``[k, B]``.
        removed: ``[k, B]``, the weights to remove; what is not alive is removed already.
        damping: added to the diagonal.
        where: the matrix, for messages.

    Returns:
        The repaired weights ``[k, B]``, exactly zero where removed or not alive, and the predicted
        loss increase of each block ``[k]``.

    Raises:
        NumericsError: a damped block is not positive definite or not finite.
    """
    repaired = np.where(alive, w, 0.0).astype(np.float64)
    increase = np.zeros(F.shape[0])
    touched = np.flatnonzero((removed & alive).any(axis=1))
    size = F.shape[-1]

    def solve(part: slice) -> Float64Array:
        blocks = touched[part]
        lost = removed[blocks] & alive[blocks]
        kept = alive[blocks] & ~lost
        matrices = F[blocks].astype(np.float64)
        removed_w = np.where(lost, repaired[blocks], 0.0)
        rhs = np.einsum("kij,kj->ki", matrices, removed_w) * kept
        _, factor = _masked(matrices, kept, damping, blocks, where)
        delta = _solve(factor, rhs) * kept - removed_w
        loss = quadratic_loss(matrices, delta, damping)
        return np.concatenate([delta, loss[:, None]], axis=1)

    if touched.size:
        solved = _over_chunks(solve, touched.size, size)
        repaired[touched] += solved[:, :size]
        increase[touched] = np.maximum(solved[:, size], 0.0)
    repaired[removed | ~alive] = 0.0
    return repaired, increase


def sum_of_updates(
    F: FloatArray,
    w: FloatArray,
    alive: BoolArray,
    removed: BoolArray,
    *,
    group: int,
    damping: float,
    where: str = "matrix",
) -> tuple[Float64Array, Float64Array]:
    """Remove all of ``removed`` and add up the updates that each group would have alone.

    The update as published (oBERT, arXiv 2203.07259, equation 5), to compare with: ``delta = -sum_Q
    F^-1[:, Q] ([F^-1]_QQ)^-1 w_Q`` over the removed groups ``Q``. It is that of `joint_repair` for
    a single group of a block, and worse for several. What was removed is set to zero at the end.

    Args:
        F: undamped blocks ``[k, B, B]``.
        w: weights ``[k, B]``.
        alive: ``[k, B]``.
        removed: ``[k, B]``, whole groups.
        group: weights per group; divides ``B``.
        damping: added to the diagonal.
        where: the matrix, for messages.

    Returns:
        The weights ``[k, B]``, exactly zero where removed or not alive, and the predicted loss
        increase of each block ``[k]``.

    Raises:
        NumericsError: a damped block is not positive definite or not finite.
    """
    moved = np.where(alive, w, 0.0).astype(np.float64)
    size = F.shape[-1]

    def solve(part: slice) -> Float64Array:
        kept, lost = alive[part], removed[part] & alive[part]
        masked, factor = _masked(F[part], kept, damping, part.start, where)
        inverse = _inverse(factor)
        delta = np.zeros(kept.shape)
        for start in range(0, size, group):
            Q = slice(start, start + group)
            w_Q = np.where(lost[:, Q], moved[part, Q], 0.0)[..., None]
            delta -= (inverse[:, :, Q] @ np.linalg.solve(inverse[:, Q, Q], w_Q))[..., 0]
        delta = np.where(lost, -moved[part], np.where(kept, delta, 0.0))
        loss = 0.5 * np.einsum("ki,kij,kj->k", delta, masked, delta)
        return np.concatenate([delta, loss[:, None]], axis=1)

    solved = _over_chunks(solve, F.shape[0], size)
    moved += solved[:, :size]
    moved[removed | ~alive] = 0.0
    return moved, np.maximum(solved[:, size], 0.0)


def quadratic_loss(F: FloatArray, delta: FloatArray, damping: float) -> Float64Array:
    """``1/2 delta^T (F + damping I) delta`` of each block ``[k]``; ``delta [k, B]``."""
    curved = np.einsum("kij,kj->ki", F, delta.astype(np.float64)) + damping * delta
    loss: Float64Array = 0.5 * np.einsum("ki,ki->k", delta, curved)
    return loss


def removal_cost(inverse: Float64Array, w: Float64Array) -> Float64Array:
    """``1/2 w^T M^-1 w`` of many small ``M``: what removing ``w`` costs, ``M`` being ``[F^-1]_QQ``.

    Args:
        inverse: ``[..., group, group]``, symmetric and positive definite.
        w: ``[..., group]``.

    Returns:
        ``[...]``.
    """
    size = w.shape[-1]
    M = [[inverse[..., i, j].copy() for j in range(i + 1)] for i in range(size)]
    return _eliminated(M, [w[..., i].copy() for i in range(size)])


def _group_costs(
    inverse: Float64Array, w: Float64Array, groups: npt.NDArray[np.intp]
) -> Float64Array:
    """`removal_cost` of the groups of blocks ``[k, B, B]`` and weights ``[k, B]``."""
    size = groups.shape[1]
    v = [w[:, groups[:, i]] for i in range(size)]
    M = [[inverse[:, groups[:, i], groups[:, j]] for j in range(i + 1)] for i in range(size)]
    return _eliminated(M, v)


def _eliminated(M: list[list[Float64Array]], v: list[Float64Array]) -> Float64Array:
    """``1/2 v^T M^-1 v`` from arrays of the entries, lower triangle; overwrites them.

    Elimination on all groups of all blocks at once, entry by entry: LAPACK has a price by call that
    is above that of a system of 4.
    """
    size = len(v)
    total = np.zeros(v[0].shape)
    for j in range(size):
        total += v[j] * v[j] / M[j][j]
        for i in range(j + 1, size):
            ratio = M[i][j] / M[j][j]
            v[i] -= ratio * v[j]
            for n in range(j + 1, i + 1):
                M[i][n] -= ratio * M[n][j]
    return 0.5 * total


def _take_out(
    inverse: Float64Array, w: Float64Array, blocks: npt.NDArray[np.intp], Q: npt.NDArray[np.intp]
) -> None:
    """Remove the weights ``Q [n, group]`` of ``blocks [n]``, in place.

    The others move to their optimum; ``inverse`` becomes that of the block without ``Q``, with the
    identity in its place.
    """
    rows = blocks[:, None]
    columns = inverse[rows, Q]
    solution = np.linalg.solve(
        inverse[rows[:, :, None], Q[:, :, None], Q[:, None, :]],
        np.concatenate([columns, w[rows, Q][..., None]], axis=2),
    )
    across = columns.transpose(0, 2, 1)
    w[blocks] -= (across @ solution[:, :, -1:])[..., 0]
    inverse[blocks] -= across @ solution[:, :, :-1]
    w[rows, Q] = 0.0
    inverse[rows, Q] = 0.0
    inverse[rows, :, Q] = 0.0
    inverse[rows, Q, Q] = 1.0


def _alive_part(
    F: FloatArray, w: FloatArray, alive: BoolArray, damping: float, first: int, where: str
) -> tuple[Float64Array, Float64Array]:
    """Inverses of damped blocks, the identity outside ``alive``, and weights that are 0 there."""
    _, factor = _masked(F, alive, damping, first, where)
    return _inverse(factor), np.where(alive, w, 0.0).astype(np.float64)


def _inverse(factor: Float64Array) -> Float64Array:
    """Inverses of matrices from their Cholesky factors; NumPy has no routine for it."""
    import torch

    inverse: Float64Array = torch.cholesky_inverse(torch.from_numpy(factor)).numpy()
    return inverse


def _solve(factor: Float64Array, rhs: Float64Array) -> Float64Array:
    """Solutions ``[k, B]`` from Cholesky factors; NumPy has no routine for it."""
    import torch

    columns = torch.from_numpy(rhs[..., None])
    found: Float64Array = torch.cholesky_solve(columns, torch.from_numpy(factor)).numpy()
    return found[..., 0]


def _masked(
    F: FloatArray, kept: BoolArray, damping: float, blocks: int | npt.NDArray[np.intp], where: str
) -> tuple[Float64Array, Float64Array]:
    """Damped float64 copies of ``F``, identity outside ``kept``, and their Cholesky factors.

    ``blocks`` is the number of the first block, or the number of each.
    """
    masked = np.where(kept[:, :, None] & kept[:, None, :], F, 0.0).astype(np.float64)
    diagonal = np.einsum("kii->ki", masked)
    diagonal[...] = np.where(kept, diagonal + damping, 1.0)
    finite = np.isfinite(masked).all(axis=(1, 2))
    try:
        if finite.all():
            return masked, np.asarray(np.linalg.cholesky(masked), np.float64)
    except np.linalg.LinAlgError:
        lowest = np.linalg.eigvalsh(masked)[:, 0]
        worst = int(np.argmin(lowest))
        number = blocks + worst if isinstance(blocks, int) else int(blocks[worst])
        raise NumericsError(
            f"{where}, Fisher block {number}: expected a positive definite matrix, found the "
            f"eigenvalue {lowest[worst]:.3g} with damping {damping:.3g}; raise damping, or give "
            "more samples"
        ) from None
    worst = int(np.flatnonzero(~finite)[0])
    number = blocks + worst if isinstance(blocks, int) else int(blocks[worst])
    raise NumericsError(
        f"{where}, Fisher block {number}: expected finite values, found NaN or infinity; look for "
        "them in the weights and the data"
    )


def _over_chunks(solve: Callable[[slice], Float64Array], count: int, size: int) -> Float64Array:
    """Results of ``solve`` for consecutive slices of ``count`` blocks, in order."""
    step = max(1, _CHUNK_VALUES // (size * size))
    parts = [slice(start, min(start + step, count)) for start in range(0, count, step)]
    with ThreadPoolExecutor(max_workers=min(len(parts), threads()) or 1) as pool:
        return np.concatenate(list(pool.map(solve, parts)))
