"""Saliency that needs no statistics: the magnitude of groups of weights."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["group_is_pruned", "magnitude_saliency"]


def magnitude_saliency(W: npt.NDArray[np.float32], group: int) -> npt.NDArray[np.float32]:
    """Squared Euclidean norm of each group of ``group`` consecutive inputs.

    Args:
        W: weights ``[out, in]``; ``group`` divides ``in``.
        group: weights per group.

    Returns:
        ``[out, in / group]``.
    """
    grouped = W.reshape(W.shape[0], -1, group)
    norms: npt.NDArray[np.float32] = np.einsum("ogi,ogi->og", grouped, grouped)
    return norms


def group_is_pruned(W: npt.NDArray[np.float32], group: int) -> npt.NDArray[np.bool_]:
    """``[out, in / group]``, True where every weight of the group is zero already."""
    return np.asarray(np.all(W.reshape(W.shape[0], -1, group) == 0, axis=2))
