"""Conjugate gradients for many rows at once, each over inputs of its own.

Row ``b`` of ``B`` and its inputs ``K`` ask for ``x_K = A_KK^-1 b_K``. A factorisation for each row
costs ``k^3 / 3`` multiply-adds; here all rows share two products with whole matrices an iteration,
whose results are masked (Hestenes and Stiefel 1952, preconditioned). The preconditioner is the
part ``[A^-1]_KK`` of the inverse of all inputs, which the rows share too. It is exact where nothing
is removed, and as ``(A_KK)^-1 <= [A^-1]_KK``, a preconditioned residual bounds the error it means:

    |x - A_KK^-1 b|_A^2 = r_K^T (A_KK)^-1 r_K <= r_K^T [A^-1]_KK r_K

by far in general, so that iterations end by what the last few have gained (the same paper,
theorem 6:1; Strakos and Tichy 2002): ``|x_i - x|_A^2 - |x_j - x|_A^2`` is the sum of
``alpha r^T z`` from ``i`` to ``j``.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["conjugate_gradients"]

Float64Array = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
T = TypeVar("T", np.float32, np.float64)

_ROWS = 1024
"""Rows that begin together: a bound on memory, about 30 bytes for each of their inputs."""
_LAST, _NEAR = 4, 10
_WORTH_LEAVING = 0.75


def conjugate_gradients(
    A: Float64Array,
    inverse: Float64Array,
    B: Float64Array,
    kept: BoolArray,
    start: Float64Array,
    *,
    tolerance: float,
    most: int,
) -> tuple[Float64Array, BoolArray, int]:
    """Rows ``x`` with ``x A = b`` where they keep inputs, zero elsewhere, about.

    Iterations are float32; what float32 loses is looked at in float64 when they end. But for
    rounding, no row depends on another.

    Args:
        A: symmetric and positive definite, ``[in, in]``.
        inverse: of ``A``.
        B: ``[out, in]``.
        kept: ``[out, in]``, False where a row is zero.
        start: ``[out, in]``, where to begin; what it has at removed inputs is left out.
        tolerance: a row ends when its error, four iterations before, was below it:
            ``|x - exact|_A <= tolerance |x|_A``, about; and for certain below ten times that.
        most: iterations at most.

    Returns:
        The rows, float64; which of them came that far; and the multiply-adds it took.
    """
    single = A.astype(np.float32), inverse.astype(np.float32)
    X = np.where(kept, start, 0.0)
    reached = np.zeros(len(B), bool)
    products = 0
    for first in range(0, len(B), _ROWS):
        rows = np.arange(first, min(first + _ROWS, len(B)))
        b, x, mask = B[rows], X[rows], kept[rows]
        residual = np.where(mask, b - x @ A, 0.0)
        there = _small(residual, inverse, tolerance, x, b)
        reached[rows[there]] = True
        products += 2 * len(rows)
        if there.all():
            continue
        rows, b, x, mask = rows[~there], b[~there], x[~there], mask[~there]
        run = _Iterations(*single, residual[~there], x, b, mask)
        run.go(tolerance, most)
        x += run.moved
        residual = np.where(mask, b - x @ A, 0.0)
        lost: Float64Array = residual - run.residual
        X[rows] = x
        reached[rows] = run.came & _small(lost, inverse, tolerance, x, b)
        reached[rows] &= _small(residual, inverse, _NEAR * tolerance, x, b)
        products += run.products + 3 * len(rows)
    return X, reached, products * A.size


class _Iterations:
    """Of some rows, with what they come to.

    Attributes:
        moved: what to add to ``x``, ``[rows, in]``.
        residual: of that.
        came: rows that ended before the iterations did.
        products: rows times matrices.
    """

    def __init__(
        self,
        A: Float32Array,
        inverse: Float32Array,
        residual: Float64Array,
        x: Float64Array,
        b: Float64Array,
        kept: BoolArray,
    ) -> None:
        self._A, self._inverse = A, inverse
        self._mask, self._b = kept.astype(np.float32), b.astype(np.float32)
        self._energy = _dots(x, b)
        self.residual: Float32Array = residual.astype(np.float32)
        self.moved: Float32Array = np.zeros_like(self.residual)
        self.came = np.zeros(len(b), bool)
        self.products = 0

    def go(self, tolerance: float, most: int) -> None:
        """Iterate; rows leave when they are there."""
        active = np.arange(len(self.came))
        r, mask, b = self.residual.copy(), self._mask, self._b
        moved = np.zeros_like(r)
        z = self._preconditioned(r, mask)
        direction, bound = z, _dots(r, z)
        gains = np.full((len(r), _LAST), np.inf)
        for iteration in range(most):
            product = (direction @ self._A) * mask
            self.products += len(product)
            step = _ratio(bound, _dots(direction, product))
            moved += step * direction
            r -= step * product
            gains[:, iteration % _LAST] = (step * bound)[:, 0]
            energy = np.maximum(self._energy[active] + _dots(moved, b), 0.0)[:, 0]
            z = self._preconditioned(r, mask)
            before, bound = bound, _dots(r, z)
            # Four steps of little gain may also be a plateau: the bound is to be near as well.
            done = gains.sum(axis=1) <= tolerance**2 * energy
            done &= bound[:, 0] <= (_NEAR * tolerance) ** 2 * energy
            direction = z + _ratio(bound, before) * direction
            # A row that is there stays where it is until it is worth while to take it out.
            bound[done], direction[done] = 0, 0
            if done.mean() > 1 - _WORTH_LEAVING or iteration == most - 1:
                self.moved[active], self.residual[active] = moved, r
                self.came[active] = done
                stay = ~done
                active, gains = active[stay], gains[stay]
                r, mask, b, moved = r[stay], mask[stay], b[stay], moved[stay]
                direction, bound = direction[stay], bound[stay]
                if not len(active):
                    return

    def _preconditioned(self, r: Float32Array, mask: Float32Array) -> Float32Array:
        self.products += len(r)
        z: Float32Array = (r @ self._inverse) * mask
        return z


def _small(
    residual: Float64Array,
    inverse: Float64Array,
    tolerance: float,
    x: Float64Array,
    b: Float64Array,
) -> BoolArray:
    """Of each row, whether the tolerance bounds the error that its residual means."""
    bound = _dots(residual, residual @ inverse)
    small: BoolArray = (bound <= tolerance**2 * np.maximum(_dots(x, b), 0.0))[:, 0]
    return small


def _dots(left: npt.NDArray[T], right: npt.NDArray[T]) -> npt.NDArray[T]:
    """``[rows, 1]``."""
    dots: npt.NDArray[T] = np.einsum("ri,ri->r", left, right)[:, None]
    return dots


def _ratio(above: Float32Array, below: Float32Array) -> Float32Array:
    """Zero where ``below`` is not positive: the row is there, or keeps nothing."""
    ratio: Float32Array = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return ratio
