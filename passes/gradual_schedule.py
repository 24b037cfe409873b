"""The schedule of gradual pruning: which sparsity when, and how a training is cut at the prunings.

oBERT (arXiv 2203.07259, appendix) prunes at equal distances, to sparsities on the cubic curve of
Zhu and Gupta (arXiv 1710.01878, equation 1) whose first value is a large step already. Everything
here is in shares of the whole training, 0 to 1, so that the same schedule serves epochs, steps and
a budget of time. It knows neither graphs nor trainings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

from obert_compiler.passes.training.schedule import LearningRate

__all__ = [
    "Stretch",
    "StretchRate",
    "cubic_sparsities",
    "epochs_of",
    "seconds_left",
    "steps_of",
    "stretches",
]


@dataclass(frozen=True)
class Stretch:
    """Part of a training between prunings.

    Attributes:
        start: share of the training that is done when it begins.
        end: share that is done when it ends.
        prunings: prunings at ``start``, by number from 0; several where no training lies between.
    """

    start: float
    end: float
    prunings: tuple[int, ...] = ()

    @property
    def share(self) -> float:
        """Share of the whole training."""
        return self.end - self.start


@dataclass(frozen=True)
class StretchRate(LearningRate):
    """The learning rate of a whole training, seen from one stretch of it.

    Attributes:
        start: share of the whole that is done when the stretch begins.
        end: share that is done when it ends.
    """

    start: float = 0.0
    end: float = 1.0

    @classmethod
    def of(cls, whole: LearningRate, part: Stretch) -> Self:
        """The learning rate ``whole`` during ``part``."""
        same = {f.name: getattr(whole, f.name) for f in fields(LearningRate)}
        return cls(**same, start=part.start, end=part.end)

    def factor(self, done: float) -> float:
        """As a share of ``peak``, when the share ``done`` of the stretch is done."""
        done = min(max(done, 0.0), 1.0)
        return super().factor(self.start + (self.end - self.start) * done)


def cubic_sparsities(first: float, final: float, count: int) -> list[float]:
    """Sparsities of ``count`` prunings: ``final + (first - final) (1 - t)^3``, t from 0 to 1.

    The first is ``first`` and the last ``final``; a single one is ``final``.
    """
    if count == 1:
        return [final]
    ways = [i / (count - 1) for i in range(count)]
    return [*(final + (first - final) * (1 - t) ** 3 for t in ways[:-1]), final]


def stretches(count: int, start: float, end: float) -> list[Stretch]:
    """Cut a training at ``count`` prunings, equally spaced from ``start`` to ``end``.

    A single pruning is at ``start``. Stretches of no length are left out: where ``start`` is 0
    the first stretch begins with a pruning. What is pruned at the very end has a last stretch of
    no length, because it must be pruned all the same.
    """
    gap = (end - start) / (count - 1) if count > 1 else 0.0
    moments = [start + gap * i for i in range(count)]
    if count > 1:
        moments[-1] = end
    found: list[Stretch] = []
    if moments[0] > 0:
        found.append(Stretch(0.0, moments[0]))
    number = 0
    while number < count:
        same = [n for n in range(number, count) if moments[n] == moments[number]]
        number = same[-1] + 1
        until = moments[number] if number < count else 1.0
        found.append(Stretch(moments[same[0]], until, tuple(same)))
    return found


def steps_of(total: int, parts: Sequence[Stretch]) -> list[int]:
    """Whole optimiser steps of each stretch; they add up to ``total`` and none is short of 1.

    A stretch of no length has 0. Every boundary is the nearest whole step, halves up, and moves on
    where a stretch would have none.

    Raises:
        ValueError: there are more stretches with a length than steps.
    """
    long = [part for part in parts if part.share > 0]
    if len(long) > total:
        raise ValueError(f"{len(long)} stretches and {total} steps")
    ends: list[int] = []
    for left, part in zip(range(len(long) - 1, -1, -1), long, strict=True):
        earlier = ends[-1] if ends else 0
        ends.append(min(max(int(part.end * total + 0.5), earlier + 1), total - left))
    counts = iter(b - a for a, b in zip([0, *ends], ends, strict=False))
    return [next(counts) if part.share > 0 else 0 for part in parts]


def epochs_of(total: float, part: Stretch) -> float:
    """Epochs of a stretch."""
    return total * part.share


def seconds_left(budget: float, used: float, pruning: float, parts: Sequence[Stretch]) -> float:
    """Seconds that the first of ``parts`` may train, out of a budget for all that is left.

    What is left of the budget after the prunings to come is dealt out by the length of the
    stretches. A budget that is used up leaves 0.

    Args:
        budget: seconds for the whole, prunings included.
        used: seconds used so far, the prunings of the first stretch included.
        pruning: seconds that a pruning is expected to take.
        parts: the stretches to come.
    """
    to_come = sum(len(part.prunings) for part in parts[1:])
    share = sum(part.share for part in parts)
    left = max(0.0, budget - used - pruning * to_come)
    return left * parts[0].share / share if share > 0 else 0.0
