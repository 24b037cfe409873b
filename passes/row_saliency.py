"""What a group of weights is worth to the least squares of its row: the choice before row repair.

A row keeps the inputs ``K``. With ``A = H + lambda I`` and ``b = T + lambda w_d`` as in
`obert_compiler.passes.row_repair`, its least squares are ``v = A_KK^-1 b_K``, and to lose the group
``Q`` of them as well, with all others solved for again, adds to the squared error (halved, as the
loss of Optimal Brain Surgeon is)

    rho_Q = 1/2 v_Q^T ([A_KK^-1]_QQ)^-1 v_Q

(Hassibi and Stork 1993; by rows as in Optimal Brain Compression, Frantar and Alistarh 2022, arXiv
2208.11580, equation 3, which takes ``v`` from dense activations). ``v`` here already makes up for
what the layers before have lost. A sum of such errors over rows says nothing until each is weighted
by what an error of its output costs the loss.

Each row needs the diagonal blocks of an inverse of its own, by the cheaper of two ways: over the
``k`` kept inputs (Cholesky factor and its inverse, ``k^3 / 3`` multiply-adds), or over the ``r``
removed ones from the inverse that all rows share,

    [A_KK^-1]_QQ = S_QQ - Y_Q^T Y_Q,    S = A^-1,  S_RR = L L^T,  Y = L^-1 S_RK

(``r^3 / 6 + r^2 k / 2``). All of it is float64.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack, solve_triangular

from obert_compiler.errors import NumericsError
from obert_compiler.passes.obs import removal_cost
from obert_compiler.passes.row_repair import damped_system, inverse_of, over_rows

__all__ = ["row_saliency", "saliency_operations"]

Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


def row_saliency(
    H: Float64Array,
    T: Float64Array,
    W: npt.NDArray[np.floating],
    alive: BoolArray,
    *,
    damping: float,
    where: str = "matrix",
) -> Float64Array:
    """Increase of half the squared error of a row when one more group of its weights goes.

    Args:
        H: ``X_p^T X_p``, float64 ``[in, in]``, not damped.
        T: ``X_p^T X_d W^T``, float64 ``[in, out]``.
        W: dense weights ``[out, in]``, what the ridge pulls to.
        alive: ``[out, in / group]``, False where a group is gone already.
        damping: lambda as a share of the mean diagonal of ``H``; above 0.
        where: the matrix, for messages.

    Returns:
        float64 ``[out, in / group]``, not negative; minus infinity where not alive.

    Raises:
        NumericsError: the moments are not finite, all inputs are zero, or the damped ``H`` is not
            positive definite.
    """
    A, B, factor = damped_system(H, T, W, damping=damping, where=where)
    count = alive.shape[1]
    width = len(A)
    group = width // count
    rho = np.full(alive.shape, -np.inf)
    removed = (~alive).sum(axis=1) * group
    whole = np.flatnonzero(removed == 0)
    eliminated = np.flatnonzero((removed > 0) & _elimination_pays(removed, width))
    direct = np.flatnonzero((removed < width) & ~_elimination_pays(removed, width))
    if whole.size or eliminated.size:
        inverse = inverse_of(factor)
        blocks = _diagonal_blocks(inverse, group)
        full = lapack.dpotrs(factor, B.T, lower=1)[0].T
        rho[whole] = removal_cost(blocks[None], full[whole].reshape(-1, count, group))

    def eliminate(row: int, place: int) -> None:
        del place
        kept, gone = _inputs(alive[row], group), _inputs(~alive[row], group)
        L = _factor(inverse[np.ix_(gone, gone)], where)
        Y = solve_triangular(L, inverse[np.ix_(gone, kept)], lower=True, check_finite=False)
        y = solve_triangular(L, full[row, gone], lower=True, check_finite=False)
        lost = _products_within(Y.T, group)
        v = (full[row, kept] - y @ Y).reshape(-1, group)
        rho[row, alive[row]] = removal_cost(blocks[alive[row]] - lost, v)

    def solve(row: int, place: int) -> None:
        del place
        kept = _inputs(alive[row], group)
        L = _factor(A[np.ix_(kept, kept)], where)
        v = lapack.dpotrs(L, B[row, kept], lower=1)[0].reshape(-1, group)
        inverse_factor, _ = lapack.dtrtri(L, lower=1, overwrite_c=1)
        rho[row, alive[row]] = removal_cost(_products_within(inverse_factor.T, group), v)

    over_rows(eliminate, eliminated)
    over_rows(solve, direct)
    return np.where(alive, np.maximum(rho, 0.0), -np.inf)


def saliency_operations(alive: BoolArray, width: int) -> int:
    """Multiply-adds of the factorisations in `row_saliency`, for ``width`` inputs."""
    group = width // alive.shape[1]
    removed = (~alive).sum(axis=1).astype(np.float64) * group
    kept = width - removed
    each = np.minimum(kept**3 / 3, removed**3 / 6 + removed**2 * kept / 2)
    shared = width**3 / 6 if _elimination_pays(removed, width).any() else 0
    return int(each.sum() + width**3 / 6 + shared * 2)


def _elimination_pays(removed: npt.NDArray[np.number], width: int) -> BoolArray:
    kept = width - removed.astype(np.float64)
    return np.asarray(removed**3 / 6 + removed**2 * kept / 2 < kept**3 / 3)


def _inputs(groups: BoolArray, group: int) -> npt.NDArray[np.intp]:
    return np.flatnonzero(np.repeat(groups, group))


def _diagonal_blocks(matrix: Float64Array, group: int) -> Float64Array:
    """``[n / group, group, group]`` of a matrix ``[n, n]``."""
    count = len(matrix) // group
    numbers = np.arange(count)
    blocks: Float64Array = matrix.reshape(count, group, count, group)[numbers, :, numbers, :]
    return blocks


def _products_within(columns: Float64Array, group: int) -> Float64Array:
    """Products of the rows of ``columns [n, any]`` with those of the same group, by group."""
    grouped = np.ascontiguousarray(columns).reshape(-1, group, columns.shape[1])
    products: Float64Array = grouped @ grouped.transpose(0, 2, 1)
    return products


def _factor(matrix: Float64Array, where: str) -> Float64Array:
    factor, failed = lapack.dpotrf(matrix.T, lower=1, clean=1, overwrite_a=1)
    if failed:
        raise NumericsError(
            f"{where}: expected a positive definite H, found a part of {len(matrix)} inputs that "
            "is not; raise the damping"
        )
    lower: Float64Array = factor
    return lower
