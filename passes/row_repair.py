"""Least squares for the kept weights of whole rows: the repair that follows pruning.

A row ``w`` of ``W [out, in]`` makes ``y = x w``. With the inputs ``X_d`` of the dense model,
``X_p`` of the pruned one, and ``K`` the inputs that the row keeps, the best row is

    w_K = argmin |X_p,K w_K - X_d w_d|^2 + lambda |w_K - w_d,K|^2
        = (H_KK + lambda I)^-1 (T + lambda w_d)_K,     H = X_p^T X_p,  T = X_p^T X_d w_d

the layer-wise problem of Optimal Brain Compression (Frantar and Alistarh 2022, arXiv 2208.11580,
equation 1), whose target here is the dense output and whose input is what the pruned layers before
it really give. The ridge pulls towards the dense weights and not towards zero: where the data say
nothing, nothing changes.

Every row keeps other inputs, so every row has a system of its own. Written over the ``k`` kept
inputs a row costs ``k^3 / 3`` multiply-adds for its Cholesky factor. Written over the
``r = in - k`` removed ones,

    w = v - A^-1[:, R] (A^-1[R, R])^-1 v_R,      A = H + lambda I,  v = A^-1 (T + lambda w_d)

it costs ``r^3 / 3``, after one factorisation of A that all rows share (block elimination). Each row
takes the smaller of the two; `solve_operations` counts them. All of it is float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack

from obert_compiler.errors import NumericsError
from obert_compiler.passes.threads import threads

__all__ = [
    "choose_damping",
    "damped_system",
    "inverse_of",
    "over_rows",
    "repair_rows",
    "solve_operations",
]

Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_ROWS_PER_TASK = 16


def repair_rows(
    H: Float64Array,
    T: Float64Array,
    kept: BoolArray,
    W: npt.NDArray[np.floating],
    *,
    damping: float,
    where: str = "matrix",
) -> Float64Array:
    """The kept weights of every row at their least squares, the others exactly zero.

    Args:
        H: ``X_p^T X_p``, float64 ``[in, in]``, not damped.
        T: ``X_p^T X_d W^T``, float64 ``[in, out]``.
        kept: ``[out, in]``, False where a weight is to be zero.
        W: dense weights ``[out, in]``, what the ridge pulls to.
        damping: lambda as a share of the mean diagonal of ``H``; above 0. An input that is always
            zero then keeps its dense weight.
        where: the matrix, for messages.

    Returns:
        float64 ``[out, in]``.

    Raises:
        NumericsError: the moments are not finite, all inputs are zero, or the damped ``H`` is not
            positive definite.
    """
    A, B, factor = damped_system(H, T, W, damping=damping, where=where)
    repaired = np.zeros(kept.shape)
    count, width = kept.sum(axis=1), kept.shape[1]
    eliminated = np.flatnonzero((count > width - count) & (count > 0))
    direct = np.flatnonzero((count <= width - count) & (count > 0))
    if eliminated.size:
        inverse = inverse_of(factor)
        full = lapack.dpotrs(factor, B[eliminated].T, lower=1)[0].T
        repaired[eliminated] = full

        def eliminate(row: int, place: int) -> None:
            removed = np.flatnonzero(~kept[row])
            if removed.size:
                within = inverse[np.ix_(removed, removed)]
                repaired[row] -= inverse[:, removed] @ _solve(within, full[place, removed], where)

        over_rows(eliminate, eliminated)

    def solve(row: int, place: int) -> None:
        del place
        chosen = np.flatnonzero(kept[row])
        repaired[row, chosen] = _solve(A[np.ix_(chosen, chosen)], B[row, chosen], where)

    over_rows(solve, direct)
    repaired[~kept] = 0.0
    return repaired


def damped_system(
    H: Float64Array,
    T: Float64Array,
    W: npt.NDArray[np.floating],
    *,
    damping: float,
    where: str = "matrix",
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """What all rows share: ``A = H + lambda I``, the right sides ``B = (T + lambda w_d)^T [out,
    in]``, and the Cholesky factor of A (lower). Arguments as in `repair_rows`.

    Raises:
        NumericsError: as `repair_rows`.
    """
    scale = float(np.mean(np.diagonal(H)))
    _check_finite(H, T, where)
    if scale <= 0:
        raise NumericsError(
            f"{where}: expected inputs that differ from zero, found none in the data; exclude the "
            "site, or give data that reaches it"
        )
    A = H + damping * scale * np.eye(len(H))
    B = (T + damping * scale * W.T.astype(np.float64)).T
    factor, failed = lapack.dpotrf(A, lower=1)
    if failed:
        lowest = float(np.linalg.eigvalsh(A)[0])
        raise NumericsError(
            f"{where}: expected a positive definite H, found the eigenvalue {lowest:.3g} with "
            f"damping {damping:g} of a mean diagonal of {scale:.3g}; raise the damping"
        )
    return A, B, factor


def choose_damping(
    folds: Sequence[tuple[Float64Array, Float64Array]],
    W: npt.NDArray[np.floating],
    dampings: Sequence[float],
    where: str = "matrix",
) -> float:
    """The damping that serves rows best which were not solved on: cross-validation by moments.

    For a matrix that keeps all its weights. With ``W_f`` the solution from all folds but ``f``, the
    squared error on fold ``f`` is ``tr(W_f H_f W_f^T) - 2 tr(W_f T_f)`` and a constant. A matrix
    with more inputs than rows fits every row, and what it then makes of others is the ridge's.

    Args:
        folds: ``H [in, in]`` and ``T [in, out]`` of two or more parts of the rows.
        W: dense weights ``[out, in]``.
        dampings: to choose from, as in `repair_rows`.
        where: the matrix, for messages.

    Returns:
        One of ``dampings``, the largest where all are alike.

    Raises:
        NumericsError: the moments are not finite.
    """
    W = W.astype(np.float64)
    errors = np.zeros(len(dampings))
    for H, T in folds:
        _check_finite(H, T, where)
    for number, (H, T) in enumerate(folds):
        others = [fold for other, fold in enumerate(folds) if other != number]
        rest_H, rest_T = (np.sum(part, axis=0) for part in zip(*others, strict=True))
        # One decomposition serves every damping.
        values, vectors = np.linalg.eigh(rest_H)
        scale = float(np.mean(np.diagonal(rest_H)))
        for place, damping in enumerate(dampings):
            ridge = damping * scale
            right = vectors.T @ (rest_T + ridge * W.T)
            solved = (vectors @ (right / np.maximum(values + ridge, ridge or 1.0)[:, None])).T
            errors[place] += np.sum((solved @ H) * solved) - 2 * np.sum(solved * T.T)
    least = errors.min()
    return max(d for d, error in zip(dampings, errors, strict=True) if error <= least)


def solve_operations(kept: BoolArray) -> int:
    """Multiply-adds of the factorisations in `repair_rows`: the smaller side of each row, cubed,
    over 3, and the shared inverse where a row needs it."""
    width = kept.shape[1]
    count = kept.sum(axis=1).astype(object)
    smaller = [min(k, width - k) for k in count]
    shared = width**3 if any(2 * k > width for k in count) else 0
    return int(sum(n**3 for n in smaller) // 3 + width**3 // 3 + shared * 2 // 3)


def _check_finite(H: Float64Array, T: Float64Array, where: str) -> None:
    if not (np.isfinite(H).all() and np.isfinite(T).all()):
        raise NumericsError(
            f"{where}: expected finite moments of its inputs, found NaN or infinity; look for "
            "huge values in the weights and the data"
        )


def inverse_of(factor: Float64Array) -> Float64Array:
    """The whole symmetric inverse of a matrix, from its Cholesky factor (lower)."""
    lower, _ = lapack.dpotri(factor, lower=1)
    lower = np.tril(lower)
    inverse: Float64Array = lower + np.tril(lower, -1).T
    return inverse


def _solve(matrix: Float64Array, rhs: Float64Array, where: str) -> Float64Array:
    _, solution, failed = lapack.dposv(matrix, rhs, lower=1, overwrite_a=1)
    if failed:
        raise NumericsError(
            f"{where}: expected a positive definite H, found a part of "
            f"{len(matrix)} inputs that is not; raise the damping"
        )
    solved: Float64Array = solution
    return solved


def over_rows(work: Callable[[int, int], None], rows: npt.NDArray[np.intp]) -> None:
    """``work(row, place)`` for every row, over threads; it writes that row alone, so that they
    change nothing."""
    places = range(0, rows.size, _ROWS_PER_TASK)

    def some(start: int) -> None:
        for place in range(start, min(start + _ROWS_PER_TASK, rows.size)):
            work(int(rows[place]), place)

    with ThreadPoolExecutor(max_workers=threads()) as pool:
        list(pool.map(some, places))
