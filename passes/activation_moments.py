"""Second moments of the inputs of Linear sites and of what they aim at, over a stream of rows.

For rows ``x`` (input in the pruned model) and ``z`` (what the dense model has there):

    H = sum x^T x,   C = sum x^T z,   s_x = sum x,   s_z = sum z

``z`` is the dense input ``x_d`` where many matrices read it, because ``X^T X_d W^T = C W^T`` serves
them all, or the dense output itself where it is narrower. Sums of several processes add up
(`ActivationMoments.add_up`).
Products are float64: encoders have inputs a thousand times larger than the others, and what float32
rounds off beside them makes H indefinite.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.linalg import blas

__all__ = ["ActivationMoments"]

FloatArray = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

_ROWS = 4096
_ROUNDING = 1e-12
"""Of float32 activations that are equal but for rounding, squared, with room."""


class ActivationMoments:
    """Running sums.

    Args:
        width: features of the input ``x``.
        target_width: features of ``z``.

    Attributes:
        rows: number of rows.
    """

    def __init__(self, width: int, target_width: int) -> None:
        self._H = np.zeros((width, width), order="F")
        self._C = np.zeros((width, target_width))
        self._sum_x = np.zeros(width)
        self._sum_z = np.zeros(target_width)
        self.rows = 0
        self._waiting: list[tuple[FloatArray, FloatArray]] = []

    def add(self, x: FloatArray, z: FloatArray) -> None:
        """Add rows ``x [n, width]`` and ``z [n, target_width]``."""
        self.rows += len(x)
        self._waiting.append((x, z))
        if sum(len(waiting) for waiting, _ in self._waiting) >= _ROWS:
            self._flush()

    def add_up(self, over: Callable[[Float64Array], Float64Array]) -> None:
        """Replace every sum by ``over(sum)``, which adds up those of several processes."""
        self._flush()
        self._H, self._C = np.asfortranarray(over(self._H)), over(self._C)
        self._sum_x, self._sum_z = over(self._sum_x), over(self._sum_z)
        self.rows = int(over(np.array([float(self.rows)]))[0])

    def add_moments(self, other: ActivationMoments) -> None:
        """Add the rows that ``other`` has seen."""
        other._flush()
        self._flush()
        self._H += other._H
        self._C += other._C
        self._sum_x += other._sum_x
        self._sum_z += other._sum_z
        self.rows += other.rows

    def second(self, centred: bool) -> tuple[Float64Array, Float64Array]:
        """``H [width, width]`` and ``C [width, target_width]``.

        Args:
            centred: of the deviations from the means, which is what is left to a site whose bias
                moves too.
        """
        self._flush()
        lower = np.tril(self._H)
        H, C = lower + np.tril(lower, -1).T, self._C.copy()
        if centred:
            H -= np.outer(self._sum_x, self._sum_x) / max(1, self.rows)
            C -= np.outer(self._sum_x, self._sum_z) / max(1, self.rows)
        return H, C

    def means(self) -> tuple[Float64Array, Float64Array]:
        """Mean ``x`` and mean ``z``."""
        self._flush()
        return self._sum_x / max(1, self.rows), self._sum_z / max(1, self.rows)

    @property
    def constant(self) -> bool:
        """Whether no ``x`` varies by more than rounding: then there is nothing to fit but means."""
        H, _ = self.second(centred=False)
        centred, _ = self.second(centred=True)
        return bool(np.trace(centred) <= _ROUNDING * np.trace(H))

    def _flush(self) -> None:
        """Bring rows that wait into the sums."""
        if not self._waiting:
            return
        x, z = (
            np.concatenate(part).astype(np.float64) for part in zip(*self._waiting, strict=True)
        )
        self._waiting.clear()
        # One triangle of X^T X: half the work of the product.
        self._H = blas.dsyrk(1.0, x.T, beta=1.0, c=self._H, lower=1, overwrite_c=1)
        self._C += x.T @ z
        self._sum_x += x.sum(axis=0)
        self._sum_z += z.sum(axis=0)
