"""The learning rate as a function of the share of the training that is done.

oBERT (arXiv 2203.07259, appendix) lets it fall linearly and rewinds it to its start every few
epochs: "a training" here is cut at the rewinds, and every part runs through the whole range.
Because the argument is a share and not a step, the same schedule serves a number of steps and a
budget of time.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["LearningRate"]


@dataclass(frozen=True)
class LearningRate:
    """A schedule.

    Attributes:
        peak: the largest learning rate.
        final: the learning rate at the end of each part, as a share of ``peak``.
        decay: ``linear``, ``cosine`` or ``constant``.
        warmup: share of the training over which it first rises from 0.
        rewinds: shares of the training, between 0 and 1, at which it starts anew.
    """

    peak: float
    final: float = 0.0
    decay: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = 0.0
    rewinds: tuple[float, ...] = ()

    def at(self, done: float) -> float:
        """The learning rate when the share ``done`` (0 to 1) of the training is done."""
        return self.peak * self.factor(done)

    def factor(self, done: float) -> float:
        """The same as a share of ``peak``.

        The part from ``a`` to ``b`` that holds ``done`` falls from 1 at ``a`` to ``final`` at
        ``b``; the first part begins where the warm-up ends.
        """
        done = min(max(done, 0.0), 1.0)
        if done < self.warmup:
            return done / self.warmup
        starts = [self.warmup, *sorted(r for r in self.rewinds if r > self.warmup)]
        part = bisect.bisect_right(starts, done) - 1
        start = starts[part]
        end = starts[part + 1] if part + 1 < len(starts) else 1.0
        way = (done - start) / (end - start) if end > start else 1.0
        if self.decay == "constant":
            return 1.0
        fall = way if self.decay == "linear" else 0.5 * (1 - math.cos(math.pi * way))
        return 1.0 - (1.0 - self.final) * fall
