"""Texts that belong together: the two examples of a row of ``sentence1`` and ``sentence2``.

Such rows are what embeddings are trained on without a teacher: pairs with a score by the error of
their cosine, pairs without one against the other texts of the batch. Both texts of a row have to be
in the same batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from obert_compiler.passes.training.losses import contrastive, cosine_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from obert_compiler.data.batches import Batches

__all__ = ["Pairs", "pairs_of"]

_PART = "part"


@dataclass(frozen=True)
class Pairs:
    """The pairs of a data set.

    Attributes:
        members: indices of the two examples of each row.
        scores: the score of each row, scaled to 0..1 over the data; None where rows have none.
    """

    members: tuple[tuple[int, int], ...]
    scores: tuple[float, ...] | None

    def loss(self, embeddings: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """The loss of the pairs in a batch.

        Args:
            embeddings: ``[b, f]``.
            rows: indices of the examples.
        """
        place = {row: index for index, row in enumerate(rows)}
        inside = [n for n, (a, b) in enumerate(self.members) if a in place and b in place]
        first = embeddings[[place[self.members[n][0]] for n in inside]]
        second = embeddings[[place[self.members[n][1]] for n in inside]]
        if self.scores is None:
            return contrastive(first, second)
        return cosine_error(first, second, torch.tensor([self.scores[n] for n in inside]))


def pairs_of(data: Batches) -> Pairs | None:
    """The pairs of ``data``; None where its examples are no pairs."""
    sides: dict[int, dict[int, int]] = {}
    for index, example in enumerate(data.examples):
        part = example.details.get(_PART)
        if part is None:
            return None
        sides.setdefault(example.row, {})[int(part)] = index
    if any(set(side) != {0, 1} for side in sides.values()):
        return None
    members = tuple((side[0], side[1]) for side in sides.values())
    if not data.has_targets:
        return Pairs(members, None)
    targets = [float(data.examples[first].target) for first, _ in members]
    low, high = min(targets), max(targets)
    if low == high:
        return Pairs(members, None)  # one score for all says that all belong together
    return Pairs(members, tuple((t - low) / (high - low) for t in targets))
