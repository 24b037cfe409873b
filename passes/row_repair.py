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

Which inputs a row can do without follows from the same system (`RowSystem.saliency`), and for that
an estimate of ``w`` will do (`RowSystem.estimated`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack

from obert_compiler.errors import NumericsError
from obert_compiler.passes.conjugate_gradients import conjugate_gradients
from obert_compiler.passes.obs import removal_cost
from obert_compiler.passes.threads import threads

__all__ = ["RowSystem", "choose_damping", "solve_operations"]

Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_ROWS_PER_TASK = 16
_TOLERANCE, _ITERATIONS = 2e-2, 64
"""Of an estimate. About 20 iterations reach it, and groups chosen by it add up to 0.1% more
saliency than the least at most (docs/pruning.md)."""
_PRODUCTS, _FASTER = 40, 6
"""Products with a matrix that the estimate of a row takes, and how many of their multiply-adds
(float32, all rows at once) run in the time of one of its factorisation (float64)."""


class RowSystem:
    """The least squares of the rows of one matrix, for any choice of their inputs.

    Args:
        H: ``X_p^T X_p``, float64 ``[in, in]``, not damped.
        T: ``X_p^T X_d W^T``, float64 ``[in, out]``.
        W: dense weights ``[out, in]``, what the ridge pulls to.
        damping: lambda as a share of the mean diagonal of ``H``; above 0. An input that is always
            zero then keeps its dense weight.
        where: the matrix, for messages.

    Raises:
        NumericsError: the moments are not finite, all inputs are zero, or the damped ``H`` is not
            positive definite.
    """

    def __init__(
        self,
        H: Float64Array,
        T: Float64Array,
        W: npt.NDArray[np.floating],
        *,
        damping: float,
        where: str = "matrix",
    ) -> None:
        scale = float(np.mean(np.diagonal(H)))
        _check_finite(H, T, where)
        if scale <= 0:
            raise NumericsError(
                f"{where}: expected inputs that differ from zero, found none in the data; exclude "
                "the site, or give data that reaches it"
            )
        self._A = H + damping * scale * np.eye(len(H))
        self._B = (T + damping * scale * W.T.astype(np.float64)).T
        self._where = where
        self._factor, failed = lapack.dpotrf(self._A, lower=1)
        if failed:
            lowest = float(np.linalg.eigvalsh(self._A)[0])
            raise NumericsError(
                f"{where}: expected a positive definite H, found the eigenvalue {lowest:.3g} with "
                f"damping {damping:g} of a mean diagonal of {scale:.3g}; raise the damping"
            )

    def repaired(self, kept: BoolArray) -> Float64Array:
        """The kept weights of every row at their least squares, the others exactly zero.

        Args:
            kept: ``[out, in]``, False where a weight is to be zero.

        Returns:
            float64 ``[out, in]``.

        Raises:
            NumericsError: a part of the damped ``H`` is not positive definite.
        """
        repaired = np.zeros(kept.shape)
        count, width = kept.sum(axis=1), kept.shape[1]
        whole = np.flatnonzero(count == width)
        eliminated = np.flatnonzero((count > width - count) & (count < width))
        direct = np.flatnonzero((count <= width - count) & (count > 0))
        if whole.size:
            repaired[whole] = self._full[whole]
        if eliminated.size:
            # Before the threads, which would each work them out.
            inverse, full = self._inverse, self._full

        def eliminate(row: int) -> None:
            removed = np.flatnonzero(~kept[row])
            within = _part(inverse, removed)
            repaired[row, removed] = _solve(within, full[row, removed], self._where)

        def solve(row: int) -> None:
            chosen = np.flatnonzero(kept[row])
            part = _part(self._A, chosen)
            repaired[row, chosen] = _solve(part, self._B[row, chosen], self._where)

        _over_rows(eliminate, eliminated)
        _over_rows(solve, direct)
        if eliminated.size:
            # One product for all rows: what each removed weight moves in the others.
            repaired[eliminated] = full[eliminated] - repaired[eliminated] @ inverse
        repaired[~kept] = 0.0
        return repaired

    def estimated(
        self, kept: BoolArray, start: Float64Array | None = None
    ) -> tuple[Float64Array, int]:
        """About what `repaired` gives, for a fraction of its price where rows lose much.

        Args:
            kept: ``[out, in]``, False where a weight is to be zero.
            start: ``[out, in]``, rows close to those asked for: an estimate with more inputs.

        Returns:
            float64 ``[out, in]``, every row about 2% of its norm from the exact one at most, in the
            norm of the squared error, 0.1 to 0.2% over all rows; and the multiply-adds. Rows that
            do not come as close by iterating are the exact ones.

        Raises:
            NumericsError: a part of the damped ``H`` is not positive definite.
        """
        smaller = np.minimum(kept.sum(axis=1), (~kept).sum(axis=1))
        exact = _FASTER * smaller**3 // 3 <= _PRODUCTS * self._A.size
        iterated = np.flatnonzero(~exact)
        v = np.zeros(kept.shape)
        operations = 0
        if iterated.size:
            v[iterated], reached, operations = conjugate_gradients(
                self._A,
                self._inverse,
                self._B[iterated],
                kept[iterated],
                (self._full if start is None else start)[iterated],
                tolerance=_TOLERANCE,
                most=_ITERATIONS,
            )
            exact[iterated[~reached]] = True
        if exact.any():
            v[exact] = self.repaired(kept & exact[:, None])[exact]
            operations += solve_operations(kept[exact])
        return v, operations

    def saliency(self, v: Float64Array, kept: BoolArray, group: int) -> Float64Array:
        """What the loss of a group would add to half the squared error of its row, about.

        ``rho_Q = 1/2 v_Q^T ([A^-1]_QQ)^-1 v_Q``, where ``v`` is the least squares of the row over
        what it still keeps. With all inputs there this is the increase itself, all other weights
        solved for again (Hassibi and Stork 1993; by rows as in Optimal Brain Compression, equation
        3, where ``v`` are the dense weights; here it already makes up for what the layers before
        have lost). With some of them gone it is below it: ``A_KK^-1``, of each row, would be in
        place of ``A^-1``, at two to three times the price, and chooses no better (docs/pruning.md).

        Args:
            v: ``[out, in]``, from `repaired` or `estimated`.
            kept: ``[out, in]``, False where a weight is gone already.
            group: consecutive inputs that go together; divides ``in``.

        Returns:
            float64 ``[out, in / group]``, not negative; minus infinity where nothing is kept. An
            error of one row is not one of another: weight them before they are compared.
        """
        count = kept.shape[1] // group
        numbers = np.arange(count)
        inverse = self._inverse.reshape(count, group, count, group)[numbers, :, numbers, :]
        cost = removal_cost(inverse[None], v.reshape(-1, count, group))
        alive = kept.reshape(-1, count, group).any(axis=2)
        return np.where(alive, np.maximum(cost, 0.0), -np.inf)

    @cached_property
    def _inverse(self) -> Float64Array:
        lower, _ = lapack.dpotri(self._factor, lower=1)
        lower = np.tril(lower)
        inverse: Float64Array = lower + np.tril(lower, -1).T
        return inverse

    @cached_property
    def _full(self) -> Float64Array:
        """Every row with all its inputs."""
        full: Float64Array = lapack.dpotrs(self._factor, self._B.T, lower=1)[0].T
        return full


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
        dampings: to choose from, as in `RowSystem`.
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
    """Multiply-adds of the factorisations in `RowSystem.repaired`.

    The smaller side of each row, cubed, over 3, and the shared inverse where a row needs it.
    """
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


def _part(matrix: Float64Array, chosen: npt.NDArray[np.intp]) -> Float64Array:
    """Rows and columns ``chosen``. Unlike an index, ``take`` leaves other threads running."""
    part: Float64Array = matrix.take(chosen, axis=0).take(chosen, axis=1)
    return part


def _solve(matrix: Float64Array, rhs: Float64Array, where: str) -> Float64Array:
    # Symmetric, so that its transpose is the same matrix in the order that LAPACK needs no copy of.
    _, solution, failed = lapack.dposv(matrix.T, rhs, lower=1, overwrite_a=1)
    if failed:
        raise NumericsError(
            f"{where}: expected a positive definite H, found a part of "
            f"{len(matrix)} inputs that is not; raise the damping"
        )
    solved: Float64Array = solution
    return solved


def _over_rows(work: Callable[[int], None], rows: npt.NDArray[np.intp]) -> None:
    """``work(row)`` for every row; it writes that row alone, so threads change nothing."""
    places = range(0, rows.size, _ROWS_PER_TASK)

    def some(start: int) -> None:
        for row in rows[start : start + _ROWS_PER_TASK]:
            work(int(row))

    with ThreadPoolExecutor(max_workers=threads()) as pool:
        list(pool.map(some, places))
