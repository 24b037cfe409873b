"""Which layers to drop, by what dropping them does; knows no graph."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["choose_layers"]


def choose_layers(
    count: int, keep: int, loss: Callable[[tuple[int, ...]], float]
) -> tuple[tuple[int, ...], list[dict[int, float]]]:
    """Drop layers one at a time, each time the one without which the loss is least.

    ``n + (n - 1) + ... + (keep + 1)`` evaluations, where all subsets would be binomial many.

    Args:
        count: number of layers.
        keep: how many stay, 1 to ``count``.
        loss: of the model with these layers, rising indices.

    Returns:
        The layers that stay, and for every round the loss without each layer that was left. Of
        equal losses the later layer goes.
    """
    kept = tuple(range(count))
    rounds: list[dict[int, float]] = []
    while len(kept) > keep:
        without = {i: loss(tuple(j for j in kept if j != i)) for i in kept}
        rounds.append(without)
        dropped = min(reversed(kept), key=lambda i: without[i])
        kept = tuple(j for j in kept if j != dropped)
    return kept, rounds
