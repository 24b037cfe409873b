"""Second moments of the inputs of a Linear site, dense and pruned, summed over a stream of rows.

For rows ``x_p`` (input in the pruned model) and ``x_d`` (the same position in the dense model),
each with a weight ``c``:

    H = sum c x_p^T x_p,  C = sum c x_p^T x_d,  s_p = sum c x_p,  s_d = sum c x_d,  n = sum c

From them `obert_compiler.passes.row_repair` repairs every matrix that reads the input, because
``X_p^T X_d W^T = C W^T``. Sums of several processes add up. Products are float64: encoders have
inputs a thousand times larger than the others, and what float32 rounds off beside them makes H
indefinite.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["ActivationMoments"]

FloatArray = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

_ROWS = 4096


class ActivationMoments:
    """Running sums.

    Args:
        width: features of the input.

    Attributes:
        H: float64 ``[width, width]``.
        C: float64 ``[width, width]``.
        sum_pruned: float64 ``[width]``.
        sum_dense: float64 ``[width]``.
        total: sum of the weights of the rows.
        rows: number of rows.
    """

    def __init__(self, width: int) -> None:
        self.H = np.zeros((width, width))
        self.C = np.zeros((width, width))
        self.sum_pruned = np.zeros(width)
        self.sum_dense = np.zeros(width)
        self.total = 0.0
        self.rows = 0
        self._waiting: list[tuple[FloatArray, FloatArray, FloatArray]] = []

    def add(self, pruned: FloatArray, dense: FloatArray, weights: FloatArray | None = None) -> None:
        """Add rows ``[n, width]`` of both models, and their weights ``[n]`` (1 by default)."""
        if weights is None:
            weights = np.ones(len(pruned), np.float32)
        self.rows += len(pruned)
        self._waiting.append((pruned, dense, weights))
        if sum(len(x) for x, _, _ in self._waiting) >= _ROWS:
            self.flush()

    def flush(self) -> None:
        """Bring rows that wait into the sums."""
        if not self._waiting:
            return
        pruned, dense, weights = (np.concatenate(part) for part in zip(*self._waiting, strict=True))
        self._waiting.clear()
        root = np.sqrt(weights.astype(np.float64))
        left, right = pruned * root[:, None], dense * root[:, None]
        self.H += left.T @ left
        self.C += left.T @ right
        self.sum_pruned += root @ left
        self.sum_dense += root @ right
        self.total += float(root @ root)

    def centred(self) -> tuple[Float64Array, Float64Array]:
        """``H`` and ``C`` of the deviations from the means: what is left to a site with a bias."""
        self.flush()
        n = max(self.total, np.finfo(np.float64).tiny)
        return (
            self.H - np.outer(self.sum_pruned, self.sum_pruned) / n,
            self.C - np.outer(self.sum_pruned, self.sum_dense) / n,
        )

    def means(self) -> tuple[Float64Array, Float64Array]:
        """Mean input of the pruned and of the dense model."""
        self.flush()
        n = max(self.total, np.finfo(np.float64).tiny)
        return self.sum_pruned / n, self.sum_dense / n
