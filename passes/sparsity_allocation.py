"""Which groups to remove, given the saliency of each: how sparsity is shared out between matrices.

A group that is pruned already carries the saliency minus infinity: it counts towards the target and
is taken before any other, so pruning further always nests. Ties fall to the earlier matrix and the
earlier group; the same saliencies give the same choice. The target is reached exactly, as the
largest whole number of groups that does not exceed it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

__all__ = [
    "choose_all_but",
    "choose_groups",
    "choose_lowest",
    "choose_n_of_m",
    "choose_uniform",
    "groups_left_by_turn",
    "groups_to_remove",
]

FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]


def groups_to_remove(groups: int, sparsity: float) -> int:
    """``floor(sparsity * groups)``, with ``sparsity`` read as the decimal number it was written as.

    (0.29 * 100 is 28.999... in binary floating point; here it is 29.)
    """
    return int(Fraction(str(sparsity)) * groups)


def choose_all_but(saliency: FloatArray, left: int) -> BoolArray:
    """All groups of one matrix but the ``left`` of highest saliency."""
    return choose_lowest([saliency], saliency.size - left)[0]


def groups_left_by_turn(alive: int, left: int, turns: int) -> list[int]:
    """How many of ``alive`` groups are left after each of ``turns``, ``left`` after the last.

    Every turn removes about the same share of what it finds.
    """
    share = left / alive if alive else 0.0
    return [*(max(left, round(alive * share ** (n / turns))) for n in range(1, turns)), left]


def choose_groups(
    saliencies: Sequence[FloatArray],
    sparsity: float,
    own: Mapping[int, float],
    *,
    uniform: bool = False,
) -> list[BoolArray]:
    """The groups of lowest saliency: ``sparsity`` over all matrices, or another in some of them.

    Args:
        saliencies: one array of any shape per matrix, without NaN.
        sparsity: share of the groups of all matrices that have none of their own.
        own: sparsities of matrices that leave the common ranking, by place in ``saliencies``.
        uniform: the same ``sparsity`` in each matrix in place of one ranking over all of them.

    Returns:
        Masks of the shapes of ``saliencies``, True where chosen.
    """
    masks = {i: choose_uniform([saliencies[i]], share)[0] for i, share in own.items()}
    shared = [i for i in range(len(saliencies)) if i not in own]
    if shared:
        rest = [saliencies[i] for i in shared]
        if uniform:
            chosen = choose_uniform(rest, sparsity)
        else:
            chosen = choose_lowest(rest, groups_to_remove(sum(s.size for s in rest), sparsity))
        masks.update(zip(shared, chosen, strict=True))
    return [masks[i] for i in range(len(saliencies))]


def choose_lowest(saliencies: Sequence[FloatArray], count: int) -> list[BoolArray]:
    """The ``count`` groups of lowest saliency over all matrices (oBERT's global ranking).

    Args:
        saliencies: one array of any shape per matrix, without NaN.
        count: groups to choose in total.

    Returns:
        Masks of the shapes of ``saliencies``, True where chosen.
    """
    flat = np.concatenate([s.reshape(-1) for s in saliencies])
    chosen = np.zeros(flat.size, np.bool_)
    if count > 0:
        threshold = np.partition(flat, count - 1)[count - 1]
        np.less(flat, threshold, out=chosen)
        ties = np.flatnonzero(flat == threshold)
        chosen[ties[: count - int(chosen.sum())]] = True
    ends = np.cumsum([s.size for s in saliencies])
    parts = np.split(chosen, ends[:-1])
    return [part.reshape(s.shape) for part, s in zip(parts, saliencies, strict=True)]


def choose_uniform(saliencies: Sequence[FloatArray], sparsity: float) -> list[BoolArray]:
    """The groups of lowest saliency within each matrix, ``sparsity`` in every one."""
    return [choose_lowest([s], groups_to_remove(s.size, sparsity))[0] for s in saliencies]


def choose_n_of_m(saliency: FloatArray, n: int, m: int) -> BoolArray:
    """All but the ``n`` weights of highest saliency in every ``m`` consecutive inputs.

    Args:
        saliency: ``[out, in]`` of single weights; ``m`` divides ``in``.
        n: weights to keep.
        m: weights to keep them from.

    Returns:
        Mask ``[out, in]``, True where a weight is to go; among equals the earlier input goes.
    """
    grouped = saliency.reshape(saliency.shape[0], -1, m)
    order = np.argsort(grouped, axis=2, kind="stable")
    chosen = np.zeros(grouped.shape, np.bool_)
    np.put_along_axis(chosen, order[:, :, : m - n], True, axis=2)
    return chosen.reshape(saliency.shape)
