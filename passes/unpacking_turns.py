"""Which packed matrices a runtime unpacks together; knows no graph.

ONNX Runtime frees what it unpacked a matrix through only when it has gone over the whole graph, but
it goes over the graph again as long as something changed, at most ten times. Matrices that take
turns find the memory of those before them free: less of it is touched, which also takes less time.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["LEAST_BYTES", "MOST_TURNS", "turns"]

MOST_TURNS = 8
"""Fewer than ten: a runtime has other things to simplify, too, once the weights are there."""

LEAST_BYTES = 4 * 2**20
"""Unpacked bytes that are worth a turn of their own: each takes some milliseconds."""

_SHRINK = 0.8
"""Each turn has that share of the bytes of the one before: what is unpacked already stays."""


def turns(sizes: Sequence[int]) -> list[int]:
    """The turn of each matrix, from 0 on, in their order; large matrices before small ones.

    Memory that a large matrix was unpacked through serves several small ones later, while small
    pieces with weights between them serve no large one.

    Args:
        sizes: bytes of each matrix when it is unpacked.

    Returns:
        One for each matrix; none is left out between 0 and the last.
    """
    total = sum(sizes)
    count = max(1, min(MOST_TURNS, total // LEAST_BYTES, len(sizes)))
    whole = sum(_SHRINK**k for k in range(count))
    chosen = [0] * len(sizes)
    before = 0
    turn, end, empty = 0, total / whole, True
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        # A matrix goes where its middle lies; every turn gets one before the next begins.
        if turn < count - 1 and before + sizes[index] / 2 > end and not empty:
            turn, empty = turn + 1, True
            end += total / whole * _SHRINK**turn
        chosen[index], empty = turn, False
        before += sizes[index]
    return chosen
